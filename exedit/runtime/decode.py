"""Decodes image files of any common kind to upright 8-bit pixels; faults are one-line errors.

This is the one reader of pictures: edits, training, benchmarks and their builders call it, so that
a file means the same everywhere. docs/data.md, "What a picture means", has the rules.
"""

import contextlib
import dataclasses
import functools
import io
import math
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from exedit.runtime import memory, png_blocks
from exedit.runtime.errors import DataError, UserError, one_line

Source = str | os.PathLike | bytes  # a path, or the content of a file
SMALLEST_SIDE = 8  # pixels; the autoencoder makes one latent pixel of them
MOST_MEGAPIXELS = 500  # unless more are allowed
BYTES_PER_PIXEL = 24  # of memory at the peak of an edit
MOST_NOTES = 100  # of dark pictures, so that a data set of them does not fill a log
ORIENTATION = 0x0112  # the tag of EXIF and TIFF
XMP_ORIENTATION = re.compile(rb'tiff:Orientation\s*(?:=\s*["\']|>)\s*([1-8])')
TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}  # what makes a picture of this EXIF orientation upright
GREATEST = {
  'I;12': 2**12 - 1, 'I;16S': 2**15 - 1, 'I;16BS': 2**15 - 1,
  'I;32S': 2**31 - 1, 'I;32BS': 2**31 - 1, 'I;32N': 2**32 - 1,
}  # by Pillow's names of pixels; other deep pixels have 16 bits  # fmt: skip
FLOATS = {
  b'\x76\x2f\x31\x01': 'an OpenEXR picture', b'#?RADIANCE': 'a Radiance HDR picture',
  b'#?RGBE': 'a Radiance HDR picture', b'\x93NUMPY': 'a NumPy array',
}  # by the first bytes  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of an image file before its pixels are decoded.

  size: height and width of the upright picture. alpha: some pixels may be transparent. deep: more
  than 8 bits per channel. inks: CMYK, so all colours are converted.
  """

  size: tuple[int, int]
  alpha: bool
  deep: bool
  inks: bool


def header(source: Source, name: str = '') -> Header:
  """The size and kind of an image file, without decoding its pixels."""
  with opened(source, name) as file:
    width, height = stored_size(file)
    size = (width, height) if orientation(file) >= 5 else (height, width)
    return Header(size, file.has_transparency_data, greatest(file) > 255, file.mode == 'CMYK')


def orientation(file: Image.Image) -> int:
  """The EXIF orientation of an open file, 1 to 8: of EXIF or the TIFF tag, else of XMP.

  The size and the pixels follow from it. Damaged EXIF is ignored. Call it before the pixels are
  decoded, because Pillow then removes the tag of a TIFF file.
  """
  found = None
  with contextlib.suppress(Exception):
    if isinstance(file, TiffImagePlugin.TiffImageFile):
      found = file.tag_v2.get(ORIENTATION)
    else:
      exif = Image.Exif()
      exif.load(file.info.get('exif') or b'')
      found = exif.get(ORIENTATION)
  if isinstance(found, int) and found in range(1, 9):
    return found
  xmp = file.info.get('xmp') or b''
  stated = XMP_ORIENTATION.search(xmp.replace(b'\0', b'')) if isinstance(xmp, bytes) else None
  return int(stated[1]) if stated else 1


def stored_size(file: Image.Image) -> tuple[int, int]:
  """Width and height before a turn; Pillow's `size` of a TIFF file may be after it."""
  if isinstance(file, TiffImagePlugin.TiffImageFile):
    return file.tag_v2[TiffImagePlugin.IMAGEWIDTH], file.tag_v2[TiffImagePlugin.IMAGELENGTH]
  return file.size


def greatest(file: Image.Image) -> int:
  """The greatest value of a channel of an open file: 255, or more in a deep one.

  Call it before the pixels are decoded: Pillow's mode says 8 bits of many deep files.
  """
  tiles = getattr(file, 'tile', [])
  words = tiles[0][3] if tiles else ''
  words = words if isinstance(words, tuple) else (words,)
  if words and words[0] in GREATEST:
    return GREATEST[words[0]]
  deep = file.mode.startswith('I') or (words and ';16' in str(words[0]))
  if file.format == 'PPM':  # its header says the value of white, and Pillow scales by it
    deep = deep or any(isinstance(word, int) and word > 255 for word in words)
  return 65535 if deep else 255


