"""Image files in and out, the one convention: float32 in [-1, 1], [b h w c], mask 1 = repaint.

Eight-bit pixels survive the trip exactly: `to_uint8(from_uint8(p)) == p` for all 256 values, so a
pixel that an edit leaves alone is saved as the byte that was loaded.
"""

import contextlib
import io
import itertools
import math
import os
import warnings
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from exedit.errors import UserError, one_line

SMALLEST_SIDE = 8  # pixels; below this there is nothing to look at and nothing to encode
FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP'}

AnyFloat = Float[Array, '*b h w c'] | Float[np.ndarray, '*b h w c']


# Bytes and floats


def from_uint8(pixels: UInt8[np.ndarray, '*b h w c']) -> Float[np.ndarray, '*b h w c']:
  """0..255 to float32 in [-1, 1]."""
  return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: AnyFloat) -> UInt8[np.ndarray, '*b h w c']:
  """[-1, 1] to 0..255, clipped and rounded (the original truncates: facts 3.3)."""
  levels = (np.asarray(image, np.float32) + np.float32(1)) * np.float32(127.5)
  return np.clip(np.round(levels), 0, 255).astype(np.uint8)


# Files in


def load(path: str | os.PathLike) -> Float[Array, '1 h w 3']:
  """An image file of any common kind, upright, as float32 in [-1, 1].

  16-bit files are scaled to 8 bits, transparent pixels lie on white, an animation gives its first
  frame, and the colour values of an RGB file stay the file's own (no colour conversion).

  Raises:
    UserError: naming the file, what is wrong with it and what to do.
  """
  return jnp.asarray(from_uint8(read(path)))[None]


def load_mask(path: str | os.PathLike, like: AnyFloat | None = None) -> Float[Array, '1 h w 1']:
  """A mask file: 1 (repaint) where it is at least half bright, else 0 (keep).

  Colour counts by its luminance and transparent pixels as black.

  Args:
    path: the file.
    like: the image [b h w c] that the mask belongs to; the two must have the same size.
  Raises:
    UserError: as `load`, and for a mask of another size or one that repaints nothing.
  """
  repaint = read_mask(path)
  if like is not None and repaint.shape != tuple(like.shape[-3:-1]):
    raise UserError(_other_size(path, repaint.shape, like.shape[-3:-1]))
  return jnp.asarray(repaint[None, :, :, None], jnp.float32)


def read(path: str | os.PathLike) -> UInt8[np.ndarray, 'h w 3']:
  """`load` before it becomes float: the upright 8-bit RGB pixels."""
  return np.asarray(_decode(path, 'RGB', 'white'))


def read_mask(path: str | os.PathLike) -> Bool[np.ndarray, 'h w']:
  """`load_mask` before it becomes float: True = repaint."""
  brightness = np.asarray(_decode(path, 'L', 'black'))
  repaint = brightness >= 128
  if not repaint.any():
    raise UserError(
      f'{path}: the mask is empty (its brightest pixel is {brightness.max()} of 255; 128 or more'
      ' means repaint): paint the region to repaint white'
    )
  return repaint


def read_icc(path: str | os.PathLike) -> bytes | None:
  """The RGB colour profile of a readable image file, to be saved with its edit (or None)."""
  with Image.open(path) as file:
    profile = file.info.get('icc_profile')
    rgb = file.mode in ('RGB', 'RGBA', 'P', 'PA', 'RGBX')
  return profile if profile and rgb and profile[16:20] == b'RGB ' else None


def _decode(path, mode, background):
  """The file as an upright Pillow image of `mode`; whatever goes wrong becomes one line."""
  if os.path.isdir(path):
    raise UserError(f'{path} is a folder: name an image file')
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')
      warnings.simplefilter('error', Image.DecompressionBombWarning)
      with Image.open(path) as file:
        _check_size(path, file.size)
        file.load()
        return _flatten(_eight_bit(_upright(file)), background).convert(mode)
  except UserError:
    raise
  except FileNotFoundError:
    raise UserError(f'{path} does not exist: check the path') from None
  except PermissionError:
    raise UserError(f'{path} may not be read: check its permissions') from None
  except (Image.DecompressionBombWarning, Image.DecompressionBombError):
    limit = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    raise UserError(
      f'{path} has more than the {limit:.0f} million pixels allowed: make it smaller'
    ) from None
  except UnidentifiedImageError:
    empty = os.path.getsize(path) == 0
    what = 'is empty (0 bytes)' if empty else 'is not an image of a kind that Pillow reads'
    raise UserError(f'{path} {what}: give a PNG, JPEG or WebP file') from None
  except Exception as error:  # on damaged bytes Pillow's decoders raise almost anything
    raise UserError(
      f'{path} cannot be decoded ({one_line(error)}): it is damaged, truncated or of a rare kind;'
      ' fetch it again or save it as 8-bit PNG'
    ) from None


