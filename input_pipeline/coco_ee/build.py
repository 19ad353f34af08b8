"""Makes a benchmark in the COCOEE layout from plans: the square cut, the files, the manifest.

A source is resized as the published one was (shorter side to 512 by Pillow's antialiased bilinear,
torchvision's rounding) and cut to a square. The published cut is the centre; here it is moved from
there by as little as keeps the whole region that is repainted, and a region that no square holds
is refused. `crop='centre'` refuses whatever the centre alone does not hold.
"""

import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image

from .. import files as whole
from ..errors import DataError
from . import layout

CROPS = ('nearest', 'centre')
Number = int | float
Box = tuple[Number, Number, Number, Number]  # (x0, y0, x1, y1) in pixels, x1 and y1 exclusive
Place = tuple[int, int, int, int]  # (width, height) of the resized image, (left, top) of the square


@dataclasses.dataclass(frozen=True)
class Plan:
  """One edit to make: its id, what the manifest says of it, and how to get its three pictures."""

  id: int
  about: dict
  pictures: Callable[[], dict[str, np.ndarray]]  # source [s s 3], mask [s s], exemplar [h w 3]


# Geometry.


def square(shape: tuple[int, int], box: Box, size: int, crop: str) -> Place | None:
  """Where the square source of an image (w, h) lies; None where no square holds the box.

  Width and height are those of the whole image once its shorter side is `size`; left and top are
  the square's corner in it.
  """
  width, height = (int(size * side / min(shape)) for side in shape)
  x0, y0, x1, y1 = scaled(box, shape, (width, height))
  left, top = _corner(width, x0, x1, size, crop), _corner(height, y0, y1, size, crop)
  return None if left is None or top is None else (width, height, left, top)


def _corner(side: int, low: int, high: int, size: int, crop: str) -> int | None:
  centre = int(round((side - size) / 2.0))  # as torchvision's CenterCrop
  first, last = max(0, high - size), min(side - size, low)
  if first > last or (crop == 'centre' and not first <= centre <= last):
    return None
  return min(max(centre, first), last)


def rectangle(box: Box, shape: tuple[int, int], place: Place, size: int) -> np.ndarray:
  """The box as a mask of the square source, uint8 [s s]: every pixel that it touches is 255."""
  width, height, left, top = place
  x0, y0, x1, y1 = scaled(box, shape, (width, height))
  mask = np.zeros((size, size), np.uint8)
  mask[y0 - top : y1 - top, x0 - left : x1 - left] = 255
  return mask


def scaled(box: Box, shape: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int, int, int]:
  """The box in whole pixels of the resized image, outward."""
  a, b = resized[0] / shape[0], resized[1] / shape[1]
  x0, y0 = math.floor(box[0] * a + 1e-6), math.floor(box[1] * b + 1e-6)
  x1, y1 = math.ceil(box[2] * a - 1e-6), math.ceil(box[3] * b - 1e-6)
  return x0, y0, min(x1, resized[0]), min(y1, resized[1])


def cut(image: PIL.Image.Image, place: Place, size: int) -> np.ndarray:
  """The square of the resized image, uint8 [s s 3] or [s s]."""
  width, height, left, top = place
  if image.size != (width, height):
    image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def no_square(shape: tuple[int, int], box: Box, crop: str) -> str:
  """Why `square` found none."""
  side = min(shape)
  if crop == 'centre':
    return f'the central {side}x{side} square cuts the region {box}; use --crop=nearest'
  return (
    f'no {side}x{side} square of the {shape[0]}x{shape[1]} image holds the region, which is '
    f'{box[2] - box[0]}x{box[3] - box[1]}; make it smaller'
  )


def check(size: int, crop: str) -> None:
  """DataError for a size or a crop that there is not."""
  if size < 8:
    raise DataError(f'--size={size}: must be at least 8')
  if crop not in CROPS:
    raise DataError(f'--crop={crop}: must be {" or ".join(CROPS)}')


# Writing.


def write(
  output: str,
  plans: Iterable[Plan],
  count: int,
  settings: dict,
  on_loss: Callable[[Plan, str], None],
) -> dict:
  """The first `count` plans that can be made, as a new folder, by id; returns its manifest."""
  import tqdm

  whole.refuse_existing(output)
  plans, kept, lost = iter(plans), {}, Counter()
  every = 0.1 if sys.stderr.isatty() else 10
  with (
    whole.folder(output) as stage,
    tqdm.tqdm(total=count, unit='edit', desc='making', mininterval=every) as bar,
    ThreadPoolExecutor() as pool,
  ):
    for kind in layout.KINDS:
      os.mkdir(os.path.join(stage, layout.folder_name(kind, count)))
    while len(kept) < count:
      group = list(itertools.islice(plans, min(count - len(kept), 64)))
      if not group:
        raise DataError(_too_few(len(kept), count, lost))
      made = pool.map(lambda plan: _make(plan, stage, count), group)
      for plan, (sums, why) in zip(group, made):
        if why:
          on_loss(plan, why)
          lost[why] += 1
        else:
          kept[plan.id] = plan, sums
          bar.update()
    ids = np.array(sorted(kept), np.int64)
    np.save(os.path.join(stage, layout.IDS), ids)
    manifest = dict(
      made_by='input_pipeline.coco_ee_build',
      settings=settings,
      passed_over=lost.total(),
      edits=[dict(id=i, **kept[i][0].about) for i in ids.tolist()],
      sha256=dict(sorted(item for _, sums in kept.values() for item in sums.items())),
    )
    whole.write(os.path.join(stage, layout.MANIFEST), json.dumps(manifest, indent=1).encode())
  return manifest


def _make(plan: Plan, stage: str, count: int) -> tuple[dict[str, str], str]:
  """Makes and writes one edit: ({file: SHA-256}, '') or ({}, why not)."""
  try:
    pictures = plan.pictures()
  except DataError as error:
    return {}, str(error)
  sums = {}
  for kind, pixels in pictures.items():
    data = png(pixels)
    name = f'{layout.folder_name(kind, count)}/{layout.file_name(kind, plan.id)}'
    with open(os.path.join(stage, name), 'wb') as file:
      file.write(data)
    sums[name] = hashlib.sha256(data).hexdigest()
  return sums, ''


def read(path: str) -> bytes:
  """A file's bytes; DataError, naming it, where it cannot be read."""
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error


def png(pixels: np.ndarray) -> bytes:
  """uint8 [h w] or [h w 3] -> the same bytes for the same pixels."""
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def _too_few(made: int, wanted: int, lost: Counter) -> str:
  why = f'; {lost.total()} could not be read, the first: {next(iter(lost))}' if lost else ''
  return (
    f'only {made} of the {wanted} edits can be made from these boxes{why}; take a smaller --count, '
    'or wider --min_area, --max_area and --exemplar_side'
  )
