"""CLIPVision and ExemplarConditioner <-> diffusers' and the original's exemplar encoder.

diffusers: PaintByExampleImageEncoder. The original: FrozenCLIPImageEmbedder, and two parameters of
LatentDiffusion. See docs/facts.md, Weight layouts.
"""

from exedit.weights.tables import clip
from exedit.weights.translate import SAME, Row, fused, linear, norm, under

BLOCK: list[Row] = [
  *norm('norm1', 'norm1'),
  *linear('attn1.to_q', 'attn.to_q'),
  *linear('attn1.to_k', 'attn.to_k'),
  *linear('attn1.to_v', 'attn.to_v'),
  *linear('attn1.to_out.0', 'attn.to_out'),
  *norm('norm3', 'norm2'),  # diffusers' norm2 belongs to a cross-attention that is missing
  *linear('ff.net.0.proj', 'fc1'),
  *linear('ff.net.2', 'fc2'),
]

TABLE: list[Row] = [
  *under('mapper.blocks.{i}.', 'mapper.{i}.', BLOCK),
  *norm('final_layer_norm', 'final_norm'),
  *linear('proj_out', 'proj_out'),
  ('uncond_vector', 'null', SAME),
]

# The folder image_encoder/ of the diffusers layout has both networks.
IMAGE_ENCODER: list[Row] = [
  *under('model.', 'clip.', clip.TABLE),
  *under('', 'conditioner.', TABLE),
]

ORIGINAL_BLOCK: list[Row] = [
  *norm('ln_1', 'norm1'),
  *fused('attn.c_qkv', ('attn.to_q', 'attn.to_k', 'attn.to_v')),
  *linear('attn.c_proj', 'attn.to_out'),
  *norm('ln_2', 'norm2'),
  *linear('mlp.c_fc', 'fc1'),
  *linear('mlp.c_proj', 'fc2'),
]

# Both networks in the original's checkpoint; the last two rows are LatentDiffusion's.
ORIGINAL: list[Row] = [
  *under('cond_stage_model.transformer.', 'clip.', clip.TABLE),
  *under('cond_stage_model.mapper.resblocks.{i}.', 'conditioner.mapper.{i}.', ORIGINAL_BLOCK),
  *norm('cond_stage_model.final_ln', 'conditioner.final_norm'),
  *linear('proj_out', 'conditioner.proj_out'),
  ('learnable_vector', 'conditioner.null', SAME),
]
