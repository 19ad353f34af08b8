from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance

from exedit.metrics.clip_score import box, clip_score, clip_scores, cosines


def pairs(n=20, d=512, dtype: Any = np.float32):
  return np.random.default_rng(0).normal(size=(2, n, d)).astype(dtype)


def test_scores_are_a_hundred_times_scipys_cosine():
  a, b = pairs()
  expected = [100 * (1 - scipy.spatial.distance.cosine(x, y)) for x, y in zip(a, b)]
  np.testing.assert_allclose(clip_scores(a, b), expected, atol=2e-5)
  np.testing.assert_allclose(clip_score(a, b), np.mean(expected), atol=1e-5)
  assert cosines(a, b).dtype == np.float32


def test_length_does_not_count_and_direction_does():
  a, _ = pairs()
  scale = np.linspace(1e-3, 1e3, len(a))[:, None].astype(np.float32)
  np.testing.assert_allclose(clip_scores(a, scale * a), 100, atol=1e-4)
  np.testing.assert_allclose(clip_scores(a, -a), -100, atol=1e-4)


def test_half_precision_features_are_normalised_in_single():
  """Squares of features near 300 leave float16; the released features are float16."""
  a, b = pairs(dtype=np.float16) * np.float16(300)
  found = clip_scores(a, b)
  np.testing.assert_allclose(found, clip_scores(a.astype(np.float32), b.astype(np.float32)))
  assert np.isfinite(found).all()


def test_features_without_a_direction_or_a_partner_are_refused():
  a, b = pairs()
  zero, nan = a.copy(), b.copy()
  zero[3], nan[[5, 6], 0] = 0, np.nan
  for x, y, what in (
    (zero, b, 'first set: the features of row 3 are all zero'),
    (a, nan, 'second set: the features of 2 of 20 images are not finite: rows 5, 6'),
    (a, b[:19], '20 rows in the first set but 19'),
    (a, b[:, :300], 'width 512 but the second of width 300'),
    (a[:0], b[:0], 'no features'),
  ):
    with pytest.raises(ValueError, match=what):
      clip_score(x, y)


# The region


def rectangle(y0, y1, x0, x1, shape=(12, 15)):
  mask = np.zeros(shape, bool)
  mask[y0:y1, x0:x1] = True
  return mask


@pytest.mark.parametrize('sides', [(2, 9, 3, 7), (0, 12, 0, 15), (4, 6, 13, 15), (10, 12, 0, 2)])
def test_published_box_runs_from_the_first_to_the_last_pixel_without_its_row_and_column(sides):
  """Facts 6.4: the first and last 255 in reading order, rows [y0:y1) and columns [x0:x1)."""
  mask = rectangle(*sides)
  (y0, x0), (y1, x1) = (divmod(int(i), 15) for i in np.flatnonzero(mask)[[0, -1]])
  picture = np.arange(12 * 15).reshape(12, 15)
  np.testing.assert_array_equal(picture[box(mask, published=True)], picture[y0:y1, x0:x1])
  whole = picture[box(mask, published=False)]
  np.testing.assert_array_equal(whole, picture[y0 : y1 + 1, x0 : x1 + 1])
  assert whole.size == mask.sum()


def test_whole_box_of_any_shape():
  mask = rectangle(2, 5, 3, 6)
  mask[9, 11] = True
  assert box(mask, published=False) == (slice(2, 10), slice(3, 12))
  with pytest.raises(ValueError, match=r'not a rectangle \(10 of the 72 pixels of its box\)'):
    box(mask, published=True)


def test_masks_without_a_region_are_refused():
  with pytest.raises(ValueError, match='empty'):
    box(rectangle(3, 3, 3, 3), published=False)
  thin = rectangle(2, 8, 4, 5)
  assert box(thin, published=False) == (slice(2, 8), slice(4, 5))
  with pytest.raises(ValueError, match='1 x 6 pixels: nothing is left'):
    box(thin, published=True)
