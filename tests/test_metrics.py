import numpy as np
import pytest

from exedit.metrics import identification
from exedit.metrics.psnr import psnr


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
  low, high = identification.wilson(60, 600, z=4.0)
  assert low < share < high


def test_an_empty_mask_is_refused():
  truths, mask, _ = scenes()
  mask[1] = False
  with pytest.raises(ValueError, match='empty'):
    identification.distances(truths[:, 0], truths, mask)


def test_wilson_gives_the_published_figures():
  # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
  published = {
    (81, 263): (0.2553, 0.3662),
    (15, 148): (0.0624, 0.1605),
    (0, 20): (0.0, 0.1611),
    (1, 29): (0.0061, 0.1718),
  }
  for (successes, n), interval in published.items():
    np.testing.assert_allclose(identification.wilson(successes, n), interval, atol=5e-5)
  assert identification.wilson(20, 20)[1] == 1.0


def test_psnr_of_known_errors():
  np.testing.assert_allclose(psnr(np.array([1.0, 0.01, 1e-4])), [0, 20, 40])
  assert psnr(np.zeros(1))[0] == 100
