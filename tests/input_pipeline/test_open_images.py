"""A record becomes an example: order, polarity, settings, and what is refused."""

import io

import cv2
import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline import augment, codec, open_images
from exedit.input_pipeline.errors import DataError, Unusable

BOX = (0.25, 0.2, 0.75, 0.55)  # ymin, xmin, ymax, xmax: (80, 75, 220, 225) of 400 x 300


@pytest.fixture(scope='module')
def picture():
  """400 x 300, red exactly in the box, green and blue telling column and row."""
  x, y = np.meshgrid(np.arange(400), np.arange(300))
  image = np.stack([np.zeros_like(x), x * 255 / 399, y * 255 / 299], -1)
  image[75:225, 80:220, 0] = 255
  return image.astype(np.uint8)


@pytest.fixture(scope='module')
def features(picture):
  return _features(picture, BOX)


def test_example_has_the_published_shapes(features):
  example = open_images.make_example(features, np.random.default_rng(0))
  assert {k: (v.shape, v.dtype.name) for k, v in example.items()} == dict(
    image=((512, 512, 3), 'uint8'), mask=((512, 512), 'uint8'), exemplar=((224, 224, 3), 'uint8')
  )
  assert len(np.unique(example['mask'])) > 2  # its edges stay soft


def test_mask_covers_the_object_with_255_and_spares_the_rest(features):
  for seed in range(40):
    rng = np.random.default_rng(seed)
    example = open_images.make_example(features, rng, size=128, arbitrary_mask=0.0)
    red = example['image'][..., 0] > 250
    assert (example['mask'][red] >= 250).all()
    assert 0 < np.mean(example['mask'] > 0) < 0.95


def test_image_and_mask_are_cut_alike(features):
  """A polygon with no jitter and no extension hugs the box: red and mask must coincide."""
  kw = dict(size=128, arbitrary_mask=0.0, extend=0.0)
  for seed in range(20):
    example = open_images.make_example(features, np.random.default_rng(seed), **kw)
    # Red times 255 and the mask went through the same bilinear resize.
    assert np.abs(example['image'][..., 0].astype(int) - example['mask']).max() <= 1


