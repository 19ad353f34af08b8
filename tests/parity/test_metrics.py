"""Agreement of the metrics' formulas with scikit-learn and scikit-image."""

import numpy as np
import pytest

from exedit.metrics import pixels, quality_score

sklearn_mixture = pytest.importorskip('sklearn.mixture')
skimage_metrics = pytest.importorskip('skimage.metrics')

TYPES = list(quality_score.COVARIANCE_TYPES)


def blobs(n=600, d=6, seed=0):
  """Rows of three well separated clusters of other sizes and spreads, and whose they are."""
  rng = np.random.default_rng(seed)
  centres = 12 * rng.normal(size=(3, d))
  label = rng.choice(3, n, p=[0.5, 0.3, 0.2])
  return centres[label] + rng.normal(size=(n, d)) * np.array([0.5, 1, 1.5])[label, None], label


@pytest.mark.parametrize('covariance_type', TYPES)
def test_a_fitted_mixture_scores_as_scikit_learns(covariance_type):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(500, 24)) @ rng.normal(size=(24, 24)) + rng.choice([-3, 0, 3], (500, 1))
  theirs = sklearn_mixture.GaussianMixture(4, covariance_type=covariance_type, random_state=3)
  theirs.fit(x)
  fresh = rng.normal(size=(50, 24)) * 5
  expected = theirs.score_samples(fresh)
  parts = theirs.weights_, theirs.means_
  arrays = dict(weights=parts[0], means=parts[1], covariance_type=covariance_type)
  arrays |= dict(precisions_cholesky=theirs.precisions_cholesky_)
  ours = [quality_score.GMM.from_arrays(arrays)]
  if covariance_type == 'full':
    ours.append(quality_score.fit(x, 4, seed=3))
  for gmm in ours:
    found = quality_score.log_likelihood(fresh, gmm)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_fit_finds_separated_clusters():
  x, label = blobs()
  gmm = quality_score.fit(x.astype(np.float32), 3)
  order = [np.argmin(((gmm.means - x[label == k].mean(0)) ** 2).sum(1)) for k in range(3)]
  assert sorted(order) == [0, 1, 2]
  shares = np.bincount(label) / len(x)
  np.testing.assert_allclose(gmm.weights[order], shares, atol=0.005)
  means = [x[label == k].mean(0) for k in range(3)]
  np.testing.assert_allclose(gmm.means[order], means, atol=0.01)
  again = quality_score.fit(x.astype(np.float32), 3)
  np.testing.assert_array_equal(again.precisions_cholesky, gmm.precisions_cholesky)


def test_fit_needs_more_images_than_components():
  with pytest.raises(ValueError, match='7 images are too few for a mixture of 8 components'):
    quality_score.fit(np.zeros((7, 3)), 8)
  with pytest.raises(ValueError, match='not finite: rows 2'):
    quality_score.fit(np.where(np.arange(7)[:, None] == 2, np.nan, 0.0), 2)


def test_more_images_raise_held_out_likelihood():
  """What a mixture is fitted for: new images of the same kind, above images of another."""
  x, _ = blobs(900)
  fresh, other = x[600:], np.random.default_rng(1).normal(size=(300, 6)) * 12
  few, many = (quality_score.fit(x[:n], 3, seed=0) for n in (60, 600))
  score = lambda rows, gmm: quality_score.log_likelihood(rows, gmm).mean()
  assert score(other, many) < score(fresh, few) < score(fresh, many)


@pytest.mark.parametrize('shape', [(64, 64), (37, 90), (512, 512)])
def test_ssim_and_psnr_of_whole_pictures(shape):
  rng = np.random.default_rng(0)
  y, x = np.mgrid[: shape[0], : shape[1]]
  waves = 128 + 80 * np.sin(x / 9 + y / 17)[..., None] * rng.uniform(0.3, 1, 3)
  source = np.clip(waves + 10 * rng.normal(size=(*shape, 3)), 0, 255).astype(np.uint8)
  nothing = np.zeros(shape, bool)
  for strength in (0.5, 5, 50):
    result = np.clip(source + strength * rng.normal(size=source.shape), 0, 255).astype(np.uint8)
    ssim = skimage_metrics.structural_similarity(
      result, source, channel_axis=-1, gaussian_weights=True, use_sample_covariance=False
    )
    np.testing.assert_allclose(pixels.background_ssim(result, source, nothing), ssim, atol=1e-9)
    psnr = skimage_metrics.peak_signal_noise_ratio(source, result)
    np.testing.assert_allclose(pixels.background_psnr(result, source, nothing), psnr, rtol=1e-12)
