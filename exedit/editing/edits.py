"""The list of edits: a .jsonl or .csv file or a folder, one Edit per output, checked as a whole."""

import dataclasses
import difflib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from exedit import images, latent_diffusion, systems
from exedit.editing import framing, room
from exedit.runtime import decode, lists
from exedit.runtime.errors import UserError, explain

INPUTS = ('image', 'mask', 'exemplar', 'exemplar_mask')
NEEDED = INPUTS[:3]
SHOWN = 3  # faults that are told; the others are counted
MASK_RESIZES = ('bilinear', 'nearest')
LARGEST_SEED = 2**31 - 1
LONGEST_PATH = 4000  # bytes; operating systems take 4096, and longer ones tell nobody anything
WIDEST = 256  # pixels of feather
MATCH = inspect.signature(framing.stitch).parameters['match'].default


@dataclasses.dataclass(frozen=True)
class Settings:
  """What one edit is made with; each is a flag of the door and may be a column of the list."""

  steps: int
  scale: float
  sampler: str
  seed: int = 0
  zoom: str = 'auto'
  feather: float = framing.FEATHER
  match: str = MATCH
  exemplar_fit: str = 'squash'
  paste: bool = True
  mask_resize: str = 'bilinear'


CHOICES = dict(
  sampler=tuple(latent_diffusion.SAMPLERS),
  zoom=framing.ZOOMS,
  match=framing.MATCHES,
  exemplar_fit=framing.FITS,
  mask_resize=MASK_RESIZES,
)
BOUNDS = dict(steps=(1, 10**6), scale=(-1000, 1000), seed=(0, LARGEST_SEED), feather=(0, WIDEST))


