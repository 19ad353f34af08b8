"""CLIPVision and ExemplarConditioner <-> diffusers' PaintByExampleImageEncoder (facts 2.4)."""

from exedit.weights import clip
from exedit.weights.tables import SAME, Row, linear, norm, under

BLOCK: list[Row] = [
  *norm('norm1', 'norm1'),
  *linear('attn1.to_q', 'attn.to_q'),
  *linear('attn1.to_k', 'attn.to_k'),
  *linear('attn1.to_v', 'attn.to_v'),
  *linear('attn1.to_out.0', 'attn.to_out'),
  *norm('norm3', 'norm2'),  # their norm2 belongs to a cross-attention that is not there
  *linear('ff.net.0.proj', 'fc1'),
  *linear('ff.net.2', 'fc2'),
]

TABLE: list[Row] = [
  *under('mapper.blocks.{i}.', 'mapper.{i}.', BLOCK),
  *norm('final_layer_norm', 'final_norm'),
  *linear('proj_out', 'proj_out'),
  ('uncond_vector', 'null', SAME),
]

# The folder image_encoder/ of the diffusers layout holds both networks.
IMAGE_ENCODER: list[Row] = [
  *under('model.', 'clip.', clip.TABLE),
  *under('', 'conditioner.', TABLE),
]
