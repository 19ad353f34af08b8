"""Cuts from an image: the square around a box, and the exemplar (arXiv 2211.13227, open-images.py).

A box or window is `(x0, y0, x1, y1)` in whole pixels, `x1` and `y1` outside.
"""

import cv2
import numpy as np


def square_window(
  shape: tuple[int, int], extended: tuple[int, int, int, int], rng: np.random.Generator, zoom=0.6
) -> tuple[int, int, int, int] | None:
  """A random square that holds the extended box, zoomed in by up to `zoom` of the free border.

  A square image is not cut. None where the released code gives up and squashes the image: no square
  of the full short side holds the box, or exactly one does.
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
  """A view of the window, which must lie inside the image."""
  x0, y0, x1, y1 = window
  return image[y0:y1, x0:x1]


def pad_square(image: np.ndarray) -> np.ndarray:
  """The image [h w ...] centred in a square, its border mirrored outward."""
  height, width = image.shape[:2]
  side = max(height, width)
  top, left = (side - height) // 2, (side - width) // 2
  border = (top, side - height - top, left, side - width - left)
  return cv2.copyMakeBorder(image, *border, cv2.BORDER_REFLECT)


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """Bilinear to [size size ...], half-pixel centres, no antialiasing (align_corners off)."""
  if image.shape[:2] == (size, size):
    return np.ascontiguousarray(image)
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)


def exemplar(image: np.ndarray, box: tuple[int, int, int, int], size: int, pad=10) -> np.ndarray:
  """The box with up to `pad` pixels of its surroundings on each side, squashed to [size size 3]."""
  height, width = image.shape[:2]
  x0, y0, x1, y1 = box
  window = (max(x0 - pad, 0), max(y0 - pad, 0), min(x1 + pad, width), min(y1 + pad, height))
  return resize(cut(image, window), size)
