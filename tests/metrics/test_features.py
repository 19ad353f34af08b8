"""Cosines of feature vectors against SciPy's, and what all metrics over features refuse."""

from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance

from exedit.metrics.features import cosines


def pairs(n=20, d=512, dtype: Any = np.float32):
  return np.random.default_rng(0).normal(size=(2, n, d)).astype(dtype)


def test_cosines_are_scipys_and_ignore_length():
  a, b = pairs()
  expected = [1 - scipy.spatial.distance.cosine(x, y) for x, y in zip(a, b)]
  np.testing.assert_allclose(cosines(a, b), expected, atol=2e-7)
  assert cosines(a, b).dtype == np.float32
  scale = np.linspace(1e-3, 1e3, len(a))[:, None].astype(np.float32)
  np.testing.assert_allclose(cosines(a, scale * a), 1, atol=1e-6)


def test_half_precision_features_are_normalised_in_single():
  """Squares of features near 300 overflow float16; the released features are float16."""
  a, b = pairs(dtype=np.float16) * np.float16(300)
  found = cosines(a, b)
  np.testing.assert_allclose(found, cosines(a.astype(np.float32), b.astype(np.float32)))
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
      cosines(x, y)