def upright(
  source: Source, mode: str, background: str, name: str = '', *, turn: bool = True
) -> Image.Image:
  """The upright picture in this Pillow mode, on a background if parts are transparent.

  Args:
    source: a path, or the content of a file. name: of the content, for messages.
    turn: False leaves the picture as it is stored, for boxes that count stored pixels.
  """
  with opened(source, name) as file:
    return flatten(eight_bit(file, turn=turn), background).convert(mode)


def icc(file: Image.Image) -> bytes | None:
  """The RGB colour profile of an open file, or None."""
  profile = file.info.get('icc_profile')
  rgb = file.mode in ('RGB', 'RGBA', 'P', 'PA', 'RGBX')
  return profile if profile and rgb and profile[16:20] == b'RGB ' else None


# Opening


@contextlib.contextmanager
def opened(source: Source, name: str = '') -> Iterator[Image.Image]:
  """Opens an image file and checks its size and that its pixels are whole numbers.

  Raises:
    DataError: for a fault at opening or inside the block: the file, what is wrong, the remedy.
  """
  content, path = (source, None) if isinstance(source, bytes) else (b'', source)
  name = name or ('the picture' if path is None else os.fspath(path))
  if path is not None and os.path.isdir(path):
    raise DataError(f'{name} is a folder: name an image file')
  if path is not None and os.path.exists(path) and not os.path.isfile(path):  # a pipe would block
    raise DataError(f'{name} is a pipe or device: save it to a file first')
  try:
    with _QUIET, io.BytesIO(content) if path is None else open(path, 'rb') as stream:
      with _open(stream, name) as file:
        file.filename = name  # pyright: ignore[reportAttributeAccessIssue]; for notes
        yield file
  except UserError:
    raise
  except FileNotFoundError:
    raise DataError(f'{name} does not exist: check the path') from None
  except PermissionError:
    raise DataError(f'{name} may not be read: check its permissions') from None
  except Image.DecompressionBombError as error:  # Pillow's own check; it says the number first
    raise DataError(_too_many_pixels(name, int(re.findall(r'\d+', str(error))[0]))) from None
  except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
    raise DataError(
      f'{name} cannot be decoded ({one_line(error)}): it is damaged, truncated or of a rare kind;'
      ' fetch it again or save it as 8-bit PNG'
    ) from None


def _open(stream: Any, name: str) -> Image.Image:
  """Opens a picture; what Pillow misses or refuses of a PNG file's metadata is mended first."""
  start = stream.read(16)
  blocks = None
  if start.startswith(png_blocks.SIGNATURE):
    blocks = png_blocks.scan(stream)
    if blocks.too_long:
      stream = png_blocks.without(stream, blocks.too_long)
    if blocks.lost_profile:
      note(f'{name}: its colour profile has more than 1 MB and is left out')
  stream.seek(0)
  try:
    file = Image.open(stream, formats=_kinds())
  except UnidentifiedImageError:
    raise DataError(f'{name} {_what_it_is(stream, start)}') from None
  if blocks is not None:
    file.info.update(exif=blocks.exif, xmp=blocks.xmp)
  if file.mode == 'F':
    raise DataError(f'{name} {_FLOAT.format("a picture")}')
  if isinstance(file, TiffImagePlugin.TiffImageFile):
    bits = file.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    if max(bits) > 8 and greatest(file) == 255:  # Pillow takes each byte of the planes for a pixel
      raise DataError(f'{name} {_UNREAD.format(len(bits), bits[0])}')
  _check_size(name, file.size)
  return file


_UNREAD = 'is a TIFF of {} x {} bits in an order that is not read here: save it as 8-bit PNG'
_FLOAT = (
  'is {} with floating-point pixels, and no value of them is known to be white: scale it to'
  ' 0..255 and save it as 8-bit PNG'
)