def _check_size(path, size):
  if min(size) < SMALLEST_SIDE:
    raise UserError(
      f'{path} is {size[0]} x {size[1]} pixels: give an image of at least'
      f' {SMALLEST_SIDE} x {SMALLEST_SIDE}'
    )


def _upright(image):
  """As the camera held it; a damaged EXIF block is no reason to refuse the picture."""
  upright = image.copy()
  with contextlib.suppress(Exception):
    ImageOps.exif_transpose(upright, in_place=True)
  return upright


def _eight_bit(image):
  """16-bit grey scaled to 8 (Pillow's own conversion clips, which turns it white); CMYK to sRGB."""
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


def _flatten(image, background):
  if not image.has_transparency_data:
    return image
  canvas = Image.new('RGBA', image.size, background)
  return Image.alpha_composite(canvas, image.convert('RGBA'))


def _other_size(path, mask_shape, image_shape):
  (mh, mw), (h, w) = mask_shape, image_shape
  if (mh, mw) == (w, h):
    remedy = 'the two are turned against each other: paint the mask on the upright image'
  else:
    remedy = 'paint the mask on the image at its own size'
  return f'{path} is {mw} x {mh} pixels (width x height) but the image is {w} x {h}: {remedy}'


# Files out


def save(
  image: AnyFloat | UInt8[np.ndarray, 'h w 3'],
  path: str | os.PathLike,
  *,
  icc_profile: bytes | None = None,
) -> str:
  """Write one image as PNG, JPEG or WebP by the name's ending, all of it or nothing.

  PNG and WebP are lossless; JPEG changes every pixel a little, edited or not.

  Args:
    image: [1 h w 3] or [h w 3] in [-1, 1], or uint8.
    path: a name without an ending gets `.png`.
    icc_profile: from `read_icc`, so that colours are shown as the source's are.
  Returns:
    The path written.
  """
  path = output_path(path)
  pixels = np.asarray(image)
  if pixels.ndim == 4 and len(pixels) == 1:
    pixels = pixels[0]
  if pixels.ndim != 3 or pixels.shape[-1] != 3:
    raise ValueError(f'save takes one image [1 h w 3] or [h w 3], got {list(pixels.shape)}')
  if pixels.dtype != np.uint8:
    if not np.isfinite(pixels).all():
      raise UserError(f'{path} is not written: the result is not finite; are the weights sound?')
    pixels = to_uint8(pixels)
  options = dict(PNG={}, JPEG=dict(quality=95, subsampling=0), WEBP=dict(lossless=True))
  kind = FORMATS[os.path.splitext(path)[1].lower()]
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, kind, icc_profile=icc_profile, **options[kind])
  _write(path, encoded.getbuffer())
  return path


def output_path(path: str | os.PathLike) -> str:
  """The path that `save` would write; refuses what it could not write, before any work is done."""
  path = os.fspath(path)
  if os.path.isdir(path) or not os.path.basename(path):
    raise UserError(f'{path} is a folder: name the image to write, such as {path}/out.png')
  folder = os.path.dirname(path) or '.'
  if not os.path.isdir(folder):
    raise UserError(f'cannot write {path}: the folder {folder} does not exist; make it first')
  ending = os.path.splitext(path)[1]
  if ending.lower() not in FORMATS and ending:
    raise UserError(f'cannot write {path}: {ending} is not one of {", ".join(FORMATS)}')
  return path if ending else path + '.png'


def _write(path, data):
  """Bytes under a temporary name in the same folder, then moved in place."""
  temporary = f'{path}.{os.getpid()}.tmp'
  try:
    with open(temporary, 'wb') as file:
      file.write(data)
    os.replace(temporary, path)
  except OSError as error:
    error.filename = path  # a full disk names no file, and a temporary name tells nobody anything
    raise
  finally:
    if os.path.exists(temporary):
      os.remove(temporary)


# Sizes


