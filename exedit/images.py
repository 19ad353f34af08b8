"""Reads and writes image files. Images are float32 in [-1, 1], [b h w c]; mask 1 = repaint.

`to_uint8(from_uint8(p)) == p` for all 256 values, so a pixel that an edit does not change is saved
as the byte that was loaded.
"""

import dataclasses
import io
import itertools
import math
import os
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from exedit.runtime import decode, files, mask_files
from exedit.runtime.errors import UserError

FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG', '.webp': 'WEBP'}
LONGEST_SIDE = {'JPEG': 65500, 'WEBP': 16383}  # limits of the file formats
TEXT = 'exedit'  # the key of the recipe among a PNG file's texts

AnyFloat = Float[Array, '*b h w c'] | Float[np.ndarray, '*b h w c']


# Bytes and floats


def from_uint8(pixels: UInt8[np.ndarray, '*b h w c']) -> Float[np.ndarray, '*b h w c']:
  """0..255 to float32 in [-1, 1]."""
  return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: AnyFloat, truncate: bool = False) -> UInt8[np.ndarray, '*b h w c']:
  """[-1, 1] to 0..255, clipped and rounded; `truncate` rounds down, as the original does."""
  levels = (np.asarray(image, np.float32) + np.float32(1)) * np.float32(127.5)
  return np.clip(levels if truncate else np.round(levels), 0, 255).astype(np.uint8)


# Files in


def load(path: str | os.PathLike) -> Float[Array, '1 h w 3']:
  """Reads an image file of any common kind, upright, as float32 in [-1, 1].

  16-bit files are scaled to 8 bits, transparent pixels are put on white, only the first frame of an
  animation is read, and the colour values of an RGB file are not converted.

  Raises:
    UserError: with the file, what is wrong with it and what to do.
  """
  return jnp.asarray(from_uint8(read(path)))[None]


def load_mask(
  path: str | os.PathLike, like: AnyFloat | None = None, *, scale: bool = False
) -> Float[Array, '1 h w 1']:
  """Reads a mask file: 1 (repaint) or 0 (keep); docs/editing.md says what masks mean.

  A file that is not plain black and white causes a warning that says how it was understood.

  Args:
    path: the file.
    like: the image [b h w c] of the mask; the two must have the same size.
    scale: the mask may have another size if it has the shape of the image; it is scaled then.
  Raises:
    UserError: as `load`, for a mask of another size, for an empty mask and for no mask.
  """
  size = None if like is None else like.shape[-3:-1]
  return jnp.asarray(read_mask(path, size, scale=scale)[None, :, :, None], jnp.float32)


def read(path: str | os.PathLike) -> UInt8[np.ndarray, 'h w 3']:
  """Reads an image file as `load` does, as upright 8-bit RGB pixels."""
  return np.asarray(decode.upright(path, 'RGB', 'white'))


def read_mask(
  path: str | os.PathLike,
  size: tuple[int, ...] | None = None,
  *,
  of: str | None = None,
  scale: bool = False,
  say: Callable[[str], Any] | None = None,
) -> Bool[np.ndarray, 'h w']:
  """Reads a mask file as `load_mask` does: True = repaint.

  Args:
    size: height and width of the picture that the mask belongs to; scale: see `load_mask`.
    of: the name of that picture if the mask is that of its subject; None: the photo's hole.
    say: gets the words of `mask_files.Mask.said`; None: they become a warning.
  """
  found = mask_files.read(path, subject=of is not None)
  meant = found.meant
  if size is not None and meant.shape != size:
    check_size_of_mask(path, meant.shape, size, of or 'image', scale=scale)
    height, width = size
    meant = Image.fromarray(meant).resize((width, height), Image.Resampling.NEAREST)
    meant = np.asarray(meant)
  if not meant.any():
    raise UserError(
      f'{path}: the mask is empty (its brightest pixel is {found.levels.max()} of 255, and'
      f' {mask_files.HALF} or more count): paint the'
      f' {f"subject of the {of}" if of else "region to repaint"} white'
    )
  if found.said and say:
    say(found.said)
  elif found.said:
    warnings.warn(f'{path}: the mask {found.said} ({meant.mean():.1%} of it)', stacklevel=2)
  return meant


def as_mask(mask: Shaped[Array | np.ndarray, '*b']) -> Float[Array | np.ndarray, '*b']:
  """A mask in an array as 0..1: from bool, from whole numbers (0 and 1, or 0 to 255), from 0..1.

  Raises:
    ValueError: for other values. Inside a compiled function values are not checked.
  """
  whole = not jnp.issubdtype(mask.dtype, jnp.floating)
  if isinstance(mask, jax.core.Tracer) or not getattr(mask, 'is_fully_addressable', True):
    return mask
  values = np.asarray(mask)
  low, high = values.min(), values.max()
  most = 255 if whole and high > 1 else 1
  if not (low >= 0 and high <= most):
    raise ValueError(
      f'mask has values from {low:g} to {high:g} of {mask.dtype}: 1 means repaint and 0 keep; '
      'whole numbers may also go from 0 to 255'
    )
  return values.astype(np.float32) / np.float32(most) if whole else mask


