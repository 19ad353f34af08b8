"""The edits of a benchmark in COCOEE's layout, and the pictures that a system made for them."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8

from exedit import images
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime import files, progress
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel

KINDS = ('source', 'mask', 'exemplar')


@dataclasses.dataclass(frozen=True)
class Edit:
  """One checked edit of a benchmark: its files' hashes and its source's (height, width)."""

  id: int
  position: int
  size: tuple[int, int]
  sha256: dict[str, str]

  @property
  def name(self) -> str:
    """The file name of its result, as in PbE's evaluation code."""
    return f'{self.id:012d}.png'


def survey(bench: Bench) -> list[Edit]:
  """Decode and hash every edit once.

  Raises:
    DataError: for the first edit that cannot be used; names the file.
  """

  def look(position):
    edit = bench[position]
    data = bench.encoded(position)
    sha256 = {kind: hashlib.sha256(data[kind]).hexdigest() for kind in KINDS}
    return Edit(edit['id'], position, edit['source'].shape[:2], sha256)

  found = in_parallel(look, range(len(bench)))
  return list(progress.bar(found, 'reading the benchmark', total=len(bench), unit='edit'))


def digest(edits: Sequence[Edit]) -> str:
  """SHA-256 that names a benchmark: its ids in order and the contents of all its files."""
  whole = hashlib.sha256()
  for edit in edits:
    whole.update(repr((edit.id, *(edit.sha256[kind] for kind in KINDS))).encode())
  return whole.hexdigest()


@dataclasses.dataclass(frozen=True)
class Scored:
  """An edit, the path of the picture that a system made for it, and that file's hash."""

  edit: Edit
  path: str
  sha256: str


def results(edits: Sequence[Edit], folder: str) -> list[Scored]:
  """Find and check the picture of every edit in a folder of {id:012d}.png.

  Raises:
    UserError: if pictures are missing, cannot be read, or differ in size from their source.
  """
  if not os.path.isdir(folder):
    raise UserError(f'{folder} is not a folder: it must hold one {{id:012d}}.png for every edit')
  there = set(files.listing(folder))
  missing = [edit.name for edit in edits if edit.name not in there]
  if missing:
    raise UserError(
      f'{folder} lacks {len(missing)} of {len(edits)} pictures, the first is {missing[0]}: every'
      ' edit of the benchmark needs one'
    )
  found = in_parallel(functools.partial(_look, folder), edits)
  return list(progress.bar(found, 'reading the pictures', total=len(edits), unit='edit'))


def _look(folder, edit):
  path = os.path.join(folder, edit.name)
  size = images.read(path).shape[:2]
  if size != edit.size:
    raise UserError(
      f'{path} is {size[1]} x {size[0]} pixels (width x height) but its source'
      f' {edit.size[1]} x {edit.size[0]}: results must have the size of their sources'
    )
  return Scored(edit, path, files.sha256(path))


@dataclasses.dataclass(frozen=True)
class Reader:
  """Decodes the pictures of an edit on demand."""

  bench: Bench

  def result(self, scored: Scored) -> UInt8[np.ndarray, 'h w 3']:
    return images.read(scored.path)

  def __call__(self, scored: Scored) -> dict:
    """Return dict(source, mask, exemplar, result) in uint8; the exemplar has its own size."""
    return dict(self.bench[scored.edit.position], result=self.result(scored))


def strangers(edits: Iterable[Edit], folder: str) -> list[str]:
  """List the pictures in a folder that belong to no edit of the benchmark."""
  ours = {edit.name for edit in edits}
  return sorted(n for n in files.listing(folder) if n.lower().endswith('.png') and n not in ours)
