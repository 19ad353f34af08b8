"""Exemplar augmentation: how often, how far, and around what (docs/facts.md, Augmentation)."""

import cv2
import numpy as np
import pytest

from exedit.input_pipeline import augment


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def image():
  return np.random.default_rng(1).integers(0, 256, (56, 56, 3), dtype=np.uint8)


@pytest.mark.parametrize(
  'op, share',
  [(augment.flip, 0.5), (augment.rotate, 0.5), (augment.blur, 0.3), (augment.affine, 0.3)],
)
def test_each_happens_as_often_as_published(rng, image, op, share):
  changed = [not np.array_equal(op(image, rng), image) for _ in range(2000)]
  assert np.mean(changed) == pytest.approx(share, abs=0.035)


@pytest.mark.parametrize('op', [augment.flip, augment.rotate, augment.blur, augment.affine])
def test_each_is_pure(rng, image, op):
  before = image.copy()
  a, b = (op(image, np.random.default_rng(5), p=1.0) for _ in range(2))
  np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(image, before)
  assert a.dtype == np.uint8 and a.shape == image.shape
  if op is augment.flip:
    np.testing.assert_array_equal(a, image[:, ::-1])
  else:  # pixels beyond the border are mirrored
    assert (op(np.full_like(image, 90), np.random.default_rng(5), p=1.0) == 90).all()


def test_rotate_turns_by_up_to_twenty_degrees_about_the_middle(rng, monkeypatch):
  angles = np.array([_turn(_matrix(augment.rotate, rng, monkeypatch)) for _ in range(3000)])
  assert -20 <= angles.min() < -19.8 and 19.8 < angles.max() <= 20
  np.testing.assert_allclose(np.histogram(angles, 4, (-20, 20))[0] / 3000, 0.25, atol=0.03)
  matrix = _matrix(augment.rotate, rng, monkeypatch)
  np.testing.assert_allclose(matrix @ [112, 112, 1], [112, 112], atol=1e-9)
  assert np.linalg.det(matrix[:, :2]) == pytest.approx(1)


def test_blur_is_a_box_of_three_five_or_seven(rng, image):
  boxes = [cv2.blur(image, (k, k)) for k in (3, 5, 7)]
  counts = np.zeros(3)
  for _ in range(900):
    out = augment.blur(image, rng, p=1.0)
    counts[[np.array_equal(out, box) for box in boxes].index(True)] += 1
  np.testing.assert_allclose(counts / 900, 1 / 3, atol=0.05)


def test_affine_jitters_the_three_anchors_by_up_to_fifty_pixels(rng, monkeypatch):
  anchors = np.array([[186, 186, 1], [186, 38, 1], [38, 38, 1]], np.float64)
  matrices = [_matrix(augment.affine, rng, monkeypatch) for _ in range(3000)]
  moves = np.array([anchors @ m.T - anchors[:, :2] for m in matrices]).reshape(-1)
  assert -50.001 <= moves.min() < -49 and 49 < moves.max() <= 50.001
  np.testing.assert_allclose(np.histogram(moves, 5, (-50, 50))[0] / moves.size, 0.2, atol=0.01)


def test_affine_scales_with_the_exemplar(rng, monkeypatch):
  anchors = np.array([[26, 26, 1], [26, 6, 1], [6, 6, 1]], np.float64)  # 16 -+ 32 // 3
  matrices = [_matrix(augment.affine, rng, monkeypatch, side=32) for _ in range(500)]
  moves = np.array([anchors @ m.T - anchors[:, :2] for m in matrices])
  assert 6.8 < np.abs(moves).max() <= 50 / 7 + 1e-4


def test_all_together_in_the_published_order(image, monkeypatch):
  order = []
  for name in ('flip', 'rotate', 'blur', 'affine'):
    op = getattr(augment, name)
    monkeypatch.setattr(augment, name, lambda *a, op=op, name=name: order.append(name) or op(*a))
  out = augment.exemplar(image, np.random.default_rng(3))
  assert order == ['flip', 'rotate', 'blur', 'affine']
  np.testing.assert_array_equal(out, augment.exemplar(image, np.random.default_rng(3)))


def _matrix(op, rng, monkeypatch, side=224):
  """The 2x3 matrix with which op warps."""
  seen = []
  monkeypatch.setattr(augment, '_warp', lambda image, matrix: seen.append(matrix) or image)
  op(np.zeros((side, side, 3), np.uint8), rng, p=1.0)
  return seen[0]


def _turn(matrix):
  return np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0]))
