"""DINO <-> the files of transformers' ViTModel, and the state dict of the original code."""

from exedit.weights.translate import Row, Transform, conv, fused, ignored, linear, norm, under

ATTENTION = ('attn.to_q', 'attn.to_k', 'attn.to_v')
TOKEN = Transform(lambda x: x.reshape(x.shape[-1]), lambda x: x[None, None])  # [1 1 w], [w]
POSITIONS = Transform(lambda x: x[0], lambda x: x[None])  # [1 n w], [n w]

LAYER: list[Row] = [
  *norm('layernorm_before', 'norm1'),
  *linear('attention.attention.query', 'attn.to_q'),
  *linear('attention.attention.key', 'attn.to_k'),
  *linear('attention.attention.value', 'attn.to_v'),
  *linear('attention.output.dense', 'attn.to_out'),
  *norm('layernorm_after', 'norm2'),
  *linear('intermediate.dense', 'fc1'),
  *linear('output.dense', 'fc2'),
]

# transformers 5 writes these names, although its modules have others.
TRANSFORMERS: list[Row] = [
  ('embeddings.cls_token', 'class_embedding', TOKEN),
  ('embeddings.position_embeddings', 'position_embedding', POSITIONS),
  *conv('embeddings.patch_embeddings.projection', 'patch_embedding'),
  *under('encoder.layer.{i}.', 'layers.{i}.', LAYER),
  *norm('layernorm', 'norm'),
  *ignored('pooler.dense.weight', 'pooler.dense.bias'),  # DINO itself has no pooler
]

BLOCK: list[Row] = [
  *norm('norm1', 'norm1'),
  *fused('attn.qkv', ATTENTION),
  *linear('attn.proj', 'attn.to_out'),
  *norm('norm2', 'norm2'),
  *linear('mlp.fc1', 'fc1'),
  *linear('mlp.fc2', 'fc2'),
]

# DINO's vision_transformer.py, with timm's names: dino_deitsmall16_pretrain.pth.
ORIGINAL: list[Row] = [
  ('cls_token', 'class_embedding', TOKEN),
  ('pos_embed', 'position_embedding', POSITIONS),
  *conv('patch_embed.proj', 'patch_embedding'),
  *under('blocks.{i}.', 'layers.{i}.', BLOCK),
  *norm('norm', 'norm'),
]
