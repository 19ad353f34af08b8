"""Translates config files of diffusers, transformers and LDM to `build` settings, and checks them.

Each setting of a config file is either read, or ignored because it has no effect, or must have the
value that exedit's networks implement. Any other setting is refused, because it would mean another
network whose tensors have the same names and shapes.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from exedit.runtime.errors import UserError

# The largest numbers that are accepted, because a hostile config could ask for all memory.
LARGEST = 2**20
MOST = dict(layers_per_block=64, num_hidden_layers=512, layers=512, image_size=1024)
MOST |= dict(size=4096, exemplar_size=4096)  # pixels of pictures that are edited
LEVELS = 16
FLOAT32 = 3.4e38
PREDICTIONS = {'epsilon': 'eps', 'v_prediction': 'v', 'sample': 'x0'}
SAMPLERS = {'DDIMScheduler': 'ddim', 'DPMSolverMultistepScheduler': 'dpm_solver_pp'}
ATTEND, PLAIN = 'CrossAttn{}Block2D', '{}Block2D'  # levels of a UNet with attention and without


class Known(NamedTuple):
  """What exedit knows of the settings of one class.

  read: the settings that are used, with the class's defaults.
  implemented: the values that exedit implements; the first is the class's default.
  ignored: settings without effect on what the network computes.
  strict: refuse a setting that is in none of the three, unless it is None or False.
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
TRANSFORMER = dict(  # sizes of both towers of CLIP: our names, theirs
  width='hidden_size',
  layers='num_hidden_layers',
  heads='num_attention_heads',
  mlp='intermediate_size',
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
  strict=False,  # transformers' base class adds dozens of settings
)
CLIP_TEXT = Known(
  read=dict(
    vocab_size=49408,
    max_position_embeddings=77,
    hidden_size=512,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=8,
  ),
  implemented=dict(hidden_act=('quick_gelu',), layer_norm_eps=(1e-5,)),
  strict=False,
)
SCHEDULER = Known(
  read=dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, prediction_type='epsilon'),
  implemented=dict(
    beta_schedule=('linear', 'scaled_linear'),
    trained_betas=(None,),
    rescale_betas_zero_snr=(False,),
  ),
  strict=False,  # the other settings say how to sample, which the user chooses
)


def values(known: Known, config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the settings that `known` reads; absent ones have their defaults.

  Raises:
    UserError: for a value that exedit does not implement, with the setting and the known values.
  """
  for name, value in config.items():
    allowed = known.implemented.get(name)
    if name.startswith('_') or name in known.read or name in known.ignored:
      continue
    if allowed is not None and not any(_same(_uniform(value), each) for each in allowed):
      raise UserError(
        f'{where}: {name} is {shown(value)}, and exedit implements {_either(allowed)}: this is '
        'another network than Paint by Example and Stable Diffusion 1.x have'
      )
    if allowed is None and known.strict and value is not None and value is not False:
      raise UserError(f'{where}: {name} is {shown(value)}, a setting that exedit does not know')
  return {name: config.get(name, default) for name, default in known.read.items()}


def unet(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the arguments of UNet, including `in_channels`, `out_channels` and `context_dim`."""
  read = values(UNET, config, where)
  channels, mult = _widths(read['block_out_channels'], where)
  # attention_head_dim is the number of heads too: docs/facts.md, Weight layouts
  heads = 'attention_head_dim' if read['num_attention_heads'] is None else 'num_attention_heads'
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
    heads=integer(read, heads, where),
    context_dim=integer(read, 'cross_attention_dim', where),
    groups=integer(read, 'norm_num_groups', where),
  )
  check_divisors(result, where)
  return result


def finite(value: Any) -> TypeGuard[float]:
  """Whether this is a number that float32 can store. JSON allows NaN, Infinity and 10**400."""
  return type(value) in (int, float) and -FLOAT32 <= value <= FLOAT32


def shown(value: Any) -> str:
  """Returns a value from a file for a message, shortened."""
  try:
    return reprlib.repr(value)[:200]
  except ValueError:  # Python does not print a whole number of more than 4300 digits
    return 'a number of thousands of digits'


def check_divisors(unet: Mapping[str, Any], where: str) -> None:
  """Raises UserError if heads or groups of a UNet do not divide its widths."""
  last = len(unet['mult']) - 1
  for i, width in enumerate(unet['channels'] * m for m in unet['mult']):
    attends = i in unet['attention_levels'] or i == last
    for what in ('heads', 'groups') if attends else ('groups',):
      if width % unet[what]:
        raise UserError(f'{where}: a width of {width} cannot be divided among {unet[what]} {what}')


