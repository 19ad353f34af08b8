"""One edit before and after the network, over arrays: what the network sees, and the picture."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from exedit import images
from exedit.editing import framing
from exedit.runtime.errors import UserError
from exedit.systems import Input


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What the network gets for one edit: `arrays` by input name, without a batch axis.

  frame: the part of the photo that the network sees, and the size at which it sees it.
  """

  frame: framing.Frame
  arrays: dict[str, Any]


def by_kind(inputs: Sequence[Input], **values: Any) -> dict[str, Any]:
  """{name of the input: value} for values that are given by the kind of the input.

  Each value goes to the inputs of its kind; a kind that the system does not have is left out.
  """
  return {e.name: values[e.kind] for e in inputs if values.get(e.kind) is not None}


def prepare(
  inputs: Sequence[Input],
  given: Mapping[str, Any],
  settings: Any,
  *,
  trained: int,
  picture_size: int = 0,
  tokens: Callable[[str], np.ndarray] | None = None,
  frame: framing.Frame | None = None,
) -> Prepared:
  """What the network sees of the inputs of one edit.

  Args:
    inputs: the system's. given: their values by name: photo and picture uint8 [h w 3], mask and
      cutout bool [h w], text str. An optional input may be missing.
    settings: the edit's; `zoom` and `<picture>_fit` count.
    trained: the side in pixels of the pictures that the weights were trained on.
    picture_size: see `System.picture_size`. tokens: makes an array of a text.
    frame: the window to use; None: `choose_frame`.
  Raises:
    ValueError: for an unknown zoom or fit, an empty mask, and a mask of another size than its
      picture.
    UserError: for a window that is too long.
  """
  region = painted_region(inputs, given)
  if frame is None:
    frame = choose_frame(region, trained, getattr(settings, 'zoom', 'off'))
  arrays = {}
  for entry in inputs:
    value = given.get(entry.name)
    if entry.kind == 'mask' and region is not None:
      arrays[entry.name] = framing.cut_mask(frame, region)
    elif value is None:
      continue
    elif entry.kind == 'photo':
      arrays[entry.name] = framing.cut(frame, value)
    elif entry.kind == 'picture':
      cutouts = [given.get(other.name) for other in inputs if other.of == entry.name]
      subject = next((cutout for cutout in cutouts if cutout is not None), None)
      fit = getattr(settings, f'{entry.name}_fit')
      arrays[entry.name] = framing.fit_exemplar(value, subject, picture_size, fit)
    elif entry.kind == 'text' and tokens is not None:
      arrays[entry.name] = tokens(value)
  return Prepared(frame, arrays)


def painted_region(
  inputs: Sequence[Input], given: Mapping[str, Any]
) -> Bool[np.ndarray, 'h w'] | None:
  """The mask of an edit, or the whole photo if there is none; None for a system without a photo."""
  values = {entry.kind: given.get(entry.name) for entry in inputs}
  photo, mask = values.get('photo'), values.get('mask')
  return np.ones(photo.shape[:2], bool) if mask is None and photo is not None else mask


def choose_frame(
  region: Bool[np.ndarray, 'h w'] | None, trained: int, zoom: str = 'auto'
) -> framing.Frame:
  """The window around a region of a photo; without a photo, the square of the trained size."""
  if region is None:
    return framing.Frame(0, 0, trained, trained, (trained, trained))
  return framing.choose(region, trained, zoom)


