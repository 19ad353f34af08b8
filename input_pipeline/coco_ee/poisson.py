"""Poisson blending with an exact solver: a pasted picture keeps its edges and loses its seam.

Source: Perez et al., "Poisson Image Editing", 2003. With f the result and g the pasted picture,
u = f - g is harmonic in the region and compensates the difference at its rim. For a pixel p of the
region, and its four neighbours q as far as the image has them,

    sum_q (u_p - u_q [q inside]) = sum_{q outside} (image_q - g_p),

because g is continued beyond the rim with its value at p. On a rectangle the left side is
T_h x 1 + 1 x T_w with tridiagonal T, solved through their eigenvectors (Lynch, Rice, Thomas 1964).
For other regions, conjugate gradients use the solution on the bounding box as the preconditioner.
OpenCV's seamlessClone is no alternative: it erodes the region by three pixels and solves on the
box, which small regions do not survive.
"""

import functools
from collections.abc import Iterator

import numpy as np


def blend(canvas: np.ndarray, image: np.ndarray, region: np.ndarray) -> np.ndarray:
  """Blends the canvas [h w 3] inside the region [h w] into the image around it (eq. 7).

  If the region is the whole image, the result is the canvas. The region must not be empty. Returns
  float64, not clipped.
  """
  rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
  y0, y1, x0, x1 = map(int, (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
  result = image.astype(np.float64)
  result[region] = canvas[region]
  if region.all():
    return result
  h, w = region.shape
  right = _rim(result, region)[y0:y1, x0:x1]
  inside = region[y0:y1, x0:x1]
  solve = functools.partial(
    _solve_box, _modes(y1 - y0, y0 > 0, y1 < h), _modes(x1 - x0, x0 > 0, x1 < w)
  )
  if inside.all():
    u = solve(right)
  else:
    degree = _degree(region.shape)[y0:y1, x0:x1]
    u = _solve_region(right, inside, degree, solve)
  result[y0:y1, x0:x1][inside] += u[inside]
  return result


def _neighbours(shape: tuple[int, int]) -> Iterator[tuple[tuple, tuple]]:
  """Yields the slices (here, there) of pixels and of their neighbours, for four directions."""
  first, last, all_ = slice(None, -1), slice(1, None), slice(None)
  yield (last, all_), (first, all_)
  yield (first, all_), (last, all_)
  yield (all_, last), (all_, first)
  yield (all_, first), (all_, last)


def _rim(image: np.ndarray, region: np.ndarray) -> np.ndarray:
  """Sums image_q - image_p over the outside neighbours q; 0 outside the region, [h w 3]."""
  right = np.zeros_like(image)
  for here, there in _neighbours(region.shape):
    crosses = region[here] & ~region[there]
    right[here] += np.where(crosses[..., None], image[there] - image[here], 0)
  return right


def _modes(n: int, before: bool, after: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns eigenvalues [n] and orthonormal vectors [n n] of the second difference of n pixels.

  before, after: whether there is a rim at that end. The vectors are waves that vanish beyond an end
  with a rim and are even about an end without one.
  """
  if after and not before:
    values, vectors = _modes(n, True, False)
    return values, vectors[::-1]
  i, k = np.arange(n)[:, None], np.arange(n)
  if before and after:
    phase, vectors = (k + 1) / (n + 1), np.sin(np.pi * (i + 1) * (k + 1) / (n + 1))
  elif before:
    phase, vectors = (k + 0.5) / (n + 0.5), np.sin(np.pi * (i + 1) * (k + 0.5) / (n + 0.5))
  else:
    phase, vectors = k / n, np.cos(np.pi * (i + 0.5) * k / n)
  return 2 - 2 * np.cos(np.pi * phase), vectors / np.linalg.norm(vectors, axis=0)


def _solve_box(rows, columns, right: np.ndarray) -> np.ndarray:
  """Solves for u on a rectangle that lies in the region, [h w 3]."""
  (a, p), (b, q) = rows, columns
  values = (a[:, None] + b)[..., None]
  values[values < 1e-10] = 1  # a box without a rim has a free mean; it is only a preconditioner
  modes = np.einsum('ij,jkc->ikc', p.T, right, optimize=True)
  modes = np.einsum('ijc,jk->ikc', modes, q, optimize=True) / values
  modes = np.einsum('ij,jkc->ikc', p, modes, optimize=True)
  return np.einsum('ijc,jk->ikc', modes, q.T, optimize=True)


def _degree(shape: tuple[int, int]) -> np.ndarray:
  """Returns the number of neighbours of each pixel: 4, less at the border of the image."""
  degree = np.zeros(shape)
  for here, _ in _neighbours(shape):
    degree[here] += 1
  return degree


def _solve_region(right, inside, degree, solve, tolerance=1e-10, most=2000) -> np.ndarray:
  """Solves for u on any region by preconditioned conjugate gradients; arrays are of its box."""
  weight = inside[..., None].astype(np.float64)

  def apply(u):
    out = degree[..., None] * u
    for here, there in _neighbours(inside.shape):
      out[here] -= u[there]
    return out * weight

  dot = lambda a, b: (a * b).sum((0, 1))
  ratio = lambda a, b: np.divide(a, b, out=np.zeros(3), where=b > 0)
  u, rest = np.zeros_like(right), right.copy()
  z = solve(rest) * weight
  direction, energy = z, dot(rest, z)
  limit = tolerance**2 * dot(right, right)
  for _ in range(most):
    if (dot(rest, rest) <= limit).all():
      break
    moved = apply(direction)
    step = ratio(energy, dot(direction, moved))
    u, rest = u + step * direction, rest - step * moved
    z = solve(rest) * weight
    before, energy = energy, dot(rest, z)
    direction = z + ratio(energy, before) * direction
  return u
