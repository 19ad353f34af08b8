import functools
import tracemalloc

import cv2
import numpy as np
import pytest

from exedit import images
from exedit.editing import framing
from exedit.runtime.errors import UserError
from tests.pictures import box, noise

HOLES = ('box', 'border', 'corner', 'pixel', 'islands', 'line', 'all')


def hole(rng, height, width, kind):
  """A mask of one of the kinds above, somewhere in the photo."""
  mask = np.zeros((height, width), np.uint8)
  y, x = (int(rng.integers(0, n)) for n in (height, width))
  a, b = (int(rng.integers(1, max(2, n // 3))) for n in (height, width))
  if kind == 'box':
    mask[y : y + a, x : x + b] = 1
  elif kind == 'border':
    mask[height - a :, x : x + b] = 1
  elif kind == 'corner':
    mask[:a, width - b :] = 1
  elif kind == 'pixel':
    mask[y, x] = 1
  elif kind == 'islands':
    for _ in range(4):
      place = tuple(int(rng.integers(0, n)) for n in (width, height))
      cv2.circle(mask, place, int(rng.integers(1, 9)), 1, -1)
  elif kind == 'line':
    cv2.line(mask, (x, y), (width - 1 - x, height - 1 - y), 1, int(rng.integers(1, 4)))
  else:
    mask[:] = 1
  return mask > 0


def photo_size(rng):
  """Small and large, square and wide, odd and even: up to 4 times as long as wide."""
  short = int(rng.integers(12, 150))
  sides = short, int(short * rng.uniform(1, 4))
  return sides if rng.random() < 0.5 else sides[::-1]


def case(seed):
  """Random numbers, a mask and its window: in 42 seeds each of HOLES with each zoom, twice."""
  rng = np.random.default_rng(seed)
  mask = hole(rng, *photo_size(rng), HOLES[seed % 7])
  return rng, mask, framing.choose(mask, int(rng.choice([16, 32, 48])), framing.ZOOMS[seed % 3])


def identity(frame, picture, mask, **settings):
  """The photo after an edit that changes nothing."""
  return framing.stitch(frame, framing.cut(frame, picture), picture, mask, **settings)


# choosing


@pytest.mark.parametrize('zoom', framing.ZOOMS)
@pytest.mark.parametrize('kind', HOLES)
def test_the_window_holds_the_mask_and_lies_in_the_photo(kind, zoom):
  rng = np.random.default_rng(HOLES.index(kind))
  for _ in range(60):
    height, width = photo_size(rng)
    mask, trained = hole(rng, height, width, kind), int(rng.choice([16, 32, 64]))
    frame = framing.choose(mask, trained, zoom)
    top, left, bottom, right = framing.bounds(mask)
    assert 0 <= frame.top <= top and bottom <= frame.bottom <= height
    assert 0 <= frame.left <= left and right <= frame.right <= width
    assert min(frame.size) == trained and max(frame.size) <= framing.LONGEST * trained
    stretch = frame.size[0] / frame.height * frame.width / frame.size[1]
    assert abs(stretch - 1) < 0.6 / min(frame.size) + 0.6 / min(frame.height, frame.width)
    if zoom == 'off':
      assert (frame.height, frame.width) == (height, width)


def test_context_is_a_square_at_the_trained_size_wherever_the_photo_has_room():
  for top, left in [(0, 0), (100, 300), (540, 740), (0, 740)]:
    mask = box(600, 800, top, left, top + 60, left + 40)
    frame = framing.choose(mask, 512, 'context')
    assert (frame.height, frame.width, frame.size) == (128, 128, (512, 512))
  mask = box(600, 800, 100, 300, 220, 390)
  frame = framing.choose(mask, 512, 'context')
  assert frame == framing.Frame(40, 225, 240, 240, (512, 512))  # the mask in the middle
  assert framing.choose(mask, 512, 'context', context=3.0).height == 360
  assert framing.choose(mask, 512, 'context', context=1.0).height == 128  # never enlarged more


def test_in_a_narrow_photo_the_window_is_as_wide_as_it_and_has_few_shapes():
  sizes = set()
  for extent in range(50, 350, 3):
    frame = framing.choose(box(100, 4000, 10, 2000, 90, 2000 + extent), 64, 'context')
    assert frame.height == 100 and frame.width >= min(2 * extent, 400) and frame.size[0] == 64
    sizes.add(frame.size[1])
  assert len(sizes) < 26 and max(sizes) == 256 and all(side % 8 == 0 for side in sizes)
  tall = framing.choose(box(4000, 100, 2000, 10, 2140, 90), 64, 'context')
  assert (tall.width, tall.size[1]) == (100, 64) and tall.size[0] > tall.size[1]


def test_auto_zooms_in_where_the_hole_at_least_doubles():
  whole = framing.Frame(0, 0, 512, 768, (512, 768))
  for extent in (20, 127, 128):
    assert framing.choose(box(512, 768, 9, 9, 9 + extent, 99), 512).size == (512, 512)
  for extent in (129, 200, 500):
    assert framing.choose(box(512, 768, 9, 9, 9 + extent, 99), 512) == whole
  large = box(3000, 4000, 100, 100, 850, 300)
  assert framing.choose(large, 512).height == 1500
  large[850] = True
  assert framing.choose(large, 512).size == (512, 683)


def test_auto_sees_a_part_of_a_photo_too_long_to_be_seen_whole():
  panorama = box(200, 3000, 0, 700, 200, 1000)
  assert framing.choose(panorama, 512).width == 600
  with pytest.raises(UserError, match='3000 x 200 pixels at once, more than 4 times'):
    framing.choose(panorama, 512, 'off')
  with pytest.raises(UserError, match='1500 x 200'):
    framing.choose(box(200, 3000, 0, 100, 200, 1600), 512)


# there


def test_at_its_own_size_a_window_is_cut_out_byte_for_byte():
  picture = noise(np.random.default_rng(0), 40, 50)
  window = framing.cut(framing.Frame(3, 5, 32, 32, (32, 32)), picture)
  np.testing.assert_array_equal(images.to_uint8(window), picture[3:35, 5:37])


@pytest.mark.parametrize('size', [(7, 5), (13, 17), (31, 90), (64, 64)])
def test_the_network_is_shown_no_part_of_a_pixel_to_repaint(size):
  rng = np.random.default_rng(0)
  frame = framing.Frame(2, 1, 29, 31, size)
  mask = rng.random((33, 33)) < 0.02
  seen, window = framing.cut_mask(frame, mask)[..., 0], mask[2:31, 1:32]
  fine = window.repeat(size[0], 0).repeat(size[1], 1)  # both grids divide it
  expected = fine.reshape(size[0], 29, size[1], 31).any((1, 3))
  np.testing.assert_array_equal(seen, expected)


# and back: nothing outside, no shift


@pytest.mark.parametrize('seed', range(42))
def test_outside_the_mask_every_byte_is_the_sources(seed):
  rng, mask, frame = case(seed)
  picture = noise(rng, *mask.shape)
  result = rng.normal(0, 1, (*frame.size, 3)).astype(np.float32)
  feather, match = float(rng.choice([0, 0.5, 2, 7.3, 100])), framing.MATCHES[seed // 7 % 2]
  before = picture.copy()
  out = framing.stitch(frame, result, picture, mask, feather=feather, match=match)
  np.testing.assert_array_equal(out[~mask], picture[~mask])
  np.testing.assert_array_equal(picture, before)
  assert (out[mask] != picture[mask]).any()


def wave(height, width, period, phase=0.0):
  """Waves along both axes, of so many pixels; red by rows, green by columns."""
  y, x = ((np.arange(n) + 0.5) * 2 * np.pi / period + phase for n in (height, width))
  rows, columns = np.broadcast_arrays(np.sin(y)[:, None], np.sin(x)[None])
  picture = np.stack([rows, columns, rows * columns], -1)
  return np.round(127.5 + 100 * picture).astype(np.uint8)


def shift(before, after, where, period):
  """By how many pixels the waves have moved, by least squares on the phase, down and across."""
  moved = []
  for channel, axis in ((0, 0), (1, 1)):
    angle = (np.indices(where.shape)[axis][where] + 0.5) * 2 * np.pi / period
    basis = np.stack([np.sin(angle), np.cos(angle), np.ones_like(angle)], -1)
    values = np.stack([p[..., channel][where].astype(float) for p in (before, after)], -1)
    (s, c, _), *_ = np.linalg.lstsq(basis, values)
    one, two = s + 1j * c
    moved.append(np.angle(one / two) * period / (2 * np.pi))
  return np.array(moved)


@pytest.mark.parametrize('seed', range(24))
def test_an_edit_that_changes_nothing_moves_nothing(seed):
  rng = np.random.default_rng(seed)
  height, width = (int(n) for n in rng.integers(90, 400, 2))
  mask = box(height, width, *rng.integers(0, 40, 2), *rng.integers(60, 90, 2))
  frame = framing.choose(mask, int(rng.choice([33, 64, 127])), framing.ZOOMS[seed % 3])
  scale = max(1, frame.height / frame.size[0], frame.width / frame.size[1])
  period = 16 * scale
  picture = wave(height, width, period, rng.uniform(0, 6))
  out = identity(frame, picture, mask, feather=0.0)
  inner = mask & (np.minimum(*np.indices(mask.shape)) > 3 * scale)
  inner[height - round(3 * scale) :] = inner[:, width - round(3 * scale) :] = False
  assert np.abs(shift(picture, out, inner, period)).max() < 0.02 * scale
  assert np.abs(np.int16(out) - picture)[inner].max() <= 5

  moved = np.roll(framing.cut(frame, picture), (1, 1), (0, 1))  # that it would have been seen
  out = framing.stitch(frame, moved, picture, mask, feather=0.0, match='none')
  one = np.array([frame.height / frame.size[0], frame.width / frame.size[1]])
  np.testing.assert_allclose(shift(picture, out, inner, period), one, atol=0.15 * scale)


def test_an_edit_that_changes_nothing_changes_no_smooth_picture():
  """Gradients across the photo, its borders, corners and single pixels included."""
  for seed in range(42):
    _, mask, frame = case(seed)
    y, x = np.indices(mask.shape) * 0.7  # levels per pixel
    picture = np.clip(np.stack([y, x, 120 + (y - x) / 2], -1), 0, 255).round().astype(np.uint8)
    scale = max(frame.height / frame.size[0], frame.width / frame.size[1])
    out = identity(frame, picture, mask)
    # a border pixel of the network's is flat: half of it, times the slope, and the rounding
    assert np.abs(np.int16(out) - picture).max() <= 1.5 + 0.7 * 0.5 * scale, seed


def test_at_scale_one_the_result_arrives_byte_for_byte():
  rng = np.random.default_rng(0)
  picture, result = noise(rng, 60, 70), noise(rng, 32, 32)
  mask = box(60, 70, 20, 21, 40, 39)
  frame = framing.Frame(15, 16, 32, 32, (32, 32))
  floats = images.from_uint8(result)
  out = framing.stitch(frame, floats, picture, mask, feather=0.0, match='none')
  np.testing.assert_array_equal(out[20:40, 21:39], result[5:25, 5:23])


def test_a_large_hole_is_stitched_in_strips_without_a_trace(monkeypatch):
  rng = np.random.default_rng(0)
  picture, mask = noise(rng, 150, 90), hole(rng, 150, 90, 'all')
  mask[:5], mask[70, 20:30] = False, False
  frame = framing.choose(mask, 32, 'off')
  result = images.from_uint8(noise(rng, *frame.size))
  once = framing.stitch(frame, result, picture, mask)
  monkeypatch.setattr(framing, 'STRIP', 90 * 7)
  strips = framing.stitch(frame, result, picture, mask)
  assert np.abs(np.int16(once) - strips).max() <= 1 and (once != strips).mean() < 1e-3


def test_of_a_large_photo_only_the_window_is_touched():
  picture, mask = np.zeros((4000, 5000, 3), np.uint8), box(4000, 5000, 900, 900, 990, 990)
  tracemalloc.start()
  frame = framing.choose(mask, 64)
  framing.cut_mask(frame, mask)
  result = framing.cut(frame, picture)
  there = tracemalloc.get_traced_memory()[1]
  framing.stitch(frame, result, picture, mask)
  back = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert there < 2e6 and back < picture.nbytes + 4e6  # the copy that is the answer


MASK = box(40, 40, 3, 3, 9, 9)
STITCH = functools.partial(
  framing.stitch, framing.Frame(0, 0, 16, 16, (16, 16)), source=np.zeros((40, 40, 3), np.uint8)
)
BLACK = np.zeros((16, 16, 3), np.float32)


@pytest.mark.parametrize(
  'call, says',
  [
    (lambda: framing.choose(MASK, 16, 'on'), "zoom is 'on'; use one of auto, off, context"),
    (lambda: framing.choose(MASK, 16, context=0.5), r'context is 0\.5'),
    (lambda: framing.choose(~MASK & MASK, 16), 'empty'),
    (lambda: STITCH(BLACK, mask=MASK, match='color'), "'color'; use one of none, colour"),
    (lambda: STITCH(BLACK, mask=MASK, feather=-1.0), 'feather is -1'),
    (lambda: STITCH(BLACK, mask=box(40, 40, 3, 3, 17, 9)), 'leaves its window'),
    (lambda: STITCH(BLACK * np.nan, mask=MASK), 'not finite'),
  ],
)
def test_what_cannot_be_meant_is_refused(call, says):
  with pytest.raises((ValueError, UserError), match=says):
    call()


# feather


def test_the_feather_rises_inside_the_mask_from_its_edge():
  alpha = framing.fade(box(60, 60, 10, 10, 50, 50), 4.0)
  row = alpha[30, 10:15]
  share = np.array([0.125, 0.375, 0.625, 0.875, 1])
  np.testing.assert_allclose(row, share * share * (3 - 2 * share), atol=1e-6)
  assert (alpha[30, 14:46] == 1).all() and (alpha[30, 45:50] == row[::-1]).all()
  assert alpha[:10].max() == alpha[50:].max() == 0
  assert alpha[10, 10] < row[0] * 2  # no brighter corner


@pytest.mark.parametrize('pixels', [0.7, 2.0, 6.0, 40.0])
def test_thin_and_small_places_are_still_fully_repainted(pixels):
  mask = box(120, 160, 20, 20, 100, 90)  # a large island
  mask[60:63, 90:150] = True  # a thin line out of it
  mask[10, 10] = mask[101:104, 93:96] = True  # a pixel far off, a dot beside it
  alpha = framing.fade(mask, pixels)
  assert alpha[10, 10] == alpha[102, 94] == alpha[60, 55] == 1
  assert (alpha[mask] > 0).all() and (alpha[~mask] == 0).all()
  assert alpha[61, 148] == 1 or pixels > 10  # further from the large one than four feathers


def test_the_photos_border_is_no_edge_to_fade_into():
  assert (framing.fade(np.ones((20, 30), bool), 5.0) == 1).all()
  alpha = framing.fade(box(60, 60, 0, 0, 40, 60), 3.0)
  assert (alpha[:37] == 1).all() and (alpha[39] < 0.2).all()


# colour


@functools.cache
def scene(seed, texture):
  """A photo, another that is in the hole, the hole, and the window: all of 256 x 256."""
  rng = np.random.default_rng(seed)
  two = []
  for _ in range(2):
    coarse = cv2.resize(rng.uniform(40, 215, (5, 5, 3)), (256, 256), interpolation=cv2.INTER_CUBIC)
    two.append(np.clip(coarse + texture * rng.standard_normal((256, 256, 3)), 0, 255))
  mask = box(256, 256, 60, 70, 190, 180)
  source, new = (picture.astype(np.uint8) for picture in two)
  return source, new, mask, framing.choose(mask, 256, 'off')


def decode(seed, texture, shift, spill=False):
  """What an autoencoder makes of the edited photo: details lost, and its colours off by `shift`."""
  source, new, mask, _ = scene(seed, texture)
  there = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
  there[:, :165] &= mask[:, :165] | (not spill)
  edited = np.where((there if spill else mask)[..., None], new, source)
  return cv2.GaussianBlur(edited.astype(float), (0, 0), 1.3) + shift


def error(seed, texture, shift, match='colour', spill=False):
  """How many levels the hole is off from an edit without the shift, on average."""
  source, _, mask, frame = scene(seed, texture)
  clean = np.clip(decode(seed, texture, 0, spill), 0, 255)
  result = np.float32(decode(seed, texture, shift, spill) / 127.5 - 1)
  out = framing.stitch(frame, result, source, mask, feather=0.0, match=match)
  return np.abs(out[mask] - clean[mask]).mean()


OFFSET = np.array([12.0, -7.0, 4.0])
RAMP = (np.mgrid[:256, :256].sum(0) / 256 - 1)[..., None] * np.array([28.0, -18.0, 10.0])


@pytest.mark.parametrize('texture', [0, 12, 40])
@pytest.mark.parametrize('seed', [0, 1, 2])
def test_colour_match_takes_a_shift_out_and_adds_none(seed, texture):
  unmatched = error(seed, texture, OFFSET, 'none')
  assert unmatched > 5 and error(seed, texture, OFFSET) < 0.8
  assert error(seed, texture, RAMP, 'none') > 2.9
  assert error(seed, texture, RAMP) < (1.45 if texture == 40 else 0.6)
  source, _, mask, frame = scene(seed, texture)
  plain = np.float32(decode(seed, texture, 0) / 127.5 - 1)
  field = framing.colour_shift(plain, framing.cut(frame, source), framing.cut_mask(frame, mask))
  assert np.abs(field[mask]).max() * 127.5 < 1  # no shift: within one level


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_colour_match_is_not_misled_by_a_subject_that_spills_over_the_mask(seed):
  assert error(seed, 8, 0, spill=True) < 1.5
  assert error(seed, 8, OFFSET, spill=True) < 1.5


def test_colour_match_changes_nothing_where_there_is_nothing_to_compare():
  rng = np.random.default_rng(0)
  for mask in (np.ones((64, 64), bool), ~box(64, 64, 0, 0, 2, 3)):
    frame = framing.choose(mask, 64, 'off')
    result = rng.uniform(-1, 1, (64, 64, 3)).astype(np.float32)
    field = framing.colour_shift(result, np.zeros_like(result), framing.cut_mask(frame, mask))
    assert (field == 0).all()


def test_the_membrane_is_the_least_of_its_energy():
  rng = np.random.default_rng(0)
  d, weight = (
    rng.normal(size=(7, 9, 3)),
    rng.uniform(0, 1, (7, 9, 1)) * (rng.random((7, 9, 1)) < 0.5),
  )
  stiffness = np.array([1.0, 4.0, 30.0])
  f = framing._membrane(np.zeros_like(d), d, weight, stiffness, tolerance=1e-12)
  gradient = weight * (f - d) - stiffness * framing._laplace(f)
  assert np.abs(gradient).max() < 1e-6
