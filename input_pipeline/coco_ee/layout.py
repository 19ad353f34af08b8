"""The published folder layout of the COCOEE benchmark: its names, its ids, its three pictures.

  GT_3500/000000000283_GT.png           the source, 512x512
  Mask_bbox_3500/000000000283_mask.png  white where it is repainted
  Ref_3500/000000000283_ref.png         the exemplar, of any size
  id_list.npy                           int64 [3500], the order

Agrees with the released ldm/data/test_bench_dataset.py. The number in the folders' names is free.
"""

import io
import os
import re

import numpy as np
import PIL.Image

from ..errors import DataError

IDS = 'id_list.npy'
MANIFEST = 'manifest.json'
KINDS = dict(source=('GT', 'GT'), mask=('Mask_bbox', 'mask'), exemplar=('Ref', 'ref'))


def file_name(kind: str, edit_id: int) -> str:
  """The name of an edit's source, mask or exemplar: twelve digits and the kind."""
  return f'{edit_id:012d}_{KINDS[kind][1]}.png'


def folder_name(kind: str, count: int) -> str:
  """The name of the folder of a kind in a benchmark of `count` edits."""
  return f'{KINDS[kind][0]}_{count}'


def folders(root: str) -> dict[str, str]:
  """The folder of each kind, {'source': 'GT_3500', ...}; DataError unless there is one of each."""
  names = [n for n in sorted(_listed(root)) if os.path.isdir(os.path.join(root, n))]
  found = {}
  for kind, (prefix, _) in KINDS.items():
    ours = [name for name in names if re.fullmatch(rf'{prefix}_\d+', name)]
    if len(ours) != 1:
      what = f'several ({", ".join(ours)})' if ours else 'none'
      raise DataError(f'{root} must hold one folder {prefix}_<count> of the {kind}s; found {what}')
    found[kind] = ours[0]
  return found


def is_layout(root: str) -> bool:
  """Whether any of the three folders is there."""
  prefixes = '|'.join(prefix for prefix, _ in KINDS.values())
  return any(re.fullmatch(rf'(?:{prefixes})_\d+', name) for name in _listed(root))


def _listed(root: str) -> list[str]:
  if not os.path.isdir(root):
    raise DataError(f'{root} is not a folder; name a benchmark with {IDS}')
  return os.listdir(root)


def read_ids(root: str) -> np.ndarray:
  """The ids in the benchmark's order, int64 [n], as stored: doubled ones included."""
  path = os.path.join(root, IDS)
  try:
    ids = np.load(path, allow_pickle=False)
  except FileNotFoundError:
    raise DataError(f'{path} is missing: it holds the ids of the edits in their order') from None
  except (OSError, ValueError, EOFError) as error:
    why = ' '.join(str(error).split())
    raise DataError(f'{path} is not a plain array of integers ({why}); save it again') from error
  if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype.kind not in 'iu':
    what = f'{ids.dtype} {ids.shape}' if isinstance(ids, np.ndarray) else 'an archive'
    raise DataError(f'{path} holds {what}; it must be int64 (n,)')
  if not len(ids):
    raise DataError(f'{path} holds no id')
  if ids.min() < 0 or ids.max() > np.iinfo(np.int64).max:
    raise DataError(f'{path} holds ids from {ids.min()} to {ids.max()}; they must be at least 0')
  return ids.astype(np.int64)


def doubled(ids: np.ndarray) -> list[int]:
  """The ids that occur more than once."""
  values, counts = np.unique(ids, return_counts=True)
  return values[counts > 1].tolist()


def decode_source(data: bytes, name: str) -> np.ndarray:
  """Encoded source -> uint8 [h w 3], never resized."""
  return np.asarray(decode(data, name).convert('RGB'))


def decode_mask(data: bytes, name: str) -> np.ndarray:
  """Encoded mask -> uint8 [h w], 255 = repaint, 0 = keep, grey between: not made binary."""
  return np.asarray(decode(data, name).convert('L'))


def decode_exemplar(data: bytes, name: str, size: int | None) -> np.ndarray:
  """Encoded exemplar -> uint8 [s s 3]: squashed by Pillow's bicubic, before it becomes RGB.

  Of its own size [h w 3] where `size` is None.
  """
  image = decode(data, name)
  return np.asarray((image.resize((size, size)) if size else image).convert('RGB'))


def decode(data: bytes, name: str) -> PIL.Image.Image:
  """A whole picture; DataError, naming it, if it is not one."""
  try:
    image = PIL.Image.open(io.BytesIO(data))
    image.load()
  except PIL.UnidentifiedImageError:
    raise DataError(f'{name}: {len(data)} bytes that are no image') from None
  except Exception as error:  # PIL raises a dozen kinds for damaged files
    raise DataError(f'{name}: not a readable image ({error})') from error
  return image


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
  """(x0, y0, x1, y1) of the mask's pixels of at least 128, x1 and y1 outside; it has some."""
  rows, columns = (np.flatnonzero((mask >= 128).any(axis)) for axis in (1, 0))
  return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
