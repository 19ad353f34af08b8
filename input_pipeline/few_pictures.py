"""Reads a folder of a few pictures, as people keep them: upright squares, captions and masks.

`a.jpg` may have `a.txt`, its caption, and `a.mask.png`, white where the loss counts. The captions
of all pictures may stand in captions.csv instead, with the columns `image` and `caption`.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from exedit.runtime import decode, lists, mask_files, remote

from . import crops
from .errors import DataError, UserError

TABLE = 'captions.csv'
ENDINGS = (
  *('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff'),
  *('.heic', '.heif', '.avif', '.jp2', '.ppm'),
)  # of pictures; other files do not count
LARGEST = 2048  # pixels of the side of a square that is kept in memory


@dataclasses.dataclass(frozen=True)
class Picture:
  """The middle square of an upright picture.

  pixels: uint8 [s s 3]. mask: uint8 [s s], 255 where the loss counts; None: everywhere. caption: ''
  if it has none.
  """

  name: str
  pixels: np.ndarray
  mask: np.ndarray | None
  caption: str


@dataclasses.dataclass(frozen=True)
class Pictures:
  """A description of pictures, captions and masks: equal if all files are equal.

  records, digest: of the concepts' pictures. prior: the digest of those of the prior; '' if none.
  """

  records: int
  digest: str
  prior: str


def survey(
  root: str,
  split: str = 'train',
  *,
  words: Sequence[tuple[str, str]] = (),
  prior: str = 'none',
  prior_root: str = '',
) -> Pictures:
  """Returns what this process finds; all processes of a training must find the same.

  words, prior, prior_root: as `concept_examples.Examples` takes them.
  """
  count, digest = _digest(folders(root, [name for name, _ in words]))
  others = _digest([prior_root])[1] if prior == 'pictures' else ''
  return Pictures(count, digest, others)


def folders(root: str, names: Sequence[str]) -> list[str]:
  """The folder of each concept's pictures: `root`, or with several those in it by their names."""
  if len(names) < 2:
    return [root]
  return [os.path.join(root, name.strip('<>[]*')) for name in names]


def _digest(places: Sequence[str]) -> tuple[int, str]:
  """The number of pictures, and a digest of all files that count."""
  sha, count = hashlib.sha256(), 0
  for i, folder in enumerate(places):
    names = _names(folder)
    found = _pictures(names)
    count += len(found)
    for name in (n for n in names if n in found or _is_mask(n) or _is_caption(n)):
      content = remote.read(os.path.join(folder, name))
      sha.update(f'{i} {name} {len(content)} '.encode() + content)
  return count, sha.hexdigest()


def read(folder: str, largest: int = LARGEST) -> tuple[Picture, ...]:
  """Returns the pictures of a folder by their names; a folder that was read is kept in memory.

  largest: the side of the squares at most; larger ones are made smaller.

  Raises:
    DataError: if there is no picture, for a file that is no picture, and for a caption or mask that
      belongs to no picture.
  """
  names = _names(folder)
  states = tuple(remote.info(os.path.join(folder, name)) for name in names)
  return _read(folder, tuple(names), states, largest)


@functools.lru_cache(maxsize=8)
def _read(folder: str, names: tuple[str, ...], states: tuple, largest: int) -> tuple[Picture, ...]:
  found = _pictures(names)
  if not found:
    raise DataError(f'{folder} holds no pictures: name a folder with some as data.root')
  stems = [PurePosixPath(name).stem for name in found]
  if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
    raise DataError(f'{folder} has several pictures {twice[0]}.*: rename all but one')
  masks = {_stem_of_mask(name): name for name in names if _is_mask(name)}
  captions = _captions(folder, names, found)
  for kind, alone in (('mask', masks.keys() - {*stems}), ('caption', captions.keys() - {*found})):
    if alone:
      raise DataError(
        f'{folder} has a {kind} that belongs to no picture, {min(alone)}: rename or remove it'
      )
  return tuple(
    _picture(folder, name, masks.get(stem), captions.get(name, ''), largest)
    for name, stem in zip(found, stems)
  )


def _picture(folder: str, name: str, mask: str | None, caption: str, largest: int) -> Picture:
  path = os.path.join(folder, name)
  pixels = np.asarray(decode.upright(remote.read(path), 'RGB', 'white', path))
  shape, counts = pixels.shape[:2], None
  pixels = _smaller(crops.square(pixels, None), largest)
  if mask is not None:
    where = os.path.join(folder, mask)
    levels = mask_files.read(remote.read(where), where, subject=True).levels
    if levels.shape != shape:
      sizes = ' and '.join(f'{w}x{h}' for h, w in (levels.shape, shape))
      raise DataError(f'{where} and its picture are {sizes}: give the mask the size of the picture')
    counts = _smaller(crops.square(levels, None), largest)
    if not counts.any():
      raise DataError(f'{where} is black in the middle square: paint what is to be learned white')
  return Picture(path, pixels, counts, caption)


def _smaller(square: np.ndarray, largest: int) -> np.ndarray:
  return crops.resize(square, min(largest, len(square)), smooth=True)


def _captions(folder: str, names: tuple[str, ...], pictures: list[str]) -> dict[str, str]:
  """The captions by the names of their pictures.

  A caption that belongs to no picture stands under the name of its own file.
  """
  of = {PurePosixPath(name).stem: name for name in pictures}
  found = {}
  for name in names:
    if name.lower().endswith('.txt'):
      text = remote.read(os.path.join(folder, name)).decode('utf-8-sig', 'replace')
      found[of.get(PurePosixPath(name).stem, name)] = ' '.join(text.split())
  if TABLE not in names:
    return found
  path = os.path.join(folder, TABLE)
  for place, row in lists.read(path, ('image', 'caption'), ())[0]:
    if isinstance(row, UserError):
      raise DataError(f'{path}, {place}: {row}')
    if not row.get('image') or 'caption' not in row:
      raise DataError(f'{path}, {place}: it needs the columns image and caption')
    found[row['image']] = ' '.join(str(row['caption']).split())
  return found


def _names(folder: str) -> list[str]:
  """The names of the files in a folder."""
  names = sorted(_listed(folder))
  if remote.is_remote(folder):
    return names
  return [name for name in names if os.path.isfile(os.path.join(folder, name))]


def _listed(folder: str) -> list[str]:
  try:
    return [name for name in remote.listing(folder) if not name.startswith('.')]
  except OSError as error:
    raise DataError(
      f'{folder} cannot be read ({error.strerror}): name a folder of pictures'
    ) from error


def _pictures(names) -> list[str]:
  return [n for n in names if n.lower().endswith(ENDINGS) and not _is_mask(n)]


def _is_caption(name: str) -> bool:
  return name.lower().endswith('.txt') or name == TABLE


def _is_mask(name: str) -> bool:
  return PurePosixPath(name).stem.lower().endswith('.mask')


def _stem_of_mask(name: str) -> str:
  return PurePosixPath(PurePosixPath(name).stem).stem
