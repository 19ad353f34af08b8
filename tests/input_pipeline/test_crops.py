"""Square cuts and resizing: which box a cut contains, when there is none, and how it resizes."""

import numpy as np
import pytest

from exedit.input_pipeline import crops, masks


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize('shape', [(300, 400), (400, 300)])
def test_window_is_square_inside_and_holds_the_box(rng, shape):
  height, width = shape
  kept = 0
  for _ in range(1000):
    x0, y0 = rng.integers(0, 200, 2).tolist()
    x1, y1 = (int(rng.integers(low + 20, high + 1)) for low, high in ((x0, width), (y0, height)))
    box = (x0, y0, x1, y1)
    window = crops.square_window(shape, box, rng)
    if window is None:
      continue
    kept += 1
    left, top, right, bottom = window
    assert right - left == bottom - top
    assert 0 <= left <= box[0] and box[2] <= right <= width
    assert 0 <= top <= box[1] and box[3] <= bottom <= height
  assert kept > 500


def test_window_slides_over_every_place_that_holds_the_box(rng):
  windows = [crops.square_window((300, 400), (60, 0, 320, 300), rng) for _ in range(1000)]
  # The box touches top and bottom: no zoom, and left runs over max(0, 320-300)..min(400, 360)-300.
  assert {w[0] for w in windows} == set(range(20, 61))
  assert {(w[1], w[3]) for w in windows} == {(0, 300)}


def test_window_zooms_by_at_most_three_fifths_of_the_free_border(rng):
  windows = np.array([crops.square_window((100, 101), (40, 40, 60, 60), rng) for _ in range(2000)])
  zoom = windows[:, 1]
  assert zoom.min() == 0
  assert zoom.max() == 24  # free is 40 or 39: int(0.6 * 40)
  assert zoom.mean() == pytest.approx(11.8, abs=0.6)


@pytest.mark.parametrize(
  'box, why',
  [
    ((20, 10, 380, 290), 'wider than the short side'),
    ((50, 10, 350, 290), 'exactly one square holds it'),
  ],
)
def test_no_window_where_the_released_code_gives_up(rng, box, why):
  assert crops.square_window((300, 400), box, rng) is None, why
  assert crops.square_window((64, 64), (10, 10, 20, 20), rng) == (0, 0, 64, 64)
  turned = (box[1], box[0], box[3], box[2])
  assert crops.square_window((400, 300), turned, rng) is None, why


def test_most_uniform_boxes_are_cut_and_some_squashed(rng):
  """The released code cuts 66 %, finds 20 % square and squashes 14 % of uniform boxes."""
  cut = total = 0
  for _ in range(4000):
    shape = (768, 1024)
    (x0, x1), (y0, y1) = (sorted(rng.integers(0, n + 1, 2).tolist()) for n in shape[::-1])
    if not 0.02 <= (x1 - x0) * (y1 - y0) / (1024 * 768) <= 0.8:
      continue
    extended = masks.extend_box((x0, y0, x1, y1), shape, rng)
    total += 1
    cut += crops.square_window(shape, extended, rng) is not None
  assert cut / total == pytest.approx(0.66 / 0.80, abs=0.07)


def test_resize_does_not_antialias():  # tests/parity/test_crops.py compares its bilinear sums
  # Three times smaller, an antialiasing filter would see all nine pixels; this sees the middle one.
  dots = np.zeros((96, 96), np.uint8)
  dots[1::3, 1::3] = 255
  assert (crops.resize(dots, 32) == 255).all()


def test_resize_of_a_mask_is_the_mean_of_the_nearest_four(rng):
  mask = np.zeros((64, 64), np.uint8)
  mask[:, :9] = 255
  assert crops.resize(mask, 32)[0, :6].tolist() == [255, 255, 255, 255, 128, 0]


def test_exemplar_takes_its_surroundings_as_far_as_the_border():
  image = np.zeros((40, 60, 3), np.uint8)
  image[0:25, 5:35] = 255  # the box (8, 4, 25, 15) padded by 10, cut at the left... and the top
  assert (crops.exemplar(image, (15, 4, 25, 15), 24) == 255).all()
  image[25], image[:, 35] = 7, 7
  assert (crops.exemplar(image, (15, 4, 25, 15), 24) == 255).all()
  assert (crops.exemplar(image, (15, 4, 25, 16), 24)[-1] < 255).all()
  assert (crops.exemplar(image, (15, 4, 26, 15), 24)[:, -1] < 255).all()


def test_pad_square_keeps_the_picture_in_the_middle(rng):
  image = rng.integers(0, 256, (40, 61, 3), dtype=np.uint8)
  padded = crops.pad_square(image)
  assert padded.shape == (61, 61, 3)
  np.testing.assert_array_equal(padded[10:50], image)
  np.testing.assert_array_equal(padded[9], image[0])
