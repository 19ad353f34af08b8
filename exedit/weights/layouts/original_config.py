"""The config of an original checkpoint, from its shapes, a .yaml beside it and published values.

The file has no config. Its shapes give widths, levels and layers, but not the number of heads.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights import settings, translate
from exedit.weights.formats.tensor import Tensor, read_small
from exedit.weights.layouts import towers
from exedit.weights.settings import Known
from exedit.weights.tables import clip

HEADS, GROUPS = 8, 32  # as published: the UNet's, those of all norms
CONVERT = 'convert it first with exedit.convert --clip_heads=NUMBER'
SCHEDULE = dict(num_steps=1000, beta_start=0.00085, beta_end=0.012, prediction='eps')
PUBLISHED = 'as published, for the file does not say'
EDIT = dict(steps=50, scale=5.0, sampler='plms')
NET, VAE, TOWER = 'model.diffusion_model.', 'first_stage_model.', 'cond_stage_model.transformer.'
MAPPER = 'cond_stage_model.mapper.resblocks.'
PARAMETERIZATIONS = {'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}
CHECKED = ('betas', 'alphas_cumprod')  # buffers that tell the schedule
# Types to which weights are rounded: numbers in them are known to `eps` of their size.
ROUNDED = ('float16', 'bfloat16', 'float8_e4m3fn', 'float8_e5m2')
LONGEST_YAML = 2**16  # bytes; the published one has some thousands, and PyYAML can be quadratic
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
UNET = Known(  # PbE ldm/modules/diffusionmodules/openaimodel.py; shapes give the sizes
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
    *('image_size', 'in_channels', 'out_channels', 'model_channels', 'attention_resolutions'),
    *('num_res_blocks', 'channel_mult', 'context_dim', 'dropout', 'use_checkpoint', 'use_fp16'),
    'legacy',  # has an effect only on attention that is not a spatial transformer's
  ),
)
AUTOENCODER = Known(  # PbE ldm/modules/diffusionmodules/model.py
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


def of(
  file: Path,
  tensors: Mapping[str, Tensor],
  by_text: bool,
  heads: int | None,
  groups: int | None,
  clip_heads: int | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Returns the config in exedit's words, and notes that say what was taken from where.

  A text tower is left out: see `text_sizes`.
  """
  beside, origin = _beside(file)
  notes = ['widths, levels and layers: the shapes']

  def choose(name: str, given: int | None, published: int) -> int:
    if given is not None:
      value, whence = given, 'as given'
    elif name in beside:
      value, whence = beside[name], origin
    else:
      value, whence = published, PUBLISHED
    notes.append(f'{name} {value}: {whence}')
    return value

  heads, groups = choose('heads', heads, HEADS), choose('groups', groups, GROUPS)
  net = _unet(tensors, heads, groups, file)
  vae = _autoencoder(tensors, groups, beside.get('scale', 0.18215), file)
  schedule, whence = _schedule(tensors, beside, file)
  notes.append(f'schedule: {whence or origin or PUBLISHED}')
  model = dict(unet=net, autoencoder=vae, schedule=schedule, context_dim=net.pop('context_dim'))
  size = 64 * 2 ** (len(vae['mult']) - 1)
  if size > settings.MOST['size']:
    raise UserError(f'{file}: its autoencoder has {len(vae["mult"])} levels: wrong file?')
  data = dict(size=size)
  if not by_text:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(TOWER)}
    ours = translate.to_ours(translate.under(TOWER, '', clip.TABLE), own, where=str(file))
    tower = towers.sizes(ours, '', str(file), heads=clip_heads, remedy=CONVERT)
    layers = _count(tensors, MAPPER + '{}.ln_1.weight')
    model |= dict(clip=tower, conditioner=dict(layers=layers))
    data['exemplar_size'] = tower['image_size']
    whence = f'one per {towers.HEAD_WIDTH} channels' if clip_heads is None else 'as given'
    notes.append(f'heads of CLIP: {tower["heads"]}, {whence}')
  edit = dict(EDIT, scale=7.5) if by_text else dict(EDIT)  # the published scales
  return dict(model=model, data=data, edit=edit), tuple(notes)