@dataclasses.dataclass(frozen=True)
class Photo:
  """A photo with everything that its edit keeps.

  rgb: the pixels, on white if some are transparent. rgba: the file's own, with the colours of
  transparent pixels; None if the file has no transparency.
  """

  rgb: UInt8[np.ndarray, 'h w 3']
  rgba: UInt8[np.ndarray, 'h w 4'] | None
  icc_profile: bytes | None


def read_photo(path: str | os.PathLike) -> Photo:
  """Reads a photo with its transparency and colour profile; errors as `load`."""
  with decode.opened(path) as file:
    image = decode.eight_bit(file)
    rgba = np.asarray(image.convert('RGBA')) if image.has_transparency_data else None
    rgb = np.asarray(decode.flatten(image, 'white').convert('RGB'))
    return Photo(rgb, rgba, decode.icc(file))


def read_icc(path: str | os.PathLike) -> bytes | None:
  """The RGB colour profile of an image file, to save with its edit; None if there is none."""
  with decode.opened(path) as file:
    return decode.icc(file)


def check_size_of_mask(
  path: str | os.PathLike,
  mask: tuple[int, ...],
  image: tuple[int, ...],
  name: str = 'image',
  *,
  scale: bool = False,
) -> None:
  """Raises UserError unless the mask has the size (height, width) of its image.

  scale: another size will do if it has the same shape, up to the rounding of a side.
  """
  (mh, mw), (h, w) = mask, image
  alike = abs(mw * h - mh * w) <= max(*mask, *image)
  if (mh, mw) == (h, w) or (scale and alike):
    return
  if (mh, mw) == (w, h):
    remedy = f'the two are turned against each other: paint the mask on the upright {name}'
  elif alike:
    remedy = f'paint the mask on the {name} at its own size, or scale it with --scale_mask'
  else:
    remedy = f'paint the mask on the {name} at its own size'
  raise UserError(
    f'{path} is {mw} x {mh} pixels (width x height) but the {name} is {w} x {h}: {remedy}'
  )


# Files out


def save(
  image: AnyFloat | UInt8[np.ndarray, 'h w c'],
  path: str | os.PathLike,
  *,
  icc_profile: bytes | None = None,
  recipe: str | None = None,
) -> str:
  """Writes one image as PNG, JPEG or WebP, depending on the name's ending.

  The file is written as a whole or not at all. PNG and WebP are lossless; JPEG changes every pixel
  a little.

  Args:
    image: [1 h w 3] or [h w 3] in [-1, 1], or uint8. PNG and WebP also take a fourth channel, the
      transparency.
    path: a name without an ending gets `.png`.
    icc_profile: the source's, from `read_icc`, so that the colours look the same.
    recipe: JSON text that is also kept in a PNG file's metadata. The image and its recipe are
      written both or neither; the image takes its place first.
  Returns:
    The path written.
  Raises:
    UserError: for a path or size that cannot be written, and for an image that is not finite.
  """
  path = output_path(path)
  pixels = np.asarray(image)
  if pixels.ndim == 4 and len(pixels) == 1:
    pixels = pixels[0]
  if pixels.ndim != 3 or pixels.shape[-1] not in (3, 3 + holds_alpha(path)):
    raise ValueError(f'save takes one image [1 h w 3] or [h w 3], got {list(pixels.shape)}')
  if pixels.dtype != np.uint8:
    if not np.isfinite(pixels).all():
      raise UserError(f'{path} is not written: the result is not finite; are the weights sound?')
    pixels = to_uint8(pixels)
  check_holds(path, pixels.shape[:2])
  text = PngImagePlugin.PngInfo()
  if recipe is not None:
    text.add_itxt(TEXT, recipe)
  options = dict(
    PNG=dict(pnginfo=text),
    JPEG=dict(quality=95, subsampling=0),
    WEBP=dict(lossless=True, exact=True),  # exact: keeps the colours of transparent pixels
  )
  kind = format_of(path)
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, kind, icc_profile=icc_profile, **options[kind])
  beside = {} if recipe is None else {recipe_path(path): recipe.encode()}
  files.write_all({path: encoded.getvalue(), **beside})
  return path


def recipe_path(path: str | os.PathLike) -> str:
  """The path of an output's recipe: `out.json` for `out.png`."""
  return os.path.splitext(os.fspath(path))[0] + '.json'


def words_path(path: str | os.PathLike) -> str:
  """The picture of the words' places beside an output: out-words.png for out.jpg."""
  return os.path.splitext(os.fspath(path))[0] + '-words.png'


def holds_alpha(path: str | os.PathLike) -> bool:
  """Whether a file with this name can be transparent."""
  return format_of(path) != 'JPEG'


def output_path(path: str | os.PathLike) -> str:
  """The path that `save` would write; UserError if it could not."""
  path = check_ending(path)
  folder = os.path.dirname(path) or '.'
  if not os.path.isdir(folder):
    raise UserError(f'cannot write {path}: the folder {folder} does not exist; make it first')
  return path


