"""Reads masks: one rule says which part of a picture is meant, whatever tool wrote the file.

docs/editing.md, "What a mask means", has the rule for users.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8
from PIL import Image

from exedit.runtime import decode
from exedit.runtime.errors import DataError

HALF = 128  # a pixel of at least this level is meant
DARK = 100  # a colour whose channels are all at most this can be the background
BLACK, WHITE = 31, 224  # levels up to BLACK count as black, levels from WHITE on as white
NEAR = 48  # levels by which a pixel may differ from a colour and still belong to it
FEW = 16  # colours that a drawing has at most; a photo has more
REMEDY = 'paint the region that is meant white, and the rest black'


@dataclasses.dataclass(frozen=True)
class Mask:
  """What a mask file means.

  levels: 255 = meant, 0 = not meant, grey = partly. said: how the file was understood, to continue
  'the mask ...'; empty for plain black and white.
  """

  levels: UInt8[np.ndarray, 'h w']
  said: str = ''

  @property
  def meant(self) -> Bool[np.ndarray, 'h w']:
    """The pixels that are at least half meant."""
    return self.levels >= HALF


def understand(image: Image.Image, name: str, *, subject: bool = False) -> Mask:
  """What a decoded, upright picture means as a mask; `name` is the file's, for messages.

  A black picture is a mask in which nothing is meant.

  subject: of a cut-out picture the visible part is meant, its subject. Otherwise the transparent
  part is meant, the hole.

  Raises:
    DataError: for a picture that is plainly no mask, or that could as well mean the opposite.
  """
  if image.mode == 'F':
    raise DataError(f'{name} holds floating-point numbers: save it with 0 and 255 in 8 bits')
  if image.mode.startswith('I'):
    return _deep(np.asarray(image), name)
  if image.has_transparency_data:
    rgba = np.asarray(image.convert('RGBA'))
    return _transparent(rgba[..., :3], rgba[..., 3], name, subject)
  if image.mode in ('1', 'L'):
    return _grey(np.asarray(image.convert('L')), name)
  return _coloured(np.asarray(image.convert('RGB')), name)


def read(source: decode.Source, name: str = '', *, subject: bool = False) -> Mask:
  """What a file, or the content of one, means as a mask; see `understand`."""
  name = name or str(source)
  with decode.opened(source, name) as file:
    if decode.greatest(file) > 255 and not file.mode.startswith(('I', 'F')):
      raise DataError(f'{name} has several channels of more than 8 bits: save it with 8 bits')
    return understand(decode.as_stored(file), name, subject=subject)


# Grey


def _deep(values: Shaped[np.ndarray, 'h w'], name: str) -> Mask:
  """A grey mask with 16 or 32 bits."""
  low, high, bits = int(values.min()), int(values.max()), 8 * values.dtype.itemsize
  if low == 0 < high and ((values == 0) | (values == high)).all():
    said = f'has only the values 0 and {high}, in {bits} bits: {high} counts as white'
    return Mask(_binary(values == high), '' if high == 65535 else said)
  if low < 0 or high > 65535:
    raise DataError(f'{name} has values from {low} to {high}: save it with 0 and 255 in 8 bits')
  if high > 255:
    return _grey(np.round(values / 257).astype(np.uint8), name)
  found = _grey(values.astype(np.uint8), name)
  said = f'has values up to {high}, in {bits} bits: 255 counts as white'
  return Mask(found.levels, found.said or said)


def _grey(levels: UInt8[np.ndarray, 'h w'], name: str) -> Mask:
  """A grey mask with 8 bits."""
  counts = np.bincount(levels.ravel(), minlength=256)
  values = np.flatnonzero(counts).tolist()
  low, high = values[0], values[-1]
  if len(values) == 2 and (low == 0 or low <= DARK < 1.5 * DARK < high):
    said = f'has only the values {low} and {high}, of 255: {high} counts as white'
    return Mask(_binary(levels == high), '' if low <= BLACK and high >= WHITE else said)
  if len(values) == 2 and low < WHITE:
    raise DataError(f'{name} has only the values {low} and {high}, of 255: {REMEDY}')
  if len(values) > 2 and (labels := _labels(levels, values)):
    raise DataError(f'{name} has areas of the values {labels}, as a map of labels has: {REMEDY}')
  if high < HALF:
    return Mask(levels)
  dim, bright = counts[BLACK + 1 : HALF].sum() / levels.size, counts[HALF:].sum() / levels.size
  if dim > 8 * bright:  # the noise of a JPEG lifts some pixels of a grey area over HALF
    what = f'{dim:.1%} of its pixels are dark grey and {bright:.1%} brighter'
    raise DataError(f'{name} is no clear mask, because {what}: {REMEDY}')
  between = counts[BLACK + 1 : WHITE].sum() / levels.size
  if between > 0.8 and len(values) > 1:
    what = f'{between:.0%} of its pixels are neither black nor white'
    raise DataError(f'{name} is no mask, because {what}: {REMEDY}')
  said = 'has many pixels that are neither black nor white: those at least half bright are meant'
  return Mask(levels, said if between > 0.02 else '')


def _labels(levels: UInt8[np.ndarray, 'h w'], values: list[int]) -> str:
  """The values of a map of labels, such as '0, 1, 255'; empty if it is none.

  Flat areas of dark values are labels. The noise of JPEG has no flat areas, or only of 1 and 2; it
  has values just below white too.
  """
  flat = np.ones([side - 2 for side in levels.shape], bool)
  for y, x in np.ndindex(3, 3):
    flat &= levels[y : y + flat.shape[0], x : x + flat.shape[1]] == levels[1:-1, 1:-1]
  areas = np.bincount(levels[1:-1, 1:-1][flat], minlength=256)
  noisy = values[-1] >= HALF and any(values[-1] - 8 < value < values[-1] for value in values)
  least = 2 if noisy and len(values) > 3 else 0
  inner = [
    value for value in values[1:] if least < value <= (BLACK if values[-1] >= HALF else HALF)
  ]
  if len(values) > 64 or areas[inner].sum() < levels.size / 200:
    return ''
  shown = [value for value in values if areas[value]]
  return ', '.join(map(str, shown[:5])) + (', ...' if len(shown) > 5 else '')


# Colours


def _coloured(rgb: UInt8[np.ndarray, 'h w 3'], name: str) -> Mask:
  """A mask without transparency, of any colours."""
  if (rgb.max(-1) - rgb.min(-1)).max() <= NEAR:
    return _grey(np.asarray(Image.fromarray(rgb).convert('L')), name)
  colours, counts = _colours(rgb)
  if len(colours) == 2 and (paint := colours[colours.any(-1)]).shape[0] == 1:
    return Mask(_binary(np.any(rgb, -1)), _on_black(paint[0]))
  dark = (colours <= DARK).all(-1)
  if dark.all():
    raise DataError(f'{name} has the colours {_names(colours)}: {REMEDY}')
  paint = colours[~dark][0].astype(np.float32)  # the most frequent
  strength = colours.max(-1, keepdims=True) / paint.max()
  shades = (np.abs(colours - strength * paint) <= NEAR).all(-1) & ~dark
  if counts[shades].sum() < 0.9 * counts[~dark].sum() or not dark.any():
    raise DataError(f'{name} is no mask, because it has the colours {_names(colours)}: {REMEDY}')
  if paint.max() - paint.min() <= NEAR:
    return _grey(np.asarray(Image.fromarray(rgb).convert('L')), name)
  return Mask(_binary(rgb @ paint >= paint @ paint / 2), _on_black(paint))


def _on_black(paint) -> str:
  return f'is {_names([paint])} on a dark ground: that colour counts as white'


def _colours(
  pixels: UInt8[np.ndarray, '*n 3'],
) -> tuple[UInt8[np.ndarray, 'k 3'], Int[np.ndarray, ' k']]:
  """The colours of the pixels, the most frequent first, and how many pixels each has."""
  flat = pixels.reshape(-1, 3)
  counts = np.zeros(2**24 if len(flat) > 2**20 else 0, np.int64)
  if not len(counts):
    keys, counts = np.unique(flat @ _KEY, return_counts=True)
  else:
    for start in range(0, len(flat), 2**22):  # in parts, because each takes memory
      counts += np.bincount(flat[start : start + 2**22] @ _KEY, minlength=2**24)
    keys = np.flatnonzero(counts)
    counts = counts[keys]
  order = np.argsort(-counts, kind='stable')
  keys = keys[order]
  return np.stack([keys >> 16, keys >> 8 & 255, keys & 255], -1).astype(np.uint8), counts[order]


_KEY = np.array([2**16, 2**8, 1], np.int32)


def _names(colours) -> str:
  """The first three colours that differ, such as '(255, 0, 0), white, ...'."""
  names, left = [], np.asarray(colours, np.int16)
  while len(left) and len(names) < 3:
    first = left[0]
    shade = 'black' if first.max() <= BLACK else 'white' if first.min() >= WHITE else ''
    names.append(shade or f'({", ".join(map(str, first))})')
    left = left[(np.abs(left - first) > NEAR).any(-1)]
  return ', '.join(names) + (', ...' if len(left) else '')


# Transparency


def _transparent(rgb, alpha, name: str, subject: bool) -> Mask:
  """A mask with a channel of transparency, which counts unless it is the same everywhere."""
  low, high = int(alpha.min()), int(alpha.max())
  if high - low <= BLACK:
    found = _coloured(rgb, name)
    if high >= HALF:
      return found
    if found.meant.all() == found.meant.any():
      raise DataError(f'{name} is transparent everywhere, so nothing is painted on it: {REMEDY}')
    return Mask(found.levels, 'is transparent everywhere: its colours count')
  if not low < HALF <= high:
    alpha = np.round((alpha.astype(np.float32) - low) * (255 / (high - low))).astype(np.uint8)
  seen = alpha >= HALF
  colours, counts = _colours(rgb[seen])
  near = lambda colour: (np.abs(colours.astype(np.int16) - colour) <= NEAR).all(-1)
  share = lambda chosen: counts[chosen].sum() / counts.sum()
  dark = (colours <= DARK).all(-1)
  if 0.005 <= share(dark) <= 0.995:
    grounds = near(colours[dark][0]) | near(colours[~dark][0])
    if share(grounds) >= 0.9:  # a mask in two colours whose background is partly transparent
      return _coloured(np.where(seen[..., None], rgb, np.uint8(0)), name)
  one = share(near(colours[0])) >= 0.95
  few = counts[:FEW].sum() >= 0.9 * counts.sum()
  return _visible(alpha, name, subject, _names(colours[:1]) if one else '', few)


def _visible(alpha, name, subject, paint, few) -> Mask:
  """Decides whether the visible or the transparent part of a mask is meant.

  paint: the name of the colour if all that is visible has one. few: it has few colours.
  """
  visible = (alpha >= HALF).mean()
  if paint == 'white':
    return Mask(alpha)
  what = f'is {paint} on transparency' if paint else 'has several colours and a transparent part'
  if subject or (visible <= 0.5 and (paint or few)):
    return Mask(alpha, f'{what}: the visible part is meant')
  if not paint and visible > 0.5:
    return Mask(255 - alpha, f'{what}: that part is meant')
  raise DataError(
    f'{name} {what}, and {visible:.0%} of it is visible: the visible or the transparent part may be'
    f' meant; {REMEDY}'
  )


def _binary(meant: Bool[np.ndarray, 'h w']) -> UInt8[np.ndarray, 'h w']:
  return np.where(meant, np.uint8(255), np.uint8(0))
