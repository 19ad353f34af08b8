import cv2
import numpy as np
import pytest

from exedit.metrics.copy_paste import copy_paste_score

UNRELATED = 0.45  # upper bound for pictures as busy as these; 0.2 is typical


def thing(angle=0.0, light=0.0, seed=0, side=200):
  """Draw an object with a pose and a light before a dull ground, like an exemplar."""
  rng = np.random.default_rng(seed)
  picture = np.full((side, side, 3), (150, 160, 140), np.uint8)
  colours = [tuple(map(int, c)) for c in rng.integers(0, 256, (40, 3))]
  cv2.ellipse(picture, (100, 100), (80, 60), 0, 0, 360, (60, 90, 170), -1, cv2.LINE_AA)
  for colour in colours:
    x, y = map(int, rng.integers(40, 160, 2))
    if rng.random() < 0.5:
      cv2.circle(picture, (x, y), int(rng.integers(4, 14)), colour, -1, cv2.LINE_AA)
    else:
      end = int(x + rng.integers(-30, 30)), int(y + rng.integers(-30, 30))
      cv2.line(picture, (x, y), end, colour, int(rng.integers(2, 6)), cv2.LINE_AA)
  turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0)
  picture = cv2.warpAffine(picture, turn, (side, side), borderMode=cv2.BORDER_REPLICATE)
  ramp = np.linspace(1, 1 - light, side)[None, :, None]
  return (picture * ramp).astype(np.uint8)


def squashed(picture, h, w):
  return cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA)


def placed(picture, height, width, at=(0, 0), ground_seed=9):
  """Lay the picture over a region that shows another picture."""
  region = squashed(thing(seed=ground_seed), height, width)
  y, x = at
  h, w = picture.shape[:2]
  region[y : y + h, x : x + w] = picture[: height - y, : width - x]
  return region


@pytest.mark.parametrize('shape', [(200, 200), (96, 150), (260, 90), (400, 380), (40, 32)])
def test_the_exemplar_squashed_to_the_box_scores_one(shape):
  exemplar = thing()
  assert copy_paste_score(squashed(exemplar, *shape), exemplar) > 0.97
  assert copy_paste_score(squashed(exemplar, *shape)[:, ::-1].copy(), exemplar) > 0.97
  assert copy_paste_score(exemplar, exemplar) > 0.9999


@pytest.mark.parametrize('scale', [0.72, 0.8, 0.87, 0.95])
@pytest.mark.parametrize('shift', [(0.5, 0.5), (0.3, 0.7), (0.0, 1.0)])
def test_a_smaller_paste_somewhere_in_the_box(scale, shift):
  exemplar, side = thing(), 220
  small = round(scale * side)
  at = [round(s * (side - small)) for s in shift]
  pasted = placed(squashed(exemplar, small, small), side, side, at)
  assert copy_paste_score(pasted, exemplar) > 0.7
  other = placed(squashed(thing(seed=3), small, small), side, side, at)
  assert copy_paste_score(other, exemplar) < UNRELATED


def test_another_picture_scores_low():
  found = [copy_paste_score(thing(seed=a), thing(seed=b)) for a in range(4) for b in range(4, 8)]
  assert np.mean(found) < 0.3 and max(found) < UNRELATED
  noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
  assert copy_paste_score(noise, thing()) < 0.2


def test_global_brightness_and_contrast_change_little():
  exemplar = thing()
  region = squashed(exemplar, 180, 160).astype(float)
  for gain, offset in ((0.4, 0), (0.3, 150), (1.0, 60), (0.7, -40)):
    changed = np.clip(gain * region + offset, 0, 255).astype(np.uint8)
    assert copy_paste_score(changed, exemplar) > 0.9, (gain, offset)
  gamma = (255 * (region / 255) ** 1.8).astype(np.uint8)
  assert copy_paste_score(gamma, exemplar) > 0.9


def test_harmonising_a_paste_does_not_hide_it():
  """Poisson blending and colour transfer make pastes look better, but create nothing."""
  exemplar = thing()
  ground = cv2.GaussianBlur(squashed(thing(seed=9), 260, 260), (0, 0), 6)
  inner = squashed(exemplar, 200, 200)
  white = np.full((200, 200), 255, np.uint8)
  blended = cv2.seamlessClone(inner, ground, white, (130, 130), cv2.NORMAL_CLONE)[30:230, 30:230]
  assert copy_paste_score(np.ascontiguousarray(blended), exemplar) > 0.9
  statistics = [
    (x.mean((0, 1)), x.std((0, 1))) for x in (inner.astype(float), ground.astype(float))
  ]
  (mean, spread), (target, width) = statistics
  matched = np.clip((inner - mean) / spread * width + target, 0, 255).astype(np.uint8)
  assert copy_paste_score(matched, exemplar) > 0.8


def test_the_same_thing_in_another_pose_or_light_is_no_paste():
  exemplar = thing()
  posed = [copy_paste_score(thing(angle=a, light=0.5), exemplar) for a in (0, 3, 6, 12)]
  assert posed[0] > 0.9  # light alone does not make a drawing anew
  assert (np.diff(posed) < 0).all()
  for angle in (20, 45, 90, 170):
    assert copy_paste_score(thing(angle=angle, light=0.5), exemplar) < UNRELATED


def test_only_what_was_repainted_counts():
  """A round hole contains the paste, and the corners are the source's own."""
  exemplar = thing()
  mask = cv2.circle(np.zeros((180, 180), np.uint8), (90, 90), 65, 1, -1) > 0
  grain = np.random.default_rng(2).integers(0, 256, (45, 45, 3), np.uint8)
  grain, paste = cv2.resize(grain, (180, 180)), squashed(exemplar, 180, 180)
  inside = np.where(mask[..., None], paste, grain)
  assert copy_paste_score(inside, exemplar, mask) > 0.9
  assert copy_paste_score(inside, exemplar) < 0.8
  outside = np.where(mask[..., None], grain, paste)
  assert copy_paste_score(outside, exemplar, mask) < UNRELATED


@pytest.mark.parametrize('shape', [(300, 12), (9, 200), (8, 8)])
def test_thin_and_tiny_boxes(shape):
  exemplar = thing()
  pasted = squashed(exemplar, *shape)
  assert copy_paste_score(pasted, exemplar) > 0.75
  line = np.zeros(shape, bool)  # a pixel wide: none of it is left whole at the size of comparison
  line[(shape[0] // 2, slice(None)) if shape[1] > shape[0] else (slice(None), shape[1] // 2)] = True
  assert copy_paste_score(pasted, exemplar, line) > 0.75


def test_flat_regions_hold_no_paste_and_flat_exemplars_tell_nothing():
  flat = np.full((100, 100, 3), 77, np.uint8)
  assert copy_paste_score(flat, thing()) == 0
  with pytest.raises(ValueError, match='exemplar is flat'):
    copy_paste_score(thing(), flat)


def test_what_cannot_be_compared_is_refused():
  exemplar = thing()
  with pytest.raises(ValueError, match='the region is 7 x 100 pixels: detail needs at least 8'):
    copy_paste_score(exemplar[:100, :7], exemplar)
  with pytest.raises(ValueError, match='the exemplar is 100 x 5 pixels'):
    copy_paste_score(exemplar, exemplar[:5, :100])
  with pytest.raises(ValueError, match='200 x 200 .* but its mask 200 x 199'):
    copy_paste_score(exemplar, exemplar, np.ones((199, 200), bool))
  with pytest.raises(ValueError, match='empty'):
    copy_paste_score(exemplar, exemplar, np.zeros((200, 200), bool))
