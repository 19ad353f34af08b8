"""Curves of two scores: values between their points, areas, and paired intervals over the edits."""

import numpy as np
import pytest

from exedit.metrics import tradeoff


def curve(shift=0.0, n=200, noise=1.0, seed=0):
  """y = 100 - x + shift on average; the edits differ, by the same amounts for every curve."""
  rng = np.random.default_rng(seed)
  x = np.array([90.0, 60, 70]) + noise * rng.normal(size=(n, 1))
  y = (
    100
    + shift
    - np.array([90.0, 60, 70])
    + 3 * noise * np.random.default_rng(9).normal(size=(n, 1))
  )
  return tradeoff.Curve(x, y)


def test_between_its_points_a_curve_is_a_line():
  x, y = np.array([60.0, 70, 90]), np.array([40.0, 30, 26])
  for at, expected in ((60, 40), (65, 35), (70, 30), (80, 28), (90, 26), (50, 40), (99, 26)):
    assert tradeoff.value_at(float(at))(x, y) == pytest.approx(expected)
  area = 10 * 35 + 20 * 28
  assert tradeoff.height(60.0, 90.0)(x, y) == pytest.approx(area / 30)
  assert tradeoff.height(70.0, 90.0)(x, y) == pytest.approx(28)
  assert tradeoff.height(61.0, 62.0)(x, y) == pytest.approx(38.5)


def test_points_are_means_in_the_order_of_x():
  found = curve(noise=0)
  x, y = found.points()
  np.testing.assert_allclose(x, [60, 70, 90])
  np.testing.assert_allclose(y, [40, 30, 10])
  assert found.reach() == (60, 90)


def test_intervals_cover_the_truth_as_often_as_they_say():
  """The value at 75 is 25; 60 sets of 40 edits, of which 57 are expected to cover it."""
  hits = 0
  for seed in range(60):
    rng = np.random.default_rng(seed)
    x = np.array([60.0, 70, 90]) + rng.normal(size=(40, 3))
    y = np.array([40.0, 30, 10]) + 2 * rng.normal(size=(40, 3))
    found = tradeoff.estimate(tradeoff.value_at(75.0), tradeoff.Curve(x, y), resamples=300)
    hits += found.low <= 25 <= found.high
  assert 50 <= hits <= 60


def test_differences_are_paired():
  """The edits differ by far more than the methods; only pairing shows it."""
  better, worse = curve(shift=0.5, noise=5), curve(noise=5)
  alone = tradeoff.estimate(tradeoff.value_at(75.0), better)
  found = tradeoff.estimate(tradeoff.value_at(75.0), better, worse)
  assert found.value == pytest.approx(0.5) and found.low > 0.4 and found.high < 0.6
  assert alone.high - alone.low > 1
  again = tradeoff.estimate(tradeoff.value_at(75.0), better, worse)
  assert again == found


def test_edits_that_cannot_be_compared_are_refused():
  with pytest.raises(ValueError, match='20 edits against 30'):
    tradeoff.estimate(tradeoff.value_at(75.0), curve(n=20), curve(n=30))
  with pytest.raises(ValueError, match='at least 2 edits, not 1'):
    tradeoff.estimate(tradeoff.value_at(75.0), curve(n=1))
