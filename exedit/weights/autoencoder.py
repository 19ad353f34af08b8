"""AutoencoderKL <-> diffusers' AutoencoderKL, its attention in the old spelling or the new."""

from exedit.weights.tables import Row, conv, linear, norm, resnet


def _half(side: str, levels: str) -> list[Row]:
  """The rows of the encoder (levels 'down') or the decoder ('up'), in the order of computing."""
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


# The released files spell the attention query, key, value, proj_attn; diffusers now writes to_q...
TABLE: list[Row] = [
  *_half('encoder', 'down'),
  *conv('quant_conv', 'quant_conv'),
  *conv('post_quant_conv', 'post_quant_conv'),
  *_half('decoder', 'up'),
]
