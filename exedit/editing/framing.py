"""Geometry of an edit: the window of a photo that the network sees, and the way back.

Everything here is numpy on the host. Photo pixels are uint8, masks are bool with True = repaint.
The window and the network's picture of it cover the same area, so nothing moves on the way.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from exedit import images
from exedit.editing.settings import FEATHER, FITS, MATCHES, ZOOMS
from exedit.input_pipeline.crops import GREY
from exedit.runtime.errors import UserError

LONGEST = 4  # limit of long side / short side; the network was not trained on longer pictures
GAIN = 2  # 'auto' zooms in if the hole then gets at least this many times the pixels across
SHALLOW = 4  # a hole that is less deep than 4 feathers fades in over a quarter of its depth
ENLARGE = 4  # limit of the enlargement of a window; beyond it the network sees a blur
MARGIN = 0.05  # of the subject's longer side, around it; training leaves 10 pixels

CELLS = 64  # cells across the shorter side for the comparison of colours; latent pixels at 512
RING = 4  # cells; the width of the ring around the hole where the colours are compared
STIFFNESS = 4.0  # the least stiffness of the membrane, relative to one measurement
STEEP = 1 / 127.5  # expected change of the shift from cell to cell; more counts as noise
TRUSTED = 4 / 127.5  # a measurement this near to the membrane is never an outlier
SIGMA = 1.4826  # standard deviation / median of absolute deviations
LIMIT = 40 / 127.5  # a larger difference is another picture, not another colour
STRIP = 2**22  # pixels that are stitched at a time


@dataclasses.dataclass(frozen=True)
class Frame:
  """A window in the photo's pixels, and the (height, width) `size` at which the network sees it."""

  top: int
  left: int
  height: int
  width: int
  size: tuple[int, int]

  @property
  def bottom(self) -> int:
    return self.top + self.height

  @property
  def right(self) -> int:
    return self.left + self.width


# Choosing


def choose(
  mask: Bool[np.ndarray, 'h w'], trained: int, zoom: str = 'auto', context: float = 2.0
) -> Frame:
  """The window of a photo in which the network repaints this mask.

  'off' is the whole photo, with its shorter side at the `trained` size. 'context' is a square
  around the mask's bounding box with `context` times its longer side, seen at trained x trained, so
  that all such windows share a batch. It has at least trained / 4 pixels a side. In a photo that is
  narrower than the square it spans the narrow side, and its long side is a whole number of eighths
  of it, so that there are few shapes. 'auto' is 'context' if it at least doubles the hole's pixels
  across (at 512, for holes below about 128 pixels), or if the photo is too long, else 'off'. With
  context 2 the hole fills about a quarter of the window; the released weights were trained on boxes
  of 2 to 80 percent (docs/facts.md, Open Images, crops and masks).

  Raises:
    ValueError: for another zoom, a context below 1, and an empty mask.
    UserError: for a window that is more than LONGEST times as long as wide.
  """
  _known('zoom', zoom, ZOOMS)
  if context < 1:
    raise ValueError(f'context is {context}: it must be at least 1, the mask itself')
  height, width = mask.shape
  if zoom == 'off':
    return whole(height, width, trained)
  window = _around(bounds(mask), (height, width), trained, context)
  gain = min(height, width) / min(window.height, window.width)
  if zoom == 'auto' and gain < GAIN and max(height, width) <= LONGEST * min(height, width):
    return whole(height, width, trained)
  return _checked(window)


def whole(height: int, width: int, trained: int) -> Frame:
  """The whole photo, with its shorter side at the `trained` size; UserError if it is too long."""
  return _checked(Frame(0, 0, height, width, _scaled(height, width, trained)))


