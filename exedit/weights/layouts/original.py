"""The checkpoint of the original code (and of Stable Diffusion 1.x): one file, LDM's names.

Such a file has no config. Widths, levels and layers are in the shapes; the number of heads is not:
it comes from a .yaml beside the file, from our own note in a .safetensors, or is the published one.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights import settings as configs
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import read_metadata, save_tensors
from exedit.weights.formats.tensor import Tensor, read_small
from exedit.weights.found import Weights
from exedit.weights.tables import autoencoder, conditioner, unet
from exedit.weights.translate import Row, ignored, to_theirs, under

HEADS, GROUPS, HEAD_WIDTH = 8, 32, 64  # as published: of the UNet, of all norms, of CLIP
NET, VAE, TOWER = 'model.diffusion_model.', 'first_stage_model.', 'cond_stage_model.transformer.'
MAPPER = 'cond_stage_model.mapper.resblocks.'
EXEMPLAR = (MAPPER, f'{TOWER}vision_model.', 'cond_stage_model.final_ln.', 'learnable_vector')
LONGEST_YAML = 2**16  # bytes; a published one has some thousands, and PyYAML is quadratic in some
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
NOTE = 'exedit'  # the entry of our files' metadata that holds the config
SCHEDULE = dict(num_steps=1000, beta_start=0.00085, beta_end=0.012, prediction='eps')
PARAMETERIZATIONS = {'eps': 'epsilon', 'v': 'v_prediction', 'x0': 'sample'}
BUFFERS = (  # functions of the betas (LDM ddpm.py register_schedule)
  'betas',
  'alphas_cumprod',
  'alphas_cumprod_prev',
  'sqrt_alphas_cumprod',
  'sqrt_one_minus_alphas_cumprod',
  'log_one_minus_alphas_cumprod',
  'sqrt_recip_alphas_cumprod',
  'sqrt_recipm1_alphas_cumprod',
  'posterior_variance',
  'posterior_log_variance_clipped',
  'posterior_mean_coef1',
  'posterior_mean_coef2',
)
IGNORED = ignored(
  *BUFFERS,
  'logvar',
  'lvlb_weights',
  'model_ema.*',  # whichever of the two was not chosen
  f'{VAE}loss.*',  # the discriminator that trained the autoencoder
)
OTHERS = {  # names that say which other weights these are, and what to do
  'conditioner.embedders.': 'is Stable Diffusion XL: exedit reads Paint by Example and SD 1.x',
  'cond_stage_model.model.': 'is Stable Diffusion 2: exedit reads Paint by Example and SD 1.x',
  'control_model.': 'is a ControlNet, which is no model by itself',
  'lora_': 'is a LoRA, which is no model by itself',
  'vision_model.': 'is a CLIP tower alone: a training takes it as --config.init_clip',
  'down_blocks.': 'is one network of a diffusers pipeline: name the folder that holds unet/',
  'encoder.': 'is one network of a diffusers pipeline: name the folder that holds vae/',
  'uncond_vector': 'is one network of a diffusers pipeline: name the folder above it',
  'unet.': "is exedit's own layout: name its folder, and keep its config.json beside it",
}


def read(file: Path, which: str, *, heads: int | None = None, groups: int | None = None) -> Weights:
  """What an original checkpoint holds: Paint by Example, or Stable Diffusion 1.x to start from.

  Raises:
    UserError: for other weights, other networks, or a file that cannot be read.
  """
  tensors = open_tensors(file)
  if f'{NET}input_blocks.0.0.weight' not in tensors:
    raise UserError(f'{file} {_other(tensors)}')
  tensors, taken = _chosen(tensors, which, file)
  by_words = not any(name.startswith(EXEMPLAR) for name in tensors)
  if note := _note(file):
    config, notes = note, (f'sizes, heads and schedule: the note in {file.name}',)
  else:
    config, notes = _config(file, tensors, by_words, heads, groups)
  model = config['model']
  net, z = model['unet'], model['autoencoder']['z_channels']
  stem = tensors[f'{NET}input_blocks.0.0.weight']
  channels = dict(
    in_channels=_shape(tensors, f'{NET}input_blocks.0.0.weight', file, 4)[1],
    out_channels=_shape(tensors, f'{NET}out.2.weight', file)[0],
  )
  if by_words and stem.shape[1] == 2 * z + 1 and not stem.read()[:, z:].any():
    channels['in_channels'] = z  # made 9 by PbE's modify_checkpoints.py; zeros have no order
  kind = configs.kind(channels, z, by_words, str(file))
  rest = ignored('cond_stage_model.*') if by_words else conditioner.ORIGINAL
  table = [*networks(net, model['autoencoder']), *rest, *IGNORED]
  return Weights(config, tensors, table, (file,), kind=kind, which=taken, notes=notes)


def networks(net: Mapping[str, Any], vae: Mapping[str, Any]) -> list[Row]:
  """The table of the UNet and the autoencoder, whose names depend on their sizes."""
  rows = unet.original(len(net['mult']), net['layers'], net['attention_levels'])
  return [
    *under(NET, 'unet.', rows),
    *under(VAE, 'autoencoder.', autoencoder.original(len(vae['mult']))),
  ]


def _other(tensors: Mapping[str, Tensor]) -> str:
  """What a file is that is no such checkpoint."""
  for prefix, what in OTHERS.items():
    if any(name.startswith(prefix) for name in tensors):
      return what
  first = ', '.join(ascii(name)[1:-1][:60] for name in list(tensors)[:3]) or 'nothing'
  return f'is no checkpoint of Paint by Example or Stable Diffusion: its tensors are {first}, ...'


def _chosen(
  tensors: Mapping[str, Tensor], which: str, file: Path
) -> tuple[Mapping[str, Tensor], str]:
  """The tensors with the UNet's moving average in its place if it is wanted and there.

  LDM keeps it under `model_ema.` and the parameter's name without its dots (LDM ema.py LitEma).
  """
  if not any(n.startswith('model_ema.diffusion_model') for n in tensors):
    return tensors, ''
  if which == 'params':
    return tensors, which
  average = {n: 'model_ema.' + n.removeprefix('model.').replace('.', '') for n in tensors}
  average = {n: ema for n, ema in average.items() if n.startswith(NET)}
  missing = [ema for ema in average.values() if ema not in tensors]
  if missing:
    raise UserError(
      f'{file} holds only a part of the moving average ({len(missing)} missing, first {missing[0]})'
      ': take --which=params, or restore the file from a copy'
    )
  if len(set(average.values())) < len(average):
    raise UserError(f'{file}: two parameters share a moving average: take --which=params')
  return {n: tensors[average.get(n, n)] for n in tensors}, which


def _config(
  file: Path, tensors: Mapping[str, Tensor], by_words: bool, heads: int | None, groups: int | None
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """(config in our words, what was taken from where), of shapes and what stands beside them."""
  beside, origin = _beside(file)
  notes = ['widths, levels and layers: the shapes']

  def choose(name: str, given: int | None, published: int) -> int:
    if given is not None:
      value, whence = given, 'as given'
    elif name in beside:
      value, whence = beside[name], origin
    else:
      value, whence = published, 'as published, for the file does not say'
    notes.append(f'{name} {value}: {whence}')
    return value

  heads, groups = choose('heads', heads, HEADS), choose('groups', groups, GROUPS)
  net = _unet(tensors, heads, groups, file)
  vae = _autoencoder(tensors, groups, beside.get('scale', 0.18215), file)
  schedule, word = _schedule(tensors, beside, file)
  notes.append(f'schedule: {word if "betas" in tensors or not beside else origin}')
  model = dict(unet=net, autoencoder=vae, schedule=schedule, context_dim=net.pop('context_dim'))
  factor = 2 ** (len(vae['mult']) - 1)
  data = dict(size=64 * factor)
  configs.check_uses(data, {}, str(file))
  if not by_words:
    tower = _clip(tensors, file)
    layers = _count(tensors, MAPPER + '{}.ln_1.weight')
    model |= dict(clip=tower, conditioner=dict(layers=layers))
    data['exemplar_size'] = tower['image_size']
    notes.append(f'heads of CLIP: {tower["heads"]}, one per {HEAD_WIDTH} channels')
  return dict(model=model, data=data, edit=dict(steps=50, scale=5.0, sampler='plms')), tuple(notes)


def _unet(tensors: Mapping[str, Tensor], heads: int, groups: int, file: Path) -> dict[str, Any]:
  """Arguments of UNet and `context_dim`: the blocks are counted until there is none."""
  channels = _shape(tensors, f'{NET}input_blocks.0.0.weight', file)[0]
  widths, counts, attends, number = [], [0], [set()], 1
  while True:
    block = f'{NET}input_blocks.{number}.'
    if f'{block}0.op.weight' in tensors:
      counts.append(0)
      attends.append(set())
    elif f'{block}0.out_layers.3.weight' in tensors:
      width = _shape(tensors, f'{block}0.out_layers.3.weight', file)[0]
      if not counts[-1]:
        widths.append(width)
      counts[-1] += 1
      attends[-1].add(f'{block}1.norm.weight' in tensors)
    else:
      break
    number += 1
  middle = f'{NET}middle_block.1.'
  if len(_shape(tensors, f'{middle}proj_in.weight', file)) == 2:
    raise UserError(f'{file} is Stable Diffusion 2 or later (linear proj_in): exedit reads 1.x')
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
    context_dim=_shape(tensors, f'{middle}transformer_blocks.0.attn2.to_k.weight', file)[-1],
  )
  configs.check_divisors(result, str(file))
  return result


def _autoencoder(
  tensors: Mapping[str, Tensor], groups: int, scale: float, file: Path
) -> dict[str, Any]:
  """Arguments of AutoencoderKL, `kind` before them."""
  level = VAE + 'encoder.down.{}.block.'
  widths = [
    _shape(tensors, f'{level.format(i)}0.conv1.weight', file)[0]
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
    z_channels=_shape(tensors, f'{VAE}post_quant_conv.weight', file)[0],
    groups=groups,
    scale=scale,
  )


def _clip(tensors: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
  """Arguments of CLIPVision."""
  prefix = TOWER + ('vision_model.' if any(n.startswith(TOWER + 'v') for n in tensors) else '')
  return clip_sizes(tensors, prefix, str(file))


def clip_sizes(tensors: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Any]:
  """Arguments of CLIPVision by the shapes behind a prefix; as in all CLIPs, a head is 64 wide."""
  width, _, patch, _ = _shape(tensors, f'{prefix}embeddings.patch_embedding.weight', where, 4)
  positions = _shape(tensors, f'{prefix}embeddings.position_embedding.weight', where)[0]
  layer = prefix + 'encoder.layers.{}.mlp.fc1.weight'
  if width % HEAD_WIDTH:
    raise UserError(f'{where}: a CLIP of width {width} has no known number of heads')
  return dict(
    width=width,
    layers=_count(tensors, layer),
    heads=width // HEAD_WIDTH,
    mlp=_shape(tensors, layer.format(0), where)[0],
    patch=patch,
    image_size=configs.integer(
      dict(image_size=math.isqrt(max(positions - 1, 0)) * patch), 'image_size', where
    ),
  )


def _schedule(
  tensors: Mapping[str, Tensor], beside: Mapping[str, Any], file: Path
) -> tuple[dict[str, Any], str]:
  """Arguments of Schedule and whence: the .yaml or the published one, checked with the betas."""
  schedule = {**SCHEDULE, **beside.get('schedule', {})}
  if 'betas' not in tensors:
    return schedule, 'as published, for the file does not say'
  betas = tensors['betas'].read()
  start, end = schedule['beta_start'] ** 0.5, schedule['beta_end'] ** 0.5
  expected = np.linspace(start, end, schedule['num_steps']) ** 2
  if betas.shape != expected.shape or not np.allclose(betas, expected, rtol=1e-3, atol=0):
    raise UserError(
      f'{file} was trained with other betas ({betas.size} from {betas.flat[0]:.3g} to '
      f'{betas.flat[-1]:.3g}) than {schedule["num_steps"]} from {schedule["beta_start"]} to '
      f'{schedule["beta_end"]}: put its .yaml beside it, {file.stem}.yaml'
    )
  return schedule, 'its betas'


def _beside(file: Path) -> tuple[dict[str, Any], str]:
  """(heads, scale and schedule, the name) of an LDM config beside the file, where one is."""
  beside = file.with_suffix('.yaml')
  if not beside.exists():
    return {}, ''
  import yaml

  try:
    model = _plain_yaml(beside)['model']['params']
    net = {str(n): v for n, v in model['unet_config']['params'].items()}
    vae = model['first_stage_config']['params']['ddconfig']
    vae = {str(n): v for n, v in vae.items()}
    settings = dict(
      num_train_timesteps=model.get('timesteps', 1000),
      beta_start=model.get('linear_start', 1e-4),
      beta_end=model.get('linear_end', 2e-2),
      beta_schedule={'linear': 'scaled_linear'}.get(model.get('beta_schedule', 'linear'), 'other'),
      prediction_type=PARAMETERIZATIONS[model.get('parameterization', 'eps')],
    )
    scale = float(model.get('scale_factor', 1.0))
    if not 0 < scale < 1e6:
      raise ValueError(f'scale_factor is {scale}')
  except (OSError, yaml.YAMLError, *MALFORMED) as error:
    words = ' '.join(str(error).split())[:150]
    raise UserError(
      f'{beside} is no config of latent diffusion ({type(error).__name__}: {words}): mend it, or '
      'move it away'
    ) from None
  heads = configs.values(configs.LDM_UNET, net, str(beside))['num_heads']
  configs.values(configs.LDM_AUTOENCODER, vae, str(beside))
  found = dict(scale=scale, schedule=configs.schedule(settings, str(beside)))
  if heads == -1:  # the class's default, which is of no use
    return found, beside.name
  heads = configs.integer(dict(num_heads=heads), 'num_heads', str(beside))
  return found | dict(heads=heads), beside.name


def _plain_yaml(file: Path) -> Any:
  """A small YAML file without aliases, with which a few hundred bytes can mean gigabytes."""
  import yaml

  class Plain(yaml.SafeLoader):
    def compose_node(self, parent, index):
      if self.check_event(yaml.AliasEvent):
        raise yaml.YAMLError('it has aliases (*name): write out what they stand for')
      return super().compose_node(parent, index)

  return yaml.load(read_small(file, LONGEST_YAML).decode('utf-8'), Plain)


def _note(file: Path) -> dict[str, Any] | None:
  """The config that `write` left in a file."""
  try:
    text = read_metadata(file).get(NOTE)
  except UserError:  # not a .safetensors
    return None
  try:
    if not text:
      return None
    note = json.loads(text)
    note = {group: dict(note[group]) for group in ('model', 'data', 'edit')}
    configs.check_settings(note['model'], str(file))
    configs.check_uses(note['data'], note['edit'], str(file))
    networks(note['model']['unet'], note['model']['autoencoder'])  # it says all that they need
    note['model']['autoencoder']['z_channels']
    return note
  except MALFORMED as error:
    raise UserError(f'{file} is damaged (its note: {error}): restore it from a copy') from None


def write(file: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
  """Write a .safetensors in this layout, with a note of what it does not say.

  config: its `model` with every setting said. tensors: ours.
  Raises:
    UserError: where the layout cannot hold such a model.
  """
  model = config['model']
  if file.suffix != '.safetensors':
    raise UserError(f'{file}: the original layout is written as one .safetensors; end it so')
  table = [*networks(model['unet'], model['autoencoder']), *conditioner.ORIGINAL]
  theirs = to_theirs(table, tensors)
  data, edit = config.get('data', {}), config.get('edit', {})
  note = dict(
    model=model,
    data={name: data[name] for name in ('size', 'exemplar_size') if name in data},
    edit={name: edit[name] for name in ('steps', 'scale', 'sampler') if name in edit},
  )
  save_tensors(file, theirs, {NOTE: json.dumps(note), 'format': 'pt'})


def _shape(
  tensors: Mapping[str, Tensor], name: str, where: Path | str, axes: int = 0
) -> tuple[int, ...]:
  """The shape of a tensor that must be there."""
  shape = tensors[name].shape if name in tensors else ()
  if not shape or 0 in shape or (axes and len(shape) != axes):
    what = f'of shape {shape}' if name in tensors else 'missing'
    raise UserError(f'{where} cannot be understood: {name} is {what}; is it the whole file?')
  return shape


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
  """How many there are of a name with a number in it, counted from 0."""
  number = 0
  while name.format(number) in tensors:
    number += 1
  return number
