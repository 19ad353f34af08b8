"""The sizes of a vision transformer and of a text tower, from the shapes of their tensors."""

import math
from collections.abc import Mapping
from typing import Any

from exedit.runtime.errors import UserError
from exedit.weights import settings
from exedit.weights.formats.tensor import Tensor

HEAD_WIDTH = 64  # channels per head, in all published CLIP and DINO transformers


def sizes(
  ours: Mapping[str, Tensor],
  prefix: str,
  where: str,
  *,
  heads: int | None = None,
  fallback: int | None = None,
  remedy: str = 'put its config.json beside it in a folder, and name the folder',
) -> dict[str, Any]:
  """Returns the arguments of CLIPVision, and of DINO, for tensors by exedit's paths.

  heads: the number of heads, which no shape says; by default one per HEAD_WIDTH channels.
  fallback: the number if HEAD_WIDTH does not divide the width.
  remedy: what helps if no number is known.
  """

  def shape(name):
    if prefix + name not in ours or not math.prod(ours[prefix + name].shape):
      raise UserError(f'{where} holds no {name} of a vision transformer; is it the whole file?')
    return ours[prefix + name].shape

  width, patch = shape('class_embedding')[0], shape('patch_embedding.kernel')[0]
  guess = fallback if width % HEAD_WIDTH else width // HEAD_WIDTH
  if (heads := heads or guess) is None:
    raise UserError(
      f'{where} has a vision transformer of width {width}, whose number of heads is not known (one '
      f'per {HEAD_WIDTH} channels is usual): {remedy}'
    )
  side = math.isqrt(max(shape('position_embedding')[0] - 1, 0)) * patch
  return dict(
    width=width,
    layers=sum(n.startswith(prefix) and n.endswith('.norm1.scale') for n in ours),
    heads=heads,
    mlp=shape('layers.0.fc1.kernel')[-1],
    patch=patch,
    image_size=settings.integer(dict(image_size=side), 'image_size', where),
  )


def text_sizes(ours: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Any]:
  """Returns the arguments of CLIPText for tensors by exedit's paths; see `sizes`."""

  def shape(name):
    if prefix + name not in ours or len(ours[prefix + name].shape) != 2:
      raise UserError(f'{where} holds no {name} of a text tower; is it the whole file?')
    return ours[prefix + name].shape

  vocabulary, width = shape('token_embedding')
  if width % HEAD_WIDTH:
    raise UserError(
      f'{where} has a text tower of width {width}, whose number of heads is not known (one per '
      f'{HEAD_WIDTH} channels is usual): put its config.json beside it, and name the folder'
    )
  return dict(
    vocabulary=vocabulary,
    length=shape('position_embedding')[0],
    width=width,
    layers=sum(n.startswith(prefix) and n.endswith('.norm1.scale') for n in ours),
    heads=width // HEAD_WIDTH,
    mlp=shape('layers.0.fc1.kernel')[-1],
  )