def bounds(mask: Bool[np.ndarray, 'h w']) -> tuple[int, int, int, int]:
  """Top, left, bottom, right of the True pixels; ValueError if there are none."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(rows):
    raise ValueError('the mask is empty: it repaints nothing')
  return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _around(box, photo, trained, context):
  """The window around a box (top, left, bottom, right)."""
  needs = box[2] - box[0], box[3] - box[1]
  side = math.ceil(max(context * max(needs), trained / ENLARGE))
  short = min(side, *photo)
  long = min(side, max(photo), max(LONGEST * short, *needs))
  eighths = math.ceil(8 * long / short)
  if round(eighths * short / 8) <= max(photo):
    long, size = round(eighths * short / 8), (trained, round(eighths * trained / 8))
  else:
    long, size = max(photo), _scaled(short, max(photo), trained)
  wide = photo[1] >= photo[0]
  height, width = (short, long) if wide else (long, short)
  top, left = (
    min(max((low + high - side) // 2, 0), whole - side)
    for low, high, side, whole in zip(box[:2], box[2:], (height, width), photo)
  )
  return Frame(top, left, height, width, size if wide else size[::-1])


def _scaled(height, width, trained):
  short = min(height, width)
  return round(height * trained / short), round(width * trained / short)


def _checked(frame):
  if max(frame.height, frame.width) > LONGEST * min(frame.height, frame.width):
    raise UserError(
      f'the network would have to see {frame.width} x {frame.height} pixels at once, more than'
      f' {LONGEST} times as long as wide: cut out the part around the mask, or repaint a long mask'
      ' in parts'
    )
  return frame


# Photo to network


def cut(frame: Frame, image: UInt8[np.ndarray, 'h w 3']) -> Float[np.ndarray, 'sh sw 3']:
  """The window as the network sees it, in [-1, 1], resized as in `images.resize`."""
  return images.from_uint8(_resize(image[_part(frame)], frame.size))


def cut_mask(frame: Frame, mask: Bool[np.ndarray, 'h w']) -> Float[np.ndarray, 'sh sw 1']:
  """The window's mask as the network sees it: 1 if any part of the pixel is repainted."""
  part = mask[_part(frame)]
  for seen in frame.size:  # rows, then columns
    spans = ((i * len(part) // seen, -(-(i + 1) * len(part) // seen)) for i in range(seen))
    part = np.stack([part[first:last].any(0) for first, last in spans]).T
  return part[..., None].astype(np.float32)


def _part(frame):
  return slice(frame.top, frame.bottom), slice(frame.left, frame.right)


# Network to photo


def stitch(
  frame: Frame,
  result: Float[np.ndarray, 'sh sw 3'],
  source: UInt8[np.ndarray, 'h w 3'],
  mask: Bool[np.ndarray, 'h w'],
  *,
  feather: float = FEATHER,
  match: str = 'colour',
) -> UInt8[np.ndarray, 'h w 3']:
  """The photo with the result inside the mask, and the source's own bytes outside it.

  Args:
    result: the raw decode for the window of `cut`, in [-1, 1].
    feather: the result fades in over this many of the network's pixels, from the mask's edge
      inwards (see `fade`); 0 is a hard edge. The old content shows through there, so keep it small:
      2 hide the edge, and from 6 on objects get a visible halo.
    match: 'colour' subtracts the difference in colour that the decode shows in a ring around the
      mask (see `colour_shift`).
  Raises:
    ValueError: for another match, a negative feather, and a mask that leaves the window.
    UserError: for a result that is not finite.
  """
  check(feather, match)
  if not np.isfinite(result).all():
    raise UserError('the result is not finite; are the weights sound?')
  top, left, bottom, right = box = bounds(mask)
  if top < frame.top or left < frame.left or bottom > frame.bottom or right > frame.right:
    raise ValueError(f'the mask, {box} (top, left, bottom, right), leaves its window, {frame}')
  result = np.clip(result, -1, 1).astype(np.float32)
  if match == 'colour':
    result = result - colour_shift(result, cut(frame, source), cut_mask(frame, mask))
  pixels = feather * frame.height / frame.size[0]
  out, rows = source.copy(), max(1, STRIP // (right - left))
  for y in range(top, bottom, rows):
    strip = slice(y, min(y + rows, bottom)), slice(left, right)
    new = (_native(frame, result, strip) + 1) * np.float32(127.5)
    old, share = source[strip], _fade_part(mask, strip, pixels)[..., None]
    mixed = np.clip(np.round(old + share * (new - old)), 0, 255).astype(np.uint8)
    out[strip] = np.where(mask[strip][..., None], mixed, old)
  return out


def check(feather: float, match: str) -> None:
  """Raises ValueError for arguments that `stitch` does not take, so that no work is lost."""
  _known('match', match, MATCHES)
  if not 0 <= feather < math.inf:
    raise ValueError(f'feather is {feather}: it must be a number from 0 up')


def _native(frame, result, part):
  """The result for a part (rows, columns) of the photo, at the photo's size."""
  (sh, sw), (rows, columns) = frame.size, part
  top, bottom = ((y - frame.top) * sh / frame.height for y in (rows.start, rows.stop))
  left, right = ((x - frame.left) * sw / frame.width for x in (columns.start, columns.stop))
  size = rows.stop - rows.start, columns.stop - columns.start
  if size == (bottom - top, right - left):  # exact, without resampling
    return result[int(top) : int(bottom), int(left) : int(right)]
  box = left, top, min(right, sw), min(bottom, sh)
  return _scale(result, size, Image.Resampling.BICUBIC, box)


def _fade_part(mask, part, pixels):
  """`fade` for a part (rows, columns) of the mask; it computes only what influences the part."""
  seen = 2 * math.ceil(SHALLOW * pixels) + 2
  rows, columns = (slice(max(s.start - seen, 0), s.stop + seen) for s in part)
  alpha = fade(mask[rows, columns], pixels)[part[0].start - rows.start :]
  alpha = alpha[: part[0].stop - part[0].start, part[1].start - columns.start :]
  return alpha[:, : part[1].stop - part[1].start]


def fade(mask: Bool[np.ndarray, 'h w'], pixels: float) -> Float[np.ndarray, 'h w']:
  """0 outside the mask; inside it rises smoothly to 1 at a depth of `pixels`.

  If the mask is nowhere that deep (a thin line, a small island), it rises over a quarter of the
  local depth, so that little of the old content is left. The photo's border is not an edge.
  """
  import cv2  # the package can be imported without it

  if pixels <= 0.5:
    return mask.astype(np.float32)
  inside = mask.view(np.uint8)
  depth = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5
  depth = np.clip(depth, 0, SHALLOW * pixels)
  count, labels = cv2.connectedComponents(inside, connectivity=8)
  island = np.asarray(labels, np.int32)
  deepest = np.zeros(count, np.float32)
  np.maximum.at(deepest, island.ravel(), depth.ravel())
  reach = 2 * math.ceil(SHALLOW * pixels) + 1
  # The greatest depth in the neighbourhood, and in this island.
  nearby = cv2.dilate(depth, np.ones((reach, reach), np.uint8))
  width = np.minimum(nearby, deepest[island]) / SHALLOW
  share = np.minimum(depth / np.maximum(width, 0.5), 1)
  return share * share * (3 - 2 * share)


def colour_shift(
  result: Float[np.ndarray, 'h w 3'],
  source: Float[np.ndarray, 'h w 3'],
  mask: Float[np.ndarray, 'h w 1'],
) -> Float[np.ndarray, 'h w 3']:
  """The error of the result's colours, as a smooth field over the window, in units of [-1, 1].

  Outside the mask both pictures show the same content. There, in a ring around the mask, the mean
  difference of each cell is measured; means ignore texture and blur. A membrane through the
  measurements continues them into the hole: f minimises sum w (f - d)^2 + k sum |grad f|^2, with
  a larger k for noisier measurements. Cells that are far off, for example because the subject's
  shadow leaves the mask, lose their weight, and the membrane is fitted again. A constant or slowly
  changing shift is removed, a change of contrast by half. Gains fitted to the ring would remove it
  too, but they mistake blur for lost contrast.
  """
  import cv2

  cell = max(1.0, min(mask.shape[:2]) / CELLS)
  grid = tuple(max(1, round(n / cell)) for n in mask.shape[:2])
  outside = (mask[..., 0] == 0).view(np.uint8)
  away = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
  ring = ((away > cell / 2) & (away <= RING * cell))[..., None].astype(np.float32)
  known = _scale(ring, grid, Image.Resampling.BOX)
  d = _scale((result - source) * ring, grid, Image.Resampling.BOX) / np.maximum(known, 1e-6)
  known = np.where(known > 0.25, known, 0)
  if (known > 0).sum() < 2 * RING:  # too little of the source is in view
    return np.zeros_like(result)
  measured = known[..., 0] > 0
  stiffness = np.maximum((_noise(d, measured) / STEEP) ** 2, STIFFNESS)
  field = np.broadcast_to(np.median(d[measured], 0), d.shape).astype(np.float64)
  for _ in range(4):
    off = np.abs(d - field)
    spread = 3 * SIGMA * np.median(off[measured], 0)
    off = (off / np.maximum(spread, TRUSTED)).max(-1, keepdims=True)
    field = _membrane(field, d, known / np.maximum(off, 1) ** 4, stiffness)
  field = np.float32(np.clip(field, -LIMIT, LIMIT))
  return _scale(field, mask.shape[:2], Image.Resampling.BICUBIC)


def _noise(d, measured):
  """The standard deviation of the measurements for each channel, from neighbours' differences."""
  down = np.abs(np.diff(d, axis=0))[measured[1:] & measured[:-1]]
  across = np.abs(np.diff(d, axis=1))[measured[:, 1:] & measured[:, :-1]]
  pairs = np.concatenate([down, across])
  return SIGMA * np.median(pairs, 0) / math.sqrt(2) if len(pairs) else np.zeros(d.shape[-1])


def _membrane(f, d, weight, stiffness, tolerance=1e-7):
  """Minimises sum weight (f - d)^2 + stiffness sum |grad f|^2 by conjugate gradients, from f.

  The tolerance is small, because the last bits of a result depend on its batch and must not decide
  visibly when the iteration ends.
  """
  residual = weight * (d - f) + stiffness * _laplace(f)
  scale = 1 / (weight + 4 * stiffness)
  z = scale * residual
  direction, rho = z, (residual * z).sum((0, 1))
  for _ in range(8 * max(f.shape)):
    image = weight * direction - stiffness * _laplace(direction)
    step = rho / np.maximum((direction * image).sum((0, 1)), 1e-30)
    f, residual = f + step * direction, residual - step * image
    if np.abs(step * direction).max() < tolerance:
      break
    z = scale * residual
    rho, before = (residual * z).sum((0, 1)), rho
    direction = z + rho / np.maximum(before, 1e-30) * direction
  return f


def _laplace(f):
  """The sum of the differences to the neighbours, without flow over the border."""
  down, across = np.diff(f, axis=0), np.diff(f, axis=1)
  out = np.zeros_like(f)
  out[:-1] += down
  out[1:] -= down
  out[:, :-1] += across
  out[:, 1:] -= across
  return out


# Exemplars


def fit_exemplar(
  pixels: UInt8[np.ndarray, 'h w 3'],
  mask: Bool[np.ndarray, 'mh mw'] | None = None,
  size: int = 224,
  how: str = 'squash',
) -> Float[np.ndarray, '{size} {size} 3']:
  """The exemplar as CLIP sees it, in [-1, 1].

  Args:
    mask: True on the subject. The background becomes mid-grey, which is within 0.4 standard
      deviations of CLIP's mean in every channel (black and white are 1.5 to 2.1 away), and the
      picture is cropped to the subject and a margin.
    how: 'squash' (as in training; it loses the proportions), 'crop' (the largest square in the
      middle) or 'pad' (to a square, with the same grey).
  Raises:
    ValueError: for another `how`, a mask of another size than the exemplar, and an empty mask.
  """
  _known('how', how, FITS)
  if mask is not None:
    if mask.shape != pixels.shape[:2]:
      raise ValueError(f'exemplar_mask has shape {mask.shape}, the exemplar {pixels.shape[:2]}')
    top, left, bottom, right = bounds(mask)
    margin = math.ceil(MARGIN * max(bottom - top, right - left))
    rows = slice(max(top - margin, 0), bottom + margin)
    columns = slice(max(left - margin, 0), right + margin)
    pixels = np.where(mask[rows, columns, None], pixels[rows, columns], np.uint8(GREY))
  height, width = pixels.shape[:2]
  if how == 'crop':
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[top : top + side, left : left + side]
  if how == 'pad':
    square = np.full((max(height, width), max(height, width), 3), GREY, np.uint8)
    top, left = (len(square) - height) // 2, (len(square) - width) // 2
    square[top : top + height, left : left + width] = pixels
    pixels = square
  return images.from_uint8(_resize(pixels, (size, size)))


# Resampling by Pillow, which aligns pixel areas and filters when it reduces


def _resize(pixels, size):
  """Bicubic resize of bytes to (height, width)."""
  image = Image.fromarray(np.ascontiguousarray(pixels))
  return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


def _scale(array, size, how, box=None):
  """Resize of floats [h w c], or of their part (left, top, right, bottom), to (height, width)."""
  planes = (Image.fromarray(np.ascontiguousarray(p)) for p in np.moveaxis(array, -1, 0))
  return np.stack([np.asarray(p.resize(size[::-1], how, box)) for p in planes], -1)


def _known(name, value, values):
  if value not in values:
    raise ValueError(f"{name} is '{value}'; use one of {', '.join(values)}")
