"""What became of the pixels outside the mask: exactness, PSNR and SSIM against the source."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from exedit.metrics import psnr as decibels

SIGMA = 1.5  # pixels: the Gaussian window of Wang et al. 2004, cut off at 11 x 11
RADIUS = 5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def exactness(
  result: UInt8[np.ndarray, 'h w 3'],
  source: UInt8[np.ndarray, 'p q 3'],
  mask: Bool[np.ndarray, 'r s'],
) -> float:
  """Share of the pixels outside the mask whose three bytes are the source's own, 0 to 1.

  Raises:
    ValueError: for other sizes (naming both), or a mask that leaves no background.
  """
  outside = _outside(result, source, mask)
  return float((result == source).all(-1)[outside].mean())


def psnr(
  result: UInt8[np.ndarray, 'h w 3'],
  source: UInt8[np.ndarray, 'p q 3'],
  mask: Bool[np.ndarray, 'r s'],
) -> float:
  """Peak signal-to-noise ratio outside the mask in dB, at most 100; errors as `exactness`."""
  outside = _outside(result, source, mask)
  error = (result[outside].astype(np.float64) - source[outside]) / 255
  return decibels.psnr((error**2).mean(keepdims=True)).item()


def ssim(
  result: UInt8[np.ndarray, 'h w 3'],
  source: UInt8[np.ndarray, 'p q 3'],
  mask: Bool[np.ndarray, 'r s'],
) -> float:
  """Structural similarity outside the mask (Wang et al. 2004), mean of the three channels.

  The mean runs over the background pixels at least 5 from the picture's edge, and the local
  statistics at each take only the background pixels of its window, their Gaussian weights
  scaled up to 1: what the hole holds never counts, so an untouched background scores exactly 1.
  Without a hole this is scikit-image's `gaussian_weights=True, use_sample_covariance=False`.

  Raises:
    ValueError: as `exactness`, and where the background has no pixel 5 from the edge.
  """
  outside = _outside(result, source, mask)
  inner = (slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
  counted = outside[inner]
  if not counted.any():
    raise ValueError(
      f'no pixel outside the mask lies {RADIUS} pixels from the edge of the {outside.shape[1]} x'
      f' {outside.shape[0]} picture: SSIM is undefined'
    )
  x = np.where(outside[..., None], result, 0).astype(np.float64)
  y = np.where(outside[..., None], source, 0).astype(np.float64)
  weight = np.maximum(_blur(outside.astype(np.float64)), 1e-12)[..., None]
  mean_x, mean_y = _blur(x) / weight, _blur(y) / weight
  var_x, var_y = _blur(x * x) / weight - mean_x**2, _blur(y * y) / weight - mean_y**2
  cov = _blur(x * y) / weight - mean_x * mean_y
  structure = (2 * mean_x * mean_y + C1) * (2 * cov + C2)
  structure /= (mean_x**2 + mean_y**2 + C1) * (var_x + var_y + C2)
  return float(structure[inner][counted].mean())


def _blur(image: Float[np.ndarray, 'h w *c']) -> Float[np.ndarray, 'h w *c']:
  side = 2 * RADIUS + 1
  return cv2.GaussianBlur(image, (side, side), SIGMA, borderType=cv2.BORDER_REFLECT)


def _outside(result, source, mask):
  """The background [h w]; ValueError where the three do not fit or nothing is outside."""
  for name, array in (('the source', source), ('the mask', mask)):
    if array.shape[:2] != result.shape[:2]:
      (h, w), (p, q) = result.shape[:2], array.shape[:2]
      raise ValueError(f'the result is {w} x {h} pixels (width x height) but {name} is {q} x {p}')
  if mask.all():
    raise ValueError('the mask covers the whole picture: there is no background to score')
  return ~mask
