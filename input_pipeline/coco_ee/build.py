"""Makes a benchmark in the COCOEE layout from plans: the square cut, the files, the manifest.

A source is resized as the published one was (shorter side to 512 by Pillow's antialiased bilinear,
with torchvision's rounding) and cut to a square. The published square is the centre. Here the
square moves from the centre by as little as it takes to contain the whole region to repaint, and a
region that fits in no square is refused.
"""

import contextlib
import dataclasses
import hashlib
import math
import types
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import PIL.Image

from exedit.runtime import files, progress
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel

from .. import codec
from ..errors import DataError
from . import layout

Number = int | float
Box = tuple[Number, Number, Number, Number]  # (x0, y0, x1, y1) in pixels, x1 and y1 exclusive
Place = tuple[int, int, int, int]  # (width, height) of the resized image, (left, top) of the square


@dataclasses.dataclass(frozen=True)
class Plan:
  """One edit to make: its id, its entry in the manifest, and a function that makes its pictures."""

  id: int
  about: dict
  pictures: Callable[[], dict[str, np.ndarray]]  # source [s s 3], mask [s s], exemplar [h w 3]


# Geometry.


def square(shape: tuple[int, int], box: Box, size: int) -> Place | None:
  """Returns where the square source of an image (w, h) lies, or None if no square holds the box."""
  width, height = (int(size * side / min(shape)) for side in shape)
  x0, y0, x1, y1 = scaled(box, shape, (width, height))
  left, top = _corner(width, x0, x1, size), _corner(height, y0, y1, size)
  return None if left is None or top is None else (width, height, left, top)


def _corner(side: int, low: int, high: int, size: int) -> int | None:
  centre = int(round((side - size) / 2.0))  # as in torchvision's CenterCrop
  first, last = max(0, high - size), min(side - size, low)
  return None if first > last else min(max(centre, first), last)


def rectangle(box: Box, shape: tuple[int, int], place: Place, size: int) -> np.ndarray:
  """Returns the box as a mask of the square source, uint8 [s s]: 255 in every pixel it touches."""
  width, height, left, top = place
  x0, y0, x1, y1 = scaled(box, shape, (width, height))
  mask = np.zeros((size, size), np.uint8)
  mask[y0 - top : y1 - top, x0 - left : x1 - left] = 255
  return mask


def scaled(box: Box, shape: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int, int, int]:
  """Returns the box in whole pixels of the resized image, rounded outward."""
  a, b = resized[0] / shape[0], resized[1] / shape[1]
  x0, y0 = math.floor(box[0] * a + 1e-6), math.floor(box[1] * b + 1e-6)
  x1, y1 = math.ceil(box[2] * a - 1e-6), math.ceil(box[3] * b - 1e-6)
  return x0, y0, min(x1, resized[0]), min(y1, resized[1])


def cut(image: PIL.Image.Image, place: Place, size: int) -> np.ndarray:
  """Returns the square of the resized image, uint8 [s s 3] or [s s]."""
  width, height, left, top = place
  if image.size != (width, height):
    image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
  return np.asarray(image.crop((left, top, left + size, top + size)))


class TooFew(DataError):
  """There are fewer edits than wanted."""


def write(
  output: str,
  plans: Iterable[Plan],
  count: int,
  settings: dict,
  on_loss: Callable[[Plan, str], None],
  passed_over: Mapping[str, str] = types.MappingProxyType({}),
) -> dict:
  """Writes the first `count` plans that can be made into a new folder; returns the manifest.

  on_loss: called with a plan that cannot be made, and why; it may raise. passed_over: what the
  plans leave out already, for the manifest.

  Raises:
    DataError: if too few plans can be made, or the output exists. Nothing is left then.
  """
  files.check_new(output, '--output')
  kept, sums, lost = {}, {}, Counter()
  with (
    files.new_folder(output) as stage,
    progress.bar(what='making', total=count, unit='edit') as bar,
    contextlib.closing(in_parallel(_made, plans)) as results,
  ):
    for kind in layout.KINDS:
      (stage / layout.folder_name(kind, count)).mkdir()
    while len(kept) < count:
      try:
        plan, pictures = next(results)
      except StopIteration:
        raise TooFew(_too_few(len(kept), count, lost)) from None
      if isinstance(pictures, str):
        on_loss(plan, pictures)
        lost[pictures] += 1
        continue
      for kind, data in pictures.items():
        name = f'{layout.folder_name(kind, count)}/{layout.file_name(kind, plan.id)}'
        (stage / name).write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()
      kept[plan.id] = plan.about
      bar.update()
    ids = sorted(kept)
    np.save(stage / layout.IDS, np.array(ids, np.int64))
    manifest = dict(
      made_by='input_pipeline.coco_ee_build',
      settings=settings,
      passed_over=dict(passed_over) | lost_pictures(lost),
      edits=[dict(id=edit_id, **kept[edit_id]) for edit_id in ids],
      sha256=dict(sorted(sums.items())),
    )
    files.write_json(stage / layout.MANIFEST, manifest)
  return manifest


def lost_pictures(lost: Counter) -> dict[str, str]:
  """Returns the entry of `passed_over` for edits whose pictures cannot be used."""
  told = f'{lost.total()}, the first: {next(iter(lost), "")}'
  return {'its pictures cannot be used': told} if lost else {}


def _made(plan: Plan) -> tuple[Plan, dict[str, bytes] | str]:
  """Returns the plan with its pictures as PNG, or with the reason why they cannot be made."""
  try:
    return plan, {kind: codec.png(pixels) for kind, pixels in plan.pictures().items()}
  except UserError as error:
    return plan, str(error)


def _too_few(made: int, wanted: int, lost: Counter) -> str:
  why = f'; {lost.total()} could not be read, the first: {next(iter(lost))}' if lost else ''
  return (
    f'only {made} of the {wanted} edits can be made from these boxes{why}; take a smaller --count, '
    'or wider --min_area, --max_area and --exemplar_side'
  )
