"""Results that need no training, to be scored beside those of models (`evaluate --images=DIR`).

  python -m input_pipeline.references --bench=test_bench --kind=copy_paste --output=results/paste

`source` repeats the source: the background is perfect, but nothing is edited. `copy_paste` squashes
the exemplar into the box of the mask: the likeness is perfect, but it does not fit in. `harmonised`
gives the pasted exemplar the colours of its surroundings (Reinhard et al. 2001, in CIELAB) and
removes the seam (Poisson blending, Perez et al. 2003). The same command again makes only the
pictures that are missing.
"""

import hashlib
import json
import os

import numpy as np
import PIL.Image

from exedit.runtime import doors, files, progress
from exedit.runtime.parallel import in_parallel

from .. import codec
from ..errors import DataError
from . import layout, poisson
from .bench import Bench

MADE_BY = 'input_pipeline.references'
VERSION = 1  # of the pictures; increase it when they change
SETTINGS = 'reference.json'


def write(bench: str, kind: str, output: str) -> int:
  """Writes {id:012d}.png for every edit that has none yet; returns the number of new pictures.

  Raises:
    DataError: if the folder holds results of another kind or benchmark, or an edit is damaged.
  """
  if kind not in KINDS:
    raise DataError(f'--kind={kind}: must be one of {", ".join(KINDS)}')
  edits = Bench(bench, exemplar_size=None)
  _claim(output, kind, edits)
  there = set(files.listing(output))
  names = [f'{edit_id:012d}.png' for edit_id in edits.ids.tolist()]
  todo = [position for position, name in enumerate(names) if name not in there]

  def make(position: int) -> None:
    result = KINDS[kind](edits[position])
    files.write_bytes(os.path.join(output, names[position]), codec.png(result))

  done = len(edits) - len(todo)
  with progress.bar(what=kind, total=len(edits), initial=done, unit='edit') as bar:
    for _ in in_parallel(make, todo):
      bar.update()
  return len(todo)


def _claim(output: str, kind: str, edits: Bench) -> None:
  """Writes into the folder what its pictures are; raises DataError if they are something else."""
  sha = hashlib.sha256(edits.ids.astype('<i8').tobytes())
  for position in (0, len(edits) - 1):  # all pictures would be gigabytes
    for data in edits.encoded(position).values():
      sha.update(data)
  ours = dict(made_by=MADE_BY, version=VERSION, kind=kind, bench_sha256=sha.hexdigest())
  path = os.path.join(output, SETTINGS)
  if not os.path.isdir(output) or not files.listing(output):
    files.write_json(path, ours)
    return
  try:
    with open(path) as file:
      before = json.load(file)
  except (OSError, ValueError):
    raise DataError(
      f'{output} holds files and no {SETTINGS}: it was not made here; name another --output'
    ) from None
  for name, value in ours.items():
    found = before.get(name) if isinstance(before, dict) else None
    if found != value:
      raise DataError(
        f'{output} was made with {name} {found!r}, now it is {value!r}; name another --output'
      )


# The pictures: each function takes an edit, with its exemplar in its own size, and returns uint8
# [h w 3]. Pixels outside the mask keep the source's bytes; grey mask pixels mix both pictures.


def source(edit: dict) -> np.ndarray:
  """Returns the source."""
  return edit['source']


def copy_paste(edit: dict) -> np.ndarray:
  """Returns the source with the exemplar squashed into the bounding box of the mask."""
  return _composed(edit, _squashed(edit))


def harmonised(edit: dict) -> np.ndarray:
  """Returns copy_paste with the colours of the surroundings, blended into them."""
  x0, y0, x1, y1 = box = _box(edit)
  ring = _surroundings(edit['source'], edit['mask'], box)
  patch = _squashed(edit)
  if len(ring):
    patch = transfer_colour(patch, ring)
  canvas = edit['source'].astype(np.float64)
  canvas[y0:y1, x0:x1] = patch
  return _composed(edit, poisson.blend(canvas, edit['source'], edit['mask'] > 0)[y0:y1, x0:x1])


