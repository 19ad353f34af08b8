"""Selects an object in a photo by a box or a click: GrabCut, without a network."""

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from exedit.input_pipeline import masks
from exedit.runtime.errors import UserError

SIDE = 512  # pixels of the longer side at which GrabCut works
ROUNDS = 5  # of GrabCut
AROUND = 0.35  # of a box's longer side: the margin in which the background is learned
CLICK = 0.5  # of the photo's shorter side: the side of the region around a click
SEED = 0.04  # of that region: the radius of what is surely the object
LEAST = 16  # pixels of a box's side


def object_in(
  rgb: UInt8[np.ndarray, 'h w 3'],
  box: tuple[float, float, float, float] | None = None,
  point: tuple[float, float] | None = None,
  surely: Bool[np.ndarray, 'h w'] | None = None,
) -> Bool[np.ndarray, 'h w']:
  """The pixels of the object in a box (left, top, right, bottom), or at a point (x, y).

  surely: pixels that belong to it. The region of interest is scaled to SIDE, and the outline back.

  Raises:
    UserError: if there is no object, or the box or point lies outside of the photo.
  """
  height, width = rgb.shape[:2]
  if box is None:
    assert point is not None
    box = _around(point, CLICK * min(height, width), width, height)
  left, top, right, bottom = _inside(box, width, height)
  margin = AROUND * max(right - left, bottom - top) if point is None else 0
  window = _inside((left - margin, top - margin, right + margin, bottom + margin), width, height)
  x0, y0, x1, y1 = window
  scale = min(1, SIDE / max(x1 - x0, y1 - y0))
  size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
  small = cv2.resize(rgb[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)
  labels = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
  inner = [round(n * scale) for n in (left - x0, top - y0, right - x0, bottom - y0)]
  labels[inner[1] : inner[3], inner[0] : inner[2]] = cv2.GC_PR_FGD
  if point is not None:
    centre = round((point[0] - x0) * scale), round((point[1] - y0) * scale)
    edge = max(2, round(0.02 * max(size)))
    for side in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
      labels[side] = cv2.GC_PR_BGD
    cv2.circle(labels, centre, max(1, round(SEED * max(size))), cv2.GC_FGD, -1)
  if surely is not None:
    part = surely[y0:y1, x0:x1].astype(np.uint8)
    labels[cv2.resize(part, size, interpolation=cv2.INTER_NEAREST) > 0] = cv2.GC_FGD
  found = _cut(small, labels)
  if point is not None:
    found = _touching(found, labels == cv2.GC_FGD)
  if not found.any():
    raise UserError('no object was found there: draw a box around it, or paint it')
  result = np.zeros((height, width), bool)
  image = Image.fromarray(np.uint8(found) * 255)
  grown = image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)
  result[y0:y1, x0:x1] = np.asarray(grown) >= 128
  return result


def _cut(small, labels) -> Bool[np.ndarray, 'h w']:
  """GrabCut's answer; all that could be the object if nothing is surely the background."""
  background, subject = labels % 2 == 0, labels % 2 == 1
  if not background.any() or not subject.any():
    return subject
  return masks.grab_cut(np.ascontiguousarray(small[..., ::-1]), labels, ROUNDS)


def _touching(found, seed) -> Bool[np.ndarray, 'h w']:
  """The connected parts that hold some of the seed."""
  parts = cv2.connectedComponents(found.astype(np.uint8))[1]
  kept = np.unique(parts[seed & found])
  return found & np.isin(parts, kept[kept > 0])


def _around(point, side, width, height):
  x, y = point
  if not (0 <= x < width and 0 <= y < height):
    raise UserError(f'point is {x:g}, {y:g}: it must lie in the photo of {width} x {height}')
  return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def _inside(box, width, height) -> tuple[int, int, int, int]:
  """The whole pixels of a box in the photo."""
  left, top, right, bottom = (round(n) for n in box)
  found = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
  if min(found[2] - found[0], found[3] - found[1]) < min(LEAST, width, height):
    raise UserError(f'box is too small, or outside of the photo of {width} x {height}')
  return found
