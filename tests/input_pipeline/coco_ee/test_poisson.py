"""Poisson blending agrees with a sparse solver on regions of every kind."""

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

from exedit.input_pipeline.coco_ee import poisson
from tests import bench as layout


def by_pixel(canvas, image, region):
  """Eq. 7 of Perez et al. by pixel and sparse solver; beyond the rim, the canvas is flat."""
  h, w = region.shape
  number = -np.ones((h, w), int)
  number[region] = np.arange(region.sum())
  matrix = scipy.sparse.lil_matrix((region.sum(), region.sum()))
  right = np.zeros((region.sum(), 3))
  for y, x in zip(*np.nonzero(region)):
    i = number[y, x]
    for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
      if 0 <= v < h and 0 <= u < w:
        matrix[i, i] += 1
        if region[v, u]:
          matrix[i, number[v, u]] = -1
          right[i] += canvas[y, x] - canvas[v, u]
        else:
          right[i] += image[v, u]
  result = image.copy()
  result[region] = scipy.sparse.linalg.spsolve(matrix.tocsr(), right).reshape(-1, 3)
  return result


def around(size=24):
  region = np.ones((size, size), bool)  # its bounding box is the whole image and has no rim
  region[9:12, 5:20] = False
  return region


@pytest.mark.parametrize(
  'region',
  [np.asarray(mask) > 0 for name, mask in layout.MASKS.items() if name != 'whole'] + [around()],
  ids=[*(name for name in layout.MASKS if name != 'whole'), 'around'],
)
def test_blending_solves_the_poisson_equation(region):
  canvas, image = np.random.default_rng(3).uniform(0, 255, (2, *region.shape, 3))
  ours = poisson.blend(canvas, image, region)
  np.testing.assert_allclose(ours, by_pixel(canvas, image, region), atol=1e-5)


def test_blending_a_plain_picture_into_itself_changes_nothing():
  plain = np.full((24, 24, 3), 77.0)
  for mask in layout.MASKS.values():
    np.testing.assert_allclose(poisson.blend(plain, plain, np.asarray(mask) > 0), plain)


def test_blending_takes_an_offset_away():
  y, x = np.mgrid[:24, :24]
  ramp = np.stack([3.0 * x, 100.0 + 0 * x, 2.0 * y], -1)
  region = np.asarray(layout.MASKS['box']) > 0
  flat = ramp[..., :2]  # beyond the rim the canvas is flat, so only flat channels come back exactly
  ours = poisson.blend(ramp + 50, ramp, region)
  assert np.abs(ours - ramp).max() < 4 and np.abs(ours[..., 1] - flat[..., 1]).max() < 1e-9