def _what_it_is(stream: Any, start: bytes) -> str:
  """Says what Pillow does not read."""
  if not start:
    return 'is empty (0 bytes): give a PNG, JPEG or WebP file'
  for magic, what in FLOATS.items():
    if start.startswith(magic):
      return _FLOAT.format(what)
  with contextlib.suppress(Exception):
    tags = TiffImagePlugin.ImageFileDirectory_v2(start if 43 in start[2:4] else start[:8])
    stream.seek(tags.next)
    tags.load(stream)
    bits, kinds = tags[TiffImagePlugin.BITSPERSAMPLE], tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    if 3 in kinds:
      return _FLOAT.format('a TIFF picture')
    channels = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, len(bits))
    return _UNREAD.format(channels, bits[0])
  return 'is not an image of a kind that Pillow reads: give a PNG, JPEG or WebP file'


@functools.cache
def _kinds():
  """All kinds that Pillow reads itself; for PostScript it would start another program."""
  Image.init()
  return [kind for kind in Image.ID if kind != 'EPS']


def _check_size(path, size):
  if min(size) < SMALLEST_SIDE:
    raise DataError(
      f'{path} is {size[0]} x {size[1]} pixels: give an image of at least'
      f' {SMALLEST_SIDE} x {SMALLEST_SIDE}'
    )
  pixels = size[0] * size[1]
  if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
    raise DataError(_too_many_pixels(path, pixels))


def _too_many_pixels(path, pixels):
  limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
  return (
    f'{path} has more than the {limit:.0f} million pixels allowed ({pixels / 1e6:.1f}): make it'
    f' smaller, or edit it with --max_megapixels={math.ceil(pixels / 1e6)}, which takes about'
    f' {pixels * BYTES_PER_PIXEL / 1e9:.1f} GB of the {memory.of_machine() / 1e9:.1f} GB here'
  )


def allow(megapixels: float | None = None) -> None:
  """Sets how many million pixels a picture may have; None: what a quarter of the memory can edit.

  That is at least Pillow's own bound against decompression bombs, and at most `MOST_MEGAPIXELS`.
  """
  pixels = min(memory.of_machine() / 4 / BYTES_PER_PIXEL, MOST_MEGAPIXELS * 1e6)
  Image.MAX_IMAGE_PIXELS = int(max(_BOMB, pixels) if megapixels is None else megapixels * 1e6)


_BOMB = Image.MAX_IMAGE_PIXELS or 0
allow()


class _Quiet:
  """Silences Pillow's warnings while any thread is inside; `catch_warnings` is for one thread."""

  def __init__(self):
    self._lock, self._inside, self._filters = threading.Lock(), 0, warnings.catch_warnings()

  def __enter__(self):
    with self._lock:
      self._inside += 1
      if self._inside == 1:
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.simplefilter('ignore')

  def __exit__(self, *_):
    with self._lock:
      self._inside -= 1
      if not self._inside:
        self._filters.__exit__(None, None, None)


_QUIET = _Quiet()


# Pixels


def eight_bit(
  file: Image.Image, *, turn: bool = True, say: Callable[[str], None] | None = None
) -> Image.Image:
  """The decoded picture, upright, in a mode with 8 bits.

  Deep pixels are scaled by the range of their type, or as 16 bits if they have 32 and fit in 16.
  CMYK becomes sRGB if it has a profile.

  Args:
    file: from `opened`. turn: see `upright`.
    say: gets a line if all of a deep picture is dark; None: `note` prints it.
  """
  turns, name = orientation(file) if turn else 1, getattr(file, 'filename', 'the picture')
  most, inverted, key = greatest(file), _white_is_zero(file), _transparent_value(file)
  image = _decoded(file)
  if image.mode.startswith('I'):
    image, brightest, most = _scaled(image, most, inverted, key, name)
  else:
    if key is not None:
      image.info['transparency'] = key
    brightest = most if most == 255 or image.mode == 'CMYK' else _upper_bytes(image)
  if 0 < brightest <= most // 4:
    (say or note)(
      f'{name}: its brightest value is {brightest} of {most}, so it is read as dark; if that is'
      ' meant as white, save it with 8 bits per channel'
    )
  if image.mode == 'CMYK' and image.info.get('icc_profile'):
    image = _to_srgb(image)
  return image.transpose(TURNS[turns]) if turns > 1 else image


