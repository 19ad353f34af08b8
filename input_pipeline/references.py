"""Results that need no training, to be scored beside those of models (`evaluate --images=DIR`).

  python -m input_pipeline.references --bench=test_bench --kind=copy_paste --output=results/paste

`source` repeats the source: the best background, no edit. `copy_paste` squashes the exemplar into
the mask's box: the best likeness, no composition. `harmonised` pastes it in the colours of its
surroundings (Reinhard et al. 2001, in CIELAB) and without a seam (Poisson, Perez et al. 2003).
Finished pictures are kept when the command is given again.
"""

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image

from exedit.runtime import doors

from . import files as whole
from .coco_ee import bench as coco_ee
from .coco_ee import build, layout, poisson
from .errors import DataError

MADE_BY = 'input_pipeline.references'
VERSION = 1  # of the pictures: a change of them is a change of this
SETTINGS = 'reference.json'
_AHEAD = 64  # edits made at once


def write(bench: str, kind: str, output: str) -> int:
  """Writes {id:012d}.png for every edit of a benchmark that has none yet; returns how many.

  Pictures appear only when whole. DataError where the folder holds results of another kind or
  benchmark, or an edit cannot be read.
  """
  import tqdm

  if kind not in KINDS:
    raise DataError(f'--kind={kind}: must be one of {", ".join(KINDS)}')
  edits = coco_ee.Bench(bench, exemplar_size=None)
  _claim(output, kind, edits)
  there = set(os.listdir(output))
  names = [f'{edit_id:012d}.png' for edit_id in edits.ids.tolist()]
  todo = [position for position, name in enumerate(names) if name not in there]

  def make(position: int) -> None:
    result = KINDS[kind](edits[position])
    whole.write(os.path.join(output, names[position]), build.png(result))

  every = 0.1 if sys.stderr.isatty() else 10
  total, done = len(edits), len(edits) - len(todo)
  with (
    tqdm.tqdm(total=total, initial=done, unit='edit', desc=kind, mininterval=every) as bar,
    ThreadPoolExecutor() as pool,
  ):
    for start in range(0, len(todo), _AHEAD):
      for _ in pool.map(make, todo[start : start + _AHEAD]):
        bar.update()
  return len(todo)


def _claim(output: str, kind: str, edits: coco_ee.Bench) -> None:
  """Notes in the folder what its pictures are; DataError where they are something else."""
  sha = hashlib.sha256(edits.ids.astype('<i8').tobytes())
  for position in (0, len(edits) - 1):  # all would be gigabytes; another size shows in any
    for data in edits.encoded(position).values():
      sha.update(data)
  ours = dict(made_by=MADE_BY, version=VERSION, kind=kind, bench_sha256=sha.hexdigest())
  path = os.path.join(output, SETTINGS)
  if os.path.isdir(output) and os.listdir(output):
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
    return
  whole.write(path, json.dumps(ours, indent=1).encode())


# The pictures: an edit with its exemplar as published -> uint8 [h w 3]. Outside the mask, the
# source's own bytes; where the mask is grey, a mixture.


def source(edit: dict) -> np.ndarray:
  """The source, repeated."""
  return edit['source']


def copy_paste(edit: dict) -> np.ndarray:
  """The exemplar, squashed into the bounding box of the mask."""
  return _composed(edit, _squashed(edit))


def harmonised(edit: dict) -> np.ndarray:
  """The exemplar in the box, in its surroundings' colours, blended into them."""
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
  """The bounding box of all that is repainted, in part or wholly."""
  return layout.bounding_box(np.where(edit['mask'] > 0, np.uint8(255), np.uint8(0)))


def _squashed(edit: dict) -> np.ndarray:
  """The exemplar at the size of the box, by Pillow's antialiased bicubic: uint8 [h w 3]."""
  x0, y0, x1, y1 = _box(edit)
  exemplar = PIL.Image.fromarray(edit['exemplar'])
  return np.asarray(exemplar.resize((x1 - x0, y1 - y0), PIL.Image.Resampling.BICUBIC))


def _composed(edit: dict, patch: np.ndarray) -> np.ndarray:
  """The patch [h w 3] in the box of the source, as much of it as the mask says."""
  x0, y0, x1, y1 = _box(edit)
  result = edit['source'].copy()
  share = edit['mask'][y0:y1, x0:x1, None] / 255.0
  mixed = share * np.clip(patch, 0, 255) + (1 - share) * result[y0:y1, x0:x1]
  result[y0:y1, x0:x1] = np.round(mixed)
  return result


def _surroundings(image: np.ndarray, mask: np.ndarray, box: tuple[int, int, int, int]):
  """What is kept of the source within half the box's size around it: uint8 [n 3], maybe none."""
  x0, y0, x1, y1 = box
  a, b = -(-(x1 - x0) // 2), -(-(y1 - y0) // 2)
  window = np.s_[max(0, y0 - b) : y1 + b, max(0, x0 - a) : x1 + a]
  return image[window][mask[window] == 0]


def transfer_colour(patch: np.ndarray, like: np.ndarray) -> np.ndarray:
  """Gives the patch [h w 3] the mean and deviation of the pixels [n 3] in each channel of CIELAB.

  Reinhard et al., "Color Transfer between Images", 2001, eqs. 10 and 11, in CIELAB for their
  l-alpha-beta. uint8 in, float64 out, of 0..255.
  """
  lab, target = _lab(patch).reshape(-1, 3), _lab(like[None]).reshape(-1, 3)
  deviation = lab.std(0)
  ratio = np.divide(target.std(0), deviation, out=np.ones(3), where=deviation > 1e-6)
  moved = (lab - lab.mean(0)) * ratio + target.mean(0)
  return np.clip(_rgb(moved.reshape(patch.shape)), 0, 1) * 255


# CIELAB of sRGB (IEC 61966-2-1) under D65; OpenCV's is a table, some tenths of a grey level off.
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
  """uint8 [... 3] -> L, a, b."""
  v = pixels / 255.0
  linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
  xyz = linear @ _XYZ.T
  x, y, z = np.moveaxis(np.where(xyz > _D**3, np.cbrt(xyz), xyz / (3 * _D**2) + 4 / 29), -1, 0)
  return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _rgb(lab: np.ndarray) -> np.ndarray:
  """L, a, b -> sRGB [... 3] where it is 0..1, below or above where there is no such colour."""
  y = (lab[..., 0] + 16) / 116
  f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
  linear = np.where(f > _D, f**3, 3 * _D**2 * (f - 4 / 29)) @ np.linalg.inv(_XYZ).T
  root = 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055
  return np.where(linear <= 0.0031308, 12.92 * linear, root)


# The door.


def main(bench: str, kind: str, output: str) -> None:
  """Writes what is still missing of one kind of reference."""
  for name, value in dict(bench=bench, kind=kind, output=output).items():
    if not value:
      raise DataError(f'--{name}=... is missing')
  made = write(bench, kind, output)
  print(f'{output}: {made} pictures of {kind} made, all are there')


def _flags():
  from absl import flags

  values = flags.FlagValues()
  flags.DEFINE_string('bench', '', 'the benchmark: folders or packed', flag_values=values)
  flags.DEFINE_string('kind', '', f'one of {", ".join(KINDS)}', flag_values=values)
  flags.DEFINE_string('output', '', 'folder for the pictures', flag_values=values)
  return values


if __name__ == '__main__':
  doors.call(main, _flags(), __doc__, sys.argv)