def _unet(tensors: Mapping[str, Tensor], heads: int, groups: int, file: Path) -> dict[str, Any]:
  """The arguments of UNet and `context_dim`. The input blocks are numbered through all levels."""
  channels = shape_of(tensors, f'{NET}input_blocks.0.0.weight', file)[0]
  widths, counts, attends, number = [], [0], [set()], 1
  while True:
    block = f'{NET}input_blocks.{number}.'
    if f'{block}0.op.weight' in tensors:
      counts.append(0)
      attends.append(set())
    elif f'{block}0.out_layers.3.weight' in tensors:
      width = shape_of(tensors, f'{block}0.out_layers.3.weight', file)[0]
      if not counts[-1]:
        widths.append(width)
      counts[-1] += 1
      attends[-1].add(f'{block}1.norm.weight' in tensors)
    else:
      break
    number += 1
  middle = f'{NET}middle_block.1.'
  if len(shape_of(tensors, f'{middle}proj_in.weight', file)) == 2:
    raise UserError(
      f'{file} is Stable Diffusion 2 or later (linear proj_in): exedit reads Paint by Example and '
      'Stable Diffusion 1.x'
    )
  uneven = len(set(counts)) > 1 or not counts[0] or any(len(a) > 1 for a in attends)
  if uneven or any(w % channels for w in widths):
    raise UserError(
      f'{file}: its UNet has {counts} blocks per level of widths {widths} on {channels} channels; '
      'exedit has as many in each level, with or without attention, at multiples of the channels'
    )
  result = dict(
    channels=channels,
    mult=[w // channels for w in widths],
    layers=counts[0],
    attention_levels=[i for i, a in enumerate(attends) if True in a],
    heads=heads,
    groups=groups,
    context_dim=shape_of(tensors, f'{middle}transformer_blocks.0.attn2.to_k.weight', file)[-1],
  )
  settings.check_divisors(result, str(file))
  return result


def _autoencoder(
  tensors: Mapping[str, Tensor], groups: int, scale: float, file: Path
) -> dict[str, Any]:
  """The arguments of AutoencoderKL, and its `kind`."""
  level = VAE + 'encoder.down.{}.block.'
  widths = [
    shape_of(tensors, f'{level.format(i)}0.conv1.weight', file)[0]
    for i in range(max(1, _count(tensors, level + '0.conv1.weight')))
  ]
  if any(w % widths[0] or w % groups for w in widths):
    raise UserError(
      f'{file}: its autoencoder has the widths {widths}: exedit has multiples of the first, and of '
      f'the {groups} groups (--groups says how many)'
    )
  return dict(
    kind='kl',
    channels=widths[0],
    mult=[w // widths[0] for w in widths],
    layers=_count(tensors, level.format(0) + '{}.conv1.weight'),
    z_channels=shape_of(tensors, f'{VAE}post_quant_conv.weight', file)[0],
    groups=groups,
    scale=scale,
  )


def text_sizes(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
  """Returns the arguments of CLIPText, from the shapes of the tensors."""
  prefix = TOWER + ('text_model.' if any(n.startswith(TOWER + 't') for n in tensors) else '')
  shape = lambda name: shape_of(tensors, prefix + name, file)
  vocabulary, width = shape('embeddings.token_embedding.weight')
  if width % towers.HEAD_WIDTH:
    raise UserError(f'{file}: a text tower of width {width} has no known number of heads')
  layer = 'encoder.layers.{}.mlp.fc1.weight'
  return dict(
    vocabulary=vocabulary,
    length=shape('embeddings.position_embedding.weight')[0],
    width=width,
    layers=_count(tensors, prefix + layer),
    heads=width // towers.HEAD_WIDTH,
    mlp=shape(layer.format(0))[0],
  )


def _schedule(
  tensors: Mapping[str, Tensor], beside: Mapping[str, Any], file: Path
) -> tuple[dict[str, Any], str]:
  """(arguments of Schedule, the buffer of the file that confirms them or nothing)."""
  schedule = {**SCHEDULE, **beside.get('schedule', {})}
  name = next((name for name in CHECKED if name in tensors), None)
  if name is None:
    return schedule, ''
  expected = _betas(schedule['beta_start'], schedule['beta_end'], schedule['num_steps'])
  if name == 'alphas_cumprod':
    expected = np.cumprod(1 - expected)
  stored = tensors[name].read().reshape(-1)
  if same_numbers(stored, expected):
    return schedule, f'its {name}'
  found = f'{stored.size} numbers' if stored.size else 'nothing'
  if stored.size:
    found += f' from {float(stored[0]):.3g} to {float(stored[-1]):.3g}'
  raise UserError(
    f'{file} was trained with other betas than {schedule["num_steps"]} from '
    f'{schedule["beta_start"]} to {schedule["beta_end"]}: its {name} are {found}; '
    f'{_other_schedule(file, name, stored, beside)}'
  )


def _other_schedule(file: Path, name: str, stored: np.ndarray, beside: Mapping[str, Any]) -> str:
  """What helps where a file's betas are not those of its config."""
  ends = stored[[0, -1]].astype(np.float64).tolist() if stored.size else [0.0, 0.0]
  if name == 'betas' and 0 < ends[0] <= ends[1] < 1:
    if not same_numbers(stored, _betas(ends[0], ends[1], stored.size)):
      return "exedit implements Stable Diffusion's schedule alone, and cannot use these weights"
  if beside:
    return f'correct linear_start, linear_end and timesteps in {file.stem}.yaml'
  return f'put its .yaml beside it, {file.stem}.yaml'


def _betas(start: float, end: float, count: int) -> np.ndarray:
  """Stable Diffusion's betas: LDM calls them linear, diffusers scaled_linear."""
  return np.linspace(start**0.5, end**0.5, count) ** 2


def same_numbers(stored: np.ndarray, expected: np.ndarray) -> bool:
  """Whether numbers of a file are these, as exactly as the type can say that they were stored in.

  The type may be narrower than the file's: weights in bfloat16 are also passed on as float32.
  """
  stored = stored.astype(np.float64)
  if stored.shape != expected.shape:
    return False
  rtol, atol = 1e-3, 0.0
  for dtype in ROUNDED:
    with np.errstate(over='ignore'):
      exact = (stored.astype(dtype).astype(np.float64) == stored).all()
    if exact:
      limits = ml_dtypes.finfo(dtype)
      rtol, atol = max(rtol, float(limits.eps)), max(atol, float(limits.smallest_subnormal))
  return np.allclose(stored, expected, rtol=rtol, atol=atol)


def _beside(file: Path) -> tuple[dict[str, Any], str]:
  """(heads, scale and schedule; file name) of an LDM config beside the checkpoint, if any."""
  beside = file.with_suffix('.yaml')
  if not beside.exists():
    return {}, ''
  import yaml

  try:
    model = _plain_yaml(beside)['model']['params']
    net = {str(n): v for n, v in model['unet_config']['params'].items()}
    vae = model['first_stage_config']['params']['ddconfig']
    vae = {str(n): v for n, v in vae.items()}
    schedule = dict(
      num_train_timesteps=model.get('timesteps', 1000),
      beta_start=model.get('linear_start', 1e-4),
      beta_end=model.get('linear_end', 2e-2),
      beta_schedule={'linear': 'scaled_linear'}.get(model.get('beta_schedule', 'linear'), 'other'),
      prediction_type=PARAMETERIZATIONS[model.get('parameterization', 'eps')],
    )
    scale = model.get('scale_factor', 1.0)
    if not settings.finite(scale) or not 0 < scale < 1e6:
      raise ValueError(f'scale_factor is {settings.shown(scale)}')
  except (OSError, yaml.YAMLError, *MALFORMED) as error:
    words = ' '.join(str(error).split())[:150]
    raise UserError(
      f'{beside} is no config of latent diffusion ({type(error).__name__}: {words}): mend it, or '
      'move it away'
    ) from None
  heads = settings.values(UNET, net, str(beside))['num_heads']
  settings.values(AUTOENCODER, vae, str(beside))
  found = dict(scale=float(scale), schedule=settings.schedule(schedule, str(beside)))
  if heads == -1:  # LDM's default, which says nothing
    return found, beside.name
  heads = settings.integer(dict(num_heads=heads), 'num_heads', str(beside))
  return found | dict(heads=heads), beside.name


def _plain_yaml(file: Path) -> Any:
  """Reads a small YAML file without aliases, because aliases can blow up bytes to gigabytes."""
  import yaml

  class Plain(yaml.SafeLoader):
    def compose_node(self, parent, index):
      if self.check_event(yaml.AliasEvent):
        raise yaml.YAMLError('it has aliases (*name): write out what they stand for')
      return super().compose_node(parent, index)

  # 1e-4 without a point is text for PyYAML, and a number for everybody else.
  number = re.compile(r'[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$')
  Plain.add_implicit_resolver('tag:yaml.org,2002:float', number, [*'-+0123456789'])
  return yaml.load(read_small(file, LONGEST_YAML).decode('utf-8'), Plain)


def shape_of(
  tensors: Mapping[str, Tensor], name: str, where: Path | str, axes: int = 0
) -> tuple[int, ...]:
  """Returns the shape of a tensor; UserError if it is missing, empty or has not `axes` axes."""
  shape = tensors[name].shape if name in tensors else ()
  if not shape or 0 in shape or (axes and len(shape) != axes):
    what = f'of shape {shape}' if name in tensors else 'missing'
    raise UserError(f'{where} cannot be understood: {name} is {what}; is it the whole file?')
  return shape


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
  """The number of tensors with this name, in which `{}` stands for 0, 1, 2, ..."""
  number = 0
  while name.format(number) in tensors:
    number += 1
  return number
