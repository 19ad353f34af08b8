"""The edits of a benchmark, and the pictures that a system made for them."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from exedit import images
from exedit.input_pipeline import pie_bench
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime import files, progress
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel

Pixels = UInt8[np.ndarray, 'h w 3']
Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
  """A kind of benchmark.

  name: the config's `bench`. open: makes its reader of the entry `benchmark` of results.json.
  names: under which a result may lie in a folder, by its own name. read: the result in a file, for
  a source of a size. shown: its pictures on a page, beside the results.
  """

  name: str
  open: Callable[[Mapping[str, Any]], Any]
  names: Callable[[str], Sequence[str]]
  read: Callable[[str, Size], Pixels]
  shown: tuple[str, ...]


def _either_ending(name):
  stem = os.path.splitext(name)[0]
  return [*dict.fromkeys((name, f'{stem}.png', f'{stem}.jpg'))]


def _last_square(path, size):
  """A result alone, or the last picture of a row of them, as PnPInversion's code writes."""
  pixels = images.read(path)
  row = size[0] == size[1] == pixels.shape[0] and pixels.shape[1] % size[1] == 0
  return pixels[:, -size[1] :] if row else pixels


COCO_EE = Layout(
  'coco_ee',
  lambda about: Bench(about['root'], exemplar_size=None),
  lambda name: (name,),
  lambda path, size: images.read(path),
  ('source', 'exemplar'),
)
PIE_BENCH = Layout(
  'pie_bench',
  lambda about: pie_bench.Bench(about['root'], about['mapping']),
  _either_ending,
  _last_square,
  ('source',),
)
LAYOUTS = {layout.name: layout for layout in (COCO_EE, PIE_BENCH)}


def layout_of(about: Mapping[str, Any]) -> Layout:
  """The layout of the entry `benchmark` of results.json; older ones do not name it."""
  return LAYOUTS[about.get('layout', COCO_EE.name)]


@dataclasses.dataclass(frozen=True)
class Edit:
  """One checked edit of a benchmark.

  size: its source's (height, width). sha256: of what it is made of, by the bench's `kinds`. name:
  of the file of its result, in a folder of results.
  """

  id: int
  position: int
  size: Size
  sha256: dict[str, str]
  name: str = ''


def survey(bench: Any) -> list[Edit]:
  """Decode and hash every edit once.

  Raises:
    DataError: for the first edit that cannot be used; names the file.
  """

  def look(position):
    edit = bench[position]
    data = bench.encoded(position)
    sha256 = {kind: hashlib.sha256(data[kind]).hexdigest() for kind in bench.kinds}
    return Edit(edit['id'], position, edit['source'].shape[:2], sha256, bench.name(position))

  found = in_parallel(look, range(len(bench)))
  return list(progress.bar(found, 'reading the benchmark', total=len(bench), unit='edit'))


def digest(edits: Sequence[Edit]) -> str:
  """SHA-256 that names a benchmark: its ids in order and the contents of all its files."""
  whole = hashlib.sha256()
  for edit in edits:
    whole.update(repr((edit.id, *edit.sha256.values())).encode())
  return whole.hexdigest()


@dataclasses.dataclass(frozen=True)
class Scored:
  """An edit, the path of the picture that a system made for it, and that file's hash."""

  edit: Edit
  path: str
  sha256: str


def results(edits: Sequence[Edit], folder: str, layout: Layout = COCO_EE) -> list[Scored]:
  """Find and check the picture of every edit in a folder.

  Raises:
    UserError: if pictures are missing, cannot be read, or differ in size from their source; and if
      an edit has two.
  """
  if not os.path.isdir(folder):
    first = f', such as {edits[0].name}' if edits else ''
    raise UserError(f'{folder} is not a folder: it must hold a picture of every edit{first}')
  paths, missing = {}, []
  for edit in edits:
    places = [os.path.join(folder, name) for name in layout.names(edit.name)]
    there = [path for path in places if os.path.isfile(path)]
    if len(there) > 1:
      raise UserError(f'{there[0]} and {there[1]} are results of one edit: remove one of them')
    if there:
      paths[edit.id] = there[0]
    else:
      missing.append(edit.name)
  if missing:
    raise UserError(
      f'{folder} lacks {len(missing)} of {len(edits)} pictures, the first is {missing[0]}: every'
      ' edit of the benchmark needs one'
    )
  found = in_parallel(lambda edit: _look(paths[edit.id], edit, layout), edits)
  return list(progress.bar(found, 'reading the pictures', total=len(edits), unit='edit'))


def _look(path, edit, layout):
  size = layout.read(path, edit.size).shape[:2]
  if size != edit.size:
    raise UserError(
      f'{path} is {size[1]} x {size[0]} pixels (width x height) but its source'
      f' {edit.size[1]} x {edit.size[0]}: results must have the size of their sources'
    )
  return Scored(edit, path, files.sha256(path))


@dataclasses.dataclass(frozen=True)
class Reader:
  """Decodes the pictures of an edit on demand."""

  bench: Any
  layout: Layout = COCO_EE

  def result(self, scored: Scored) -> Pixels:
    return self.layout.read(scored.path, scored.edit.size)

  def __call__(self, scored: Scored) -> dict:
    """Return what the bench says of the edit, and its result in uint8 [h w 3]."""
    return dict(self.bench[scored.edit.position], result=self.result(scored))


def strangers(edits: Iterable[Edit], folder: str) -> list[str]:
  """List the pictures in a folder that belong to no edit of the benchmark."""
  ours = {edit.name for edit in edits}
  return sorted(n for n in files.listing(folder) if n.lower().endswith('.png') and n not in ours)
