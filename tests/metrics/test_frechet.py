import numpy as np
import pytest
import scipy.linalg

from exedit.metrics import confidence, frechet
from exedit.metrics.frechet import Moments, frechet_distance, frechet_distance_of


def covariance(d, rng):
  q, _ = np.linalg.qr(rng.normal(size=(d, d)))
  return (q * rng.uniform(0.5, 2.0, d)) @ q.T


def two_sets(n, m, d, seed=0):
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) / d**0.5 + 0.3 * rng.normal(size=d)
  b = rng.normal(size=(m, d)) @ rng.normal(size=(d, d)) / d**0.5
  return a, b


def contributions(features, mean, covariance):
  return frechet.contribution(Moments.of(features), mean, covariance)(features)


# The distance


@pytest.mark.parametrize('d', [1, 5, 64])
def test_distance_is_that_of_scipys_matrix_root(d):
  rng = np.random.default_rng(d)
  mean_a, mean_b = rng.normal(size=(2, d))
  a, b = covariance(d, rng), covariance(d, rng)
  root = np.real(scipy.linalg.sqrtm(a @ b))
  expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root)
  np.testing.assert_allclose(frechet_distance_of(mean_a, a, mean_b, b), expected, rtol=1e-10)


def test_distance_of_features_is_that_of_their_means_and_covariances():
  a, b = two_sets(300, 200, 16)
  root = np.real(scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)))
  trace = np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)
  expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + trace
  np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-10)
  a32, b32 = a.astype(np.float32), b.astype(np.float32)
  np.testing.assert_allclose(frechet_distance(a32, b32), expected, rtol=1e-5)


def test_singular_covariances_have_their_exact_distance():
  u, v = np.random.default_rng(1).normal(size=(2, 8))
  expected = u @ u + v @ v - 2 * abs(u @ v)  # of rank 1: tr sqrt(uu' vv') = |u'v|
  zero = np.zeros(8)
  found = frechet_distance_of(zero, np.outer(u, u), zero, np.outer(v, v))
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  flat = frechet_distance_of(zero, np.zeros((8, 8)), zero, np.outer(v, v))
  np.testing.assert_allclose(flat, v @ v, rtol=1e-12)


def test_near_singular_covariances_keep_their_digits():
  """On spectra over twenty orders of magnitude, of which roots of A B lose half."""
  rng = np.random.default_rng(2)
  q, _ = np.linalg.qr(rng.normal(size=(40, 40)))
  p, r = 10.0 ** -np.linspace(0, 20, 40), 2 * 10.0 ** -np.linspace(0, 18, 40)
  expected = ((np.sqrt(p) - np.sqrt(r)) ** 2).sum()
  found = frechet_distance_of(np.zeros(40), (q * p) @ q.T, np.zeros(40), (q * r) @ q.T)
  np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize(('n', 'm', 'd'), [(10, 200, 32), (7, 5, 64), (2, 2, 16), (500, 30, 20)])
def test_fewer_images_than_dimensions(n, m, d):
  """Compared with another formula: the nuclear norm of the images' products."""
  a, b = two_sets(n, m, d)
  x, y = a - a.mean(0), b - b.mean(0)
  overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum() / np.sqrt((n - 1) * (m - 1))
  spread = (x**2).sum() / (n - 1) + (y**2).sum() / (m - 1)
  expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * overlap
  np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-7)


@pytest.mark.parametrize(('n', 'm', 'd'), [(400, 300, 24), (10, 8, 64), (3, 100, 32)])
def test_distance_is_symmetric_and_zero_on_itself(n, m, d):
  a, b = two_sets(n, m, d)
  np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-11)
  scale = (a**2).sum(1).mean()
  assert 0 <= frechet_distance(a, a) < 1e-12 * scale
  assert 0 <= frechet_distance(a, a[::-1]) < 1e-11 * scale


@pytest.mark.parametrize('n', [0, 1])
def test_no_or_one_image_has_no_distance(n):
  a, b = two_sets(20, 20, 4)
  what = 'no features' if n == 0 else '1 image has no covariance.*undefined.*at least 2'
  with pytest.raises(ValueError, match=what):
    frechet_distance(a[:n], b)


