"""CLIPVision <-> transformers' CLIPVisionModel, with or without its `vision_model.` level."""

from exedit.weights.translate import CONV, SAME, Row, block, norm, under

LAYER: list[Row] = block(
  'layer_norm1',
  [f'self_attn.{letter}_proj' for letter in 'qkv'],
  'self_attn.out_proj',
  'layer_norm2',
  'mlp.fc1',
  'mlp.fc2',
)

# transformers 5 writes no `vision_model.`; earlier versions did.
TABLE: list[Row] = under(
  '[vision_model.|]',
  '',
  [
    ('embeddings.class_embedding', 'class_embedding', SAME),
    ('embeddings.patch_embedding.weight', 'patch_embedding.kernel', CONV),
    ('embeddings.position_embedding.weight', 'position_embedding', SAME),
    ('embeddings.position_ids', None, SAME),  # 0, 1, 2, ...: a buffer of old files
    *norm('pre_layrnorm', 'pre_norm'),  # so spelt
    *under('encoder.layers.{i}.', 'layers.{i}.', LAYER),
    *norm('post_layernorm', 'post_norm'),
  ],
)
