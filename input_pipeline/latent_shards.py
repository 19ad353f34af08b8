"""Examples that store latents instead of pixels, so that a training runs no autoencoder.

`exedit.encode` writes them as ordinary shards, and `<root>/encoded.json` says how. A record holds
the mask and the exemplar (before augmentation) as PNG, and the moments of the latents of the image
and of the masked image.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from exedit.runtime import remote

from . import augment as augmentation
from . import tf_example
from .errors import DataError

MANIFEST = 'encoded.json'
MOMENTS = 'latents/moments'
DTYPES = ('float16', 'float32')


def pictures(mask: np.ndarray, exemplar: np.ndarray) -> dict[str, bytes]:
  """Encodes the mask uint8 [h w] and the exemplar uint8 [s s 3] as PNG, for `record`."""
  return dict(mask=_png(mask), exemplar=_png(cv2.cvtColor(exemplar, cv2.COLOR_RGB2BGR)))


def record(pictures: Mapping[str, bytes], moments: np.ndarray, name: bytes) -> bytes:
  """Returns one serialized example; moments [2 lh lw m] are float16 or float32."""
  return tf_example.serialize_example(
    {
      MOMENTS: moments.tobytes(),
      'latents/shape': np.array(moments.shape, np.int64),
      'latents/dtype': moments.dtype.name.encode(),
      'image/filename': name,
      **pictures,
    }
  )


def make_example(
  features: Mapping[str, Any],
  rng: np.random.Generator,
  *,
  augment: bool,
  affine_jitter: int,
  blur_kernels: tuple[int, ...],
) -> dict[str, np.ndarray]:
  """Returns mask uint8 [h w] (255 = repaint), exemplar uint8 [s s 3] and moments [2 lh lw m].

  moments[0] belongs to the image, moments[1] to the masked image.

  Raises:
    DataError: if the record is incomplete or damaged.
  """
  try:
    shape = tuple(int(n) for n in features['latents/shape'])
    dtype = features['latents/dtype'][0].decode()
    if dtype not in DTYPES or len(shape) != 4:
      raise ValueError(f'moments of type {dtype!r:.20}, shape {shape}')
    moments = np.frombuffer(features[MOMENTS][0], dtype).reshape(shape)
    mask = _pixels(features['mask'][0], cv2.IMREAD_GRAYSCALE)
    exemplar = _pixels(features['exemplar'][0], cv2.IMREAD_COLOR_RGB)
  except (KeyError, IndexError, ValueError, UnicodeDecodeError) as error:
    raise DataError(f'a record that is no encoded example ({error})') from error
  if augment:
    exemplar = augmentation.exemplar(
      exemplar, rng, affine_jitter=affine_jitter, blur_kernels=blur_kernels
    )
  return dict(mask=mask, exemplar=exemplar, moments=moments)


def manifest(root: str | os.PathLike) -> dict[str, Any] | None:
  """Returns how the examples in a folder were encoded, or None if they are images.

  Raises:
    DataError: if the manifest is damaged.
  """
  path = os.path.join(os.fspath(root), MANIFEST)
  try:
    found = json.loads(remote.read(path))
    dict(found['settings'])
    return dict(found, split=str(found['split']), autoencoder=str(found['autoencoder']))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(f'{path} cannot be read ({error}): restore it, or encode again') from error


def check(root: str, split: str, settings: Mapping[str, Any]) -> None:
  """Raises DataError if this split was encoded with other values of these settings."""
  found = manifest(root)
  if found is None or found['split'] != split:
    return
  for name, value in found['settings'].items():
    wanted = settings.get(name, value)
    if json.loads(json.dumps(wanted)) != value:
      raise DataError(
        f'{root} was encoded with data.{name}={value}, not {wanted}: leave that as it is, or '
        'encode again (python -m exedit.encode)'
      )


def _png(pixels: np.ndarray) -> bytes:
  return cv2.imencode('.png', pixels)[1].tobytes()


def _pixels(data: bytes, flags: int) -> np.ndarray:
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
  if pixels is None:
    raise ValueError(f'{len(data)} bytes that are no picture')
  return pixels
