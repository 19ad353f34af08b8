"""The trade-off of two scores along a knob: one curve per method, with intervals over the edits.

A curve has one point per setting of the knob: the means of both scores over the edits. Between its
points it is a line. Intervals resample the edits, the same ones at every setting and for every
method, so that differences of methods are paired.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from exedit.metrics.confidence import CONFIDENCE


@dataclasses.dataclass(frozen=True)
class Curve:
  """The scores of one method: `x` and `y` of each edit (row) at each setting (column)."""

  x: Float[np.ndarray, 'n k']
  y: Float[np.ndarray, 'n k']

  def points(
    self, rows: Int[np.ndarray, ' m'] | slice = slice(None)
  ) -> tuple[Float[np.ndarray, ' k'], Float[np.ndarray, ' k']]:
    """The means over some edits, in the order of x."""
    x, y = self.x[rows].mean(0), self.y[rows].mean(0)
    order = np.argsort(x, kind='stable')
    return x[order], y[order]

  def reach(self) -> tuple[float, float]:
    """The lowest and the highest mean of x."""
    x, _ = self.points()
    return float(x[0]), float(x[-1])


Statistic = Callable[[Float[np.ndarray, ' k'], Float[np.ndarray, ' k']], float]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A statistic of a curve, or the difference of two, with its 95 % bootstrap interval."""

  value: float
  low: float
  high: float


def value_at(at: float) -> Statistic:
  """The y of a curve at this x; beyond the curve that of its nearest end."""
  return lambda x, y: float(np.interp(at, x, y))


def height(low: float, high: float) -> Statistic:
  """The mean y of a curve between two values of x: the area below it, divided by their distance.

  Beyond its ends the curve keeps their y.
  """

  def mean(x, y):
    inside = x[(x > low) & (x < high)]
    at = np.concatenate([[low], inside, [high]])
    return float(np.trapezoid(np.interp(at, x, y), at) / (high - low))

  return mean


def estimate(
  statistic: Statistic,
  curve: Curve,
  other: Curve | None = None,
  *,
  resamples: int = 2000,
  seed: int = 0,
) -> Estimate:
  """The statistic of a curve, or that of `curve` less that of `other`, with its interval.

  Row i of both curves must be the same edit. The interval is that of the percentiles.

  Raises:
    ValueError: for fewer than two edits, and for curves of different numbers of edits.
  """
  curves = [curve] if other is None else [curve, other]
  n = len(curve.x)
  if any(len(c.x) != n for c in curves):
    raise ValueError(f'{n} edits against {len(curves[1].x)}: they must be the same edits')
  if n < 2:
    raise ValueError(f'an interval needs at least 2 edits, not {n}')

  def of(rows):
    first, *rest = (statistic(*c.points(rows)) for c in curves)
    return first - sum(rest)

  draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
  low, high = np.quantile(
    [of(rows) for rows in draws], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
  )
  return Estimate(of(slice(None)), float(low), float(high))
