"""CLIPText <-> transformers' CLIPTextModel, with or without its `text_model.` level."""

from exedit.weights.tables import clip, clip_image
from exedit.weights.translate import SAME, Row, ignored, linear, norm, under

# transformers 5 writes no `text_model.`; earlier versions and LDM's checkpoints did.
TABLE: list[Row] = under(
  '[text_model.|]',
  '',
  [
    ('embeddings.token_embedding.weight', 'token_embedding', SAME),
    ('embeddings.position_embedding.weight', 'position_embedding', SAME),
    ('embeddings.position_ids', None, SAME),  # 0, 1, 2, ...: a buffer of old files
    *under('encoder.layers.{i}.', 'layers.{i}.', clip.LAYER),
    *norm('final_layer_norm', 'final_norm'),
  ],
)

# CLIPTextEncoder: the same with its projection, as CLIPModel and CLIPTextModelWithProjection have.
TRANSFORMERS: list[Row] = [
  *under('', 'text.', TABLE),
  *linear('text_projection', 'projection', bias=False),
  *ignored('vision_model.*', 'visual_projection*', 'logit_scale'),
]

# OpenAI's clip/model.py CLIP; open_clip uses the same names.
OPENAI: list[Row] = [
  ('token_embedding.weight', 'text.token_embedding', SAME),
  ('positional_embedding', 'text.position_embedding', SAME),
  *under('transformer.resblocks.{i}.', 'text.layers.{i}.', clip_image.RESBLOCK),
  *norm('ln_final', 'text.final_norm'),
  ('text_projection', 'projection.kernel', SAME),  # [width dim], as in exedit
  *ignored('visual.*', 'logit_scale', 'input_resolution', 'context_length', 'vocab_size'),
]
