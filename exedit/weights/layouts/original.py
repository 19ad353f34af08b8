"""The checkpoint of the original code and of Stable Diffusion 1.x: one file with LDM's names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exedit.runtime.errors import UserError
from exedit.weights.formats.files import open_tensors, read_metadata
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor
from exedit.weights.formats.torch_saving import save_checkpoint
from exedit.weights.found import Weights, system_of
from exedit.weights.layouts import original_config, own, towers
from exedit.weights.layouts.original_config import MALFORMED, MAPPER, NET, TOWER, VAE, shape_of
from exedit.weights.tables import autoencoder, clip_text, conditioner, unet
from exedit.weights.translate import Row, ignored, to_theirs, under

CONV_IN, CONV_OUT = f'{NET}input_blocks.0.0.weight', f'{NET}out.2.weight'
EXEMPLAR = (MAPPER, f'{TOWER}vision_model.', 'cond_stage_model.final_ln.', 'learnable_vector')
NOTE = 'exedit'  # the entry of the metadata in which `write` stores the config
WRITERS = {  # by the name of the format: the function that writes it, the endings of the files
  'safetensors': (save_tensors, ('.safetensors',)),
  'ckpt': (save_checkpoint, ('.ckpt', '.pt', '.pth')),
}
BUFFERS = (  # functions of the betas: PbE ldm/models/diffusion/ddpm.py register_schedule
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
TEXT: list[Row] = under(TOWER, 'text.', clip_text.TABLE)
IGNORED = ignored(
  *BUFFERS,
  'logvar',
  'lvlb_weights',
  'model_ema.*',  # the average, or the parameters under its names: see `_chosen`
  f'{VAE}loss.*',  # the discriminator that trained the autoencoder
)
READS = 'exedit reads Paint by Example and Stable Diffusion 1.x'
LORA = f'is a LoRA, which changes a model and is none: {READS}'
FAMILIES = {  # names that only other models have, most of them beside names that ours have too
  'conditioner.embedders.': f'is Stable Diffusion XL: {READS}',
  'cond_stage_model.model.': f'is Stable Diffusion 2: {READS}',
  'model.diffusion_model.joint_blocks.': f'is Stable Diffusion 3: {READS}',
  'control_model.': f'is a ControlNet, which steers a model and is none: {READS}',
  'lora_': LORA,
  'base_model.': LORA,
}
OTHERS = {  # names that only other files have: what each file is, and what to do
  'vision_model.': 'is a CLIP tower alone: a training takes it as --config.init_clip',
  'down_blocks.': 'is one network of a diffusers pipeline: name the folder that holds unet/',
  'encoder.': 'is one network of a diffusers pipeline: name the folder that holds vae/',
  'uncond_vector': 'is one network of a diffusers pipeline: name the folder above it',
  'unet.': "is exedit's own layout: name its folder, and keep its config.json beside it",
}


def read(
  file: Path,
  which: str,
  *,
  heads: int | None = None,
  groups: int | None = None,
  clip_heads: int | None = None,
  to_start: bool = False,
) -> Weights:
  """Returns the weights of an original checkpoint: Paint by Example, or Stable Diffusion 1.x.

  to_start: leave out the text tower of Stable Diffusion.
  Raises:
    UserError: for other weights, other networks, or a file that cannot be read.
  """
  tensors = open_tensors(file)
  if family := _family(tensors):
    raise UserError(f'{file} {family}')
  if CONV_IN not in tensors:
    raise UserError(f'{file} {_other(tensors)}')
  tensors, taken = _chosen(tensors, which, file)
  by_text = not any(name.startswith(EXEMPLAR) for name in tensors)
  if note := _note(file):
    config, notes = note, (f'sizes, heads and schedule: the note in {file.name}',)
  else:
    config, notes = original_config.of(file, tensors, by_text, heads, groups, clip_heads)
  net, vae = config['model']['unet'], config['model']['autoencoder']
  z, stem = vae['z_channels'], tensors[CONV_IN]
  channels = dict(
    in_channels=shape_of(tensors, CONV_IN, file, 4)[1],
    out_channels=shape_of(tensors, CONV_OUT, file)[0],
  )
  if by_text and stem.shape[1] == 2 * z + 1 and not stem.read()[:, z:].any():
    channels['in_channels'] = z  # PbE scripts/modify_checkpoints.py has added channels of zeros
  kind = system_of(channels, z, by_text, str(file))
  if by_text and not to_start and 'text' not in config['model']:
    config['model']['text'] = original_config.text_sizes(tensors, file)
    notes += (f'heads of the text tower: one per {towers.HEAD_WIDTH} channels',)
  table = [*networks(net, vae), *(TEXT if by_text else conditioner.ORIGINAL), *IGNORED]
  return Weights(config, tensors, table, (file,), kind=kind, which=taken, notes=notes)


def networks(net: Mapping[str, Any], vae: Mapping[str, Any]) -> list[Row]:
  """Returns the table of the UNet and the autoencoder, whose names depend on their sizes."""
  rows = unet.original(len(net['mult']), net['layers'], net['attention_levels'])
  return [
    *under(NET, 'unet.', rows),
    *under(VAE, 'autoencoder.', autoencoder.original(len(vae['mult']))),
  ]


def _family(tensors: Mapping[str, Tensor]) -> str:
  """Says what a file of another kind of model is; '' for others."""
  for prefix, what in FAMILIES.items():
    if any(name.startswith(prefix) for name in tensors):
      return what
  return LORA if any('.lora_' in name or '.lora.' in name for name in tensors) else ''


def _other(tensors: Mapping[str, Tensor]) -> str:
  """Describes a file that is not an original checkpoint, for an error message."""
  for prefix, what in OTHERS.items():
    if any(name.startswith(prefix) for name in tensors):
      return what
  first = ', '.join(ascii(name)[1:-1][:60] for name in list(tensors)[:3]) or 'nothing'
  return f'is no checkpoint of Paint by Example or Stable Diffusion: its tensors are {first}, ...'


def _chosen(
  tensors: Mapping[str, Tensor], which: str, file: Path
) -> tuple[Mapping[str, Tensor], str]:
  """The tensors, with the UNet's moving average instead of its parameters if `which` asks for it.

  LDM stores the average as `model_ema.` and the parameter's name without dots (PbE ldm/modules/
  ema.py).
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


