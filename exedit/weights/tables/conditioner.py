"""CLIPVision and ExemplarConditioner <-> diffusers' and the original's exemplar encoder.

diffusers: PaintByExampleImageEncoder. The original: FrozenCLIPImageEmbedder, and two parameters of
LatentDiffusion. See docs/facts.md, Weight layouts.
"""

from exedit.weights.tables import clip
from exedit.weights.translate import SAME, Row, block, linear, norm, under

# diffusers' norm2 belongs to a cross-attention that is missing.
BLOCK: list[Row] = block(
  'norm1',
  [f'attn1.to_{letter}' for letter in 'qkv'],
  'attn1.to_out.0',
  'norm3',
  'ff.net.0.proj',
  'ff.net.2',
)

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

ORIGINAL_BLOCK: list[Row] = block(
  'ln_1', 'attn.c_qkv', 'attn.c_proj', 'ln_2', 'mlp.c_fc', 'mlp.c_proj'
)

# Both networks in the original's checkpoint; the last two rows are LatentDiffusion's.
ORIGINAL: list[Row] = [
  *under('cond_stage_model.transformer.', 'clip.', clip.TABLE),
  *under('cond_stage_model.mapper.resblocks.{i}.', 'conditioner.mapper.{i}.', ORIGINAL_BLOCK),
  *norm('cond_stage_model.final_ln', 'conditioner.final_norm'),
  *linear('proj_out', 'conditioner.proj_out'),
  ('learnable_vector', 'conditioner.null', SAME),
]
