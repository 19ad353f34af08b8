"""UNet <-> diffusers' UNet2DConditionModel of Stable Diffusion 1.x (facts 2.4)."""

from exedit.weights.tables import CONV1X1, Row, conv, linear, norm, resnet, under


def _attention(name: str) -> list[Row]:
  return [
    *linear(f'transformer_blocks.0.{name}.to_q', f'{name}.to_q', bias=False),
    *linear(f'transformer_blocks.0.{name}.to_k', f'{name}.to_k', bias=False),
    *linear(f'transformer_blocks.0.{name}.to_v', f'{name}.to_v', bias=False),
    *linear(f'transformer_blocks.0.{name}.to_out.0', f'{name}.to_out'),
  ]


TRANSFORMER: list[Row] = [
  *norm('norm', 'norm'),
  *linear('proj_in', 'proj_in', CONV1X1),
  *norm('transformer_blocks.0.norm1', 'norm1'),
  *_attention('attn1'),
  *norm('transformer_blocks.0.norm2', 'norm2'),
  *_attention('attn2'),
  *norm('transformer_blocks.0.norm3', 'norm3'),
  *linear('transformer_blocks.0.ff.net.0.proj', 'ff.proj'),
  *linear('transformer_blocks.0.ff.net.2', 'ff.out'),
  *linear('proj_out', 'proj_out', CONV1X1),
]


def _levels(side: str) -> list[Row]:
  """The rows of all levels on the way 'down' or 'up', in the order of computing."""
  theirs, ours = f'{side}_blocks.{{i}}.', f'{side}.{{i}}.'
  return [
    *resnet(theirs + 'resnets.{j}', ours + 'resnets.{j}'),
    *under(theirs + 'attentions.{j}.', ours + 'attentions.{j}.', TRANSFORMER),
    *conv(f'{theirs}{side}samplers.0.conv', f'{ours}resize.conv'),
  ]


TABLE: list[Row] = [
  *linear('time_embedding.linear_1', 'time1'),
  *linear('time_embedding.linear_2', 'time2'),
  *conv('conv_in', 'conv_in'),
  *_levels('down'),
  *resnet('mid_block.resnets.0', 'mid1'),
  *under('mid_block.attentions.0.', 'mid_attention.', TRANSFORMER),
  *resnet('mid_block.resnets.1', 'mid2'),
  *_levels('up'),
  *norm('conv_norm_out', 'norm_out'),
  *conv('conv_out', 'conv_out'),
]
