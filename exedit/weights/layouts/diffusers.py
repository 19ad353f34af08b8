"""The folder of a diffusers pipeline: unet/, vae/, image_encoder/, scheduler/, read and written."""

from pathlib import Path
from typing import Any

from exedit.runtime.errors import UserError
from exedit.weights import settings as configs
from exedit.weights.formats.files import INDEX, open_tensors
from exedit.weights.formats.tensor import read_json
from exedit.weights.found import Weights
from exedit.weights.tables import autoencoder, conditioner, unet
from exedit.weights.translate import Row, under

PARTS = ('unet', 'vae', 'image_encoder', 'scheduler')
STEM = dict(image_encoder='model')  # of the .safetensors; transformers' name, the others diffusers'
OTHERS = {  # folders that say which other pipeline this is
  'text_encoder_2': 'Stable Diffusion XL',
  'text_encoder_3': 'Stable Diffusion 3',
  'transformer': 'a diffusion transformer',
  'prior': 'a cascade',
}
TABLE: list[Row] = [
  *under('unet/', 'unet.', unet.TABLE),
  *under('vae/', 'autoencoder.', autoencoder.TABLE),
  *under('image_encoder/', '', conditioner.IMAGE_ENCODER),
]


def read(path: Path) -> Weights:
  """What the folder of a pipeline holds: Paint by Example, or Stable Diffusion 1.x to start from.

  Raises:
    UserError: for another pipeline, half a folder, a setting that is not implemented.
  """
  components = _components(path)
  for other, what in OTHERS.items():
    if other in components:
      raise UserError(f'{path} is {what} ({other}/): exedit reads Paint by Example and SD 1.x')
  by_words = 'text_encoder' in components and 'image_encoder' not in components
  parts = [part for part in PARTS if part != 'image_encoder' or not by_words]
  missing = [f'{part}/' for part in parts if not (path / part).is_dir()]
  if missing:
    there = [f'{part}/' for part in parts if (path / part).is_dir()]
    raise UserError(
      f'{path} is half a pipeline: it has {", ".join(there)} and lacks {", ".join(missing)}; '
      'fetch the rest, or restore the folder from a copy'
    )
  files, theirs = [], {}
  for part in parts:
    if part != 'scheduler':
      file = weights_file(path / part, STEM.get(part, 'diffusion_pytorch_model'))
      tensors = open_tensors(file)
      theirs |= {f'{part}/{name}': tensor for name, tensor in tensors.items()}
      files += shards(file)
  config, kind = _config(path, by_words)
  return Weights(config, theirs, TABLE, tuple(files), kind=kind)


def _components(path: Path) -> set[str]:
  """The pipeline's parts: its folders, and those that its index names (a hub gives only some)."""
  index = path / 'model_index.json'
  named = read_json(index) if index.exists() else {}
  parts = {name for name, value in named.items() if isinstance(value, list) and any(value)}
  return parts | {p.name for p in path.iterdir() if p.is_dir()}


def _config(path: Path, by_words: bool) -> tuple[dict[str, Any], str]:
  """(config in our words, kind of pipeline)."""
  file = lambda part: str(path / part / 'config.json')
  net = configs.unet(read_json(path / 'unet' / 'config.json'), file('unet'))
  vae = configs.autoencoder(read_json(path / 'vae' / 'config.json'), file('vae'))
  scheduler = read_json(path / 'scheduler' / 'scheduler_config.json')
  schedule = configs.schedule(scheduler, str(path / 'scheduler' / 'scheduler_config.json'))
  kind = configs.kind(net, vae['z_channels'], by_words, str(path))
  net = {name: value for name, value in net.items() if name not in ('in_channels', 'out_channels')}
  model = dict(unet=net, autoencoder=vae, schedule=schedule, context_dim=net.pop('context_dim'))
  size = read_json(path / 'unet' / 'config.json').get('sample_size')
  size, factor = size if type(size) is int and size >= 1 else 64, 2 ** (len(vae['mult']) - 1)
  if size * factor > (most := configs.SIZES['size']):
    raise UserError(
      f'{file("unet")}: sample_size is {configs.shown(size)}, '
      f'{configs.shown(size * factor)} pixels with this autoencoder: exedit edits up to {most}'
    )
  data = dict(size=size * factor)
  if kind == 'paint_by_example':
    tower = configs.clip(read_json(path / 'image_encoder' / 'config.json'), file('image_encoder'))
    layers = (tower['layers'] + 1) // 5  # diffusers' rule for its mapper
    model |= dict(clip=tower, conditioner=dict(layers=layers))
    data['exemplar_size'] = tower['image_size']
  sampler = configs.SAMPLERS.get(str(scheduler.get('_class_name')), 'plms')
  return dict(model=model, data=data, edit=dict(steps=50, scale=5.0, sampler=sampler)), kind


def weights_file(folder: Path, stem: str) -> Path:
  """The file of one network: safetensors before torch's, whole before sharded before variants."""
  torch_stem = 'pytorch_model' if stem == 'model' else stem
  for name, ending in ((stem, 'safetensors'), (torch_stem, 'bin')):
    for candidate in (f'{name}.{ending}', f'{name}.{ending}{INDEX}'):
      if (folder / candidate).exists():
        return folder / candidate
  for name, ending in ((stem, '.safetensors'), (torch_stem, '.bin')):
    found = sorted(p for p in folder.glob(f'{name}.*') if _is_variant(p.name, name, ending))
    if found:  # a halved one before any other
      return next((p for p in found if '.fp16.' in p.name), found[0])
  there = ', '.join(sorted(p.name for p in folder.iterdir())[:5]) or 'nothing'
  raise UserError(
    f'{folder} has no weights: it needs {stem}.safetensors or {torch_stem}.bin and has {there}'
  )


def _is_variant(name: str, stem: str, ending: str) -> bool:
  """Whether this is `stem.fp16.safetensors`, or `stem.safetensors.index.fp16.json` for shards."""
  rest = name.removeprefix(stem)
  whole = rest.endswith(ending) and rest.count('.') == 2 and '-of-' not in rest
  return whole or (rest.startswith(f'{ending}.index.') and rest.endswith('.json'))


def shards(file: Path) -> list[Path]:
  """The files behind a weight file: itself, or those that an index names."""
  if file.suffix != '.json':
    return [file]
  return sorted(file.parent / name for name in set(read_json(file)['weight_map'].values()))
