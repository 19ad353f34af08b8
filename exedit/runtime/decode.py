"""Decodes image files of any common kind to upright 8-bit pixels; faults are one-line errors."""

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

SMALLEST_SIDE = 8  # pixels; the autoencoder makes one latent pixel of them


@dataclasses.dataclass(frozen=True)
class Header:
  """What is known of an image file before its pixels are decoded.

  size: height and width of the upright picture. alpha: some pixels may be transparent. deep: 16
  bits per channel. inks: CMYK, so all colours are converted.
  """

  size: tuple[int, int]
  alpha: bool
  deep: bool
  inks: bool


def header(path: str | os.PathLike) -> Header:
  """The size and kind of an image file, without decoding its pixels."""
  with opened(path) as file:
    tiles = getattr(file, 'tile', [])
    coder = ' '.join(str(tile[3]) for tile in tiles)  # 'RGB;16B' if Pillow's mode has 8 bits
    deep = file.mode.startswith('I') or ';16' in coder
    width, height = file.size[::-1] if _on_its_side(file) else file.size
    return Header((height, width), file.has_transparency_data, deep, file.mode == 'CMYK')


def _on_its_side(file):
  """Whether EXIF exchanges width and height."""
  early = {'exif', 'XML:com.adobe.xmp'} & set(file.info)
  if file.format == 'PNG' and not early and not _late_exif(file.filename):
    return False  # getexif would decode the whole file to find a block behind the pixels
  with contextlib.suppress(Exception):  # damaged EXIF is ignored, as in `_turned`
    return file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
  return False


def _late_exif(path):
  """Whether a PNG file has a block eXIf; reads only the names of the blocks."""
  with open(path, 'rb') as file:
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] != b'IEND':
      if head[4:] == b'eXIf':
        return True
      file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
  return False


def upright(path: str | os.PathLike, mode: str, background: str) -> Image.Image:
  """The upright picture in this Pillow mode, on a background if parts are transparent."""
  with opened(path) as file:
    return flatten(eight_bit(file), background).convert(mode)


def icc(file: Image.Image) -> bytes | None:
  """The RGB colour profile of an open file, or None."""
  profile = file.info.get('icc_profile')
  rgb = file.mode in ('RGB', 'RGBA', 'P', 'PA', 'RGBX')
  return profile if profile and rgb and profile[16:20] == b'RGB ' else None


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[Image.Image]:
  """Opens an image file and checks its size.

  Raises:
    UserError: for a fault at opening or inside the block: the file, what is wrong, the remedy.
  """
  if os.path.isdir(path):
    raise UserError(f'{path} is a folder: name an image file')
  if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block
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
  except Exception as error:  # Pillow's decoders raise many kinds for damaged bytes
    raise UserError(
      f'{path} cannot be decoded ({one_line(error)}): it is damaged, truncated or of a rare kind;'
      ' fetch it again or save it as 8-bit PNG'
    ) from None


@functools.cache
def _kinds():
  """All kinds that Pillow reads itself; for PostScript it would start another program."""
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


def _turned(file):
  """The picture turned as its EXIF says; damaged EXIF is ignored."""
  upright = file.copy()
  with contextlib.suppress(Exception):
    ImageOps.exif_transpose(upright, in_place=True)
  return upright


def eight_bit(file: Image.Image) -> Image.Image:
  """The decoded picture, upright, in a mode with 8 bits.

  16-bit grey is scaled, because Pillow's own conversion clips it to white. CMYK becomes sRGB.
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
