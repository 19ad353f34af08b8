"""Cuts from an image: the square around a box, and the exemplar (PbE ldm/data/open-images.py).

A box or window is `(x0, y0, x1, y1)` in whole pixels; x1 and y1 are exclusive.
"""

import cv2
import numpy as np

GREY = 128  # around a subject that is cut out, in training and in an edit


def square_window(
  shape: tuple[int, int], extended: tuple[int, int, int, int], rng: np.random.Generator, zoom=0.6
) -> tuple[int, int, int, int] | None:
  """Returns a random square window of an image [h w] that contains the extended box.

  Its side is the image's shorter side, less up to `zoom` of the free border around the box. A
  square image is not cut. Returns None where the released code squashes the image instead: if no
  full-side square contains the box, or exactly one does.
  """
  height, width = shape
  if width == height:
    return 0, 0, width, height
  if width < height:
    x0, y0, x1, y1 = extended
    window = square_window((width, height), (y0, x0, y1, x1), rng, zoom)
    return window and (window[1], window[0], window[3], window[2])
  x0, y0, x1, y1 = extended
  first, last = max(0, x1 - height), min(width, x0 + height) - height
  if first >= last:
    return None
  left = int(rng.integers(first, last + 1))
  free = min(y0, x0 - left, left + height - x1, height - y1)
  r = int(rng.integers(int(zoom * free) + 1))
  return left + r, r, left + height - r, height - r


def cut(image: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
  """Returns a view of the window, which must lie inside the image."""
  x0, y0, x1, y1 = window
  return image[y0:y1, x0:x1]


def pad_square(image: np.ndarray) -> np.ndarray:
  """Centres the image [h w ...] in a square and fills the border by mirroring the image."""
  height, width = image.shape[:2]
  side = max(height, width)
  top, left = (side - height) // 2, (side - width) // 2
  border = (top, side - height - top, left, side - width - left)
  return cv2.copyMakeBorder(image, *border, cv2.BORDER_REFLECT)


def square(image: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
  """Returns a view of the largest square at a random place of an image; without rng the middle."""
  height, width = image.shape[:2]
  side = min(height, width)
  free = max(height, width) - side
  start = free // 2 if rng is None else int(rng.integers(free + 1))
  return image[start : start + side] if height > width else image[:, start : start + side]


def resize(image: np.ndarray, size: int, smooth=False) -> np.ndarray:
  """Resizes to [size size ...]: bilinear, half-pixel centres, no antialiasing.

  smooth: an image that becomes smaller is averaged over areas, which is antialiasing.
  """
  if image.shape[:2] == (size, size):
    return np.ascontiguousarray(image)
  shrinks = smooth and min(image.shape[:2]) > size
  how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  return cv2.resize(image, (size, size), interpolation=how)


def exemplar(
  image: np.ndarray,
  box: tuple[int, int, int, int],
  size: int,
  pad=10,
  subject: np.ndarray | None = None,
) -> np.ndarray:
  """Cuts the box with up to `pad` pixels around it, and resizes the cut to [size size 3].

  subject: uint8 [h w], 255 on the subject; everything else becomes grey, as in an edit whose
    exemplar has a mask.
  """
  height, width = image.shape[:2]
  x0, y0, x1, y1 = box
  window = (max(x0 - pad, 0), max(y0 - pad, 0), min(x1 + pad, width), min(y1 + pad, height))
  found = cut(image, window)
  if subject is not None:
    seen = cut(subject, window)[..., None] / np.float32(255)
    found = np.round(found * seen + GREY * (1 - seen)).astype(np.uint8)
  return resize(found, size)
