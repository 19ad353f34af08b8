"""UNet <-> Stable Diffusion 1.x: diffusers' UNet2DConditionModel and LDM's UNetModel.

See docs/facts.md, Weight layouts.
"""

import functools
from collections.abc import Sequence

from exedit.weights.translate import CONV1X1, Row, conv, linear, norm, resnet, under


def _attention(name: str) -> list[Row]:
  rows = [row for part in ('to_q', 'to_k', 'to_v') for row in linear(part, part, bias=False)]
  return under(f'transformer_blocks.0.{name}.', f'{name}.', [*rows, *linear('to_out.0', 'to_out')])


# Both layouts use the same names inside a transformer.
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
  """Returns the rows of all levels of one side, 'down' or 'up'."""
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


_resnet = functools.partial(
  resnet,
  norm1='in_layers.0',
  conv1='in_layers.2',
  time_proj='emb_layers.1',
  norm2='out_layers.0',
  conv2='out_layers.3',
  shortcut='skip_connection',
)


def original(levels: int, layers: int, attention_levels: Sequence[int]) -> list[Row]:
  """Returns the table of LDM's UNetModel, which numbers its blocks through all levels.

  Block 0 is conv_in. Then each level has one number per layer and one for its Downsample. On the
  up side, the Upsample is the last module of the level's last block, behind the attention if any.
  """
  rows = [
    *linear('time_embed.0', 'time1'),
    *linear('time_embed.2', 'time2'),
    *conv('input_blocks.0.0', 'conv_in'),
    *_resnet('middle_block.0', 'mid1'),
    *under('middle_block.1.', 'mid_attention.', TRANSFORMER),
    *_resnet('middle_block.2', 'mid2'),
    *norm('out.0', 'norm_out'),
    *conv('out.2', 'conv_out'),
  ]
  for i in range(levels):
    for j in range(layers):
      block = f'input_blocks.{1 + i * (layers + 1) + j}'
      rows += _resnet(f'{block}.0', f'down.{i}.resnets.{j}')
      if i in attention_levels:
        rows += under(f'{block}.1.', f'down.{i}.attentions.{j}.', TRANSFORMER)
    if i < levels - 1:
      rows += conv(f'input_blocks.{(i + 1) * (layers + 1)}.0.op', f'down.{i}.resize.conv')
  for i in range(levels):  # from coarse to fine
    attend = levels - 1 - i in attention_levels
    for j in range(layers + 1):
      block = f'output_blocks.{i * (layers + 1) + j}'
      rows += _resnet(f'{block}.0', f'up.{i}.resnets.{j}')
      if attend:
        rows += under(f'{block}.1.', f'up.{i}.attentions.{j}.', TRANSFORMER)
    if i < levels - 1:
      last = f'output_blocks.{i * (layers + 1) + layers}'
      rows += conv(f'{last}.{2 if attend else 1}.conv', f'up.{i}.resize.conv')
  return rows
