r"""Edits image files: reads files, writes files.

  python -m exedit.sample --weights=weights/tiny --image=street.jpg --mask=hole.png \
      --exemplar=bulldog.jpg --output=out.png
  python -m exedit.sample --weights=weights/tiny --edits=list.csv --output=results
  python -m exedit.sample --replay=out.json

Paint by Example repaints the white part of the mask with the exemplar's subject; every other pixel
keeps its own bytes. The columns of a list are the inputs of the system (such as image, mask,
exemplar), output, and settings.
"""

import dataclasses
import sys
from typing import Any

import jax
from absl import flags

from exedit import systems
from exedit.editing import edit_files, recipe, replay
from exedit.runtime import compilation, doors, processes
from exedit.runtime.errors import UserError, heard

OWN = "(default: the weights' own)"
FILES = dict(
  weights='run, exported or diffusers folder, .ckpt or .safetensors file, or the id of a hub',
  output='file to write (with --edits: the folder)',
)
ONCE = (
  'weights',
  'output',
  'num_samples',
  'precision',
  'which',
  'revision',
  'batch_size',
  'recipe',
)


def inputs() -> dict[str, systems.Input]:
  """The inputs of all systems by name."""
  found = {}
  for system in systems.all_systems().values():
    found |= {entry.name: entry for entry in system.inputs if entry.name not in found}
  return found


def settings() -> dict[str, list[dataclasses.Field]]:
  """The settings of all systems: by name, the fields of the systems that have it."""
  found: dict[str, list[dataclasses.Field]] = {}
  for system in systems.all_systems().values():
    for field in dataclasses.fields(system.settings):
      found.setdefault(field.name, []).append(field)
  return found


def define_flags() -> None:
  """Defines the flags: files, the inputs and settings of all systems, and how to work."""
  values = flags.FLAGS
  for name, what in FILES.items():
    flags.DEFINE_string(name, None, what, values)
  for name, entry in inputs().items():
    flags.DEFINE_string(name, None, entry.help, values)
  flags.DEFINE_string('edits', None, 'a .jsonl or .csv list of edits, or a folder', values)
  flags.DEFINE_string('replay', None, 'an out.json, or its out.png: make that edit again', values)
  for name, fields in settings().items():
    define_setting(name, fields, values)
  what = 'number of samples, with seeds that count up: out-0.png, ...'
  flags.DEFINE_integer('num_samples', 1, what, 1, 10**6, values)
  what = f'the type to compute in {OWN}'
  flags.DEFINE_enum('precision', None, ['float32', 'bfloat16'], what, values)
  what = "a run's average of its weights, or its last weights"
  flags.DEFINE_enum('which', 'ema', ['ema', 'params'], what, values)
  flags.DEFINE_string('revision', None, 'revision of weights on a hub', values)
  what = 'edits at once, on all devices together'
  flags.DEFINE_integer('batch_size', None, what, 1, recipe.LARGEST_BATCH, values)
  flags.DEFINE_bool('recipe', True, 'write out.json, and the recipe into the PNG too', values)
  flags.DEFINE_bool('skip_bad', False, 'leave out the edits of a list with faults', values)


def define_setting(name: str, fields: list[dataclasses.Field], values: flags.FlagValues) -> None:
  """Defines the flag of one setting; it allows what any of the systems allows."""
  first = fields[0]
  own = first.metadata['network']  # the weights' config may have another default
  default: Any = None if own else first.default
  what = f'{first.metadata["help"]} {OWN}' if own else first.metadata['help']
  choices = [choice for field in fields for choice in field.metadata['choices']]
  bounds = [field.metadata['bounds'] for field in fields if field.metadata['bounds']]
  low = min((pair[0] for pair in bounds), default=None)
  high = max((pair[1] for pair in bounds), default=None)
  if choices:
    flags.DEFINE_enum(name, default, [*dict.fromkeys(choices)], what, values)
  elif first.type is bool:
    flags.DEFINE_bool(name, default, what, values)
  elif first.type is int:
    flags.DEFINE_integer(name, default, what, low, high, values)
  elif first.type is float:
    flags.DEFINE_float(name, default, what, low, high, values)
  else:
    flags.DEFINE_string(name, default, what, values)


def main(_: list[str]) -> None:
  """Makes one edit, a list of edits, or a recorded edit, with the given flags."""
  processes.join_processes()
  compilation.cache_compiled()
  names = [*FILES, *inputs(), *settings(), *ONCE, 'edits', 'replay', 'skip_bad']
  given: dict[str, Any] = {n: flags.FLAGS[n].value for n in names if flags.FLAGS[n].present}
  mode = next((name for name in ('replay', 'edits') if name in given), 'a single edit')
  allowed, needed = {
    'a single edit': ((*ONCE, *inputs(), *settings()), ('weights', 'output')),
    'edits': ((*ONCE, *settings(), 'edits', 'skip_bad'), ('weights', 'edits')),
    'replay': (('weights', 'output', 'recipe', 'replay', *inputs()), ('replay',)),
  }[mode]
  for name in given:
    if name not in allowed:
      raise UserError(f'--{name} does not go with {mode if " " in mode else "--" + mode}')
  for name in needed:
    if not given.get(name):
      raise UserError(f'--{name} is missing: name the {FILES.get(name, "file")}')
  given['keep_recipe'] = given.pop('recipe', True)
  if jax.process_index():
    given['say'] = lambda line: None
  try:
    with processes.ending_together(), processes.together(patient=True), heard():
      if mode == 'edits':
        edit_files.edit_list(**given)
      elif mode == 'a single edit':
        edit_files.edit_once(**given)
      elif not jax.process_index():  # one process replays
        replay.replay(given.pop('replay'), **given)
  except KeyboardInterrupt:
    print(f'\nstopped{"; the same command goes on" if mode == "edits" else ""}', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  define_flags()
  doors.run(main)