def check_ending(path: str | os.PathLike) -> str:
  """The path, with `.png` if it has no ending; UserError for a name that no image can have."""
  path = os.fspath(path)
  if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
    raise UserError(f'{path} is a pipe or device: name the image to write, such as out.png')
  if os.path.isdir(path) or not os.path.basename(path).strip('.'):
    raise UserError(f'{path} is a folder: name the image to write, such as {path}/out.png')
  if len(os.fsencode(os.path.basename(path))) > files.LONGEST_NAME:
    name = f'{path[:100]}...' if len(path) > 100 else path
    raise UserError(
      f'cannot write {name}: its name has more than {files.LONGEST_NAME} bytes; shorten it'
    )
  ending = os.path.splitext(path)[1]
  if ending.lower() not in FORMATS and ending:
    raise UserError(f'cannot write {path}: {ending} is not one of {", ".join(FORMATS)}')
  return path if ending else path + '.png'


def check_holds(path: str | os.PathLike, size: tuple[int, ...]) -> None:
  """Raises UserError if a file with this name cannot hold an image of this (height, width)."""
  kind = format_of(path)
  if max(size) > LONGEST_SIDE.get(kind, max(size)):
    raise UserError(
      f'cannot write {path}: it would be {size[1]} x {size[0]} pixels, and {kind} holds at most'
      f' {LONGEST_SIDE[kind]} a side; name a .png'
    )


def format_of(path: str | os.PathLike) -> str:
  """'PNG', 'JPEG' or 'WEBP', from the name's ending."""
  return FORMATS[os.path.splitext(path)[1].lower()]


# Sizes


def resize(image: AnyFloat, height: int, width: int) -> Float[np.ndarray, '*b {height} {width} c']:
  """Bicubic with Pillow's antialiasing on 8-bit pixels, as in the original.

  See docs/facts.md, Exemplar and conditioner.
  """
  if image.shape[-3:-1] == (height, width):
    return np.asarray(image)
  pixels = to_uint8(image)
  flat = pixels.reshape(-1, *pixels.shape[-3:])
  flat = np.stack(
    [np.asarray(Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC)) for p in flat]
  )
  return from_uint8(flat.reshape(*pixels.shape[:-3], height, width, 3))


def squash(
  exemplar: AnyFloat, size: int
) -> Float[np.ndarray, '*b {size} {size} 3'] | Float[Array, '*b {size} {size} 3']:
  """The exemplar as CLIP sees it: resized to a square, so that its proportions are lost.

  See docs/facts.md, Exemplar and conditioner.
  """
  if exemplar.shape[-3:-1] == (size, size):  # also inside a compiled function
    return exemplar
  return resize(exemplar, size, size)


def pad_to_multiple(image: AnyFloat, multiple: int):
  """Extends an image or mask to the right and down, by mirroring, until both sides are multiples.

  A mask is mirrored like its image, so the mirrored part shows nothing that the mask hides. The
  slice `[:, :h, :w]` undoes it.
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
  """The result inside the mask, and the source's own values outside it."""
  return jnp.where(mask >= 0.5, result, source)


# Sheets


def grid(
  rows: Iterable[Iterable[np.ndarray | Array | str]], captions: Sequence[str] = (), cell: int = 96
) -> UInt8[np.ndarray, 'H W 3']:
  """Rows of images and texts on one white sheet, each in a square cell.

  Args:
    rows: images [h w 3] of any size, uint8 or in [-1, 1]; small ones are enlarged by whole factors.
      A text is broken into lines, of which as many are shown as fit.
    captions: one short text above each column.
    cell: the least side of a cell in pixels; cells are multiples of the largest image, up to 512.
  """
  rows = [list(row) for row in rows]
  pictures = [item for item in itertools.chain(*rows) if not isinstance(item, str)]
  largest = max(max(image.shape[:2]) for image in pictures)
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
    item = row[x]
    if isinstance(item, str):
      lines = textwrap.wrap(item, cell // 6)[: cell // 13]
      place = (gap + x * (cell + gap) + 2, top + y * (cell + gap) + 2)
      draw.multiline_text(place, '\n'.join(lines), 'black', ImageFont.load_default(11), spacing=1)
      continue
    image = _fit(item, cell)
    left = gap + x * (cell + gap) + (cell - image.width) // 2
    sheet.paste(image, (left, top + y * (cell + gap) + (cell - image.height) // 2))
  return np.asarray(sheet)


def _fit(pixels, cell):
  """A Pillow image as large as the cell allows; a small one is enlarged by a whole factor."""
  pixels = np.asarray(pixels)
  image = Image.fromarray(pixels if pixels.dtype == np.uint8 else to_uint8(pixels))
  scale = cell / max(image.size)
  if scale >= 1:
    size = [side * int(scale) for side in image.size]
    return image.resize(size, Image.Resampling.NEAREST)
  size = [max(1, round(side * scale)) for side in image.size]
  return image.resize(size, Image.Resampling.LANCZOS)
