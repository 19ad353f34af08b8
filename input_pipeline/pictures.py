"""Makes a training example of a picture alone, from any record with a picture."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from exedit.runtime.settings import check_limits

from . import codec, crops, latent_shards
from .errors import DataError
from .open_images import LIMITS, name_of

NON_SQUARE = ('crop', 'pad', 'squash')


def check_settings(**settings) -> None:
  """Raises UserError for a value that `make_example` cannot work with."""
  check_limits(settings, {**LIMITS, 'flip': (0, 1)}, 'data')
  value = settings.get('non_square', NON_SQUARE[0])
  if value not in NON_SQUARE:
    raise DataError(f'data.non_square is {value!r}: use one of {", ".join(NON_SQUARE)}')


def shapes(*, size: int, **others) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Returns {name: (shape, dtype)} of what `make_example` returns."""
  return dict(image=((size, size, 3), np.uint8))


def make_example(
  features: Mapping[str, Any],
  rng: np.random.Generator,
  *,
  size=512,
  augment=True,
  flip=0.0,
  non_square='crop',
) -> dict[str, np.ndarray]:
  """Makes one training example from the `image` of a record: image uint8 [size size 3].

  Args:
    size: side of the image in pixels. augment: cut squares at random; False: the middle square, no
      flip. flip: share of the pictures that are mirrored.
    non_square: what becomes of an image that is not square: 'crop' a square from it, 'pad' it by
      mirroring, or 'squash' it.

  Raises:
    DataError: if there is no image, or it cannot be decoded.
  """
  return dict(image=square(read(features), rng, size, augment, flip, non_square))


def read(features: Mapping[str, Any]) -> np.ndarray:
  """Returns the picture of a record, uint8 [h w 3].

  Raises:
    DataError: if there is none, or it cannot be decoded.
  """
  name = name_of(features)
  if not features.get('image'):
    latents = latent_shards.MOMENTS in features
    what = 'latents, and this system trains on the photos' if latents else 'no image'
    raise DataError(f'{name}: the record has {what}')
  return codec.decode(features['image'][0], name)


def square(
  image: np.ndarray,
  rng: np.random.Generator,
  size: int,
  augment: bool,
  flip: float,
  non_square: str,
) -> np.ndarray:
  """Returns a picture as [size size 3]; see `make_example`."""
  if non_square == 'crop':
    image = crops.square(image, rng if augment else None)
  elif non_square == 'pad':
    image = crops.pad_square(image)
  image = crops.resize(image, size, smooth=True)
  if augment and flip and rng.random() < flip:
    image = np.ascontiguousarray(image[:, ::-1])
  return image
