"""Fréchet distance of two sets of features, each seen as one Gaussian: the formula of every FID.

The distance depends on the number of images: its expectation falls towards its limit about as
1/n (Chong and Forsyth 2020, arXiv:1911.07023), so only distances of equal n compare.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from exedit.metrics import checks


@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean and scatter of feature rows in float64: all that the distance needs of a set.

  `Moments.of` takes a batch; `merge` joins two, of batches or of hosts, in any order. Memory is
  one [d d] matrix whatever the number of images.
  """

  n: int
  mean: Float[np.ndarray, ' d']
  scatter: Float[np.ndarray, 'd d']  # sum over the rows of (x - mean)(x - mean)^T

  @classmethod
  def of(cls, features: Float[np.ndarray, 'n d'], name: str = 'features') -> 'Moments':
    """The moments of one batch, in two passes; ValueError for none or for NaN, naming the rows."""
    checks.rows(name, features)
    mean = features.mean(0, dtype=np.float64)
    centred = features - mean
    return cls(len(features), mean, centred.T @ centred)

  def merge(self, other: 'Moments') -> 'Moments':
    """The moments of both sets together (Chan, Golub and LeVeque 1979, equations 2.1)."""
    checks.widths('one batch', len(self.mean), 'another', len(other.mean))
    n = self.n + other.n
    step = other.mean - self.mean
    between = np.outer(step, step) * (self.n * other.n / n)
    mean = self.mean + step * (other.n / n)
    return Moments(n, mean, self.scatter + other.scatter + between)

  @property
  def covariance(self) -> Float[np.ndarray, 'd d']:
    """Unbiased, as `np.cov`; ValueError for one image, which has none."""
    if self.n < 2:
      raise ValueError(
        f'{self.n} image has no covariance, so its Fréchet distance is undefined: give at least 2'
      )
    return self.scatter / (self.n - 1)


def frechet_distance(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm e']) -> float:
  """Fréchet distance of two sets of features (Heusel et al. 2017, equation 6), in float64.

  Raises:
    ValueError: for fewer than two images, NaN (naming the rows) or two widths (naming both).
  """
  checks.widths('the first set', a.shape[1], 'the second', b.shape[1])
  first, second = Moments.of(a, 'the first set'), Moments.of(b, 'the second set')
  return frechet_distance_of(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance_of(
  mean_a: Float[np.ndarray, ' d'],
  cov_a: Float[np.ndarray, '_ _'],
  mean_b: Float[np.ndarray, ' e'],
  cov_b: Float[np.ndarray, '_ _'],
) -> float:
  """|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2)), never negative.

  tr (AB)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2): symmetric in its arguments,
  real, exact for singular covariances; no root of a matrix that is not symmetric is taken.

  Raises:
    ValueError: for two widths, values that are not finite, or matrices that are no covariances.
  """
  checks.widths('the first set', len(mean_a), 'the second', len(mean_b))
  values_a, vectors_a = _spectrum('the first set', mean_a, cov_a)
  values_b, vectors_b = _spectrum('the second set', mean_b, cov_b)
  cross = np.sqrt(values_a)[:, None] * (vectors_a.T @ vectors_b) * np.sqrt(values_b)
  overlap = np.linalg.svd(cross, compute_uv=False).sum()
  offset = ((np.asarray(mean_a, np.float64) - mean_b) ** 2).sum()
  return max(0.0, float(offset + values_a.sum() + values_b.sum() - 2 * overlap))


def contributions(
  features: Float[np.ndarray, 'n d'],
  mean: Float[np.ndarray, ' e'],
  cov: Float[np.ndarray, '_ _'],
) -> Float[np.ndarray, ' n']:
  """What each image adds to the set's distance from a reference: their mean is the distance.

  An image's excess over the mean is the distance's influence function at it (Hampel 1974, JASA
  69:383), n times what giving it more weight changes. So the interval of their mean is that of
  the distance at this n with the reference held fixed (the infinitesimal jackknife), a paired
  test of two systems' contributions compares their distances, and the highest are the images
  least like the reference. Resampling the images themselves would not do: an image drawn twice
  narrows the set, which shifts every resampled distance up by about the bias at n.

  Raises:
    ValueError: as `frechet_distance_of`.
  """
  return contribution(Moments.of(features), mean, cov)(features)


def contribution(
  total: Moments, mean: Float[np.ndarray, ' e'], cov: Float[np.ndarray, '_ _']
) -> Callable[[Float[np.ndarray, 'b d']], Float[np.ndarray, ' b']]:
  """`contributions` batch by batch: a function of rows, given the moments of the whole set."""
  checks.widths('the set', len(total.mean), 'the reference', len(mean))
  ours, vectors = _spectrum('the set', total.mean, total.covariance)
  theirs, axes = _spectrum('the reference', mean, cov)
  roots = np.sqrt(theirs)
  cross = roots[:, None] * (axes.T @ vectors) * np.sqrt(ours)
  left, values, _ = np.linalg.svd(cross)
  kept = values > len(values) * np.finfo(np.float64).eps * values[0]
  # The derivative of tr (AB)^(1/2) along B is x^T T x / 2, T the optimal map from B to A.
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
  """Eigenvalues and -vectors of a covariance; what rounding left of a null direction is zero."""
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