def _note(file: Path) -> dict[str, Any] | None:
  """The config that `write` has stored in a file, if any."""
  try:
    text = read_metadata(file).get(NOTE)
    if not text:
      return None
    note = json.loads(text)
    note = {group: dict(note[group]) for group in ('model', 'data', 'edit')}
    note['model'] = own.checked_settings(note['model'], str(file))
    note['data'], note['edit'] = own.checked_uses(note['data'], note['edit'], str(file))
    networks(note['model']['unet'], note['model']['autoencoder'])  # fails if a size is missing
    note['model']['autoencoder']['z_channels']
    return note
  except MALFORMED as error:
    raise UserError(f'{file} is damaged (its note: {error}): restore it from a copy') from None


def format_of(file: Path, format: str | None = None) -> str:
  """Returns the name in WRITERS of the format to write: as given, or as the name of the file ends.

  Raises:
    UserError: if the name has another ending or none.
  """
  found = next((name for name, (_, endings) in WRITERS.items() if file.suffix in endings), None)
  if found is None or (format and format != found):
    allowed = WRITERS[format][1] if format else [e for _, ends in WRITERS.values() for e in ends]
    raise UserError(
      f'{file}: the original layout is written as one {" or ".join(allowed)}; end the name so'
    )
  return found


def write(file: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
  """Writes a file in this layout, with the config as a note beside the tensors.

  file: its ending tells the format, see `format_of`.
  config: its `model` has every default value written out. Paths are not stored.
  tensors: by exedit's paths.
  Raises:
    UserError: if the layout cannot hold such a model.
  """
  model = config['model']
  save, _ = WRITERS[format_of(file)]
  condition = TEXT if 'text' in model else conditioner.ORIGINAL
  table = [*networks(model['unet'], model['autoencoder']), *condition]
  data, edit = config.get('data', {}), config.get('edit', {})
  note = dict(
    model=model,
    data={name: data[name] for name in ('size', 'exemplar_size') if name in data},
    edit={name: value for name, value in edit.items() if name != 'count'},
  )
  save(file, to_theirs(table, tensors), {NOTE: json.dumps(note), 'format': 'pt'})
