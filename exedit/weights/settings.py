"""The config files of diffusers and transformers <-> the settings of our networks.

Every setting of theirs is read, ignored by name, or at the value that our networks implement;
anything else is refused, for it would be another network with the same tensors.
"""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from exedit.runtime.errors import UserError

LARGEST = 2**20  # of a number that is not in MOST
MOST = dict(layers_per_block=64, num_hidden_layers=512, layers=512, image_size=1024)
SIZES = dict(size=4096, exemplar_size=4096)  # in pixels, at most: what an edit allocates grows so
NUMBERS = ('scale', 'mean', 'beta_start', 'beta_end')  # our settings that are real numbers
FLOAT32 = 3.4e38  # at most
LEVELS = 16  # at most
WHOLE = (  # our settings that are positive whole numbers
  *('channels', 'layers', 'heads', 'groups', 'z_channels', 'width', 'mlp', 'patch', 'image_size'),
  'num_steps',
)
PREDICTIONS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x0'}
SAMPLERS = {'DDIMScheduler': 'ddim', 'DPMSolverMultistepScheduler': 'dpm_solver_pp'}
ATTEND, PLAIN = 'CrossAttn{}Block2D', '{}Block2D'  # a UNet's levels with attention and without


class Known(NamedTuple):
  """What is known of one class's settings.

  read: those that are used, with the class's defaults. implemented: the values that we have, the
  class's default first. ignored: of no effect on what the network computes. strict: whether a
  setting that is in none of the three is refused (where it is not None or False).
  """

  read: Mapping[str, Any]
  implemented: Mapping[str, tuple]
  ignored: Sequence[str] = ()
  strict: bool = True


UNET = Known(
  read=dict(
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280, 1280),
    layers_per_block=2,
    attention_head_dim=8,
    num_attention_heads=None,
    cross_attention_dim=1280,
    norm_num_groups=32,
    down_block_types=[*[ATTEND.format('Down')] * 3, PLAIN.format('Down')],
    up_block_types=[PLAIN.format('Up'), *[ATTEND.format('Up')] * 3],
    sample_size=None,
  ),
  implemented=dict(
    act_fn=('silu', 'swish'),
    norm_eps=(1e-5,),
    center_input_sample=(False,),
    flip_sin_to_cos=(True,),
    freq_shift=(0,),
    mid_block_type=('UNetMidBlock2DCrossAttn',),
    only_cross_attention=(False,),
    mid_block_only_cross_attention=(None, False),
    downsample_padding=(1,),
    mid_block_scale_factor=(1,),
    transformer_layers_per_block=(1,),
    use_linear_projection=(False,),
    resnet_time_scale_shift=('default',),
    resnet_out_scale_factor=(1,),
    time_embedding_type=('positional',),
    conv_in_kernel=(3,),
    conv_out_kernel=(3,),
    attention_type=('default',),
  ),
  ignored=('dropout', 'upcast_attention', 'addition_embed_type_num_heads'),
)
AUTOENCODER = Known(
  read=dict(
    block_out_channels=(64,),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=32,
    scaling_factor=0.18215,
  ),
  implemented=dict(
    in_channels=(3,),
    out_channels=(3,),
    act_fn=('silu', 'swish'),
    down_block_types=('DownEncoderBlock2D',),
    up_block_types=('UpDecoderBlock2D',),
    use_quant_conv=(True,),
    use_post_quant_conv=(True,),
    mid_block_add_attention=(True,),
  ),
  ignored=('sample_size', 'force_upcast'),
)
CLIP = Known(
  read=dict(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=224,
    patch_size=32,
  ),
  implemented=dict(hidden_act=('quick_gelu',), layer_norm_eps=(1e-5,), num_channels=(3,)),
  strict=False,  # dozens of settings of transformers' base class
)
SCHEDULER = Known(
  read=dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type='epsilon'),
  implemented=dict(
    beta_schedule=('linear', 'scaled_linear'),
    trained_betas=(None,),
    rescale_betas_zero_snr=(False,),
  ),
  strict=False,  # the rest says how to sample, which is the person's choice
)
LDM_UNET = Known(  # openaimodel.py UNetModel; sizes are read from the shapes
  read=dict(num_heads=-1),
  implemented=dict(
    num_head_channels=(-1,),
    use_spatial_transformer=(True,),
    transformer_depth=(1,),
    conv_resample=(True,),
    dims=(2,),
    num_heads_upsample=(-1,),
  ),
  ignored=(
    'image_size',
    'in_channels',
    'out_channels',
    'model_channels',
    'attention_resolutions',
    'num_res_blocks',
    'channel_mult',
    'context_dim',
    'dropout',
    'use_checkpoint',
    'use_fp16',
    'legacy',  # of effect only on attention that is not a spatial transformer's
  ),
)
LDM_AUTOENCODER = Known(  # model.py Encoder and Decoder
  read={},
  implemented=dict(
    double_z=(True,),
    in_channels=(3,),
    out_ch=(3,),
    attn_resolutions=([],),
    resamp_with_conv=(True,),
    attn_type=('vanilla',),
  ),
  ignored=('z_channels', 'resolution', 'ch', 'ch_mult', 'num_res_blocks', 'dropout'),
)


