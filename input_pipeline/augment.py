"""Exemplar augmentation of Paint by Example, with the results of albumentations 0.4.3.

Each function maps uint8 [s s 3] and a generator to uint8 [s s 3]. Pixels beyond the border are
mirrored, without repeating the edge. Source: PbE ldm/data/open-images.py.
"""

import cv2
import numpy as np


def flip(image: np.ndarray, rng: np.random.Generator, p=0.5) -> np.ndarray:
  """Mirrors left and right with probability p."""
  return cv2.flip(image, 1) if rng.random() < p else image


def rotate(image: np.ndarray, rng: np.random.Generator, limit=20, p=0.5) -> np.ndarray:
  """Rotates about (s/2, s/2) by a uniform angle of -limit..limit degrees, with probability p."""
  if rng.random() >= p:
    return image
  height, width = image.shape[:2]
  return _warp(
    image, cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-limit, limit), 1.0)
  )


def blur(image: np.ndarray, rng: np.random.Generator, kernels=(3, 5, 7), p=0.3) -> np.ndarray:
  """Applies a box blur with one of the kernel sizes (pixels), with probability p."""
  if rng.random() >= p:
    return image
  kernel = int(kernels[rng.integers(len(kernels))])
  return cv2.blur(image, (kernel, kernel))


def affine(image: np.ndarray, rng: np.random.Generator, jitter=50, p=0.3) -> np.ndarray:
  """Applies the affine map that moves three anchors by -jitter..jitter pixels, with probability p.

  The jitter is in pixels of a 224-pixel exemplar and scales with its side. This replaces
  ElasticTransform(alpha=1, sigma=50, alpha_affine=50), whose elastic field has a standard deviation
  of only 0.004 pixels and is left out.
  """
  if rng.random() >= p:
    return image
  anchors = _anchors(min(image.shape[:2]), image.shape[0] // 2, image.shape[1] // 2)
  scale = min(image.shape[:2]) / 224
  moved = anchors + rng.uniform(-jitter * scale, jitter * scale, anchors.shape).astype(np.float32)
  return _warp(image, cv2.getAffineTransform(anchors, moved))


def exemplar(
  image: np.ndarray, rng: np.random.Generator, *, affine_jitter=50, blur_kernels=(3, 5, 7)
) -> np.ndarray:
  """Applies flip, rotate, blur and affine, in the published order."""
  image = flip(image, rng)
  image = rotate(image, rng)
  image = blur(image, rng, blur_kernels)
  return affine(image, rng, affine_jitter)


def _anchors(side: int, row: int, column: int) -> np.ndarray:
  third = side // 3
  return np.array(
    [[row + third, column + third], [row + third, column - third], [row - third, column - third]],
    np.float32,
  )


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  size = (image.shape[1], image.shape[0])
  return cv2.warpAffine(
    image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
  )
