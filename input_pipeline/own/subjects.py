"""Subjects of pictures, before the pictures are read: boxes, outlines, and files of masks."""

import dataclasses
import math
from typing import Any

import cv2
import numpy as np
import PIL.Image

from exedit.runtime import decode, mask_files
from exedit.runtime.errors import UserError

from ..coco_ee import layout
from ..reports import Odd

CUT = 0.5  # share of a box that must lie in the picture
WHOLE = (0.1, 0.1, 0.9, 0.9)  # x0, y0, x1, y1: a hole needs some picture around it
CORNERS = {
  1: lambda x, y: (x, y),
  2: lambda x, y: (1 - x, y),
  3: lambda x, y: (1 - x, 1 - y),
  4: lambda x, y: (x, 1 - y),
  5: lambda x, y: (y, x),
  6: lambda x, y: (1 - y, x),
  7: lambda x, y: (1 - y, 1 - x),
  8: lambda x, y: (y, 1 - x),
}  # a place in a stored picture, in shares, to that in the upright one, by EXIF's orientation


@dataclasses.dataclass(frozen=True)
class Subject:
  """One subject of a picture, as a label says it.

  box: x0, y0, x1, y1; None: that of the outline or mask. shares: of the picture, else pixels.
  label: its name, '' if it has none. size: of the picture in pixels (width, height), where the
  label says it. outline: polygons, or COCO's run lengths. mask: path of a mask; ALPHA: the
  picture's own transparency. where: of the label, for messages.
  """

  box: tuple[float, float, float, float] | None = None
  shares: bool = False
  label: str = ''
  size: tuple[int, int] | None = None
  outline: Any = None
  mask: str = ''
  where: str = ''


ALPHA = 'alpha'


@dataclasses.dataclass(frozen=True)
class Picture:
  """An upright picture: name, pixels uint8 [h w 3], stored width and height, orientation, alpha."""

  name: str
  pixels: np.ndarray
  stored: tuple[int, int]
  orientation: int
  alpha: np.ndarray | None

  @property
  def size(self) -> tuple[int, int]:
    return self.pixels.shape[1], self.pixels.shape[0]


@dataclasses.dataclass(frozen=True)
class Placed:
  """A subject in its upright picture: box (x0, y0, x1, y1) in shares, mask uint8 [h w] or None."""

  box: tuple[float, float, float, float]
  label: str
  mask: np.ndarray | None


def place(subject: Subject, picture: Picture, min_area: float, max_area: float) -> Placed:
  """Returns where a subject is.

  Raises:
    Odd: for one that cannot be used, with the reason.
  """
  try:
    mask = _mask(subject, picture)
  except Odd:
    raise
  except UserError as error:
    raise Odd('mask_unreadable', str(error)) from error
  turned = _turned(subject, picture) if mask is None or subject.size else 1
  if mask is not None:
    if not (mask >= mask_files.HALF).any():
      raise Odd('mask_empty', f'{subject.where}: no pixel of it is white')
    width, height = picture.size
    x0, y0, x1, y1 = layout.bounding_box(mask)
    box = (x0 / width, y0 / height, x1 / width, y1 / height)
  else:
    box = _shares(subject, picture, turned)
  area = (box[2] - box[0]) * (box[3] - box[1])
  if not min_area <= area <= max_area:
    said = f'{subject.where}: its box covers {area:.2g} of the picture'
    raise Odd('too_small' if area < min_area else 'too_large', said)
  return Placed(box, subject.label, mask)


def _shares(subject: Subject, picture: Picture, turned: int) -> tuple[float, float, float, float]:
  """The box in shares of the upright picture, cut to it."""
  assert subject.box is not None
  width, height = (1, 1) if subject.shares else (picture.stored if turned > 1 else picture.size)
  x0, y0, x1, y1 = (float(v) / s for v, s in zip(subject.box, (width, height) * 2))
  if not all(map(math.isfinite, (x0, y0, x1, y1))):
    raise Odd('malformed', f'{subject.where}: the box has a number that is not finite')
  if subject.shares and max(map(abs, (x0, y0, x1, y1))) > 2:
    raise Odd('in_pixels', f'{subject.where}: {max(subject.box):g} is no share: is it in pixels?')
  if x0 >= x1 or y0 >= y1:
    numbers = ', '.join(f'{v:g}' for v in subject.box)
    raise Odd('no_area', f'{subject.where}: the box {numbers} has no area')
  ends = CORNERS[turned](x0, y0), CORNERS[turned](x1, y1)
  (x0, x1), (y0, y1) = (sorted(pair) for pair in zip(*ends))
  inside = [min(max(v, 0.0), 1.0) for v in (x0, y0, x1, y1)]
  share = max(0, inside[2] - inside[0]) * max(0, inside[3] - inside[1]) / ((x1 - x0) * (y1 - y0))
  if share < CUT:
    what = f'{1 - share:.0%} of the box lie outside the {picture.size[0]}x{picture.size[1]} picture'
    raise Odd('outside', f'{subject.where}: {what}')
  return inside[0], inside[1], inside[2], inside[3]


