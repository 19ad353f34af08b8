r"""Edits image files: reads files, writes files.

  python -m exedit.sample --weights=weights/tiny --image=street.jpg --mask=hole.png \
      --exemplar=bulldog.jpg --output=out.png
  python -m exedit.sample --weights=stable-diffusion-v1-4 --prompt='a bulldog' --output=out.png
  python -m exedit.sample --weights=stable-diffusion-v1-4 --concept=teapot.safetensors \
      --prompt='a photo of a <new1> teapot' --output=out.png
  python -m exedit.sample --weights=weights/tiny --edits=list.csv --output=results
  python -m exedit.sample --replay=out.json

Paint by Example repaints the white part of the mask with the exemplar's subject; every other pixel
keeps its own bytes. Stable Diffusion makes a picture of the text in --prompt, or changes --image,
with --mask only its white part. The columns of a list are the system's inputs, output and settings.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from exedit import systems
from exedit.editing.settings import CONCEPT, LARGEST_BATCH
from exedit.runtime import doors
from exedit.runtime.doors import Flag
from exedit.runtime.errors import UserError

# None: not given. Some flags do not go with all ways of editing, even with their default value.
FILES = (
  Flag(
    'weights', None,
    'run, exported or diffusers folder, .ckpt or .safetensors file, or the id of a hub; for photos'
    ' Fantasy-Studio/Paint-by-Example, with --prompt Stable Diffusion; to try weights/tiny', str,
  ),
  Flag('output', None, 'file to write (with --edits: the folder)', str),
)  # fmt: skip
LISTS = (
  Flag('edits', None, 'a .jsonl or .csv list of edits, or a folder', str),
  Flag('skip_bad', None, 'leave out the edits of a list with faults', bool, shown='false'),
)
REPLAY = Flag('replay', None, 'an out.json, or its out.png: make that edit again', str)
WRITING = (
  Flag('recipe', None, 'write out.json, and the recipe into the PNG too', bool, shown='true'),
  Flag('keep', None, 'keep a file that is replaced as out-old.png', bool, shown='false'),
)
LARGEST = Flag(
  'max_megapixels', None, 'the largest picture to read, in millions of pixels', float, 1, 4000,
  'what a quarter of the memory can edit',
)  # fmt: skip
HOW = (
  Flag('num_samples', None, 'samples, whose seeds count up: out-0.png, ...', int, 1, 10**6, '1'),
  *CONCEPT,
  Flag(
    'precision', None, 'the type to compute in', ['float32', 'bfloat16'], shown="the weights' own"
  ),
  Flag(
    'which', None, "a run's average of its weights, or its last weights", ['ema', 'params'],
    shown='ema',
  ),
  Flag('revision', None, 'revision of weights on a hub', str),
  Flag(
    'batch_size', None, 'edits at once, on all devices together', int, 1, LARGEST_BATCH,
    'what fits the devices',
  ),
)  # fmt: skip


def inputs() -> list[Flag]:
  """The flags of the inputs of all systems."""
  found = {}
  for form in systems.forms().values():
    for entry in form.inputs:
      found.setdefault(entry.name, Flag(entry.name, None, entry.help, str))
  return [*found.values()]


def settings() -> list[Flag]:
  """The flags of the settings of all systems; a flag allows what any of the systems allows."""
  found: dict[str, list[dataclasses.Field]] = {}
  for form in systems.forms().values():
    for field in dataclasses.fields(form.settings):
      found.setdefault(field.name, []).append(field)
  return [setting(name, fields) for name, fields in found.items()]


def setting(name: str, fields: list[dataclasses.Field]) -> Flag:
  """The flag of one setting, from the fields of the systems that have it."""
  first = fields[0]
  default = '' if first.default is None else str(first.default).lower()  # None: its help tells
  if default and first.metadata['network']:  # the weights' config may have another default
    default = f"the weights' own, or {default}"
  choices = [choice for field in fields for choice in field.metadata['choices']]
  bounds = [field.metadata['bounds'] for field in fields if field.metadata['bounds']]
  kind = [*dict.fromkeys(choices)] if choices else systems.kind_of(first)
  least = min((pair[0] for pair in bounds), default=None)
  most = max((pair[1] for pair in bounds), default=None)
  return Flag(name, None, first.metadata['help'], kind, least, most, default)


def flags() -> list[Flag]:
  """Files, the inputs and settings of all systems, and how to work."""
  return [*FILES, *inputs(), *LISTS, REPLAY, *settings(), *HOW, *WRITING, LARGEST]


def main(**values: Any) -> None:
  """Makes one edit, a list of edits, or a recorded edit, with the given flags."""
  given = {name: value for name, value in values.items() if value is not None}
  mode = next((name for name in ('replay', 'edits') if name in given), 'a single edit')
  allowed, needed = {
    'a single edit': ((*FILES, *inputs(), *settings(), *HOW, *WRITING), ('weights', 'output')),
    'edits': ((*FILES, *LISTS, *settings(), *HOW, *WRITING), ('weights', 'edits')),
    'replay': ((*FILES, REPLAY, CONCEPT[0], *inputs(), *WRITING), ('replay',)),
  }[mode]
  for name in given:
    if name not in [flag.name for flag in (*allowed, LARGEST)]:
      raise UserError(f'--{name} does not go with {mode if " " in mode else "--" + mode}')
  abouts = {flag.name: flag.help for flag in FILES}
  for name in needed:
    if not given.get(name):
      raise UserError(f'--{name} is missing: name the {abouts.get(name, "file")}')
  edit(mode, given)


def edit(mode: str, given: dict[str, Any]) -> None:
  """Makes the edits of one mode in all processes."""
  import jax

  from exedit.editing import edit_files, replay
  from exedit.runtime import compilation, decode, processes

  processes.join_processes()
  compilation.cache_compiled()
  decode.allow(given.pop('max_megapixels', None))
  given['keep_recipe'] = given.pop('recipe', True)
  if jax.process_index():
    given['say'] = lambda line: None
  with processes.ending_together(), processes.together(patient=True):
    if mode == 'edits':
      edit_files.edit_list(**given)
    elif mode == 'a single edit':
      edit_files.edit_once(**given)
    elif not jax.process_index():  # one process replays
      replay.replay(given.pop('replay'), **given)


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, flags(), __doc__, argv)


if __name__ == '__main__':
  run()
