"""Encoded pictures to pixels and back, for training: as stored, because boxes count stored ones."""

import io

import cv2
import numpy as np
import PIL.Image

from exedit.runtime import decode as pictures


def decode(data: bytes, name='image') -> np.ndarray:
  """Decodes an image to uint8 [h w 3], RGB, as `exedit.runtime.decode` does but not turned.

  Raises:
    DataError: if the image cannot be used.
  """
  if _is_plain_jpeg(data):  # OpenCV gives the same pixels faster
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is not None:
      return pixels
  return np.asarray(pictures.upright(data, 'RGB', 'white', name, turn=False))


def _is_plain_jpeg(data):
  """Whether it is a whole JPEG, which OpenCV does not check, with 8 bits of grey or YCbCr."""
  if data[:2] != b'\xff\xd8' or data[-2:] != b'\xff\xd9':
    return False
  at = 2
  while at + 9 < len(data) and data[at] == 0xFF:
    kind, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
    if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the frame
      height, width = (int.from_bytes(data[at + k : at + k + 2]) for k in (5, 7))
      small = height * width <= (PIL.Image.MAX_IMAGE_PIXELS or height * width)
      return small and data[at + 4] == 8 and data[at + 9] in (1, 3)
    at += 2 + length
  return False


def png(pixels: np.ndarray) -> bytes:
  """Encodes uint8 [h w] or [h w 3] as PNG; equal pixels give equal bytes."""
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def jpeg(pixels: np.ndarray, quality: int = 95) -> bytes:
  """Encodes uint8 [h w 3] as JPEG with the full resolution of colours."""
  full_color = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
  image = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
  return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality, *full_color])[1].tobytes()
