"""CLIPImageEncoder <-> transformers' CLIP models with projection, and OpenAI's own state dict."""

from exedit.weights.tables import clip
from exedit.weights.translate import CONV, SAME, Row, block, ignored, linear, norm, under

TEXT = ('text_model.*', 'text_projection*', 'logit_scale')  # the text tower of CLIPModel

TRANSFORMERS: list[Row] = [
  *under('', 'vision.', clip.TABLE),
  *linear('visual_projection', 'projection', bias=False),
  *ignored(*TEXT),
]

RESBLOCK: list[Row] = [
  (theirs.replace('in_proj.', 'in_proj_'), ours, transform)
  for theirs, ours, transform in block(
    'ln_1', 'attn.in_proj', 'attn.out_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj'
  )
]

# OpenAI's clip/model.py VisionTransformer; open_clip uses the same names.
OPENAI: list[Row] = [
  *under(
    'visual.',
    'vision.',
    [
      ('class_embedding', 'class_embedding', SAME),
      ('conv1.weight', 'patch_embedding.kernel', CONV),
      ('positional_embedding', 'position_embedding', SAME),
      *norm('ln_pre', 'pre_norm'),
      *under('transformer.resblocks.{i}.', 'layers.{i}.', RESBLOCK),
      *norm('ln_post', 'post_norm'),
    ],
  ),
  ('visual.proj', 'projection.kernel', SAME),  # [width dim], as in exedit
  *ignored(
    'transformer.*',  # the text tower
    'ln_final.*',
    'token_embedding.*',
    'positional_embedding',
    'text_projection',
    'logit_scale',
    'input_resolution',  # three numbers in OpenAI's state dict
    'context_length',
    'vocab_size',
  ),
]
