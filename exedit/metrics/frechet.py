"""Fréchet distance of two sets of features, each modelled as one Gaussian: the formula of FID.

The distance depends on the number of images n: its expectation falls towards its limit roughly as
1/n (Chong and Forsyth 2020, arXiv:1911.07023). Compare only distances of equal n.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from exedit.metrics.features import check_rows, check_widths

CHUNK = 4096  # rows converted to float64 at a time


@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean and scatter of feature rows in float64: everything the distance needs of a set."""

  n: int
  mean: Float[np.ndarray, ' d']
  scatter: Float[np.ndarray, 'd d']  # sum over the rows of (x - mean)(x - mean)^T

  @classmethod
  def of(cls, features: Float[np.ndarray, 'n d'], name: str = 'features') -> 'Moments':
    """Compute the moments in two passes, a chunk of rows at a time.

    Raises:
      ValueError: if there are no features, or some are NaN (names the rows).
    """
    check_rows(name, features)
    mean = features.mean(0, dtype=np.float64)
    scatter = np.zeros((len(mean), len(mean)))
    for start in range(0, len(features), CHUNK):
      centred = features[start : start + CHUNK] - mean
      scatter += centred.T @ centred
    return cls(len(features), mean, scatter)

  @property
  def covariance(self) -> Float[np.ndarray, 'd d']:
    """The unbiased covariance, as `np.cov`; raises ValueError for a single image."""
    if self.n < 2:
      raise ValueError(
        f'{self.n} image has no covariance, so its Fréchet distance is undefined: give at least 2'
      )
    return self.scatter / (self.n - 1)


def frechet_distance(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm e']) -> float:
  """Fréchet distance of two sets of features (Heusel et al. 2017, equation 6), in float64.

  Raises:
    ValueError: for fewer than two images, for NaN (names the rows), for two widths (names both).
  """
  check_widths('the first set', a.shape[1], 'the second', b.shape[1])
  first, second = Moments.of(a, 'the first set'), Moments.of(b, 'the second set')
  return frechet_distance_of(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance_of(
  mean_a: Float[np.ndarray, ' d'],
  cov_a: Float[np.ndarray, '_ _'],
  mean_b: Float[np.ndarray, ' e'],
  cov_b: Float[np.ndarray, '_ _'],
) -> float:
  """Compute |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), never negative.

  tr (AB)^(1/2) is computed as the sum of the singular values of A^(1/2) B^(1/2). This is symmetric
  in its arguments, real, exact for singular covariances, and needs no root of an asymmetric matrix.

  Raises:
    ValueError: if the widths differ, values are not finite, or a matrix is not a covariance.
  """
  check_widths('the first set', len(mean_a), 'the second', len(mean_b))
  values_a, vectors_a = _spectrum('the first set', mean_a, cov_a)
  values_b, vectors_b = _spectrum('the second set', mean_b, cov_b)
  cross = np.sqrt(values_a)[:, None] * (vectors_a.T @ vectors_b) * np.sqrt(values_b)
  overlap = np.linalg.svd(cross, compute_uv=False).sum()
  offset = ((np.asarray(mean_a, np.float64) - mean_b) ** 2).sum()
  return max(0.0, float(offset + values_a.sum() + values_b.sum() - 2 * overlap))


def contribution(
  total: Moments, mean: Float[np.ndarray, ' e'], cov: Float[np.ndarray, '_ _']
) -> Callable[[Float[np.ndarray, 'b d']], Float[np.ndarray, ' b']]:
  """Return a function of rows: each image's contribution to its set's distance from a reference.

  The mean of the contributions is the distance. The excess of one image over that mean is the
  influence function of the distance (Hampel 1974, JASA 69:383), which is n times the change when
  the image gets more weight. Therefore the interval of the mean is the interval of the distance at
  this n with a fixed reference (the infinitesimal jackknife), a paired test of two systems'
  contributions compares their distances, and the highest contributions mark the images least like
  the reference. Do not resample the images themselves: a repeated image narrows the set, which
  moves every resampled distance up by about the bias at n.

  Args:
    total: the moments of the whole set.
    mean, cov: the moments of the reference.
  Raises:
    ValueError: as `frechet_distance_of`.
  """
  check_widths('the set', len(total.mean), 'the reference', len(mean))
  ours, vectors = _spectrum('the set', total.mean, total.covariance)
  theirs, axes = _spectrum('the reference', mean, cov)
  roots = np.sqrt(theirs)
  cross = roots[:, None] * (axes.T @ vectors) * np.sqrt(ours)
  left, values, _ = np.linalg.svd(cross)
  kept = values > len(values) * np.finfo(np.float64).eps * values[0]
  # The derivative of tr (AB)^(1/2) along B is x^T T x / 2, where T is the optimal map from B to A.
  whiten = axes * roots @ left[:, kept] / np.sqrt(values[kept])  # T = whiten whiten^T
  offset = total.mean - mean
  constant = offset @ offset + theirs.sum() - values.sum()
  unbiased = total.n / (total.n - 1)

  def of(features):
    centred = features - total.mean
    spread = (centred**2).sum(1) - ((centred @ whiten) ** 2).sum(1)
    return constant + 2 * centred @ offset + unbiased * spread

  return of


def _spectrum(name, mean, cov):
  """Eigenvalues and eigenvectors of a covariance; eigenvalues at the rounding error become 0."""
  if cov.shape != (len(mean), len(mean)):
    raise ValueError(f'{name}: a mean of width {len(mean)} but a covariance of shape {cov.shape}')
  if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
    raise ValueError(f'{name}: its mean or covariance is not finite')
  cov = np.asarray(cov, np.float64)
  scale = np.abs(cov).max()
  skew = np.abs(cov - cov.T).max()
  if skew > 1e-6 * scale:
    raise ValueError(f'{name}: its covariance is not symmetric, by {skew:g} of at most {scale:g}')
  values, vectors = np.linalg.eigh((cov + cov.T) / 2)
  if values[0] < -1e-6 * values[-1]:
    raise ValueError(
      f'{name}: its covariance has a negative eigenvalue: {values[0]:g} beside {values[-1]:g}'
    )
  noise = len(values) * np.finfo(np.float64).eps * values[-1]
  return np.where(values > noise, values, 0.0), vectors
