"""AutoencoderKL <-> diffusers' AutoencoderKL, in its old and new spelling, and LDM's."""

import functools
from collections.abc import Sequence

from exedit.weights.translate import CONV1X1, LINEAR, Row, conv, linear, norm, resnet, under

_ldm_resnet = functools.partial(resnet, shortcut='nin_shortcut')


def _outside(
  res1: str,
  norm1: str,
  attention: Sequence[str],
  res2: str,
  norm_out: str,
  resnet=resnet,
  transform=LINEAR,
) -> list[Row]:
  """Returns the rows of all layers outside the levels, by their names."""
  ours = ('mid.attn.to_q', 'mid.attn.to_k', 'mid.attn.to_v', 'mid.attn.to_out')
  half = [
    *conv('conv_in', 'conv_in'),
    *resnet(res1, 'mid.res1'),
    *norm(norm1, 'mid.norm'),
    *(row for names in zip(attention, ours) for row in linear(*names, transform)),
    *resnet(res2, 'mid.res2'),
    *norm(norm_out, 'norm_out'),
    *conv('conv_out', 'conv_out'),
  ]
  halves = [row for side in ('encoder.', 'decoder.') for row in under(side, side, half)]
  return [*halves, *conv('quant_conv', 'quant_conv'), *conv('post_quant_conv', 'post_quant_conv')]


# The released files name the attention query, key, value, proj_attn; diffusers now writes to_q, ...
_ATTENTION = ('[to_q|query]', '[to_k|key]', '[to_v|value]', '[to_out.0|proj_attn]')
TABLE: list[Row] = [
  *_outside(
    'mid_block.resnets.0',
    'mid_block.attentions.0.group_norm',
    [f'mid_block.attentions.0.{name}' for name in _ATTENTION],
    'mid_block.resnets.1',
    'conv_norm_out',
  ),
  *resnet('encoder.down_blocks.{i}.resnets.{j}', 'encoder.down.{i}.resnets.{j}'),
  *conv('encoder.down_blocks.{i}.downsamplers.0.conv', 'encoder.down.{i}.resize'),
  *resnet('decoder.up_blocks.{i}.resnets.{j}', 'decoder.up.{i}.resnets.{j}'),
  *conv('decoder.up_blocks.{i}.upsamplers.0.conv', 'decoder.up.{i}.resize.conv'),
]


def original(levels: int) -> list[Row]:
  """Returns the table of LDM's AutoencoderKL; its decoder numbers levels from fine to coarse."""
  attention = [f'mid.attn_1.{name}' for name in ('q', 'k', 'v', 'proj_out')]
  names = ('mid.block_1', 'mid.attn_1.norm', attention, 'mid.block_2', 'norm_out')
  rows = _outside(*names, _ldm_resnet, CONV1X1)
  for i in range(levels):
    down, up = f'encoder.down.{i}', f'decoder.up.{levels - 1 - i}'
    rows += [
      *_ldm_resnet(down + '.block.{j}', down + '.resnets.{j}'),
      *conv(down + '.downsample.conv', down + '.resize'),
      *_ldm_resnet(up + '.block.{j}', f'decoder.up.{i}.resnets.{{j}}'),
      *conv(up + '.upsample.conv', f'decoder.up.{i}.resize.conv'),
    ]
  return rows