def test_exemplar_is_the_padded_box(features, picture):
  kw = dict(size=32, augment=False)
  example = open_images.make_example(features, np.random.default_rng(0), **kw)
  cut = cv2.resize(picture[65:235, 70:230], (224, 224), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_array_equal(example['exemplar'], cut)
  bare = open_images.make_example(features, np.random.default_rng(0), exemplar_pad=0, **kw)
  assert (bare['exemplar'][..., 0] == 255).all()


def test_augmentation_gets_its_settings_and_touches_the_exemplar_only(features, monkeypatch):
  seen = {}
  monkeypatch.setattr(augment, 'exemplar', lambda image, rng, **kw: seen.update(kw) or 255 - image)
  kw = dict(affine_jitter=3, blur_kernels=(3,))
  on, off = (
    open_images.make_example(features, np.random.default_rng(4), size=64, augment=switch, **kw)
    for switch in (True, False)
  )
  assert seen == kw
  np.testing.assert_array_equal(on['exemplar'], 255 - off['exemplar'])
  np.testing.assert_array_equal(on['image'], off['image'])
  np.testing.assert_array_equal(on['mask'], off['mask'])


def test_every_usable_box_is_drawn_equally_often(picture):
  left, right = (0.3, 0.1, 0.6, 0.3), (0.3, 0.7, 0.6, 0.9)
  features = _features(picture, left, right, (0, 0, 1, 1), (0, 0, 0.1, 0.1))
  kw = dict(size=16, exemplar_size=8, augment=False)
  rng = np.random.default_rng(0)
  green = [
    open_images.make_example(features, rng, **kw)['exemplar'][..., 1].mean() for _ in range(600)
  ]
  assert np.mean(np.array(green) < 128) == pytest.approx(0.5, abs=0.07)
  centres = {round(float(g) / 255, 1) for g in green}
  assert centres == {0.2, 0.8}  # never the two boxes outside 0.02 <= area <= 0.8


def test_usable_boxes_are_truncated_but_whole_pixels_stay_whole():
  boxes = [(0, 0, 0.5, 0.5), (0, 0, 0.1, 0.19), (0, 0, 0.9, 0.9), (0.1, 0.1, 0.3, 0.2)]
  found = open_images.usable_boxes(np.float32(boxes).ravel(), (10, 33))
  assert found == [(0, 0, 16, 5), (3, 1, 6, 3)]
  for n in (64, 96, 224, 300, 999):
    sides = np.arange(1, n)
    boxes = np.stack([0 * sides, 0 * sides, sides / n, sides / n], 1).astype(np.float32)
    found = open_images.usable_boxes(boxes, (n, n), min_area=0, max_area=1)
    assert [box[3] for box in found] == sides.tolist()


@pytest.mark.parametrize(
  'boxes', [[], [(0, 0, 1, 1)], [(0.5, 0.5, 0.51, 0.51)], [(0.6, 0, 0.1, 1)]]
)
def test_no_usable_box_is_said_with_the_filename(picture, boxes):
  with pytest.raises(Unusable, match=r'^photo.jpg: no box covers between 0.02 and 0.8'):
    open_images.make_example(_features(picture, *boxes), np.random.default_rng(0))


def test_a_box_too_wide_for_a_square_is_squashed_padded_or_skipped(picture):
  features = _features(picture, (0.2, 0.02, 0.8, 0.98))
  kw = dict(size=100, extend=0.0, arbitrary_mask=0.0)
  make = lambda **more: open_images.make_example(features, np.random.default_rng(0), **kw, **more)
  squashed = make()
  expected = cv2.resize(picture, (100, 100), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_array_equal(squashed['image'], expected)
  padded = make(non_square='pad')
  rows = np.flatnonzero(padded['mask'].max(1) > 0)
  assert rows[0] == pytest.approx((50 + 60) / 4, abs=1)  # 50 rows of padding above 300 in 400
  assert rows[-1] == pytest.approx((50 + 240) / 4, abs=1)
  with pytest.raises(Unusable, match='no square cut of the 400x300 image holds a box'):
    make(non_square='skip')
  with pytest.raises(DataError, match="non_square is 'crop': use one of squash, pad, skip"):
    make(non_square='crop')


def test_skip_finds_the_box_that_fits(picture):
  features = _features(picture, (0.2, 0.02, 0.8, 0.98), BOX)
  for seed in range(20):
    rng = np.random.default_rng(seed)
    example = open_images.make_example(
      features, rng, size=64, exemplar_size=8, augment=False, exemplar_pad=0, non_square='skip'
    )
    assert (example['exemplar'][..., 0] == 255).mean() > 0.9


def test_jpeg_decodes_as_pil_does(picture):
  for mode in ('RGB', 'L', 'CMYK'):
    data = _jpeg(PIL.Image.fromarray(picture).convert(mode))
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert('RGB')).astype(int)
    assert np.abs(codec.decode(data) - expected).max() <= (mode == 'CMYK')


def test_exif_rotation_is_ignored(picture):
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  assert codec.decode(_jpeg(PIL.Image.fromarray(picture), exif=exif)).shape == (300, 400, 3)


@pytest.mark.parametrize('mode', ['L', 'RGBA', 'P', '1', 'LA', 'I;16'])
def test_other_png_kinds_become_rgb(picture, mode):
  grey = PIL.Image.fromarray(picture).convert('L')
  if mode == 'I;16':
    image = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
  else:
    image = (grey if mode in 'L1LA' else PIL.Image.fromarray(picture)).convert(mode)
  decoded = codec.decode(_encoded(image, 'PNG'))
  assert decoded.shape == (300, 400, 3) and decoded.dtype == np.uint8
  if mode in ('L', 'I;16'):
    np.testing.assert_array_equal(decoded[..., 0], np.asarray(grey))


@pytest.mark.parametrize('damage', ['empty', 'text', 'half', 'half and an end mark', 'half png'])
def test_damaged_images_are_named(picture, damage):
  jpeg = _jpeg(PIL.Image.fromarray(picture))
  png = _encoded(PIL.Image.fromarray(picture), 'PNG')
  data = {
    'empty': b'',
    'text': b'<html>404</html>',
    'half': jpeg[: len(jpeg) // 2],
    'half and an end mark': jpeg[:300] + b'\xff\xd9',
    'half png': png[: len(png) // 2],
  }[damage]
  features = _features(picture, BOX) | {'image': [data]}
  with pytest.raises(
    DataError, match=r'^photo.jpg (cannot be decoded|is not an image|is empty)'
  ) as info:
    open_images.make_example(features, np.random.default_rng(0))
  assert not isinstance(info.value, Unusable) and '\n' not in str(info.value)
  with pytest.raises(DataError, match='a.jpg: the record has no image'):
    open_images.make_example({'image/filename': [b'a.jpg']}, np.random.default_rng(0))


def _features(picture, *boxes):
  return {
    'image': [_encoded(PIL.Image.fromarray(picture), 'PNG')],
    'image/filename': [b'photo.jpg'],
    'bobjects/bbox': np.float32(boxes).ravel(),
  }


def _jpeg(image, **kw):
  return _encoded(image, 'JPEG', quality=95, **kw)


def _encoded(image, kind, **kw):
  file = io.BytesIO()
  image.save(file, kind, **kw)
  return file.getvalue()


def test_a_stored_mask_cuts_the_exemplar_out_and_may_be_the_hole(features, picture):
  subject = np.zeros((300, 400), np.uint8)
  cv2.circle(subject, (150, 150), 60, 255, -1)
  png = cv2.imencode('.png', subject)[1].tobytes()
  given = {**features, open_images.MASKS: [png]}
  make = lambda found, **how: open_images.make_example(
    found, np.random.default_rng(3), augment=False, exemplar_size=32, **how
  )
  cut = make(given, exemplar='cut_out', exemplar_pad=0)['exemplar']
  assert (cut[0, 0] == 128).all() and cut[16, 16, 0] == 255
  same = make(features, exemplar='cut_out', exemplar_pad=0)  # it has no mask
  np.testing.assert_array_equal(same['exemplar'], make(features, exemplar_pad=0)['exemplar'])
  for mask_jitter, least in ((0, 0.999), (5, 1.0)):
    found = make(given, own_mask=1.0, size=300, zoom=0.0, mask_jitter=mask_jitter)
    hole = found['mask'] > 127
    assert abs(hole.sum() / (subject > 0).sum() - ((60 + mask_jitter) / 60) ** 2) < 0.03
    assert (found['image'][..., 0] > 127)[hole].mean() > 0.7 * least
  for name, value in make(given).items():  # a stored mask alone changes nothing
    np.testing.assert_array_equal(value, make(features)[name])
  with pytest.raises(DataError, match='the mask of box 0 is 400x299, the picture 400x300'):
    bad = cv2.imencode('.png', subject[1:])[1].tobytes()
    make({**features, open_images.MASKS: [bad]}, own_mask=1.0)
  with pytest.raises(DataError, match="data.exemplar is 'round': use one of box, cut_out"):
    open_images.check_settings(exemplar='round')
