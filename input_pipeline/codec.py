"""Encoded pictures to pixels and back, for training and benchmarks: as stored, never rotated."""

import io

import cv2
import numpy as np
import PIL.Image

from .errors import DataError


def decode(data: bytes, name='image') -> np.ndarray:
  """Decodes an image to uint8 [h w 3], RGB. It ignores EXIF rotation and transparency.

  Raises:
    DataError: if the image is damaged or truncated.
  """
  # OpenCV gives the same pixels faster, but accepts truncated files, so it gets whole JPEGs only.
  if data[:3] == b'\xff\xd8\xff' and data[-2:] == b'\xff\xd9':
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is not None:
      return pixels
  image = load(data, name)
  if image.mode.startswith('I'):  # 16-bit grey, which convert() would clip to white
    image = PIL.Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
  return np.asarray(image.convert('RGB'))


def load(data: bytes, name: str) -> PIL.Image.Image:
  """Decodes an image with Pillow, in the file's own mode.

  Raises:
    DataError: if the image is damaged or truncated; names it.
  """
  try:
    image = PIL.Image.open(io.BytesIO(data))
    image.load()
  except PIL.UnidentifiedImageError:
    raise DataError(f'{name}: {len(data)} bytes that are no image') from None
  except Exception as error:  # Pillow raises a dozen types for damaged files
    raise DataError(f'{name}: not a readable image ({error})') from error
  return image


def png(pixels: np.ndarray) -> bytes:
  """Encodes uint8 [h w] or [h w 3] as PNG; equal pixels give equal bytes."""
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()
