"""CLIPVision <-> transformers' CLIPVisionModel, with or without its `vision_model.` level."""

from exedit.weights.translate import CONV, SAME, Row, linear, norm, under

LAYER: list[Row] = [
  *norm('layer_norm1', 'norm1'),
  *linear('self_attn.q_proj', 'attn.to_q'),
  *linear('self_attn.k_proj', 'attn.to_k'),
  *linear('self_attn.v_proj', 'attn.to_v'),
  *linear('self_attn.out_proj', 'attn.to_out'),
  *norm('layer_norm2', 'norm2'),
  *linear('mlp.fc1', 'fc1'),
  *linear('mlp.fc2', 'fc2'),
]

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
