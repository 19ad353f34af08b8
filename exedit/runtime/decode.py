"""An image file of any common kind, as upright 8-bit pixels; what is wrong with it is one line."""

import contextlib
import dataclasses
import functools
import io
import os
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from exedit.runtime.errors import UserError, one_line

SMALLEST_SIDE = 8  # pixels; below this there is nothing to look at and nothing to encode


@dataclasses.dataclass(frozen=True)
class Header:
  """What a file says of itself before its pixels are decoded; the size is the upright one."""

  size: tuple[int, int]  # height, width
  alpha: bool  # some pixels may be transparent
  deep: bool  # 16 bits per channel
  inks: bool  # CMYK: its colours are converted, so no byte of it is kept


def header(path: str | os.PathLike) -> Header:
  """Size and kind of an image file, which stays undecoded."""
  with opened(path) as file:
    tiles = getattr(file, 'tile', [])
    coder = ' '.join(str(tile[3]) for tile in tiles)  # 'RGB;16B' where Pillow's mode has 8 bits
    deep = file.mode.startswith('I') or ';16' in coder
    width, height = file.size[::-1] if _on_its_side(file) else file.size
    return Header((height, width), file.has_transparency_data, deep, file.mode == 'CMYK')


def _on_its_side(file):
  """Whether upright pixels have width and height exchanged, as far as the header knows."""
  early = {'exif', 'XML:com.adobe.xmp'} & set(file.info)
  if file.format == 'PNG' and not early and not _late_exif(file.filename):
    return False  # getexif would decode the whole file to look for a block behind the pixels
  with contextlib.suppress(Exception):  # as _turned: damaged EXIF is no reason to refuse
    return file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
  return False


def _late_exif(path):
  """Whether a PNG file has a block eXIf somewhere; looks at the blocks' names alone."""
  with open(path, 'rb') as file:
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b'IEND':
      if head[4:] == b'eXIf':
        return True
      file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
  return False


def upright(path: str | os.PathLike, mode: str, background: str) -> Image.Image:
  """The file as the camera held it, in this Pillow mode, transparent parts on the background."""
  with opened(path) as file:
    return flatten(eight_bit(file), background).convert(mode)


def icc(file: Image.Image) -> bytes | None:
  """The RGB colour profile of an open file, if it has one."""
  profile = file.info.get('icc_profile')
  rgb = file.mode in ('RGB', 'RGBA', 'P', 'PA', 'RGBX')
  return profile if profile and rgb and profile[16:20] == b'RGB ' else None


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
  """The file, open and of a size to work with.

  Raises:
    UserError: for whatever goes wrong at opening or inside: the file, what is wrong, the remedy.
  """
  if os.path.isdir(path):
    raise UserError(f'{path} is a folder: name an image file')
  if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for
    raise UserError(f'{path} is a pipe or device: save it to a file first')
  try:
    with _QUIET, Image.open(path, formats=_kinds()) as file:
      _check_size(path, file.size)
      yield file
  except UserError:
    raise
  except FileNotFoundError:
    raise UserError(f'{path} does not exist: check the path') from None
  except PermissionError:
    raise UserError(f'{path} may not be read: check its permissions') from None
  except Image.DecompressionBombError:
    raise UserError(_too_many_pixels(path)) from None
  except UnidentifiedImageError:
    empty = os.path.getsize(path) == 0
    what = 'is empty (0 bytes)' if empty else 'is not an image of a kind that Pillow reads'
    raise UserError(f'{path} {what}: give a PNG, JPEG or WebP file') from None
  except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
    raise UserError(
      f'{path} cannot be decoded ({one_line(error)}): it is damaged, truncated or of a rare kind;'
      ' fetch it again or save it as 8-bit PNG'
    ) from None


@functools.cache
def _kinds():
  """All that Pillow reads by itself; PostScript it hands to a program outside."""
  Image.init()
  return [kind for kind in Image.ID if kind != 'EPS']


def _check_size(path, size):
  if min(size) < SMALLEST_SIDE:
    raise UserError(
      f'{path} is {size[0]} x {size[1]} pixels: give an image of at least'
      f' {SMALLEST_SIDE} x {SMALLEST_SIDE}'
    )
  if Image.MAX_IMAGE_PIXELS is not None and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
    raise UserError(_too_many_pixels(path))


def _too_many_pixels(path):
  limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
  return f'{path} has more than the {limit:.0f} million pixels allowed: make it smaller'


class _Quiet:
  """Pillow's warnings are silent while any thread is inside; Python's own way knows one thread."""

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


def _turned(file):
  """As the camera held it; a damaged EXIF block is no reason to refuse the picture."""
  upright = file.copy()
  with contextlib.suppress(Exception):
    ImageOps.exif_transpose(upright, in_place=True)
  return upright


def eight_bit(file: Image.Image) -> Image.Image:
  """The open file decoded, upright and in a mode of 8 bits.

  16-bit grey is scaled (Pillow's own conversion clips, which turns it white); CMYK becomes sRGB.
  """
  image = _turned(file)
  if image.mode == 'CMYK' and image.info.get('icc_profile'):
    return _to_srgb(image)
  if image.mode != 'F' and not image.mode.startswith('I'):
    return image
  values = np.asarray(image)
  if image.mode == 'F' or values.min() < 0 or values.max() > 65535:
    raise ValueError(f'pixels of kind {image.mode!r} from {values.min():g} to {values.max():g}')
  return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _to_srgb(image):
  """CMYK through its own colour profile; a bad profile leaves Pillow's plain conversion."""
  from PIL import ImageCms

  try:
    profile, srgb = io.BytesIO(image.info['icc_profile']), ImageCms.createProfile('sRGB')
    return ImageCms.profileToProfile(image, profile, srgb, outputMode='RGB') or image
  except (ImageCms.PyCMSError, OSError):
    return image


def flatten(image: Image.Image, background: str) -> Image.Image:
  """The image without transparency, as it looks on a background."""
  if not image.has_transparency_data:
    return image
  canvas = Image.new('RGBA', image.size, background)
  return Image.alpha_composite(canvas, image.convert('RGBA'))