KINDS = dict(copy_paste=copy_paste, harmonised=harmonised, source=source)


def _box(edit: dict) -> tuple[int, int, int, int]:
  """Returns the bounding box of the pixels whose mask is not 0."""
  return layout.bounding_box(np.where(edit['mask'] > 0, np.uint8(255), np.uint8(0)))


def _squashed(edit: dict) -> np.ndarray:
  """Resizes the exemplar to the box with Pillow's antialiased bicubic: uint8 [h w 3]."""
  x0, y0, x1, y1 = _box(edit)
  exemplar = PIL.Image.fromarray(edit['exemplar'])
  return np.asarray(exemplar.resize((x1 - x0, y1 - y0), PIL.Image.Resampling.BICUBIC))


def _composed(edit: dict, patch: np.ndarray) -> np.ndarray:
  """Mixes the patch [h w 3] into the box of the source by the mask."""
  x0, y0, x1, y1 = _box(edit)
  result = edit['source'].copy()
  share = edit['mask'][y0:y1, x0:x1, None] / 255.0
  mixed = share * np.clip(patch, 0, 255) + (1 - share) * result[y0:y1, x0:x1]
  result[y0:y1, x0:x1] = np.round(mixed)
  return result


def _surroundings(image: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int]):
  """Returns the kept pixels within half the box's size around it: uint8 [n 3], n may be 0."""
  x0, y0, x1, y1 = box
  a, b = -(-(x1 - x0) // 2), -(-(y1 - y0) // 2)
  window = np.s_[max(0, y0 - b) : y1 + b, max(0, x0 - a) : x1 + a]
  return image[window][mask[window] == 0]


def transfer_colour(patch: np.ndarray, like: np.ndarray) -> np.ndarray:
  """Gives the patch [h w 3] the mean and deviation of the pixels [n 3] in each channel of CIELAB.

  Takes uint8, returns float64 in 0..255. Source: Reinhard et al., "Color Transfer between Images",
  2001, eqs. 10 and 11, with CIELAB instead of their l-alpha-beta.
  """
  lab, target = _lab(patch).reshape(-1, 3), _lab(like[None]).reshape(-1, 3)
  deviation = lab.std(0)
  ratio = np.divide(target.std(0), deviation, out=np.ones(3), where=deviation > 1e-6)
  moved = (lab - lab.mean(0)) * ratio + target.mean(0)
  return np.clip(_rgb(moved.reshape(patch.shape)), 0, 1) * 255


# CIELAB of sRGB (IEC 61966-2-1) under D65. OpenCV's table is wrong by some tenths of a grey level.
_XYZ = np.array(
  [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
  ]
)
_XYZ /= _XYZ.sum(1, keepdims=True)  # white is (1, 1, 1)
_D = 6 / 29


def _lab(pixels: np.ndarray) -> np.ndarray:
  """Converts uint8 [... 3] to L, a, b."""
  v = pixels / 255.0
  linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
  xyz = linear @ _XYZ.T
  x, y, z = np.moveaxis(np.where(xyz > _D**3, np.cbrt(xyz), xyz / (3 * _D**2) + 4 / 29), -1, 0)
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _rgb(lab: np.ndarray) -> np.ndarray:
  """Converts L, a, b to sRGB [... 3]: in 0..1, or beyond it for colours that sRGB does not have."""
  y = (lab[..., 0] + 16) / 116
  f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
  linear = np.where(f > _D, f**3, 3 * _D**2 * (f - 4 / 29)) @ np.linalg.inv(_XYZ).T
  root = 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055
  return np.where(linear <= 0.0031308, 12.92 * linear, root)


# The door.

FLAGS = (
  ('bench', doors.REQUIRED, 'the benchmark: a folder in the published layout, or packed'),
  ('kind', doors.REQUIRED, f'one of {", ".join(KINDS)}'),
  ('output', doors.REQUIRED, 'folder for the pictures'),
)


def main(bench: str, kind: str, output: str) -> None:
  """Makes the missing pictures of one kind of reference."""
  made = write(bench, kind, output)
  print(f'{output}: {made} new pictures of {kind}, all exist now')
