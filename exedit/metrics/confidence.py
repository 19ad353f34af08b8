"""Uncertainty of a metric: bootstrap intervals of means, intervals of shares, and paired tests.

A Fréchet distance is a mean too: the mean of `frechet.contribution` over the images.
"""

import dataclasses
import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

CONFIDENCE = 0.95
EXACT_UP_TO = 20  # pairs, which have a million sign patterns
CHUNK = 1 << 20  # random numbers at a time, so that memory does not grow with the resamples


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean of n scores with the ends of its 95 % interval."""

  value: float
  low: float
  high: float
  n: int


@dataclasses.dataclass(frozen=True)
class Paired:
  """The mean by which the first of two systems scored higher on the same n edits, with a test."""

  difference: float
  low: float
  high: float
  p: float  # two-sided; the null hypothesis is that swapping the two systems changes nothing
  n: int


def mean_interval(
  scores: Float[np.ndarray, ' n'], *, resamples: int = 10_000, seed: int = 0
) -> Interval:
  """Mean and its 95 % bootstrap interval, bias-corrected and accelerated (Efron 1987, JASA 82:171).

  The bootstrap resamples the scores with replacement. The same scores and seed give the same
  interval.

  Raises:
    ValueError: for fewer than two scores, which have no interval, or for NaN (names the rows).
  """
  _check('the scores', scores)
  scores = scores.astype(np.float64)
  mean = scores.mean()
  residuals = scores - mean
  if np.ptp(scores) == 0:
    return Interval(float(mean), float(mean), float(mean), len(scores))
  means = mean + _resampled_means(residuals, resamples, np.random.default_rng(seed))
  acceleration = (residuals**3).sum() / (6 * (residuals**2).sum() ** 1.5)
  # A resample of few scores often has their mean; this tolerance keeps rounding from deciding it.
  tie = 1e-9 * np.abs(residuals).max()
  below = ((means < mean - tie).mean() + (means <= mean + tie).mean()) / 2
  normal = NormalDist()
  bias = normal.inv_cdf(min(max(below, 0.5 / resamples), 1 - 0.5 / resamples))
  levels = []
  for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
    z = bias + normal.inv_cdf(tail)
    levels.append(normal.cdf(bias + z / (1 - acceleration * z)))
  low, high = np.quantile(means, levels)
  return Interval(float(mean), float(low), float(high), len(scores))


def paired(
  a: Float[np.ndarray, ' n'],
  b: Float[np.ndarray, ' m'],
  *,
  resamples: int = 10_000,
  seed: int = 0,
) -> Paired:
  """Mean of a - b over the same edits, its bootstrap interval, and the p-value of a sign flip test.

  The test gives every difference either sign (Fisher 1935). Up to n = 20 it uses all 2^n patterns,
  above that `resamples` random patterns together with the observed one, so p is never 0.

  Raises:
    ValueError: if the lengths differ (names both), for fewer than two pairs, for NaN (names rows).
  """
  if len(a) != len(b):
    raise ValueError(f'{len(a)} scores against {len(b)}: they must be of the same edits')
  for name, scores in (('the first scores', a), ('the second scores', b)):
    _check(name, scores)
  differences = a.astype(np.float64) - b
  interval = mean_interval(differences, resamples=resamples, seed=seed)
  p = sign_flip(differences, resamples=resamples, seed=seed)
  return Paired(interval.value, interval.low, interval.high, p, interval.n)


def sign_flip(
  differences: Float[np.ndarray, ' n'], *, resamples: int = 10_000, seed: int = 0
) -> float:
  """Two-sided p-value: the share of sign patterns whose mean is at least as far from zero."""
  sizes = np.abs(differences)
  observed = abs(differences.sum()) - 1e-9 * sizes.sum()  # rounding must not break ties
  if len(sizes) <= EXACT_UP_TO:
    sums = np.zeros(1)
    for size in sizes:
      sums = np.concatenate([sums + size, sums - size])
    return float((np.abs(sums) >= observed).mean())
  rng, hits = np.random.default_rng([seed, 1]), 0
  for count in _chunks(resamples, len(sizes)):
    flips = rng.integers(0, 2, (count, len(sizes)), np.int8)
    hits += int((np.abs(2 * (flips @ sizes) - sizes.sum()) >= observed).sum())
  return (1 + hits) / (1 + resamples)


def wilson(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
  """Wilson's score interval of a share (1927, JASA 22:209); the default z gives 95 %."""
  share, z2 = successes / n, z * z
  centre = (share + z2 / (2 * n)) / (1 + z2 / n)
  half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
  return max(0.0, centre - half), min(1.0, centre + half)


def _resampled_means(scores, resamples, rng):
  n = len(scores)
  draws = (scores[rng.integers(0, n, (k, n), np.int32)].mean(1) for k in _chunks(resamples, n))
  return np.concatenate(list(draws))


def _chunks(total, width):
  """Split `total` into counts such that each count's rows of `width` numbers fit in a chunk."""
  size = max(1, CHUNK // width)
  return [min(size, total - start) for start in range(0, total, size)]


def _check(name, scores):
  if len(scores) < 2:
    raise ValueError(f'{name}: an interval needs at least 2 scores, not {len(scores)}')
  wrong = np.flatnonzero(~np.isfinite(scores))
  if len(wrong):
    raise ValueError(
      f'{name}: {len(wrong)} of {len(scores)} are not finite, the first at row {wrong[0]}'
    )
