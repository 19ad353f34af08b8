"""DINO <-> the files of transformers' ViTModel, and the state dict of the original code."""

from exedit.weights.translate import Row, Transform, block, conv, ignored, norm, under

TOKEN = Transform(lambda x: x.reshape(x.shape[-1]), lambda x: x[None, None])  # [1 1 w], [w]
POSITIONS = Transform(lambda x: x[0], lambda x: x[None])  # [1 n w], [n w]

LAYER: list[Row] = block(
  'layernorm_before',
  [f'attention.attention.{name}' for name in ('query', 'key', 'value')],
  'attention.output.dense',
  'layernorm_after',
  'intermediate.dense',
  'output.dense',
)

# transformers 5 writes these names, although its modules have others.
TRANSFORMERS: list[Row] = [
  ('embeddings.cls_token', 'class_embedding', TOKEN),
  ('embeddings.position_embeddings', 'position_embedding', POSITIONS),
  *conv('embeddings.patch_embeddings.projection', 'patch_embedding'),
  *under('encoder.layer.{i}.', 'layers.{i}.', LAYER),
  *norm('layernorm', 'norm'),
  *ignored('pooler.dense.weight', 'pooler.dense.bias'),  # DINO itself has no pooler
]

BLOCK: list[Row] = block('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')

# DINO's vision_transformer.py, with timm's names: dino_deitsmall16_pretrain.pth.
ORIGINAL: list[Row] = [
  ('cls_token', 'class_embedding', TOKEN),
  ('pos_embed', 'position_embedding', POSITIONS),
  *conv('patch_embed.proj', 'patch_embedding'),
  *under('blocks.{i}.', 'layers.{i}.', BLOCK),
  *norm('norm', 'norm'),
]
