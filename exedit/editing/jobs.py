"""The edits of a list or folder, and the checks that find every fault before the work begins."""

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from exedit import images, systems
from exedit.editing import framing, photo, recipe
from exedit.editing.settings import LARGEST_SEED
from exedit.input_pipeline import tokenizer as texts
from exedit.runtime import decode, files, lists, parallel
from exedit.runtime.errors import UserError, explain
from exedit.systems import System

SHOWN = 3  # faults that a message tells; it only counts the others
LONGEST_PATH = 4000  # bytes; operating systems allow 4096

# A decoded photo takes up to about 16 bytes for each pixel, so this is about 2 GB. The largest
# photo that Pillow opens has two thirds of these pixels.
PHOTOS = parallel.PixelBudget(2**27)


@dataclasses.dataclass(frozen=True)
class Edit:
  """One output to make.

  inputs: by name, the path of a file or the text of a 'text' input. settings: the system's
  dataclass. where: the place in the list, such as 'line 3'.
  """

  inputs: Mapping[str, str]
  output: str
  settings: Any
  where: str = ''


@dataclasses.dataclass(frozen=True)
class Job:
  """An edit whose files were checked.

  frame: the window that the network sees. notes: what to tell the user. pixels: the number of
  pixels that are decoded at once for this job, for `PHOTOS`. repainted: the mask's share of the
  photo, if there is one. understood: what to tell about masks; the share is of interest then.
  """

  edit: Edit
  frame: framing.Frame
  notes: tuple[str, ...] = ()
  pixels: int = 0
  repainted: float | None = None
  understood: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Fault:
  """The reason why one edit of a list cannot be made."""

  where: str
  why: str

  def __str__(self):
    return f'{self.where}: {self.why}' if self.where else self.why


# Reading


def read(
  path: str, output: str | None, system: System, settings: Any, most_steps: int | None = None
) -> tuple[list[Edit], list[Fault]]:
  """The edits of a .jsonl or .csv file, or of a folder, and the faults of single edits.

  The columns of a list are the system's inputs, `output`, and settings; an empty cell means the
  default. Relative paths start in the list's folder. A folder holds one folder for each input,
  matched by the files' names without their endings.

  Args:
    output: the folder in which relative outputs lie. An edit without output gets the name of its
      first input file, as a .png in this folder.
    settings: the default settings. most_steps: of the weights' schedule; None: no limit.
  Raises:
    UserError: for a list that cannot be read at all.
  """
  pictures = [entry for entry in system.inputs if entry.kind != 'text']
  needed = [entry.name for entry in pictures if entry.required]
  check = lambda names: _check_columns(names, system)
  fields = dataclasses.fields(system.settings)
  unset = [field.name for field in fields if 'none' not in field.metadata['choices']]
  rows, base = lists.read(path, [entry.name for entry in pictures], needed, check, unset)
  found: list[Edit] = []
  faults: list[Fault] = []
  for where, row in rows:
    try:
      if isinstance(row, UserError):
        raise row
      edit = _edit(where, row, base, output, system, settings)
      if most_steps is not None:
        systems.check_steps(systems.network_settings(edit.settings), most_steps)
      found.append(edit)
    except UserError as error:
      faults.append(Fault(where, str(error)))
  return found, faults


def columns(path: str) -> Iterator[str]:
  """The names of the cells that a list fills in, or of the folders for inputs in a folder."""
  inputs = {entry.name for form in systems.forms().values() for entry in form.inputs}
  for _, row in lists.read(path, sorted(inputs), ())[0]:
    yield from () if isinstance(row, UserError) else (name for name in row if row[name] != '')


def _edit(where, row, base, output, system, settings) -> Edit:
  given = {str(name): value for name, value in row.items() if value not in (None, '')}
  inputs = {}
  for entry in system.inputs:
    if entry.name in given:
      value = given.pop(entry.name)
      text = entry.kind == 'text'
      inputs[entry.name] = _text(entry, value) if text else _path(entry.name, value, base)
    elif entry.required:
      raise UserError(f'its {entry.name} is empty')
  target = given.pop('output', None)
  if target is None:
    paths = [inputs[entry.name] for entry in system.inputs if _is_file(entry, inputs)]
    if not paths:
      raise UserError('it has no output: name the file to write in a column output')
    if output is None:
      raise UserError('it has no output, and no folder was named for it: give --output=FOLDER')
    target = Path(paths[0]).stem + '.png'
  values = {n: systems.check_setting(system.settings, n, value) for n, value in given.items()}
  return Edit(
    inputs,
    images.check_ending(_path('output', target, base if output is None else output)),
    dataclasses.replace(settings, **values),
    where,
  )


def _is_file(entry, inputs):
  return entry.kind != 'text' and entry.name in inputs