def _turned(subject: Subject, picture: Picture) -> int:
  """The orientation that the box still needs: 1 if it counts upright pixels."""
  if subject.size in (None, picture.size):
    return 1
  if subject.size == picture.stored:
    return picture.orientation
  (w, h), (width, height) = subject.size, picture.size
  what = f'the label is of a picture of {w}x{h}, and {picture.name} is {width}x{height}'
  raise Odd('another_size', f'{subject.where}: {what}')


# Masks.


def _mask(subject: Subject, picture: Picture) -> np.ndarray | None:
  """The mask at the size of the upright picture, uint8 [h w]; None if there is only a box."""
  if subject.mask == ALPHA:
    if picture.alpha is None:
      raise Odd('no_alpha', f'{picture.name} has no transparent part')
    return picture.alpha
  if subject.mask:
    levels = mask_files.read(subject.mask, subject=True).levels
    return _upright(levels, subject, picture)
  if not subject.outline:
    return None
  turned = _turned(subject, picture)
  size = picture.stored if turned > 1 else picture.size
  if isinstance(subject.outline, dict):
    levels = run_lengths(subject.outline, subject.where)
    return _upright(levels, subject, picture)
  levels = np.zeros(size[::-1], np.uint8)
  scale = np.array(size if subject.shares else (1, 1), np.float64)
  try:
    shapes = [np.asarray(part, np.float64).reshape(-1, 2) * scale for part in subject.outline]
  except (ValueError, TypeError):
    raise Odd('malformed', f'{subject.where}: the outline is no list of x and y') from None
  if any(len(shape) < 3 or not np.isfinite(shape).all() for shape in shapes):
    raise Odd('malformed', f'{subject.where}: an outline needs three places or more')
  if any(np.abs(shape).max() > 2**15 for shape in shapes):
    raise Odd('outside', f'{subject.where}: the outline lies outside the picture')
  cv2.fillPoly(levels, [np.round(shape).astype(np.int32) for shape in shapes], 255)
  return _upright(levels, subject, picture) if turned > 1 else levels


def _upright(levels: np.ndarray, subject: Subject, picture: Picture) -> np.ndarray:
  """A mask of the upright picture, or of the stored one, as one of the upright picture."""
  size = levels.shape[1], levels.shape[0]
  if size == picture.size:
    return levels
  if size == picture.stored:
    turn = decode.TURNS[picture.orientation]
    return np.asarray(PIL.Image.fromarray(levels).transpose(turn))
  (w, h), (width, height) = size, picture.size
  what = f'the mask is {w}x{h}, and {picture.name} is {width}x{height}'
  raise Odd('mask_of_another_size', f'{subject.where}: {what}')


def run_lengths(found: dict, where: str) -> np.ndarray:
  """Decodes COCO's run lengths, a list or its text, to a mask uint8 [h w].

  The runs go down the columns, zeros first. In the text each run is a number of 5-bit pieces, from
  the fourth on the difference to the run two before it (pycocotools, maskApi.c, rleFrString).
  """
  try:
    height, width = (int(side) for side in found['size'])
    counts = found['counts']
    runs = _runs_of_text(counts) if isinstance(counts, str | bytes) else [int(n) for n in counts]
    if min(height, width, *runs) < 0 or sum(runs) != height * width:
      raise ValueError(f'the runs add up to {sum(runs)} of {height * width} pixels')
    values = np.repeat(np.arange(len(runs)) % 2 * np.uint8(255), runs)
    return np.ascontiguousarray(values.astype(np.uint8).reshape(width, height).T)
  except (KeyError, TypeError, ValueError, IndexError) as error:
    raise Odd('malformed', f'{where}: the run lengths cannot be read ({error})') from None


def _runs_of_text(text: str | bytes) -> list[int]:
  data = text.encode('ascii') if isinstance(text, str) else text
  runs, at = [], 0
  while at < len(data):
    value, shift, more = 0, 0, True
    while more:
      piece = data[at] - 48
      value |= (piece & 0x1F) << shift
      more, at, shift = bool(piece & 0x20), at + 1, shift + 5
      if not more and piece & 0x10:
        value |= -1 << shift
    runs.append(value + (runs[-2] if len(runs) > 2 else 0))
  return runs