def resize(image: AnyFloat, height: int, width: int) -> Float[np.ndarray, '*b {height} {width} c']:
  """Bicubic with Pillow's antialiasing, on 8-bit pixels as the original does (facts 3.3)."""
  if image.shape[-3:-1] == (height, width):
    return np.asarray(image)
  pixels = to_uint8(image)
  flat = pixels.reshape(-1, *pixels.shape[-3:])
  flat = np.stack(
    [np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC)) for p in flat]
  )
  return from_uint8(flat.reshape(*pixels.shape[:-3], height, width, 3))


def resize_mask(
  mask: Float[Array, 'b h w 1'] | Float[np.ndarray, 'b h w 1'], height: int, width: int
) -> Float[np.ndarray, 'b {height} {width} 1']:
  """1 where any part of the pixel was 1: a thin mask survives, and no old content shows in it."""
  planes = [Image.fromarray(np.asarray(m[..., 0], np.float32)) for m in mask]
  covered = [np.asarray(p.resize((width, height), Image.Resampling.BOX)) > 0 for p in planes]
  return np.stack(covered)[..., None].astype(np.float32)


def squash(exemplar: AnyFloat, size: int) -> Float[np.ndarray, '*b {size} {size} 3']:
  """The exemplar as the exemplar tower sees it: square, its shape not kept (facts 8, row 5)."""
  return resize(exemplar, size, size)


def pad_to_multiple(image: AnyFloat, multiple: int):
  """Grow right and bottom, by mirroring, until both sides are multiples; works on masks too.

  A mask is mirrored like the image, so the mirror shows nothing that the mask hides. Slicing
  `[:, :h, :w]` undoes it.
  """
  h, w = image.shape[-3:-1]
  grow = [(0, -h % multiple), (0, -w % multiple), (0, 0)]
  if not any(after for _, after in grow):
    return image
  array = np if isinstance(image, np.ndarray) else jnp
  return array.pad(image, [(0, 0)] * (image.ndim - 3) + grow, mode='symmetric')


def paste(
  result: Float[Array, 'b h w 3'] | Float[np.ndarray, 'b h w 3'],
  source: Float[Array, '#b h w 3'] | Float[np.ndarray, '#b h w 3'],
  mask: Float[Array, '#b h w 1'] | Float[np.ndarray, '#b h w 1'],
) -> Float[Array, 'b h w 3']:
  """The result inside the mask; outside it the source, to the last bit."""
  return jnp.where(mask >= 0.5, result, source)


# Sheets


def grid(
  rows: Iterable[Iterable[np.ndarray | Array]], captions: Sequence[str] = (), cell: int = 96
) -> UInt8[np.ndarray, 'H W 3']:
  """Rows of images on one white sheet, each scaled to fit a square cell; captions over the columns.

  Args:
    rows: images [h w 3], uint8 or in [-1, 1], of any sizes; small ones grow by whole pixels.
    captions: one short text for each column.
    cell: the least side of a cell in pixels; cells are multiples of the largest image, up to 512.
  """
  rows = [list(row) for row in rows]
  largest = max(max(image.shape[:2]) for image in itertools.chain(*rows))
  cell, gap = min(largest * math.ceil(cell / largest), 512), 4
  top = 20 if captions else gap
  columns = max(len(row) for row in rows)
  size = (gap + columns * (cell + gap), top + len(rows) * (cell + gap))
  sheet = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(sheet)
  for x, text in enumerate(captions):
    place = (gap + x * (cell + gap) + cell / 2, top / 2)
    draw.text(place, text, 'black', ImageFont.load_default(13), anchor='mm')
  for (y, row), x in ((r, x) for r in enumerate(rows) for x in range(len(r[1]))):
    image = _fit(row[x], cell)
    left = gap + x * (cell + gap) + (cell - image.width) // 2
    sheet.paste(image, (left, top + y * (cell + gap) + (cell - image.height) // 2))
  return np.asarray(sheet)


def _fit(pixels, cell):
  """A Pillow image as large as the cell allows; it grows by whole pixels, so none is invented."""
  pixels = np.asarray(pixels)
  image = Image.fromarray(pixels if pixels.dtype == np.uint8 else to_uint8(pixels))
  scale = cell / max(image.size)
  if scale >= 1:
    size = [side * int(scale) for side in image.size]
    return image.resize(size, Image.Resampling.NEAREST)
  size = [max(1, round(side * scale)) for side in image.size]
  return image.resize(size, Image.Resampling.LANCZOS)