def autoencoder(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the arguments of AutoencoderKL, and its `kind`."""
  read = values(AUTOENCODER, config, where)
  channels, mult = _widths(read['block_out_channels'], where)
  scale = read['scaling_factor']
  if not finite(scale) or not 0 < scale < 1e6:
    raise UserError(f'{where}: scaling_factor is {shown(scale)}, it must be a positive number')
  return dict(
    kind='kl',
    channels=channels,
    mult=mult,
    layers=integer(read, 'layers_per_block', where),
    z_channels=integer(read, 'latent_channels', where),
    groups=integer(read, 'norm_num_groups', where),
    scale=float(scale),
  )


def clip(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the arguments of CLIPVision, from the tower's config or one that contains it."""
  own = dict(patch='patch_size', image_size='image_size')
  return _tower('vision_config', CLIP, TRANSFORMER | own, config, where)


def clip_text(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the arguments of CLIPText, from the tower's config or one that contains it."""
  own = dict(vocabulary='vocab_size', length='max_position_embeddings')
  return _tower('text_config', CLIP_TEXT, own | TRANSFORMER, config, where)


def _tower(
  part: str, known: Known, names: Mapping[str, str], config: Mapping[str, Any], where: str
) -> dict[str, Any]:
  """Returns the sizes of a tower of CLIP; part: its name in a config of both. names: theirs."""
  config = config.get(part) or config.get(f'{part}_dict') or config
  if not isinstance(config, Mapping):
    raise UserError(f'{where} is damaged ({part} is no object): restore it from a copy')
  read = {n: integer({n: v}, n, where) for n, v in values(known, config, where).items()}
  return {ours: read[theirs] for ours, theirs in names.items()}


def schedule(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the arguments of Schedule."""
  read = values(SCHEDULER, config, where)
  if config.get('beta_schedule', 'linear') != 'scaled_linear':
    raise UserError(
      f'{where}: beta_schedule is {shown(config.get("beta_schedule", "linear"))}, and exedit '
      "implements 'scaled_linear', Stable Diffusion's"
    )
  if read['prediction_type'] not in [*PREDICTIONS]:  # the value may not be hashable
    raise UserError(
      f'{where}: prediction_type is {shown(read["prediction_type"])}, and exedit implements '
      f'{_either(PREDICTIONS)}'
    )
  betas = [read['beta_start'], read['beta_end']]
  if not all(map(finite, betas)) or not 0 < betas[0] <= betas[1] < 1:
    raise UserError(
      f'{where}: beta_start and beta_end are {shown(betas)}: they must grow between 0 and 1'
    )
  return dict(
    num_steps=integer(read, 'num_train_timesteps', where),
    beta_start=float(betas[0]),
    beta_end=float(betas[1]),
    prediction=PREDICTIONS[read['prediction_type']],
  )


def _widths(widths: Any, where: str) -> tuple[int, list[int]]:
  """Returns (channels, mult) for the widths of all levels."""
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


def whole(value: Any, name: str, least: int = 1) -> int | None:
  """Returns a whole number, also one written as 8.0; None if the setting cannot have this value."""
  value = int(value) if type(value) is float and value.is_integer() else value
  return value if type(value) is int and least <= value <= MOST.get(name, LARGEST) else None


def integer(config: Mapping[str, Any], name: str, where: str) -> int:
  """Returns a positive whole number that is the same for all levels; UserError for others."""
  value = _uniform(config[name])
  if isinstance(value, (list, tuple)):
    raise UserError(
      f'{where}: {name} is {shown(value)}; exedit implements the same number for all levels'
    )
  if (number := whole(value, name)) is None:
    most = MOST.get(name, LARGEST)
    raise UserError(
      f'{where}: {name} is {shown(value)}; it must be a positive whole number, at most {most}'
    )
  return number


def _same(value: Any, known: Any) -> bool:
  """Whether a value means a known one: null means no, and a number may be rounded to float32."""
  if finite(value) and type(known) is float:
    return math.isclose(value, known, rel_tol=1e-6)
  return value == known or (value is None and known is False)


def _uniform(value: Any) -> Any:
  """Returns the one value of a list of equal values; other values as they are."""
  if isinstance(value, (list, tuple)) and value and all(v == value[0] for v in value):
    return value[0]
  return value


def _either(allowed) -> str:
  return ' or '.join(repr(value) for value in allowed)