def values(known: Known, config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The settings that are read, those that are absent at their defaults.

  Raises:
    UserError: naming a setting, its value and what is implemented.
  """
  for name, value in config.items():
    allowed = known.implemented.get(name)
    if name.startswith('_') or name in known.read or name in known.ignored:
      continue
    if allowed is not None and not any(_uniform(value) == each for each in allowed):
      raise UserError(
        f'{where}: {name} is {shown(value)}, and exedit implements {_either(allowed)}: this is '
        'another network than Paint by Example and Stable Diffusion 1.x have'
      )
    if allowed is None and known.strict and value is not None and value is not False:
      raise UserError(f'{where}: {name} is {shown(value)}, a setting that exedit does not know')
  return {name: config.get(name, default) for name, default in known.read.items()}


def unet(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Arguments of UNet, `in_channels`, `out_channels` and `context_dim` among them."""
  read = values(UNET, config, where)
  channels, mult = _widths(read['block_out_channels'], where)
  heads = read['attention_head_dim']  # means the number of heads (facts 1.1)
  if read['num_attention_heads'] is not None:
    heads = read['num_attention_heads']
  downs, ups = read['down_block_types'], read['up_block_types']
  attend = [kind == ATTEND.format('Down') for kind in _sequence(downs, len(mult), where)]
  mirrored = [(ATTEND if a else PLAIN).format('Up') for a in attend[::-1]]
  if list(downs) != [(ATTEND if a else PLAIN).format('Down') for a in attend] or ups != mirrored:
    raise UserError(
      f'{where}: down_block_types {shown(downs)} and up_block_types {shown(ups)}: exedit '
      'implements CrossAttnDownBlock2D and DownBlock2D, and the same mirrored on the way up'
    )
  result = dict(
    in_channels=integer(read, 'in_channels', where),
    out_channels=integer(read, 'out_channels', where),
    channels=channels,
    mult=mult,
    layers=integer(read, 'layers_per_block', where),
    attention_levels=[i for i, a in enumerate(attend) if a],
    heads=integer(dict(attention_head_dim=heads), 'attention_head_dim', where),
    context_dim=integer(read, 'cross_attention_dim', where),
    groups=integer(read, 'norm_num_groups', where),
  )
  check_divisors(result, where)
  return result


def check_settings(model: Any, where: str) -> None:
  """UserError where settings of `build` could not be ours, before a network is built from them."""
  for part in ('unet', 'autoencoder', 'clip', 'conditioner', 'schedule'):
    group = model.get(part, {})
    if not isinstance(group, Mapping):
      raise _damaged(where, f'model.{part}', group, '')
    for name, value in group.items():
      listed = name in ('mult', 'attention_levels')
      whole = value if listed and isinstance(value, list) else [value]
      good = len(whole) <= LEVELS and all(
        type(v) is int and (name == 'attention_levels') + v >= 1 and v <= MOST.get(name, LARGEST)
        for v in whole
      )
      if (listed or name in WHOLE) and not good:
        most = f'which must be whole and at most {MOST.get(name, LARGEST)}'
        raise _damaged(where, f'model.{part}.{name}', value, most)
      if name in NUMBERS and not (finite(value) and (name == 'mean' or value > 0)):
        raise _damaged(where, f'model.{part}.{name}', value, 'which must be a finite number')


def check_uses(data: Mapping[str, Any], edit: Mapping[str, Any], where: str) -> None:
  """UserError where the sizes that a model is for, or how it samples, could not be."""
  good = dict(
    size=lambda v: type(v) is int and 1 <= v <= SIZES['size'],
    exemplar_size=lambda v: type(v) is int and 1 <= v <= SIZES['exemplar_size'],
    steps=lambda v: type(v) is int,
    scale=finite,
    sampler=lambda v: isinstance(v, str),
  )
  for name, value in {**data, **edit}.items():
    if name in good and not good[name](value):
      most = f'which must be whole and at most {SIZES[name]}' if name in SIZES else ''
      raise _damaged(where, name, value, most)


def finite(value: Any) -> TypeGuard[float]:
  """Whether this is a number that float32 can hold; JSON has NaN, Infinity and 10**400 too."""
  return type(value) in (int, float) and -FLOAT32 <= value <= FLOAT32


def shown(value: Any) -> str:
  """A foreign value for a message, short however large it is."""
  try:
    return reprlib.repr(value)[:200]
  except ValueError:  # Python prints no whole number of more than 4300 digits
    return 'a number of thousands of digits'


def _damaged(where: str, name: str, value: Any, rule: str) -> UserError:
  rule = f', {rule}' if rule else ''
  return UserError(f'{where} is damaged ({name} is {shown(value)}{rule}): restore it from a copy')


def check_divisors(unet: Mapping[str, Any], where: str) -> None:
  """UserError where heads or groups of a UNet do not divide its widths."""
  last = len(unet['mult']) - 1
  for i, width in enumerate(unet['channels'] * m for m in unet['mult']):
    attends = i in unet['attention_levels'] or i == last
    for what in ('heads', 'groups') if attends else ('groups',):
      if width % unet[what]:
        raise UserError(f'{where}: a width of {width} cannot be divided among {unet[what]} {what}')


def autoencoder(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Arguments of AutoencoderKL, `kind` before them."""
  read = values(AUTOENCODER, config, where)
  channels, mult = _widths(read['block_out_channels'], where)
  scale = read['scaling_factor']
  if not isinstance(scale, float) or not 0 < scale < 1e6:
    raise UserError(f'{where}: scaling_factor is {shown(scale)}, it must be a positive number')
  return dict(
    kind='kl',
    channels=channels,
    mult=mult,
    layers=integer(read, 'layers_per_block', where),
    z_channels=integer(read, 'latent_channels', where),
    groups=integer(read, 'norm_num_groups', where),
    scale=scale,
  )


def clip(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Arguments of CLIPVision, from the tower's own config or one that holds it."""
  config = config.get('vision_config') or config.get('vision_config_dict') or config
  if not isinstance(config, Mapping):
    raise UserError(f'{where} is damaged (vision_config is no object): restore it from a copy')
  read = {n: integer({n: v}, n, where) for n, v in values(CLIP, config, where).items()}
  names = dict(
    width='hidden_size',
    layers='num_hidden_layers',
    heads='num_attention_heads',
    mlp='intermediate_size',
    patch='patch_size',
    image_size='image_size',
  )
  return {ours: read[theirs] for ours, theirs in names.items()}


def schedule(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Arguments of Schedule."""
  read = values(SCHEDULER, config, where)
  if config.get('beta_schedule', 'linear') != 'scaled_linear':
    raise UserError(
      f'{where}: beta_schedule is {shown(config.get("beta_schedule", "linear"))}, and exedit '
      "implements 'scaled_linear', Stable Diffusion's"
    )
  if read['prediction_type'] not in [*PREDICTIONS]:  # it may be anything, a list too
    raise UserError(
      f'{where}: prediction_type is {shown(read["prediction_type"])}, and exedit implements '
      f'{_either(PREDICTIONS)}'
    )
  betas = [read['beta_start'], read['beta_end']]
  if not all(isinstance(b, float) for b in betas) or not 0 < betas[0] <= betas[1] < 1:
    raise UserError(
      f'{where}: beta_start and beta_end are {shown(betas)}: they must grow within 0 and 1'
    )
  return dict(
    num_steps=integer(read, 'num_train_timesteps', where),
    beta_start=betas[0],
    beta_end=betas[1],
    prediction=PREDICTIONS[read['prediction_type']],
  )


def _widths(widths: Any, where: str) -> tuple[int, list[int]]:
  """(channels, mult) of the widths of all levels."""
  _sequence(widths, None, where)
  whole = [integer(dict(block_out_channels=w), 'block_out_channels', where) for w in widths]
  if any(w % whole[0] for w in whole):
    raise UserError(f'{where}: block_out_channels is {shown(widths)}: use multiples of the first')
  return whole[0], [w // whole[0] for w in whole]


def _sequence(value: Any, length: int | None, where: str) -> Sequence:
  if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= LEVELS:
    raise UserError(
      f'{where} is damaged ({shown(value)} is no list of levels): restore it from a copy'
    )
  if length is not None and len(value) != length:
    raise UserError(
      f'{where} names {length} widths and {len(value)} kinds of level ({shown(value)})'
    )
  return value


def integer(config: Mapping[str, Any], name: str, where: str) -> int:
  """A positive number that is the same for all levels."""
  value = _uniform(config[name])
  if isinstance(value, list):
    raise UserError(
      f'{where}: {name} is {shown(value)}; exedit implements the same number for all levels'
    )
  most = MOST.get(name, LARGEST)
  if type(value) is not int or not 1 <= value <= most:
    raise UserError(
      f'{where}: {name} is {shown(value)}; it must be a positive whole number, at most {most}'
    )
  return value


def _uniform(value: Any) -> Any:
  """A list of equal values as the one value."""
  if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
    return value[0]
  return value


def _either(allowed) -> str:
  return ' or '.join(repr(value) for value in allowed)


def kind(unet: Mapping[str, Any], z: int, by_words: bool, where: str) -> str:
  """Which system these networks are: 'paint_by_example' or 'stable_diffusion'; others are refused.

  An inpainting model of Stable Diffusion has as many input channels as Paint by Example, in another
  order and with the opposite mask. Flipping the mask is a change of weights only inside the
  picture: at its border the convolution pads with zeros, which then mean the other thing.
  """
  inputs, outputs = unet['in_channels'], unet['out_channels']
  if outputs == z and by_words and inputs == z:
    return 'stable_diffusion'
  if outputs == z and not by_words and inputs == 2 * z + 1:
    return 'paint_by_example'
  if by_words and inputs == 2 * z + 1:
    raise UserError(
      f'{where} is an inpainting model of Stable Diffusion: {inputs} channels as Paint by Example '
      'has, but the mask before the masked image, and 1 where this one has 0, which no change of '
      'weights makes exact at the border; start from the text-to-image model instead'
    )
  raise UserError(
    f'{where}: the UNet takes {inputs} channels and gives {outputs}, and the latents have {z}: '
    f'Paint by Example takes {2 * z + 1} and an image, Stable Diffusion {z} and a text'
  )