def test_features_that_are_not_finite_or_of_two_networks_are_refused():
  a, b = two_sets(20, 20, 4)[0], two_sets(20, 20, 6)[0]
  with pytest.raises(ValueError, match='the second set: .* 20 of 20 .* rows 0, 1, 2, 3, 4 and 15'):
    frechet_distance(a, a * np.nan)
  with pytest.raises(ValueError, match='width 4 .* width 6: .* same network'):
    frechet_distance(a, b)
  with pytest.raises(ValueError, match='width 4 .* width 6'):
    contributions(a, np.zeros(6), np.eye(6))


def test_what_is_no_covariance_is_refused():
  zero, eye = np.zeros(3), np.eye(3)
  skew = eye + np.triu(np.ones((3, 3)), 1)
  for wrong, what in (
    (np.diag([1.0, 1.0, -0.5]), 'negative eigenvalue: -0.5 beside 1'),
    (skew, 'not symmetric'),
    (np.full((3, 3), np.nan), 'not finite'),
    (np.eye(4), r'mean of width 3 but a covariance of shape \(4, 4\)'),
  ):
    with pytest.raises(ValueError, match='the second set.*' + what):
      frechet_distance_of(zero, eye, zero, wrong)


def test_moments_in_chunks_are_numpys(monkeypatch):
  """A far mean costs no digits, as sums of squares would: 1e8 squared hides a variance of 1."""
  monkeypatch.setattr(frechet, 'CHUNK', 64)
  a, _ = two_sets(1000, 2, 12)
  for shift, tolerance in ((0, 1e-11), (1e8, 1e-6)):
    total = Moments.of(a + shift)
    np.testing.assert_allclose(total.mean, a.mean(0) + shift, rtol=1e-12, atol=1e-14)
    expected = np.cov(a, rowvar=False)
    np.testing.assert_allclose(total.covariance, expected, rtol=tolerance, atol=tolerance)


# Contributions


@pytest.mark.parametrize(('n', 'd'), [(300, 12), (9, 12), (12, 64), (2, 8)])
def test_the_mean_of_the_contributions_is_the_distance(n, d):
  a, b = two_sets(n, 400, d)
  mean, cov = b.mean(0), np.cov(b, rowvar=False)
  parts = contributions(a, mean, cov)
  expected = frechet_distance(a, b)
  np.testing.assert_allclose(parts.mean(), expected, rtol=1e-9)
  of = frechet.contribution(Moments.of(a), mean, cov)
  np.testing.assert_allclose(np.concatenate([of(a[:5]), of(a[5:])]), parts, rtol=1e-12)


def test_a_contribution_is_the_derivative_by_an_images_weight():
  a, b = two_sets(60, 400, 6)
  mean, cov = b.mean(0), np.cov(b, rowvar=False)

  def weighted(i, step):
    w = np.full(60, 1 - step) + 60 * step * (np.arange(60) == i)  # mean 1
    centre = w @ a / 60
    spread = ((a - centre) * w[:, None]).T @ (a - centre) / 59
    return frechet_distance_of(centre, spread, mean, cov)

  parts = contributions(a, mean, cov)
  slopes = [(weighted(i, 1e-5) - weighted(i, -1e-5)) / 2e-5 for i in range(60)]
  np.testing.assert_allclose(parts - parts.mean(), slopes, rtol=1e-5, atol=1e-5 * parts.std())


@pytest.mark.parametrize(('n', 'd', 'least'), [(200, 8, 0.9), (60, 24, 0.9), (16, 24, 0.85)])
def test_the_interval_holds_the_distance_of_other_sets_of_this_size(n, d, least):
  rng = np.random.default_rng(n)
  reference, ours = covariance(d, rng), np.linalg.cholesky(covariance(d, rng))
  sets = [rng.normal(size=(n, d)) @ ours.T + 0.2 for _ in range(150)]
  zero = np.zeros(d)
  found = [
    confidence.mean_interval(contributions(x, zero, reference), resamples=1000) for x in sets
  ]
  centre = np.mean([interval.value for interval in found])
  covered = np.mean([interval.low <= centre <= interval.high for interval in found])
  assert least <= covered, covered
  widths = np.mean([interval.high - interval.low for interval in found])
  spread = 2 * 1.96 * np.std([interval.value for interval in found])
  assert 0.8 < widths / spread < 1.5
