"""Training masks have the shares, ranges and shapes of the released code (docs/facts.md)."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from exedit.input_pipeline import masks

SHAPE = (300, 400)
BOX = (100, 80, 220, 200)


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def test_extend_box_reaches_two_fifths_of_the_free_space_and_no_further(rng):
  sides = np.array([masks.extend_box(BOX, SHAPE, rng) for _ in range(4000)])
  moved = np.abs(sides - BOX)
  assert moved.min(0).tolist() == [0, 0, 0, 0]
  assert moved.max(0).tolist() == [40, 32, 72, 40]  # 0.4 * (100, 80, 400 - 220, 300 - 200)
  np.testing.assert_allclose(moved.mean(0), [20, 16, 36, 20], atol=1.2)
  assert (np.sign(sides - BOX) * [-1, -1, 1, 1] >= 0).all()  # outward only
  assert masks.extend_box((0, 0, 400, 300), SHAPE, rng) == (0, 0, 400, 300)


def test_rectangle_is_255_inside_and_half_open():
  mask = masks.rectangle(SHAPE, BOX)
  assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
  rows, columns = np.nonzero(mask)
  assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == BOX
  assert np.count_nonzero(mask) == 120 * 120


def test_outline_has_eighteen_points_a_side_between_corner_and_extended_side(rng):
  extended = (70, 60, 260, 240)
  points = masks.outline(BOX, extended, rng, jitter=0)
  assert points.shape == (72, 2) and points.dtype == np.int32
  top, right, bottom, left = points.reshape(4, 18, 2)
  # A quadratic curve reaches half way to its control point, at t = 0.5 (the tenth sample).
  assert top[9].tolist() == [160, (80 + 60) // 2]
  assert right[9].tolist() == [(220 + 260) // 2, 140]
  assert bottom[9].tolist() == [160, (200 + 240) // 2]
  assert left[9].tolist() == [(100 + 70) // 2, 140]
  assert top[0].tolist() == [106, 78]  # t = 0.05 of (100, 80), (160, 60), (220, 80)
  assert top[17, 0] == 208  # t = 0.90: the curve stops short of its corner


def test_outline_jitters_x_and_y_alike_and_apart(rng):
  still = masks.outline(BOX, BOX, rng, jitter=0)
  moves = np.concatenate([masks.outline(BOX, BOX, rng) - still for _ in range(200)])
  assert moves.min() == -5 and moves.max() == 5
  share = np.bincount(moves.ravel() + 5, minlength=11) / moves.size
  np.testing.assert_allclose(share, 1 / 11, atol=0.01)
  assert abs(np.corrcoef(moves.T)[0, 1]) < 0.03


def test_dedupe_keeps_as_many_points_as_the_released_code(rng):
  """That is about 53 of 72 for a polygon, and 3.2 of 18 on a side without free space."""
  curved, flat = [], []
  for _ in range(1000):
    x0, y0 = rng.integers(20, 300, 2).tolist()
    box = (x0, y0, x0 + int(rng.integers(50, 200)), y0 + int(rng.integers(50, 200)))
    extended = masks.extend_box(box, (600, 600), rng)
    curved.append(len(masks.outline(box, extended, rng, dedupe=True)))
    flat.append(len(masks.outline(box, box, rng, dedupe=True)) / 4)
  assert np.mean(curved) == pytest.approx(53.5, abs=1.5)
  assert np.mean(flat) == pytest.approx(3.15, abs=0.2)


def test_polygon_is_the_one_that_pil_draws(rng):
  """The released code draws with PIL; the two may differ by a pixel along the outline."""
  for _ in range(20):
    extended = masks.extend_box(BOX, SHAPE, rng)
    points = masks.outline(BOX, extended, rng)
    theirs = PIL.Image.new('L', SHAPE[::-1], 0)
    PIL.ImageDraw.Draw(theirs).polygon([tuple(p) for p in points.tolist()], fill=255)
    differ = masks.polygon(SHAPE, points) != np.asarray(theirs)
    assert np.count_nonzero(differ) < 0.01 * 120 * 120


def test_sample_draws_as_many_polygons_as_rectangles(rng):
  extended = (70, 60, 260, 240)
  rectangle = masks.rectangle(SHAPE, extended)
  drawn = [masks.sample(SHAPE, BOX, extended, rng) for _ in range(1500)]
  share = np.mean([np.array_equal(mask, rectangle) for mask in drawn])
  assert share == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize('arbitrary', [0.0, 1.0])
def test_sample_covers_the_inside_of_the_box(rng, arbitrary):
  for _ in range(50):
    extended = masks.extend_box(BOX, SHAPE, rng)
    mask = masks.sample(SHAPE, BOX, extended, rng, arbitrary=arbitrary)
    assert set(np.unique(mask)) == {0, 255}
    x0, y0, x1, y1 = BOX
    assert (mask[y0 + 25 : y1 - 25, x0 + 25 : x1 - 25] == 255).all()
    x0, y0, x1, y1 = extended
    mask[max(0, y0 - 5) : y1 + 6, max(0, x0 - 5) : x1 + 6] = 0
    assert not mask.any()


def test_sample_is_never_empty(rng):
  box = (0, 0, 2, 2)
  assert all(masks.sample(SHAPE, box, box, rng, arbitrary=1.0).any() for _ in range(300))
