"""A benchmark in COCOEE's layout and the pictures that a system made for it, as files to score."""

import dataclasses
import functools
import hashlib
import io
import os
import sys
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from exedit import images
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel

KINDS = ('source', 'mask', 'exemplar')
EVERY = 0.1 if sys.stderr.isatty() else 10  # seconds between two looks of a progress bar


@dataclasses.dataclass(frozen=True)
class Edit:
  """One edit of a benchmark, looked at: its files' hashes, and (height, width) of its source."""

  id: int
  position: int
  size: tuple[int, int]
  sha256: dict[str, str]

  @property
  def name(self) -> str:
    """The file name of its result, as the paper's own code names it."""
    return f'{self.id:012d}.png'


def survey(bench: Bench) -> list[Edit]:
  """Every edit, decoded once: DataError, naming the file, for the first that cannot be used."""

  def look(position):
    edit = bench[position]
    data = bench.encoded(position)
    sha256 = {kind: hashlib.sha256(data[kind]).hexdigest() for kind in KINDS}
    return Edit(edit['id'], position, edit['source'].shape[:2], sha256)

  found = in_parallel(look, range(len(bench)))
  return list(tqdm(found, 'reading the benchmark', len(bench), unit='edit', mininterval=EVERY))


def digest(edits: Sequence[Edit]) -> str:
  """SHA-256 that names a benchmark: its ids in their order and the bytes of all its files."""
  whole = hashlib.sha256()
  for edit in edits:
    whole.update(repr((edit.id, *(edit.sha256[kind] for kind in KINDS))).encode())
  return whole.hexdigest()


@dataclasses.dataclass(frozen=True)
class Scored:
  """An edit with the picture that answers it: where that is, and the hash of its bytes."""

  edit: Edit
  path: str
  sha256: str


def results(edits: Sequence[Edit], folder: str) -> list[Scored]:
  """The picture of every edit in a folder of {id:012d}.png.

  Raises:
    UserError: where some are missing, cannot be read or have another size than their source.
  """
  if not os.path.isdir(folder):
    raise UserError(f'{folder} is not a folder: it must hold one {{id:012d}}.png for every edit')
  there = set(os.listdir(folder))
  missing = [edit.name for edit in edits if edit.name not in there]
  if missing:
    raise UserError(
      f'{folder} lacks {len(missing)} of {len(edits)} pictures, the first is {missing[0]}: every'
      ' edit of the benchmark needs one'
    )
  look = functools.partial(_look, folder)
  found = in_parallel(look, edits)
  return list(tqdm(found, 'reading the pictures', len(edits), unit='edit', mininterval=EVERY))


def _look(folder, edit):
  path = os.path.join(folder, edit.name)
  with open(path, 'rb') as file:
    data = file.read()
  try:
    with Image.open(io.BytesIO(data)) as picture:
      size = picture.size[::-1]
      picture.load()
  except Exception as error:  # PIL raises a dozen kinds for damaged files
    raise UserError(f'{path} is not a readable picture ({error}): make it again') from error
  if size != edit.size:
    raise UserError(
      f'{path} is {size[1]} x {size[0]} pixels (width x height) but its source'
      f' {edit.size[1]} x {edit.size[0]}: results must have the size of their sources'
    )
  return Scored(edit, path, hashlib.sha256(data).hexdigest())


@dataclasses.dataclass(frozen=True)
class Reader:
  """The pictures of an edit in uint8, decoded when they are asked for."""

  bench: Bench

  def result(self, scored: Scored) -> UInt8[np.ndarray, 'h w 3']:
    return images.read(scored.path)

  def __call__(self, scored: Scored) -> dict:
    """dict(source, mask, exemplar, result): mask uint8 [h w], the exemplar of its own size."""
    return dict(self.bench[scored.edit.position], result=self.result(scored))


def strangers(edits: Iterable[Edit], folder: str) -> list[str]:
  """Pictures in a folder that are of no edit of the benchmark."""
  ours = {edit.name for edit in edits}
  return sorted(n for n in os.listdir(folder) if n.lower().endswith('.png') and n not in ours)
