"""CLIPImageEncoder <-> transformers' CLIP models with projection, and OpenAI's own state dict."""

from exedit.weights.tables import clip
from exedit.weights.translate import CONV, LINEAR, SAME, Row, ignored, linear, norm, under

TEXT = ('text_model.*', 'text_projection*', 'logit_scale')  # the text tower of CLIPModel

TRANSFORMERS: list[Row] = [
  *under('', 'vision.', clip.TABLE),
  *linear('visual_projection', 'projection', bias=False),
  *ignored(*TEXT),
]

_PROJECTIONS = ('to_q', 'to_k', 'to_v')  # one tensor in OpenAI's files, in this order

RESBLOCK: list[Row] = [
  *norm('ln_1', 'norm1'),
  *(
    row
    for i, ours in enumerate(_PROJECTIONS)
    for row in (
      ('attn.in_proj_weight', f'attn.{ours}.kernel', LINEAR._replace(part=i, parts=3)),
      ('attn.in_proj_bias', f'attn.{ours}.bias', SAME._replace(part=i, parts=3)),
    )
  ),
  *linear('attn.out_proj', 'attn.to_out'),
  *norm('ln_2', 'norm2'),
  *linear('mlp.c_fc', 'fc1'),
  *linear('mlp.c_proj', 'fc2'),
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
