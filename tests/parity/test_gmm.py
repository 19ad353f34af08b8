"""Mixtures that scikit-learn pickled or fitted, through the door that makes gmm.npz."""

import pickle

import numpy as np
import pytest

from exedit import gmm
from exedit.metrics import quality_score
from tests import bench, judges

sklearn = pytest.importorskip('sklearn.mixture')


@pytest.mark.parametrize('covariance_type', quality_score.COVARIANCE_TYPES)
@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_what_scikit_learn_pickles_scores_as_it_scores(tmp_path, covariance_type, protocol):
  features = np.random.default_rng(0).normal(size=(200, 4))
  state = np.random.RandomState(3)
  theirs = sklearn.GaussianMixture(3, covariance_type=covariance_type, random_state=state)
  theirs.fit(features)
  (tmp_path / 'k3').write_bytes(pickle.dumps(theirs, protocol=protocol))
  ours = gmm.make(str(tmp_path / 'k3'), str(tmp_path / 'gmm.npz'))
  np.testing.assert_allclose(
    quality_score.log_likelihood(features, ours), theirs.score_samples(features), rtol=1e-10
  )


def test_a_mixture_fitted_to_a_folder(tmp_path):
  (tmp_path / 'images').mkdir()
  for k in range(12):
    bench.picture(k, (40, 36)).save(tmp_path / 'images' / f'{k}.png')
  paths = judges.write(tmp_path / 'networks')
  made = [
    gmm.make(str(tmp_path / 'images'), str(tmp_path / f'{k}.npz'), clip=paths['clip'], components=2)
    for k in range(2)
  ]
  assert made[0].means.shape == (2, judges.DIM)
  np.testing.assert_array_equal(made[0].means, made[1].means)
