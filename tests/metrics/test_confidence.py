import itertools

import numpy as np
import pytest
import scipy.stats

from exedit.metrics import confidence
from exedit.metrics.confidence import mean_interval, paired, sign_flip

# Means


@pytest.mark.parametrize('n', [12, 80, 250])
def test_interval_is_scipys_bca(n):
  scores = np.random.default_rng(n).exponential(size=n)
  theirs = scipy.stats.bootstrap(
    (scores,), np.mean, n_resamples=100_000, method='BCa', rng=np.random.default_rng(1)
  ).confidence_interval
  ours = mean_interval(scores, resamples=100_000)
  assert ours.value == scores.mean() and ours.n == n
  near = 0.02 * (theirs.high - theirs.low)  # quantiles of 100,000 random means
  np.testing.assert_allclose((ours.low, ours.high), theirs, atol=near)


def test_interval_holds_the_truth_as_often_as_it_says():
  """On skewed scores, for which symmetric intervals are too short at this n."""
  rng = np.random.default_rng(0)
  found = [mean_interval(rng.exponential(size=50), resamples=1000) for _ in range(400)]
  assert 0.90 <= np.mean([i.low <= 1 <= i.high for i in found]) <= 0.98


def test_interval_is_a_function_of_scores_and_seed(monkeypatch):
  scores = np.random.default_rng(3).normal(size=300).astype(np.float32)
  first = mean_interval(scores)
  assert first == mean_interval(scores) != mean_interval(scores, seed=1)
  monkeypatch.setattr(confidence, 'CHUNK', 1000)  # drawn in many chunks: the same numbers
  assert first == mean_interval(scores)


def test_two_scores_have_an_interval_and_one_has_none():
  found = mean_interval(np.array([1.0, 2.0]))
  assert (found.value, found.low, found.high) == (1.5, 1.0, 2.0)
  same = mean_interval(np.full(9, 0.3))
  assert same == confidence.Interval(0.3, 0.3, 0.3, 9)
  for n in (0, 1):
    with pytest.raises(ValueError, match=f'the scores: .* at least 2 scores, not {n}'):
      mean_interval(np.ones(n))


def test_nan_scores_are_named():
  scores = np.ones(10)
  scores[[4, 6]] = np.nan, np.inf
  with pytest.raises(ValueError, match='2 of 10 are not finite, the first at row 4'):
    mean_interval(scores)
  with pytest.raises(ValueError, match='the second scores: 2 of 10'):
    paired(np.ones(10), scores)


# Pairs


@pytest.mark.parametrize('n', [2, 5, 9])
def test_small_sign_flips_are_exact(n):
  d = np.random.default_rng(n).normal(size=n) + 0.7
  means = [np.mean(np.array(signs) * d) for signs in itertools.product((1, -1), repeat=n)]
  expected = np.mean(np.abs(means) >= abs(d.mean()) * (1 - 1e-9))
  assert sign_flip(d) == expected
  theirs = scipy.stats.permutation_test(
    (d,), np.mean, permutation_type='samples', n_resamples=10**6
  )
  np.testing.assert_allclose(sign_flip(d), theirs.pvalue, rtol=1e-12)


def test_ties_survive_rounding():
  """0.1 + 0.2 - 0.3 is not 0 in binary, but every pattern counts as far as the observed one."""
  assert sign_flip(np.array([0.1, 0.2, -0.3])) == 1
  assert sign_flip(np.array([0.1, 0.1, 0.1])) == 2 / 8


def test_paired_finds_what_two_intervals_hide():
  rng = np.random.default_rng(7)
  edits = 10 * rng.normal(size=300)
  a, b = edits + rng.normal(size=300) + 0.5, edits + rng.normal(size=300)
  found = paired(a, b)
  np.testing.assert_allclose(found.difference, a.mean() - b.mean())
  assert 0 < found.low < found.difference < found.high and found.p < 0.001 and found.n == 300
  assert mean_interval(a).low < mean_interval(b).value  # apart they show nothing
  back = paired(b, a)
  assert back.p == found.p
  np.testing.assert_allclose(back.difference, -found.difference)
  np.testing.assert_allclose((back.low, back.high), (-found.high, -found.low), rtol=0.1)


def test_pairs_must_match():
  with pytest.raises(ValueError, match='30 scores against 29: they must be of the same edits'):
    paired(np.ones(30), np.ones(29))
  with pytest.raises(ValueError, match='at least 2 scores, not 1'):
    paired(np.ones(1), np.zeros(1))


# Shares


def test_wilson_gives_the_published_figures():
  # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
  published = {
    (81, 263): (0.2553, 0.3662),
    (15, 148): (0.0624, 0.1605),
    (0, 20): (0.0, 0.1611),
    (1, 29): (0.0061, 0.1718),
  }
  for (successes, n), interval in published.items():
    np.testing.assert_allclose(confidence.wilson(successes, n), interval, atol=5e-5)
  assert confidence.wilson(20, 20)[1] == 1.0


def test_rounding_does_not_move_the_interval_of_a_few_scores():
  """One in eleven resamples of four scores has their mean, up to rounding."""
  scores = np.array([0.0186, 0.0034, 0.0150, 0.0151])
  intervals = [
    confidence.mean_interval(scores * (1 + 1e-8 * np.random.default_rng(seed).normal(size=4)))
    for seed in range(8)
  ]
  for part in ('low', 'high'):
    ends = [getattr(interval, part) for interval in intervals]
    np.testing.assert_allclose(ends, ends[0], rtol=1e-6)
