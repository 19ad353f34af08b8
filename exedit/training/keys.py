"""The keys of a training's config as a listing for `--help`: values, and what they mean.

The meanings stand in the docstrings of the functions that take the groups. They are read from the
source files, because importing these functions imports JAX, which takes seconds.
"""

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from exedit import systems
from exedit.runtime.doors import entry

# group: the modules and the names of the functions that take its keys, see `config.read_config`
PLACES = {
  '': ('exedit.training.config:Config',),
  'data': (
    'exedit.input_pipeline.loader:batches',
    'exedit.input_pipeline.open_images:make_example',
  ),
  'model': ('exedit.paint_by_example:build',),
  'model.unet': ('exedit.models.unet:UNet',),
  'model.autoencoder': (
    'exedit.models.autoencoder:AutoencoderKL',
    'exedit.models.autoencoder:SpaceToDepth',
  ),
  'model.clip': ('exedit.models.clip:CLIPVision',),
  'model.text': ('exedit.models.clip_text:CLIPText',),
  'model.conditioner': ('exedit.models.conditioner:ExemplarConditioner',),
  'model.schedule': ('exedit.diffusion.schedule:Schedule',),
  'optimizer': ('exedit.training.optimizer:make_optimizer',),
  'ema': ('exedit.training.state:Ema',),
  'mesh': ('exedit.training.sharding:make_mesh',),
  'checkpoint': ('exedit.training.checkpoint:Checkpoints',),
  'concept': ('exedit.input_pipeline.concept_examples:concept',),
  'synthetic': ('exedit.input_pipeline.synthetic:settings',),
}
CAPTIONED = ('exedit.input_pipeline.loader:batches', 'exedit.input_pipeline.captioned:make_example')
PICTURES = ('exedit.input_pipeline.loader:batches', 'exedit.input_pipeline.pictures:make_example')
OWN = {  # the places of single systems, instead of those above
  'stable_diffusion': {'data': CAPTIONED, 'model': ('exedit.stable_diffusion:build',)},
  'autoencoder': {'data': PICTURES, 'model': ('exedit.autoencoder_kl:build',)},
  'clip': {'data': CAPTIONED, 'model': ('exedit.contrastive:build',)},
}
OWN['custom_edit'] = {
  'data': ('exedit.input_pipeline.concept_examples:Examples',),
  'model': ('exedit.custom_edit:build',),
}
OWN['stable_diffusion_inpainting'] = OWN['stable_diffusion']


def listing(config: Any = None) -> str:
  """The keys of a config, one entry for each; None: those of configs/pbe.py."""
  title = 'Keys of the config, with its values'
  if config is None:
    from exedit.configs import pbe

    config = pbe.get_config()
    title = 'Keys of configs/pbe.py, with its values (--config=FILE --help: those of another file)'
  values = config.to_dict()
  lines = [entry(f'--config.{path}={value}', text, 40) for path, value, text in rows(values)]
  return '\n'.join([f'{title}:', *lines])


def rows(values: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
  """The path, the value and the meaning ('' if unknown) of each key, groups behind the rest."""
  for group, found in sorted(_groups(values), key=lambda pair: bool(pair[0])):
    known = meanings(group, values.get('system', ''))
    for name, value in found.items():
      shown = 'None' if value is None else str(value).replace(' ', '')
      yield (f'{group}.{name}' if group else name), shown, known.get(name, '')


def _groups(values, path='') -> Iterator[tuple[str, dict[str, Any]]]:
  """The groups of a config by path, each without the groups inside it.

  At the top an empty group is a value, so that it is listed.
  """
  inner = {
    name: group
    for name, group in values.items()
    if isinstance(group, Mapping) and name != 'lr_multipliers' and (group or path)
  }
  yield path, {name: value for name, value in values.items() if name not in inner}
  for name, group in inner.items():
    yield from _groups(group, f'{path}.{name}' if path else name)


def meanings(group: str, system: str) -> dict[str, str]:
  """What the keys of a group mean, as far as it is written down."""
  if group == 'edit':
    form = systems.forms().get(system)
    fields = dataclasses.fields(form.settings) if form else ()
    return {f.name: f.metadata['help'] for f in fields} | {
      'count': 'number of held-out examples in a grid'
    }
  found = {'kind': "'kl' or 'space_to_depth'"} if group == 'model.autoencoder' else {}
  for place in OWN.get(system, {}).get(group, PLACES.get(group, ())):
    found |= described(*place.split(':'))
  return found


def described(module: str, name: str) -> dict[str, str]:
  """The parameters of a function or class that its docstring explains as `parameter: text`."""
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    return {}
  tree = ast.parse(Path(spec.origin).read_text(encoding='utf-8'))
  kinds = (ast.FunctionDef, ast.ClassDef)
  node = next(n for n in tree.body if isinstance(n, kinds) and n.name == name)
  names, text = _parameters(node), ast.get_docstring(node) or ''
  text = re.split(r'\n *(?:Raises|Returns):', text)[0]
  found = {}
  for paragraph in re.split(r'\n\s*\n|Args:', text):
    parts = re.split(r'(?:^|(?<=[.;]) )((?:\w+, )*\w+): ', ' '.join(paragraph.split()))
    for said, about in zip(parts[1::2], parts[2::2]):
      first = re.split(r'[.] (?=[A-Z])', about.strip())[0].rstrip('.;')
      found |= {word: first for word in said.split(', ') if word in names}
  return found


def _parameters(node) -> set[str]:
  if isinstance(node, ast.ClassDef):
    targets = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
    fields = {target.id for target in targets if isinstance(target, ast.Name)}
    inits = [p for p in node.body if isinstance(p, ast.FunctionDef) and p.name == '__init__']
    return fields.union(*map(_parameters, inits))
  return {argument.arg for argument in node.args.args + node.args.kwonlyargs}
