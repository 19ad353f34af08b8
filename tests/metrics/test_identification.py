import numpy as np
import pytest

from exedit.metrics import confidence, identification


def scenes(b=3, k=4, seed=0):
  rng = np.random.default_rng(seed)
  truths = rng.integers(0, 256, (b, k, 12, 10, 3), dtype=np.uint8)
  mask = np.zeros((b, 12, 10), bool)
  mask[:, 3:9, 2:7] = True
  return truths, mask, rng


def test_a_perfect_result_is_identified_at_distance_zero():
  truths, mask, _ = scenes()
  answer = np.array([2, 0, 3])
  d = identification.distances(truths[np.arange(3), answer], truths, mask)
  assert (d[np.arange(3), answer] == 0).all() and (d > 0).sum() == 9
  assert identification.identified(d, answer).all()
  assert not identification.identified(d, (answer + 1) % 4).any()


def test_distance_is_the_mean_squared_error_of_the_full_range_inside_the_mask_only():
  truths = np.zeros((1, 2, 8, 8, 3), np.uint8)
  truths[0, 1] = 255
  mask = np.zeros((1, 8, 8), bool)
  mask[0, 2:4, 2:4] = True
  result = np.full((1, 8, 8, 3), 200, np.uint8)  # outside the mask: does not count
  result[0, 2:4, 2:4] = 51
  d = identification.distances(result, truths, mask)
  np.testing.assert_allclose(d, [[0.04, 0.64]])


def test_uint8_differences_do_not_wrap():
  result, truths = np.full((1, 4, 4, 3), 10, np.uint8), np.full((1, 1, 4, 4, 3), 250, np.uint8)
  d = identification.distances(result, truths, np.ones((1, 4, 4), bool))
  np.testing.assert_allclose(d, (240 / 255) ** 2)


def test_a_tie_identifies_nobody():
  d = np.array([[0.1, 0.1, 0.3], [0.1, 0.2, 0.3]])
  assert identification.identified(d, np.array([0, 0])).tolist() == [False, True]


def test_guessing_scores_chance():
  truths, mask, rng = scenes(b=600, k=10)
  result = rng.integers(0, 256, (600, 12, 10, 3), dtype=np.uint8)
  answer = rng.integers(0, 10, 600)
  share = identification.identified(identification.distances(result, truths, mask), answer).mean()
  low, high = confidence.wilson(60, 600, z=4.0)
  assert low < share < high


def test_an_empty_mask_is_refused():
  truths, mask, _ = scenes()
  mask[1] = False
  with pytest.raises(ValueError, match='empty'):
    identification.distances(truths[:, 0], truths, mask)
