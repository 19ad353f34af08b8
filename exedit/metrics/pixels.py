"""Metrics over pixels: inside the mask against known truths, outside it against the source.

The source and the result are uint8, and a mask is True where the picture was repainted.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

SIGMA = 1.5  # pixels: SSIM's Gaussian window (Wang et al. 2004), cut off at 11 x 11
RADIUS = 5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(mse: Float[np.ndarray, '...']) -> Float[np.ndarray, '...']:
  """Convert a mean squared error, in units of the full range, to dB; an exact match gives 100."""
  return -10 * np.log10(np.maximum(mse, 1e-10))


# Inside the mask


def box(mask: Bool[np.ndarray, 'h w'], *, published: bool) -> tuple[slice, slice]:
  """Return the rows and columns of the mask's bounding box: `image[box(mask, published=True)]`.

  Args:
    mask: the published code counts only pixels of exactly 255 as masked.
    published: cut as the published CLIP score does: from the first to the last masked pixel in
      reading order, without the last row and the last column. False: the whole box.
  Raises:
    ValueError: if the mask is empty. With `published`, also if the mask is not a rectangle or is
      thinner than two pixels.
  """
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(rows):
    raise ValueError('the mask is empty: there is no region to score')
  y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
  if not published:
    return slice(y0, y1), slice(x0, x1)
  area, masked = (y1 - y0) * (x1 - x0), int(mask.sum())
  if masked != area:
    raise ValueError(
      f'the mask is not a rectangle ({masked} of the {area} pixels of its box are masked): the'
      ' published crop is defined for rectangles only'
    )
  if min(y1 - y0, x1 - x0) < 2:
    raise ValueError(
      f'the mask is {x1 - x0} x {y1 - y0} pixels: nothing is left of it, because the published'
      ' crop drops the last row and column'
    )
  return slice(y0, y1 - 1), slice(x0, x1 - 1)


def distances(
  result: UInt8[np.ndarray, 'b h w 3'],
  truths: UInt8[np.ndarray, 'b k h w 3'],
  mask: Bool[np.ndarray, 'b h w'],
) -> Float[np.ndarray, 'b k']:
  """Compute the mean squared error inside the mask to every truth, in units of the full range.

  Raises:
    ValueError: if a mask is empty.
  """
  if not mask.any((1, 2)).all():
    raise ValueError('a mask is empty: there is no region to compare')
  rows = []
  for image, candidates, hole in zip(result, truths, mask, strict=True):
    error = candidates[:, hole].astype(np.float64) - image[hole].astype(np.float64)  # [k pixels 3]
    rows.append((error**2).mean((1, 2)) / 255**2)
  return np.stack(rows)


def identified(
  distances: Float[np.ndarray, 'b k'], answer: Int[np.ndarray, ' b']
) -> Bool[np.ndarray, ' b']:
  """Tell for each edit whether the right truth is nearer than every other; a tie counts as no."""
  rows = np.arange(len(answer))
  others = distances.copy()
  others[rows, answer] = np.inf
  return distances[rows, answer] < others.min(1)


# Outside the mask


def background_exactness(
  result: UInt8[np.ndarray, 'h w 3'],
  source: UInt8[np.ndarray, 'p q 3'],
  mask: Bool[np.ndarray, 'r s'],
) -> float:
  """Share of the pixels outside the mask whose three bytes equal the source's, 0 to 1.

  Raises:
    ValueError: if the sizes differ, or if the mask covers the whole picture.
  """
  outside = _outside(result, source, mask)
  return float((result == source).all(-1)[outside].mean())


def background_psnr(
  result: UInt8[np.ndarray, 'h w 3'],
  source: UInt8[np.ndarray, 'p q 3'],
  mask: Bool[np.ndarray, 'r s'],
) -> float:
  """Peak signal-to-noise ratio outside the mask in dB, at most 100.

  Raises:
    ValueError: as `background_exactness`.
  """
  outside = _outside(result, source, mask)
  error = (result[outside].astype(np.float64) - source[outside]) / 255
  return psnr((error**2).mean(keepdims=True)).item()


def background_ssim(
  result: UInt8[np.ndarray, 'h w 3'],
  source: UInt8[np.ndarray, 'p q 3'],
  mask: Bool[np.ndarray, 'r s'],
) -> float:
  """Structural similarity outside the mask (Wang et al. 2004), mean of the three channels.

  The mean covers the background pixels that are at least 5 pixels from the picture's edge. The
  local statistics at each of them use only the background pixels of its window, with Gaussian
  weights scaled to a sum of 1. The content of the hole never counts, so an untouched background
  scores exactly 1. Without a hole the result equals scikit-image's with `gaussian_weights=True` and
  `use_sample_covariance=False`.

  Raises:
    ValueError: as `background_exactness`, and if no background pixel is 5 pixels from the edge.
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


# Over whole frames, as PIE-Bench's code does after it has made the edited region black in both


def frame_mse(a: UInt8[np.ndarray, 'h w 3'], b: UInt8[np.ndarray, 'h w 3']) -> float:
  """Mean squared error of pixels from 0 to 1."""
  return float((((a.astype(np.float64) - b) / 255) ** 2).mean())


def frame_psnr(a: UInt8[np.ndarray, 'h w 3'], b: UInt8[np.ndarray, 'h w 3']) -> float:
  """Peak signal-to-noise ratio in dB.

  Raises:
    ValueError: for equal frames, whose ratio is infinite.
  """
  mse = frame_mse(a, b)
  if not mse:
    raise ValueError("the background is the source's own: its PSNR is infinite")
  return float(-10 * np.log10(mse))


def frame_ssim(a: UInt8[np.ndarray, 'h w 3'], b: UInt8[np.ndarray, 'h w 3']) -> float:
  """SSIM over the frame without the 5 pixels at its border, as torchmetrics 1.2 computes it."""
  return background_ssim(a, b, np.zeros(a.shape[:2], bool))


def _blur(image: Float[np.ndarray, 'h w *c']) -> Float[np.ndarray, 'h w *c']:
  side = 2 * RADIUS + 1
  return cv2.GaussianBlur(image, (side, side), SIGMA, borderType=cv2.BORDER_REFLECT)


def _outside(result, source, mask):
  """Return the background [h w]; raise ValueError if sizes differ or there is no background."""
  for name, array in (('the source', source), ('the mask', mask)):
    if array.shape[:2] != result.shape[:2]:
      (h, w), (p, q) = result.shape[:2], array.shape[:2]
      raise ValueError(f'the result is {w} x {h} pixels (width x height) but {name} is {q} x {p}')
  if mask.all():
    raise ValueError('the mask covers the whole picture: there is no background to score')
  return ~mask