def as_stored(file: Image.Image) -> Image.Image:
  """The decoded picture, upright, in the file's own mode; deep grey has black as 0."""
  turns, most = orientation(file), greatest(file)
  inverted, key = _white_is_zero(file), _transparent_value(file)
  image = _decoded(file)
  if inverted and most < 2**31:
    image = Image.fromarray((most - np.asarray(image, np.int64)).astype(np.int32))
  elif key is not None and not image.mode.startswith('I'):
    image.info['transparency'] = key
  return image.transpose(TURNS[turns]) if turns > 1 else image


def _decoded(file):
  """The stored pixels, not turned."""
  if not isinstance(file, TiffImagePlugin.TiffImageFile):
    file.load()
    return file
  with contextlib.suppress(Exception):
    file.getexif()[ORIENTATION] = 1  # else Pillow turns the pixels itself
  return file.copy()  # it has the size of the stored pixels; the file may have the turned one


def _scaled(image, most, inverted, key, name):
  """Deep grey in 8 bits, with alpha if one value is transparent; its brightest value, and white."""
  values = np.asarray(image)
  if most == 2**32 - 1:
    values = values.view(np.uint32)
  low, high = int(values.min()), int(values.max())
  if high <= 65535 < most:
    note(f'{name}: its 32-bit values end at {high}, so they are read as 16-bit ones')
    most = 65535
  if low < 0:
    raise DataError(
      f'{name} has values down to {low}, and black is 0: save it as 8-bit PNG with black as 0'
    )
  clear = values == key if key is not None else None
  if most <= 65535:
    levels = np.round(np.arange(most + 1) / (most / 255)).astype(np.uint8)[values]
  else:
    levels = np.round(values / (most / 255)).astype(np.uint8)
  grey = Image.fromarray(~levels if inverted else levels)
  if clear is not None:
    grey.putalpha(Image.fromarray(np.where(clear, np.uint8(0), np.uint8(255))))
  return grey, most - low if inverted else high, most


def _white_is_zero(file):
  """Whether a deep grey TIFF file stores white as 0; Pillow does not mind."""
  tags = getattr(file, 'tag_v2', {})
  return file.mode.startswith('I') and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _transparent_value(file):
  """The value or colour that is transparent in a PNG file, scaled as Pillow scales its pixels."""
  key, coder = file.info.get('transparency'), str(file.tile[0][3]) if file.tile else ''
  if isinstance(key, tuple):
    return tuple(value >> 8 for value in key) if ';16' in coder else key
  if isinstance(key, int) and file.mode == 'L':
    return key * {'L;2': 85, 'L;4': 17}.get(coder, 1)
  return key


def _upper_bytes(image):
  """The greatest value that a 16-bit picture can have had, of which Pillow kept the upper byte."""
  colours = [band for band in image.getbands() if band not in 'Aa']
  extrema = image.getextrema()
  pairs = extrema if isinstance(extrema[0], tuple) else (extrema,)
  return max(high for _, high in pairs[: len(colours)]) * 256 + 255


def _to_srgb(image):
  """Converts CMYK by its own colour profile; with a bad profile, Pillow converts it later."""
  from PIL import ImageCms

  try:
    profile, srgb = io.BytesIO(image.info['icc_profile']), ImageCms.createProfile('sRGB')
    return ImageCms.profileToProfile(image, profile, srgb, outputMode='RGB') or image
  except (ImageCms.PyCMSError, OSError):
    return image


def flatten(image: Image.Image, background: str) -> Image.Image:
  """The picture on a background, without transparency."""
  if not image.has_transparency_data:
    return image
  canvas = Image.new('RGBA', image.size, background)
  return Image.alpha_composite(canvas, image.convert('RGBA'))


# Notes


def note(line: str) -> None:
  """Prints a note about a picture on stderr, each line once, and at most `MOST_NOTES` lines."""
  with _SAID_LOCK:
    if line in _SAID or len(_SAID) > MOST_NOTES:
      return
    _SAID.add(line)
    last = len(_SAID) > MOST_NOTES
  print('note: more such notes are left out' if last else f'note: {line}', file=sys.stderr)


_SAID: set[str] = set()
_SAID_LOCK = threading.Lock()
