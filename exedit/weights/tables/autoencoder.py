"""AutoencoderKL <-> diffusers' AutoencoderKL, in its old and new spelling, and LDM's."""

from exedit.weights.translate import CONV1X1, Row, conv, linear, norm, resnet


def _half(side: str, levels: str) -> list[Row]:
  """Returns the rows of the encoder (levels 'down') or the decoder ('up')."""
  theirs, ours = f'{side}.{levels}_blocks.{{i}}', f'{side}.{levels}.{{i}}'
  resize = '.resize' if levels == 'down' else '.resize.conv'
  attention = f'{side}.mid_block.attentions.0'
  return [
    *conv(f'{side}.conv_in', f'{side}.conv_in'),
    *resnet(f'{theirs}.resnets.{{j}}', f'{ours}.resnets.{{j}}'),
    *conv(f'{theirs}.{levels}samplers.0.conv', ours + resize),
    *resnet(f'{side}.mid_block.resnets.0', f'{side}.mid.res1'),
    *norm(f'{attention}.group_norm', f'{side}.mid.norm'),
    *linear(f'{attention}.[to_q|query]', f'{side}.mid.attn.to_q'),
    *linear(f'{attention}.[to_k|key]', f'{side}.mid.attn.to_k'),
    *linear(f'{attention}.[to_v|value]', f'{side}.mid.attn.to_v'),
    *linear(f'{attention}.[to_out.0|proj_attn]', f'{side}.mid.attn.to_out'),
    *resnet(f'{side}.mid_block.resnets.1', f'{side}.mid.res2'),
    *norm(f'{side}.conv_norm_out', f'{side}.norm_out'),
    *conv(f'{side}.conv_out', f'{side}.conv_out'),
  ]


# The released files name the attention query, key, value, proj_attn; diffusers now writes to_q, ...
TABLE: list[Row] = [
  *_half('encoder', 'down'),
  *conv('quant_conv', 'quant_conv'),
  *conv('post_quant_conv', 'post_quant_conv'),
  *_half('decoder', 'up'),
]


def original(levels: int) -> list[Row]:
  """Returns the table of LDM's AutoencoderKL; its decoder numbers levels from fine to coarse."""
  rows = [*conv('quant_conv', 'quant_conv'), *conv('post_quant_conv', 'post_quant_conv')]
  for side in ('encoder', 'decoder'):
    mid = f'{side}.mid.'
    rows += [
      *conv(f'{side}.conv_in', f'{side}.conv_in'),
      *_original_resnet(mid + 'block_1', mid + 'res1'),
      *norm(mid + 'attn_1.norm', mid + 'norm'),
      *linear(mid + 'attn_1.q', mid + 'attn.to_q', CONV1X1),
      *linear(mid + 'attn_1.k', mid + 'attn.to_k', CONV1X1),
      *linear(mid + 'attn_1.v', mid + 'attn.to_v', CONV1X1),
      *linear(mid + 'attn_1.proj_out', mid + 'attn.to_out', CONV1X1),
      *_original_resnet(mid + 'block_2', mid + 'res2'),
      *norm(f'{side}.norm_out', f'{side}.norm_out'),
      *conv(f'{side}.conv_out', f'{side}.conv_out'),
    ]
  for i in range(levels):
    down, up = f'encoder.down.{i}', f'decoder.up.{levels - 1 - i}'
    rows += [
      *_original_resnet(down + '.block.{j}', down + '.resnets.{j}'),
      *conv(down + '.downsample.conv', down + '.resize'),
      *_original_resnet(up + '.block.{j}', f'decoder.up.{i}.resnets.{{j}}'),
      *conv(up + '.upsample.conv', f'decoder.up.{i}.resize.conv'),
    ]
  return rows


def _original_resnet(theirs: str, ours: str) -> list[Row]:
  return [
    *norm(f'{theirs}.norm1', f'{ours}.norm1'),
    *conv(f'{theirs}.conv1', f'{ours}.conv1'),
    *norm(f'{theirs}.norm2', f'{ours}.norm2'),
    *conv(f'{theirs}.conv2', f'{ours}.conv2'),
    *conv(f'{theirs}.nin_shortcut', f'{ours}.shortcut'),
  ]
