"""The published folder layout of the COCOEE benchmark: its names, its ids, its three pictures.

  GT_3500/000000000283_GT.png           the source, 512x512
  Mask_bbox_3500/000000000283_mask.png  white where the source is repainted
  Ref_3500/000000000283_ref.png         the exemplar, of any size
  id_list.npy                           int64 [3500], the order

Source: PbE ldm/data/test_bench_dataset.py. The number in the folders' names may be any.
"""

import os
import re
from collections.abc import Iterator

import numpy as np

from exedit.runtime import decode, files, mask_files

from ..errors import DataError

IDS = 'id_list.npy'
MANIFEST = 'manifest.json'
KINDS = dict(source=('GT', 'GT'), mask=('Mask_bbox', 'mask'), exemplar=('Ref', 'ref'))


def file_name(kind: str, edit_id: int) -> str:
  """Returns the name of an edit's source, mask or exemplar: twelve digits and the kind."""
  return f'{edit_id:012d}_{KINDS[kind][1]}.png'


def folder_name(kind: str, count: int) -> str:
  """Returns the name of the folder of a kind in a benchmark of `count` edits."""
  return f'{KINDS[kind][0]}_{count}'


def folders(root: str) -> dict[str, str]:
  """Returns the folder of each kind, {'source': 'GT_3500', ...}.

  Raises:
    DataError: unless there is exactly one of each.
  """
  names = [n for n in listed(root) if os.path.isdir(os.path.join(root, n))]
  found = {}
  for kind, (prefix, _) in KINDS.items():
    ours = [name for name in names if re.fullmatch(rf'{prefix}_\d+', name)]
    if len(ours) != 1:
      what = f'several ({", ".join(ours)})' if ours else 'none'
      raise DataError(f'{root} must hold one folder {prefix}_<count> of the {kind}s; found {what}')
    found[kind] = ours[0]
  return found


def is_layout(root: str) -> bool:
  """Whether any of the three folders exists in the root."""
  prefixes = '|'.join(prefix for prefix, _ in KINDS.values())
  return any(re.fullmatch(rf'(?:{prefixes})_\d+', name) for name in listed(root))


def listed(root: str) -> list[str]:
  """Returns the names in the folder of a benchmark. Raises DataError if it is no folder."""
  if not os.path.isdir(root):
    raise DataError(f'{root} is not a folder; name a benchmark with {IDS}')
  return files.listing(root)


def read_ids(root: str) -> np.ndarray:
  """Returns the ids in the benchmark's order, int64 [n], including ids that occur twice.

  Raises:
    DataError: if the root is no folder, or the file is missing, damaged, empty, or holds anything
      but ids.
  """
  listed(root)
  path = os.path.join(root, IDS)
  try:
    ids = np.load(path, allow_pickle=False)
  except FileNotFoundError:
    raise DataError(f'{path} is missing: it holds the ids of the edits in their order') from None
  except (OSError, ValueError, EOFError) as error:
    raise DataError(f'{path} is not a plain array of integers ({error}); save it again') from error
  if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in 'iu':
    what = f'{ids.dtype} {ids.shape}' if isinstance(ids, np.ndarray) else 'an archive'
    raise DataError(f'{path} holds {what}; it must be int64 (n,)')
  if not len(ids):
    raise DataError(f'{path} holds no id')
  if ids.min() < 0 or ids.max() > np.iinfo(np.int64).max:
    raise DataError(f'{path} holds ids from {ids.min()} to {ids.max()}; they must be at least 0')
  return ids.astype(np.int64)


def doubled(ids: np.ndarray) -> list[int]:
  """Returns the ids that occur more than once."""
  values, counts = np.unique(ids, return_counts=True)
  return values[counts > 1].tolist()


def decode_source(data: bytes, name: str) -> np.ndarray:
  """Decodes a source to uint8 [h w 3] without resizing it."""
  return np.asarray(decode.upright(data, 'RGB', 'white', name))


def decode_mask(data: bytes, name: str) -> np.ndarray:
  """Decodes a mask to uint8 [h w]: 255 = repaint, 0 = keep; grey values stay grey."""
  found = read_mask(data, name)
  if found.said:
    decode.note(f'{name}: the mask {found.said}')
  return found.levels


def read_mask(data: bytes, name: str) -> mask_files.Mask:
  """Decodes a mask as every reader of masks does, with the words about an unusual one."""
  return mask_files.read(data, name)


def decode_exemplar(data: bytes, name: str, size: int | None) -> np.ndarray:
  """Decodes an exemplar to uint8 [s s 3], or in its own size [h w 3] if `size` is None.

  As in the released code, Pillow's bicubic resizes it before it becomes RGB.
  """
  with decode.opened(data, name) as file:
    image = decode.flatten(decode.eight_bit(file), 'white')
  return np.asarray((image.resize((size, size)) if size else image).convert('RGB'))


def mask_faults(mask: np.ndarray, source: np.ndarray | None) -> Iterator[tuple[str, str]]:
  """Yields (what, detail) of what makes a mask unusable; `source`: None if it cannot be read."""
  if source is not None and source.shape[:2] != mask.shape:
    detail = f'it is {size(mask)}, the source {size(source)} (width x height)'
    yield 'mask is of another size than its source', detail
  if mask.max() < 128:
    detail = f'its brightest pixel is {mask.max()} of 255, and 128 or more is repainted'
    yield 'mask is empty', detail


def size(image: np.ndarray) -> str:
  """Returns the width and height of an image as text, `512x384`."""
  return f'{image.shape[1]}x{image.shape[0]}'


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
  """Returns the box (x0, y0, x1, y1) of the pixels of at least 128, x1 and y1 exclusive.

  The mask must have such a pixel.
  """
  rows, columns = (np.flatnonzero((mask >= 128).any(axis)) for axis in (1, 0))
  return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