def finish(
  frame: framing.Frame,
  raw: Float[np.ndarray, 'sh sw 3'],
  photo: images.Photo | None,
  region: Bool[np.ndarray, 'h w'] | None,
  settings: Any,
  *,
  alpha: bool = True,
  name: str = 'the picture',
) -> UInt8[np.ndarray, 'h w c']:
  """The pixels of an edit: the result inside the mask, the photo's own bytes outside it.

  Args:
    frame: the window that the network saw. raw: the network's answer, in [-1, 1].
    photo: None for a system without a photo; then the pixels are the answer.
    region: the part that is repainted, at the photo's size.
    settings: `feather` and `match` count. Without `paste` the whole window is the network's.
    alpha: keep the photo's transparency, if it has one; what is repainted is opaque.
    name: of the output, for the message.
  Raises:
    UserError: for a result that is not finite.
  """
  if not np.isfinite(raw).all():
    raise UserError(f'{name} is not written: the result is not finite; are the weights sound?')
  if photo is None or region is None:
    return images.to_uint8(raw)
  feather, match = settings.feather, settings.match
  if not settings.paste:
    region, feather, match = np.zeros_like(region), 0.0, 'none'
    region[frame.top : frame.bottom, frame.left : frame.right] = True
  rgb = framing.stitch(frame, raw, photo.rgb, region, feather=feather, match=match)
  if photo.rgba is None or not alpha:
    return rgb
  opaque = np.concatenate([rgb, np.full_like(rgb[..., :1], 255)], -1)
  return np.where(region[..., None], opaque, photo.rgba)


def background(
  frame: framing.Frame,
  result: UInt8[np.ndarray, 'h w c'],
  source: UInt8[np.ndarray, 'h w 3'],
  region: Float[np.ndarray, 'lh lw 1'],
  grid: int,
) -> float | None:
  """PSNR in dB of a result's background, to which the whole window outside `region` belongs.

  region: where the edit may have changed the photo (1), for each latent, of which each covers
  `grid` pixels of the picture that the network saw. None: there is no background.
  """
  window = slice(frame.top, frame.bottom), slice(frame.left, frame.right)
  rows, columns = (
    np.arange(side) * seen // side // grid
    for side, seen in zip((frame.height, frame.width), frame.size)
  )
  outside = region[rows][:, columns, 0] == 0
  if not outside.any():
    return None
  off = result[window][..., :3][outside].astype(np.float64) - source[window][outside]
  return 10 * math.log10(255**2 / max(float((off**2).mean()), 1e-10))


def edit_photo(
  inputs: Sequence[Input],
  given: Mapping[str, Any],
  settings: Any,
  run: Callable[[dict[str, jax.Array]], Any],
  *,
  trained: int,
  picture_size: int = 0,
) -> Float[jax.Array, '1 h w 3']:
  """A finished edit of one photo of any size, at its own resolution, over float arrays.

  Args:
    inputs: the system's. given: their values by name: photo and picture [1 h w 3] in [-1, 1], mask
      and cutout [1 h w 1]. None: not given.
    settings: see `prepare` and `finish`.
    run: the arrays that the network sees [1 ...] -> its answer [1 h w 3], without pasting.
    trained, picture_size: see `prepare`.
  Raises:
    ValueError: as `prepare`.
    UserError: for a window that is too long, and a result that is not finite.
  """
  framing.check(settings.feather, settings.match)
  pixels = {}
  for entry in inputs:
    value = given.get(entry.name)
    if value is not None and entry.kind in ('mask', 'cutout'):
      pixels[entry.name] = np.asarray(images.as_mask(value)[0, ..., 0] >= 0.5)
    elif value is not None:
      pixels[entry.name] = images.to_uint8(value[0])
  names = {entry.kind: entry.name for entry in inputs}
  source, mask = given[names['photo']], images.as_mask(given[names['mask']])
  if mask.shape[1:3] != source.shape[1:3]:
    raise ValueError(f'mask has shape {mask.shape}; the source needs {source.shape[:3]} and 1')
  seen = prepare(inputs, pixels, settings, trained=trained, picture_size=picture_size)
  arrays = {name: jnp.asarray(array)[None] for name, array in seen.arrays.items()}
  original = images.Photo(pixels[names['photo']], None, None)
  raw, region = np.asarray(run(arrays)[0]), pixels[names['mask']]
  result = finish(seen.frame, raw, original, region, settings, name='the edit')
  return images.paste(jnp.asarray(images.from_uint8(result))[None], source, mask)