@dataclasses.dataclass(frozen=True)
class Edit:
  """One output: its files and settings. `where` is its place in the list, such as 'line 3'."""

  image: str
  mask: str
  exemplar: str
  output: str
  settings: Settings
  exemplar_mask: str | None = None
  where: str = ''

  def inputs(self) -> dict[str, str]:
    """Name -> path of the files that go in."""
    return {name: path for name in INPUTS if (path := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True)
class Job:
  """An edit whose files were looked at: where in the photo it happens, and what to tell."""

  edit: Edit
  frame: framing.Frame
  notes: tuple[str, ...] = ()
  pixels: int = 0  # of the photo and the exemplar: what its work takes of `room.PHOTOS`


@dataclasses.dataclass(frozen=True)
class Fault:
  """Why one edit of a list cannot be made."""

  where: str
  why: str

  def __str__(self):
    return f'{self.where}: {self.why}' if self.where else self.why


# Reading


def read(
  path: str, output: str | None, settings: Settings, most_steps: int = BOUNDS['steps'][1]
) -> tuple[list[Edit], list[Fault]]:
  """The edits of a .jsonl or .csv file (relative paths lie in its folder) or of a folder.

  A list's columns are image, mask and exemplar, and where wanted output, exemplar_mask and any of
  Settings; an empty cell is the default. A folder holds image/, mask/, exemplar/ and perhaps
  exemplar_mask/, matched by the names without their endings. `output` is the folder that a
  relative output lies in; without an output column it is needed, and gets <image's name>.png.
  `most_steps`: of the weights' schedule.

  Raises:
    UserError: for a list that cannot be read at all; what is wrong with one edit is a Fault.
  """
  rows, base = lists.read(path, INPUTS, NEEDED, _check_columns)
  found: list[Edit] = []
  faults: list[Fault] = []
  for where, row in rows:
    try:
      edit = _edit(where, row, base, output, settings)
      systems.check_steps(edit.settings.steps, most_steps)
      found.append(edit)
    except UserError as error:
      faults.append(Fault(where, str(error)))
  return found, faults


def _edit(where, row, base, output, settings) -> Edit:
  if isinstance(row, UserError):
    raise row
  given = {str(name): value for name, value in row.items() if value not in (None, '')}
  for name in NEEDED:
    if name not in given:
      raise UserError(f'its {name} is empty')
  paths = {name: given.pop(name) for name in (*INPUTS, 'output') if name in given}
  for name, path in paths.items():
    if not isinstance(path, str) or not _nameable(path):
      raise UserError(f'{name} is {path!r:.60}: it must be a path')
  target = paths.pop('output', None)
  if output is None and target is None:
    raise UserError('it has no output, and no folder was named for it: give --output=FOLDER')
  target = target or Path(paths['image']).stem + '.png'
  values = {name: value(name, given[name]) for name in given}
  return Edit(
    **{name: os.path.join(base, path) for name, path in paths.items()},
    output=images.check_ending(os.path.join(base if output is None else output, target)),
    settings=dataclasses.replace(settings, **values),
    where=where,
  )


def _nameable(path):
  """Whether a file could have this path at all."""
  try:
    return 0 < len(os.fsencode(path)) <= LONGEST_PATH and '\0' not in path
  except UnicodeEncodeError:  # half a surrogate pair
    return False


def _check_columns(names):
  known = [*INPUTS, 'output', *(field.name for field in dataclasses.fields(Settings))]
  for name in names:
    if name not in known:
      near = difflib.get_close_matches(name, known, 1)
      hint = f"did you mean '{near[0]}'?" if near else f'there are {", ".join(known)}'
      raise UserError(f"'{name:.40}' is no column: {hint}")
    if names.count(name) > 1:
      raise UserError(f'the column {name} is there twice')
  for name in NEEDED:
    if name not in names:
      raise UserError(f'it has no {name}: an edit needs {", ".join(NEEDED)}')


# Settings


def value(name: str, given: Any) -> Any:
  """The setting as its own type, in its range; UserError otherwise."""
  kind = {field.name: field.type for field in dataclasses.fields(Settings)}[name]
  try:
    found = _as(kind, given)
  except (ValueError, OverflowError):
    words = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a word'}
    raise UserError(f'{name} is {given!r:.40}: it must be {words[kind]}') from None
  if name in BOUNDS and not BOUNDS[name][0] <= found <= BOUNDS[name][1]:  # nan neither
    raise UserError(
      f'{name} is {found}: it must be between {BOUNDS[name][0]} and {BOUNDS[name][1]}'
    )
  if name in CHOICES and found not in CHOICES[name]:
    raise UserError(f'{name} is {found!r:.40}: use one of {", ".join(CHOICES[name])}')
  return found


def _as(kind, given) -> Any:
  """A cell of text or a JSON value; a number is no flag, 2.5 no count, and true no number."""
  if kind is bool:
    words = dict(true=True, false=False, yes=True, no=False)
    if not isinstance(given, bool) and str(given).lower() not in words:
      raise ValueError
    return given if isinstance(given, bool) else words[str(given).lower()]
  if kind is str:
    if not isinstance(given, str):
      raise ValueError
    return given
  if isinstance(given, bool) or not isinstance(given, int | float | str):
    raise ValueError
  if kind is int and isinstance(given, float) and not given.is_integer():
    raise ValueError
  return kind(given)


def samples(found: Sequence[Edit], count: int) -> list[Edit]:
  """Each edit `count` times with the seeds seed, seed + 1, ...: out-0.png, out-1.png, ..."""
  if count == 1:
    return list(found)
  several = []
  for edit in found:
    stem, ending = os.path.splitext(edit.output)
    if edit.settings.seed + count - 1 > LARGEST_SEED:
      raise UserError(f'seed {edit.settings.seed} leaves no room for {count} samples: lower it')
    for i in range(count):
      settings = dataclasses.replace(edit.settings, seed=edit.settings.seed + i)
      several.append(dataclasses.replace(edit, output=f'{stem}-{i}{ending}', settings=settings))
  return several


# Checking


def plan(edit: Edit, trained: int) -> Job:
  """Look at the files of one edit without decoding the large ones: do they fit, and where is it?

  Raises:
    UserError: for a file that is missing or of a kind that cannot be read, a mask of another size
      or an empty one, and a photo that is too long.
  """
  photo, exemplar = decode.header(edit.image), decode.header(edit.exemplar)
  masked = math.prod(decode.header(edit.mask).size)
  if edit.exemplar_mask is not None:
    cut_out = decode.header(edit.exemplar_mask)
    images.check_size_of_mask(edit.exemplar_mask, cut_out.size, exemplar.size, 'exemplar')
  images.check_holds(edit.output, photo.size)
  with room.PHOTOS.taken(masked):
    mask = images.read_mask(edit.mask)
    images.check_size_of_mask(edit.mask, mask.shape, photo.size)
    try:
      frame = framing.choose(mask, trained, edit.settings.zoom)
    except UserError as error:
      raise UserError(f'{edit.image}: {error}') from None
    white = bool(mask.all())
  pixels = math.prod(photo.size) + math.prod(exemplar.size)
  return Job(edit, frame, tuple(_notes(edit, photo, white)), pixels)


def _notes(edit, photo, white):
  if white:
    yield 'the mask is white everywhere: nothing of the photo is kept'
  if photo.deep:
    yield 'the photo has 16 bits per channel, the output 8: its tones are rounded everywhere'
  if photo.inks:
    yield 'the photo is CMYK, the output RGB: its colours are converted everywhere'
  if not edit.settings.paste:
    yield 'nothing is pasted: pixels outside the mask change too'
  elif edit.output.lower().endswith(('.jpg', '.jpeg')):
    what = 'JPEG changes every pixel a little'
    what += ' and holds no transparency' if photo.alpha else ''
    yield f'{what}; a .png keeps what is outside the mask'


def plan_all(
  found: Iterable[Edit], trained: int, done: Callable[[], Any] = lambda: None
) -> tuple[list[Job], list[Fault]]:
  """`plan` for every edit, several at once; `done` is called after each."""

  def one(edit):
    try:
      return plan(edit, trained)
    except Exception as error:
      why = explain(error)
      if why is None:
        raise
      return Fault(edit.where, why)

  jobs: list[Job] = []
  faults: list[Fault] = []
  with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
    for planned in pool.map(one, found):
      (jobs if isinstance(planned, Job) else faults).append(planned)  # pyright: ignore
      done()
  return jobs, faults


def clashes(found: Sequence[Edit], also: Iterable[str], recipes: bool) -> list[Fault]:
  """Outputs that would be written twice, over an input (or a path of `also`), or nowhere."""
  inputs = {_real(path) for edit in found for path in edit.inputs().values()}
  inputs |= {_real(path) for path in also}
  seen: dict[str, str] = {}
  places: dict[str, bool] = {}
  faults = []
  for edit in found:
    try:
      _check_output(edit, inputs, seen, places, recipes)
    except UserError as error:
      faults.append(Fault(edit.where, str(error)))
  return faults


def _check_output(edit, inputs, seen, places, recipes):
  folder = os.path.dirname(edit.output) or '.'
  if folder not in places:
    places[folder] = _writable(folder)
  if not places[folder]:
    raise UserError(f'{folder} cannot be written to: choose another output')
  paths = [edit.output, images.recipe_path(edit.output)] if recipes else [edit.output]
  for path in paths:
    if _real(path) in inputs:
      raise UserError(f'output {path} is also an input: choose another, so that it is kept')
  for path in paths:
    other = seen.setdefault(_real(path), edit.where)
    if other != edit.where:
      raise UserError(f'{path} is written by {other} too: give each its own output')


def _writable(folder):
  """Whether something can be written in the folder, which need not exist yet."""
  existing = os.path.abspath(folder)
  while not os.path.lexists(existing):
    existing = os.path.dirname(existing)
  return os.path.isdir(existing) and os.access(existing, os.W_OK)


def _real(path):
  return os.path.normcase(os.path.realpath(path))


def in_order(faults: Iterable[Fault]) -> list[Fault]:
  """By their lines, the first of each place."""
  first = {fault.where: fault for fault in reversed(list(faults))}.values()
  line = lambda fault: [int(n) for n in re.findall(r'^line (\d+)$', fault.where)]
  return sorted(reversed(first), key=line)


def refuse(faults: Sequence[Fault], path: str, total: int, remedy: str) -> None:
  """UserError that counts the faults and tells the first few, if there are any."""
  if not faults:
    return
  faults = in_order(faults)
  told = '; '.join(str(fault) for fault in faults[:SHOWN])
  more = f'; and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
  raise UserError(f'{path}: {len(faults)} of {total} edits cannot be made: {told}{more}. {remedy}')


def defaults(settings: Mapping[str, Any]) -> Settings:
  """Settings of these values, each checked; those that are None or absent are the defaults."""
  if unknown := set(settings) - {field.name for field in dataclasses.fields(Settings)}:
    raise TypeError(f'unexpected settings: {", ".join(sorted(unknown))}')
  return Settings(**{name: value(name, v) for name, v in settings.items() if v is not None})