def _text(entry, value):
  if not isinstance(value, str):
    raise UserError(f'{entry.name} is {value!r:.60}: it must be a text')
  return value


def _path(name, value, base):
  """The path in the folder `base`; UserError if no file can have such a path."""
  try:
    good = isinstance(value, str) and len(os.fsencode(value)) <= LONGEST_PATH and '\0' not in value
  except UnicodeEncodeError:  # half of a surrogate pair
    good = False
  if not good:
    raise UserError(f'{name} is {value!r:.60}: it must be a path')
  return os.path.join(base, value)


def _check_columns(names, system):
  settings = [field.name for field in dataclasses.fields(system.settings)]
  known = [*(entry.name for entry in system.inputs), 'output', *settings]
  needed = [entry.name for entry in system.inputs if entry.required]
  for name in names:
    if name not in known:
      near = difflib.get_close_matches(name, known, 1)
      hint = f"did you mean '{near[0]}'?" if near else f'the columns are {", ".join(known)}'
      raise UserError(f"'{name:.40}' is not a column: {hint}")
  for name in needed:
    if name not in names:
      raise UserError(f'it has no {name}: an edit needs {", ".join(needed)}')


def samples(found: Sequence[Edit], count: int) -> list[Edit]:
  """Each edit `count` times, with the seeds seed, seed + 1, ... and outputs out-0.png, out-1.png.

  Raises:
    UserError: if the last seed would be too large.
  """
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


# Checking the inputs


def check(edit: Edit, system: System, trained: int, tokenizer: Any = None, grid: int = 1) -> Job:
  """Checks the texts and files of one edit; of the files it decodes only the masks.

  tokenizer: see `System.tokenizer`. None: of texts only that is checked which needs no vocabulary.
  grid: see `System.mask_grid`.

  Raises:
    UserError: for an empty text, one that cannot be spelt, a file that is missing or not readable,
      an empty mask or one of another size, and a photo that is too long.
  """
  photos = [entry.name for entry in system.inputs_of('photo') if entry.name in edit.inputs]
  for entry in system.inputs_of('mask'):
    if entry.name in edit.inputs and not photos:
      raise UserError(f'{entry.name} is given without a photo: name that too, or leave it out')
  headers, masks, understood = check_files(edit, system)
  notes = [*_check_texts(edit, system, tokenizer)]
  pixels = sum(
    math.prod(headers[entry.name].size)
    for entry in system.inputs_of('photo', 'picture')
    if entry.name in headers
  )
  if not photos:
    frame = photo.choose_frame(None, getattr(edit.settings, 'size', 0) or trained)
    images.check_holds(edit.output, frame.size)
    return Job(edit, frame, tuple(notes), pixels, understood=tuple(understood))
  [name] = photos
  images.check_holds(edit.output, headers[name].size)
  holes = [masks[entry.name] for entry in system.inputs_of('mask') if entry.name in masks]
  with PHOTOS.taken(math.prod(headers[name].size)):
    region = holes[0] if holes else np.ones(headers[name].size, bool)
    try:
      frame = photo.choose_frame(region, trained, edit.settings.zoom)
    except UserError as error:
      raise UserError(f'{edit.inputs[name]}: {error}') from None
    repainted = float(region.mean())
    if holes and grid > 1 and not framing.cut_mask(frame, region)[::grid, ::grid].any():
      notes.append(
        f'the mask is so thin that no latent lies in it (the network sees every {grid}th pixel of '
        'it), so nothing or little changes: widen it'
      )
  white = bool(holes) and repainted == 1
  if holes and 0.5 < repainted < 1:
    understood.append('the mask covers more than half of the photo; is it inverted?')
  notes += _notes(edit, headers[name], white)
  share = repainted if holes else None
  return Job(edit, frame, tuple(notes), pixels, share, tuple(understood))


def check_files(
  edit: Edit, system: System
) -> tuple[dict[str, decode.Header], dict[str, np.ndarray], list[str]]:
  """The headers of an edit's files and its masks [h w], by input, and how masks were understood.

  Raises:
    UserError: for a file that is missing or not readable, and as `images.read_mask`.
  """
  paths = {e.name: edit.inputs[e.name] for e in system.inputs if _is_file(e, edit.inputs)}
  headers = {name: decode.header(path) for name, path in paths.items()}
  masks, understood = {}, []
  for entry in system.inputs_of('mask', 'cutout'):
    if entry.name in paths:
      say = lambda said, name=entry.name: understood.append(f'the {name} {said}')
      with PHOTOS.taken(math.prod(headers[entry.name].size)):
        of = entry.of or next((photo.name for photo in system.inputs_of('photo')), '')
        size = headers[of].size if of in headers else None
        masks[entry.name] = read_mask(edit, entry, size, say)
  return headers, masks, understood


