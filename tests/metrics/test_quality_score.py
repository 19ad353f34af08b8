import sys
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats

from exedit.metrics import quality_score as qs
from exedit.metrics.quality_score import GMM, log_likelihood, quality_scores
from exedit.runtime.errors import UserError

TYPES = list(qs.COVARIANCE_TYPES)


def arrays_of(covariance_type, k=3, d=5, seed=0) -> tuple[dict[str, Any], np.ndarray]:
  """A random mixture's arrays, and each component's covariance as a full matrix."""
  rng = np.random.default_rng(seed)
  roots = rng.normal(size=(k, d, d)) + 2 * np.eye(d)
  full = roots @ roots.transpose(0, 2, 1)
  diagonal, one = rng.uniform(0.3, 3, (k, d)), rng.uniform(0.3, 3, k)
  covariances, matrices = {
    'full': (full, full),
    'tied': (full[0], np.stack([full[0]] * k)),
    'diag': (diagonal, np.stack([np.diag(row) for row in diagonal])),
    'spherical': (one, np.stack([x * np.eye(d) for x in one])),
  }[covariance_type]
  weights, means = rng.dirichlet(np.ones(k)), 2 * rng.normal(size=(k, d))
  if covariance_type in ('full', 'tied'):
    factors = np.triu(np.linalg.inv(np.linalg.cholesky(covariances)).swapaxes(-1, -2))
  else:
    factors = 1 / np.sqrt(covariances)
  arrays = dict(weights=weights, means=means, precisions_cholesky=factors)
  return dict(arrays, covariance_type=np.asarray(covariance_type)), matrices


def mixture(covariance_type):
  arrays, matrices = arrays_of(covariance_type)
  return GMM.from_arrays(arrays), matrices


@pytest.mark.parametrize('covariance_type', TYPES)
def test_likelihood_is_scipys(covariance_type):
  gmm, matrices = mixture(covariance_type)
  x = np.random.default_rng(1).normal(size=(40, 5)) * 3
  parts = [
    np.log(w) + scipy.stats.multivariate_normal(mean, cov).logpdf(x)
    for w, mean, cov in zip(gmm.weights, gmm.means, matrices)
  ]
  expected = scipy.special.logsumexp(parts, axis=0)
  np.testing.assert_allclose(log_likelihood(x, gmm), expected, rtol=1e-10)
  # A batch is its images, and a network's float32 is enough.
  np.testing.assert_allclose(log_likelihood(x[7:8], gmm), expected[7:8], rtol=1e-10)
  np.testing.assert_allclose(log_likelihood(x.astype(np.float32), gmm), expected, rtol=1e-5)


def test_a_component_of_no_weight_adds_nothing():
  gmm, _ = mixture('full')
  alone = GMM(np.array([1.0]), gmm.means[:1], gmm.precisions_cholesky[:1])
  silent = GMM(np.array([1.0, 0.0, 0.0]), gmm.means, gmm.precisions_cholesky)
  x = np.random.default_rng(2).normal(size=(6, 5))
  np.testing.assert_allclose(log_likelihood(x, silent), log_likelihood(x, alone), rtol=1e-12)


def test_scores_are_shares_of_300_nats_clipped():
  """A narrow component of 512 dimensions, like CLIP's, has likelihoods that overflow exp."""
  d, deviation = 512, 0.1
  gmm = GMM(np.ones(1), np.zeros((1, d)), np.eye(d)[None] / deviation)
  peak = -d * np.log(deviation * np.sqrt(2 * np.pi))
  assert peak > 700  # exp(710) overflows
  x = np.zeros((4, d))
  x[1, 0] = deviation * np.sqrt(2 * (peak - 150))
  x[2, 0] = deviation * np.sqrt(2 * (peak - 30))
  x[3] = 100
  np.testing.assert_allclose(quality_scores(x, gmm), [100, 50, 10, 0], atol=1e-9)


@pytest.mark.parametrize('covariance_type', TYPES)
def test_arrays_there_and_back(covariance_type, tmp_path):
  gmm, _ = mixture(covariance_type)
  for arrays in (arrays_of(covariance_type)[0], gmm.to_arrays()):  # as older and newer files are
    np.savez(tmp_path / 'gmm.npz', **arrays)
  with np.load(tmp_path / 'gmm.npz', allow_pickle=False) as loaded:
    back = GMM.from_arrays(loaded)
  x = np.random.default_rng(3).normal(size=(5, 5))
  np.testing.assert_array_equal(log_likelihood(x, back), log_likelihood(x, gmm))


def test_other_features_than_the_mixtures_are_refused():
  gmm, _ = mixture('full')
  with pytest.raises(ValueError, match='images has features of width 7 but the mixture of width 5'):
    quality_scores(np.zeros((2, 7)), gmm)
  with pytest.raises(ValueError, match='no features'):
    quality_scores(np.zeros((0, 5)), gmm)
  x = np.zeros((9, 5))
  x[4] = np.nan
  with pytest.raises(ValueError, match='1 of 9 images are not finite: rows 4'):
    quality_scores(x, gmm)


@pytest.mark.parametrize('covariance_type', TYPES)
def test_arrays_that_are_no_mixture_are_refused(covariance_type):
  good = arrays_of(covariance_type)[0]

  def refused(message, **changes):
    with pytest.raises(ValueError, match=message):
      GMM.from_arrays({k: v for k, v in (good | changes).items() if v is not None})

  refused('also needs means$', means=None)
  refused("covariance_type is 'round'", covariance_type=np.array('round'))
  refused('must be shares of 1: their sum is 3', weights=np.ones(3))
  refused('means of the mixture are not finite', means=np.full((3, 5), np.nan))
  wrong = good['precisions_cholesky'][..., None]
  refused(r'must have shape \(\d.*not \(', precisions_cholesky=wrong)
  negative = good['precisions_cholesky'].copy()
  at = dict(full=(1, 2, 2), tied=(2, 2), diag=(1, 2), spherical=(2,))[covariance_type]
  negative[at] = -0.5
  refused('not positive definite: .* -0.5$', precisions_cholesky=negative)
  if covariance_type in ('full', 'tied'):
    lower = np.swapaxes(good['precisions_cholesky'], -1, -2)
    refused('upper triangular', precisions_cholesky=lower)


def test_fitting_without_scikit_learn_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn.mixture', None)
  with pytest.raises(UserError, match='pip install scikit-learn$'):
    qs.fit(np.zeros((10, 2)), 2)
