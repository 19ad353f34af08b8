"""Where in a photo the network works, and how its result goes back.

Everything here is numpy on the host and touches the window alone, never a float copy of the photo.
Photo pixels are uint8, masks are bool with True = repaint. A window and what the network sees of it
cover the same ground, pixel area to pixel area, so nothing moves on the way there and back.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from exedit import images
from exedit.runtime.errors import UserError

ZOOMS = ('auto', 'off', 'context')
MATCHES = ('none', 'colour')
FITS = ('squash', 'crop', 'pad')

LONGEST = 4  # times the shorter side: beyond it the network sees nothing that it was trained on
GAIN = 2  # 'auto' zooms in where the hole gets at least so many times the pixels across
FEATHER = 2.0  # of the network's pixels, see `stitch`
SHALLOW = 4  # times the feather: a hole less deep than that fades in over less
ENLARGE = 4  # a window grows at most so much: beyond it the network sees a blur
MARGIN = 0.05  # of the subject's longer side is left around it; training left 10 pixels
GREY = 128  # the fill around an exemplar

CELLS = 64  # across the shorter side: colours are compared by cells, each a latent pixel at 512
RING = 4  # cells: how far from the hole the decode and the source are compared
STIFFNESS = 4.0  # of the membrane against one cell's measurement, at least
STEEP = 1 / 127.5  # a shift changes by about so much from cell to cell; more is taken for noise
TRUSTED = 4 / 127.5  # a cell this near to the membrane is never called an outlier
SIGMA = 1.4826  # standard deviations in the median of absolute deviations
LIMIT = 40 / 127.5  # what differs by more is another picture, not another colour
STRIP = 2**22  # pixels stitched at a time


@dataclasses.dataclass(frozen=True)
class Frame:
  """A window of the photo, in the photo's pixels, and the size at which the network sees it."""

  top: int
  left: int
  height: int
  width: int
  size: tuple[int, int]  # height and width of what the network sees

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

  'off' is the whole photo, its shorter side at the `trained` one. 'context' is a square around the
  mask's bounding box, `context` times its longer side, seen at trained x trained: all such windows
  go in one batch. It holds at least trained / 4 pixels, so that nothing is enlarged more than four
  times. In a photo narrower than that square it spans the photo's whole narrow side, and its long
  one is a whole number of eighths of it, for few different shapes. 'auto' is 'context' where this
  at least doubles the hole's pixels across, else 'off': at 512, roughly for holes of less than 128
  pixels, 16 latent cells; also for a photo too long to be seen whole. With context 2 the hole fills
  about a quarter of the window, the middle of what the released weights were trained on (boxes of 2
  to 80 percent: facts 4.1). Separate islands share one window.

  Raises:
    ValueError: for another zoom, a context below 1, and a mask that repaints nothing.
    UserError: for a window more than LONGEST times as long as wide.
  """
  _known('zoom', zoom, ZOOMS)
  if context < 1:
    raise ValueError(f'context is {context}: it must be at least 1, the mask itself')
  height, width = mask.shape
  whole = Frame(0, 0, height, width, _scaled(height, width, trained))
  if zoom == 'off':
    return _checked(whole)
  window = _around(bounds(mask), (height, width), trained, context)
  gain = min(height, width) / min(window.height, window.width)
  if zoom == 'auto' and gain < GAIN and max(height, width) <= LONGEST * min(height, width):
    return whole
  return _checked(window)


def bounds(mask: Bool[np.ndarray, 'h w']) -> tuple[int, int, int, int]:
  """Top, left, bottom, right of what is True; ValueError where nothing is."""
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


# There


def cut(frame: Frame, image: UInt8[np.ndarray, 'h w 3']) -> Float[np.ndarray, 'sh sw 3']:
  """The window as the network sees it, in [-1, 1]; bicubic on bytes, as `images.resize`."""
  return images.from_uint8(_resize(image[_part(frame)], frame.size))


def cut_mask(frame: Frame, mask: Bool[np.ndarray, 'h w']) -> Float[np.ndarray, 'sh sw 1']:
  """The window's mask as the network sees it: 1 where any part of the pixel is to be repainted."""
  part = mask[_part(frame)]
  for seen in frame.size:  # rows, then columns
    spans = ((i * len(part) // seen, -(-(i + 1) * len(part) // seen)) for i in range(seen))
    part = np.stack([part[first:last].any(0) for first, last in spans]).T
  return part[..., None].astype(np.float32)


def _part(frame):
  return slice(frame.top, frame.bottom), slice(frame.left, frame.right)


# And back


def stitch(
  frame: Frame,
  result: Float[np.ndarray, 'sh sw 3'],
  source: UInt8[np.ndarray, 'h w 3'],
  mask: Bool[np.ndarray, 'h w'],
  *,
  feather: float = FEATHER,
  match: str = 'colour',
) -> UInt8[np.ndarray, 'h w 3']:
  """The photo with the result inside the mask; outside it the source's own bytes, always.

  Args:
    result: the raw decode of what `cut` gave, in [-1, 1].
    feather: over how many of the network's pixels the result fades in from the mask's edge, inside
      it, see `fade`; 0 is a hard edge. What shines through at the rim is the old content, which a
      tight mask means to be gone, so it is small: looked at, 2 hide the edge where texture or
      sharpness differ, and from 6 on objects grow a halo.
    match: 'colour' takes out the difference in colour that the decode shows against the source in a
      ring outside the mask, see `colour_shift`.
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
  """ValueError for what `stitch` could not do: for those who have long work to do before it."""
  _known('match', match, MATCHES)
  if not 0 <= feather < math.inf:
    raise ValueError(f'feather is {feather}: it must be a number from 0 up')


def _native(frame, result, part):
  """A part (rows, columns) of the photo, out of the result at the network's size."""
  (sh, sw), (rows, columns) = frame.size, part
  top, bottom = ((y - frame.top) * sh / frame.height for y in (rows.start, rows.stop))
  left, right = ((x - frame.left) * sw / frame.width for x in (columns.start, columns.stop))
  size = rows.stop - rows.start, columns.stop - columns.start
  if size == (bottom - top, right - left):  # nothing to resample: exact
    return result[int(top) : int(bottom), int(left) : int(right)]
  box = left, top, min(right, sw), min(bottom, sh)
  return _scale(result, size, Image.Resampling.BICUBIC, box)


def _fade_part(mask, part, pixels):
  """A part (rows, columns) of the mask's `fade`, from no more of the mask than that looks at."""
  seen = 2 * math.ceil(SHALLOW * pixels) + 2
  rows, columns = (slice(max(s.start - seen, 0), s.stop + seen) for s in part)
  alpha = fade(mask[rows, columns], pixels)[part[0].start - rows.start :]
  alpha = alpha[: part[0].stop - part[0].start, part[1].start - columns.start :]
  return alpha[:, : part[1].stop - part[1].start]


def fade(mask: Bool[np.ndarray, 'h w'], pixels: float) -> Float[np.ndarray, 'h w']:
  """0 outside the mask, rising inside it to 1 at a depth of so many pixels; smooth at both ends.

  Where the mask is nowhere deep (a thin line, a small island) it rises over a quarter of its depth
  there, so that little of the old content is left. The photo's border is no edge: there is nothing
  beyond it to fade into.
  """
  import cv2  # here, because the package imports without it

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
  # how deep it gets: not far from here, and in this island
  nearby = cv2.dilate(depth, np.ones((reach, reach), np.uint8))
  width = np.minimum(nearby, deepest[island]) / SHALLOW
  share = np.minimum(depth / np.maximum(width, 0.5), 1)
  return share * share * (3 - 2 * share)


def colour_shift(
  result: Float[np.ndarray, 'h w 3'],
  source: Float[np.ndarray, 'h w 3'],
  mask: Float[np.ndarray, 'h w 1'],
) -> Float[np.ndarray, 'h w 3']:
  """By how much the result's colours are off, as a smooth field over the window, in [-1, 1] units.

  Outside the mask both show the same thing, so in a ring around it their difference is measured, by
  cells whose mean leaves texture and blur out. A membrane through these measurements carries it
  into the hole: f minimises sum w (f - d)^2 + k sum |grad f|^2, the stiffer the noisier they are.
  Cells far off it, such as where the subject or its shadow spills over the mask, lose their weight,
  and it is fitted again. A shift that is the same everywhere, or bends slowly, goes; a change of
  contrast goes by half. Gains fitted to the ring would take that out too, but a blurred texture
  passes for lost contrast, and they do harm where nothing is wrong.
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
  if (known > 0).sum() < 2 * RING:  # hardly anything of the source in view: nothing to compare
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
  """The standard deviation of the measurements, per channel, from neighbours' differences."""
  down = np.abs(np.diff(d, axis=0))[measured[1:] & measured[:-1]]
  across = np.abs(np.diff(d, axis=1))[measured[:, 1:] & measured[:, :-1]]
  pairs = np.concatenate([down, across])
  return SIGMA * np.median(pairs, 0) / math.sqrt(2) if len(pairs) else np.zeros(d.shape[-1])


def _membrane(f, d, weight, stiffness, tolerance=1e-7):
  """Minimise sum weight (f - d)^2 + stiffness sum |grad f|^2 by conjugate gradients, from f.

  The tolerance is tight so that the last bits of a result, which depend on how it was batched, do
  not decide when to stop, which would show.
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
  """The sum of the differences to the neighbours; nothing flows over the border."""
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
  """The exemplar as the exemplar tower sees it, in [-1, 1].

  Args:
    mask: True on the subject. Its background becomes mid-grey, within 0.4 standard deviations of
      CLIP's mean in every channel, where black and white are 1.5 to 2.1 off: the least that a
      background can say. (With weights/tiny the context keeps a cosine of 0.84 to the exemplar's
      own, as with another picture's background, 0.86; on black or white it is 0.40.) What is left
      is cropped to the subject and a margin.
    how: 'squash' (as in training: the sides' ratio is lost), 'crop' (the largest square in the
      middle) or 'pad' (to a square, with the same grey: mirroring would double the subject).
  Raises:
    ValueError: for another `how`, a mask of another size than the exemplar, and an empty one.
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


# Resampling: Pillow's, which aligns pixel areas and filters when it makes smaller


def _resize(pixels, size):
  """Bytes to (height, width), bicubic."""
  image = Image.fromarray(np.ascontiguousarray(pixels))
  return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


def _scale(array, size, how, box=None):
  """Floats [h w c], or their part in a box (left, top, right, bottom), to (height, width)."""
  planes = (Image.fromarray(np.ascontiguousarray(p)) for p in np.moveaxis(array, -1, 0))
  return np.stack([np.asarray(p.resize(size[::-1], how, box)) for p in planes], -1)


def _known(name, value, values):
  if value not in values:
    raise ValueError(f"{name} is '{value}'; use one of {', '.join(values)}")