def read_mask(
  edit: Edit,
  entry: systems.Input,
  size: tuple[int, ...] | None,
  say: Callable[[str], Any] = lambda said: None,
) -> np.ndarray:
  """The mask [h w] of an edit; size: of the picture that it belongs to. See `images.read_mask`."""
  scale = getattr(edit.settings, 'scale_mask', False)
  return images.read_mask(edit.inputs[entry.name], size, of=entry.of, scale=scale, say=say)


def _check_texts(edit, system, tokenizer):
  """Checks the texts of an edit; yields what to tell about them."""
  for entry in system.inputs_of('text'):
    text = edit.inputs.get(entry.name)
    if text is None:
      continue
    if not text.strip():
      remedy = 'say what the picture shows' if entry.required else 'leave it out'
      raise UserError(f'{entry.name} is empty: {remedy}')
    try:
      texts.check_characters(text)
      if tokenizer is not None:
        tokenizer(text)
    except UserError as error:
      raise UserError(f'{entry.name}: {error}') from None
    if tokenizer is not None and (cut := tokenizer.cut(text)):
      yield f'{entry.name} is too long for the text tower, which does not see its end: {cut!r}'
  yield from system.together(edit.inputs, edit.settings, tokenizer)[1]


def _notes(edit, header, white):
  if white:
    yield 'the mask is white everywhere: nothing of the photo is kept'
  if header.deep:
    yield 'the photo has 16 bits per channel, the output 8: its tones are rounded everywhere'
  if header.inks:
    yield 'the photo is CMYK, the output RGB: its colours are converted everywhere'
  if not edit.settings.paste:
    yield 'nothing is pasted: pixels outside the mask change too'
  elif edit.output.lower().endswith(('.jpg', '.jpeg')):
    what = 'JPEG changes every pixel a little'
    what += ' and holds no transparency' if header.alpha else ''
    yield f'{what}; a .png keeps what is outside the mask'


def check_all(
  found: Iterable[Edit],
  system: System,
  trained: int,
  done: Callable[[], Any] = lambda: None,
  tokenizer: Any = None,
  grid: int = 1,
) -> tuple[list[Job], list[Fault]]:
  """`check` for every edit, in threads; `done` is called after each."""

  def one(edit):
    try:
      return check(edit, system, trained, tokenizer, grid)
    except Exception as error:
      why = explain(error)
      if why is None:
        raise
      return Fault(edit.where, why)

  jobs: list[Job] = []
  faults: list[Fault] = []
  with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
    for checked in pool.map(one, found):
      (jobs if isinstance(checked, Job) else faults).append(checked)  # pyright: ignore
      done()
  return jobs, faults


# Checking the outputs


def clashes(
  found: Sequence[Edit], system: System, also: Iterable[str], recipes: bool
) -> list[Fault]:
  """The outputs that are written twice, that would replace another file, or that cannot be written.

  also: paths of files to keep, besides the inputs. recipes: each output has a recipe beside it,
  which may replace only another recipe.
  """
  inputs = {
    _real(edit.inputs[entry.name])
    for edit in found
    for entry in system.inputs
    if _is_file(entry, edit.inputs)
  }
  inputs |= {_real(path) for path in also}
  seen: dict[str, str] = {}
  places: set[str] = set()
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
    files.check_folder(folder)
    places.add(folder)
  paths = [edit.output, images.recipe_path(edit.output)] if recipes else [edit.output]
  paths += [images.words_path(edit.output)] if getattr(edit.settings, 'show_words', False) else []
  for path in paths:
    if _real(path) in inputs:
      raise UserError(f'output {path} is also an input: choose another, so that it is kept')
  for path in paths:
    other = seen.setdefault(_real(path), edit.where)
    if other != edit.where:
      raise UserError(f'{path} is written by {other} too: give each its own output')
  if recipes and (why := recipe.stranger(edit.output)):
    raise UserError(why)


def _real(path):
  return os.path.normcase(os.path.realpath(path))


# Telling the faults


def in_order(faults: Iterable[Fault]) -> list[Fault]:
  """The first fault of each place, in the order of the lines."""
  first = {fault.where: fault for fault in reversed(list(faults))}.values()
  line = lambda fault: [int(n) for n in re.findall(r'^line (\d+)$', fault.where)]
  return sorted(reversed(first), key=line)


def refuse(faults: Sequence[Fault], path: str, total: int, remedy: str) -> None:
  """Raises UserError if there are faults; the message counts them and tells the first few."""
  if not faults:
    return
  faults = in_order(faults)
  told = '; '.join(str(fault) for fault in faults[:SHOWN])
  more = f'; and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
  raise UserError(f'{path}: {len(faults)} of {total} edits cannot be made: {told}{more}. {remedy}')
