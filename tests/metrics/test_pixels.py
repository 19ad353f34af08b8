"""Metrics over pixels: the background, the distances to truths, and the region's box."""

import numpy as np
import pytest

from exedit.metrics import pixels
from exedit.metrics.pixels import box

BACKGROUND = (pixels.background_exactness, pixels.background_psnr, pixels.background_ssim)


def scene(h=40, w=50, seed=0):
  """A smooth picture with noise, and a hole in it."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:h, :w]
  waves = 128 + 60 * np.sin(x / 5)[..., None] + 40 * np.cos(y / 7)[..., None]
  source = np.clip(waves + 15 * rng.normal(size=(h, w, 3)), 0, 255).astype(np.uint8)
  mask = np.zeros((h, w), bool)
  mask[12:28, 20:35] = True
  return source, mask, rng


def test_an_untouched_background_is_perfect_whatever_the_hole_contains():
  source, mask, rng = scene()
  result = source.copy()
  result[mask] = rng.integers(0, 256, (mask.sum(), 3))
  assert [score(result, source, mask) for score in BACKGROUND] == [1, 100, 1]


def test_exactness_is_the_share_of_pixels_of_three_equal_bytes():
  source, mask, _ = scene()
  result = source.copy()
  result[0, :30, 1] ^= 1
  result[1, :10] ^= 1
  result[mask] = 0
  expected = 1 - 40 / (~mask).sum()
  np.testing.assert_allclose(pixels.background_exactness(result, source, mask), expected)


def test_psnr_counts_the_background_only_and_does_not_wrap():
  source = np.full((16, 16, 3), 250, np.uint8)
  mask = np.zeros((16, 16), bool)
  mask[:4] = True
  result = np.full_like(source, 10)
  expected = -20 * np.log10(240 / 255)
  np.testing.assert_allclose(pixels.background_psnr(result, source, mask), expected, rtol=1e-12)
  np.testing.assert_allclose(pixels.psnr(np.array([1.0, 0.01, 1e-4, 0])), [0, 20, 40, 100])


def test_ssim_counts_background_pixels_only_in_every_window():
  """The masked statistics of the docstring, computed pixel by pixel."""
  source, mask, rng = scene(24, 26)
  noisy = np.clip(source + 20.0 * rng.normal(size=source.shape), 0, 255).astype(np.uint8)
  offsets = np.arange(-5, 6)
  bell = np.exp(-(offsets**2) / (2 * 1.5**2))
  window = np.outer(bell, bell)
  values = []
  for y in range(5, 19):
    for x in range(5, 21):
      if mask[y, x]:
        continue
      here = (slice(y - 5, y + 6), slice(x - 5, x + 6))
      weight = (window * ~mask[here])[..., None]
      weight = weight / weight.sum()
      a, b = noisy[here].astype(float), source[here].astype(float)
      mean_a, mean_b = (weight * a).sum((0, 1)), (weight * b).sum((0, 1))
      var_a = (weight * (a - mean_a) ** 2).sum((0, 1))
      var_b = (weight * (b - mean_b) ** 2).sum((0, 1))
      cov = (weight * (a - mean_a) * (b - mean_b)).sum((0, 1))
      c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
      upper = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
      values.append(upper / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
  found = pixels.background_ssim(noisy, source, mask)
  np.testing.assert_allclose(found, np.mean(values), rtol=1e-9)


@pytest.mark.parametrize('score', BACKGROUND)
def test_pictures_that_cannot_be_compared_are_refused(score):
  source, mask, _ = scene()
  with pytest.raises(ValueError, match='50 x 40 .* but the source is 40 x 50'):
    score(source, source.transpose(1, 0, 2), mask)
  with pytest.raises(ValueError, match='50 x 40 .* but the mask is 50 x 39'):
    score(source, source, mask[:-1])
  with pytest.raises(ValueError, match='covers the whole picture'):
    score(source, source, np.ones_like(mask))


def test_ssim_needs_a_background_away_from_the_edge():
  source, mask, _ = scene()
  rim = np.zeros_like(mask)
  rim[4:-4, 4:-4] = True
  with pytest.raises(ValueError, match='5 pixels from the edge of the 50 x 40'):
    pixels.background_ssim(source, source, rim)


# Truths


def truths_of(b=3, k=4, seed=0):
  rng = np.random.default_rng(seed)
  truths = rng.integers(0, 256, (b, k, 12, 10, 3), dtype=np.uint8)
  mask = np.zeros((b, 12, 10), bool)
  mask[:, 3:9, 2:7] = True
  return truths, mask, rng


def test_a_perfect_result_is_identified_at_distance_zero_and_a_tie_is_not():
  truths, mask, _ = truths_of()
  answer = np.array([2, 0, 3])
  d = pixels.distances(truths[np.arange(3), answer], truths, mask)
  assert (d[np.arange(3), answer] == 0).all() and (d > 0).sum() == 9
  assert pixels.identified(d, answer).all()
  assert not pixels.identified(d, (answer + 1) % 4).any()
  tie = np.array([[0.1, 0.1, 0.3], [0.1, 0.2, 0.3]])
  assert pixels.identified(tie, np.array([0, 0])).tolist() == [False, True]


def test_distance_is_the_mean_squared_error_of_the_full_range_inside_the_mask_only():
  truths = np.zeros((1, 2, 8, 8, 3), np.uint8)
  truths[0, 1] = 255
  mask = np.zeros((1, 8, 8), bool)
  mask[0, 2:4, 2:4] = True
  result = np.full((1, 8, 8, 3), 200, np.uint8)  # outside the mask this does not count
  result[0, 2:4, 2:4] = 51
  np.testing.assert_allclose(pixels.distances(result, truths, mask), [[0.04, 0.64]])
  with pytest.raises(ValueError, match='empty'):
    pixels.distances(result, truths, np.zeros_like(mask))


# The region's box


def rectangle(y0, y1, x0, x1, shape=(12, 15)):
  mask = np.zeros(shape, bool)
  mask[y0:y1, x0:x1] = True
  return mask


@pytest.mark.parametrize('sides', [(2, 9, 3, 7), (0, 12, 0, 15), (4, 6, 13, 15), (10, 12, 0, 2)])
def test_published_box_runs_from_the_first_to_the_last_pixel_without_its_row_and_column(sides):
  """The first and the last 255 in reading order give the rows [y0:y1) and the columns [x0:x1)."""
  mask = rectangle(*sides)
  (y0, x0), (y1, x1) = (divmod(int(i), 15) for i in np.flatnonzero(mask)[[0, -1]])
  picture = np.arange(12 * 15).reshape(12, 15)
  np.testing.assert_array_equal(picture[box(mask, published=True)], picture[y0:y1, x0:x1])
  whole = picture[box(mask, published=False)]
  np.testing.assert_array_equal(whole, picture[y0 : y1 + 1, x0 : x1 + 1])
  assert whole.size == mask.sum()


def test_masks_without_a_box_are_refused():
  mask = rectangle(2, 5, 3, 6)
  mask[9, 11] = True
  assert box(mask, published=False) == (slice(2, 10), slice(3, 12))
  with pytest.raises(ValueError, match=r'not a rectangle \(10 of the 72 pixels of its box'):
    box(mask, published=True)
  with pytest.raises(ValueError, match='empty'):
    box(rectangle(3, 3, 3, 3), published=False)
  thin = rectangle(2, 8, 4, 5)
  assert box(thin, published=False) == (slice(2, 8), slice(4, 5))
  with pytest.raises(ValueError, match='1 x 6 pixels: nothing is left'):
    box(thin, published=True)
