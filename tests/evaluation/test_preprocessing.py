"""The preprocessing of images for the networks: squares, regions, the CLIP score's crop."""

import numpy as np
import pytest
from PIL import Image

from exedit import images
from exedit.evaluation import preprocessing
from tests import bench


def picture(height=40, width=60):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(top, left, bottom, right, size=(40, 60)):
  result = np.zeros(size, bool)
  result[top:bottom, left:right] = True
  return result


def test_the_middle_of_the_longer_side_is_seen():
  wide = picture(32, 64)
  np.testing.assert_array_equal(images.to_uint8(preprocessing.centre(wide, 32)), wide[:, 16:48])
  tall = picture(35, 32)  # half of 3 rounds to even: 2
  np.testing.assert_array_equal(images.to_uint8(preprocessing.centre(tall, 32)), tall[2:34])


def test_the_shorter_side_may_be_made_longer_than_the_square():
  whole = Image.fromarray(picture()).resize((54, 36), Image.Resampling.BICUBIC)
  expected = np.asarray(whole)[2:34, 11:43]
  seen = preprocessing.centre(picture(), 32, shorter=36)
  np.testing.assert_array_equal(images.to_uint8(seen), expected)


def test_stretch_is_bilinear_between_pixel_centres_without_antialiasing():
  ramp = np.zeros((2, 4, 3), np.uint8)
  ramp[:] = np.array([0, 40, 80, 120], np.uint8)[:, None]
  wide = (preprocessing.stretch(ramp, 8)[0, :, 0] + 1) * 127.5
  np.testing.assert_allclose(wide, [0, 10, 30, 50, 70, 90, 110, 120], atol=1e-4)
  point = np.zeros((9, 9, 3), np.uint8)
  point[1, 1] = 255
  seen = preprocessing.stretch(point, 3)  # centres fall on pixels 1, 4 and 7
  np.testing.assert_allclose(seen[0, 0], 1, atol=1e-6)
  assert (seen[1:] == -1).all() and (seen[:, 1:] == -1).all()


def test_squash_shows_all_and_keeps_no_shape():
  expected = Image.fromarray(picture()).resize((32, 32), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(images.to_uint8(preprocessing.squash(picture(), 32)), expected)


def test_the_clip_score_leaves_out_the_last_row_and_column():
  seen = preprocessing.score_region(picture(), mask(5, 7, 12, 20), 24)
  np.testing.assert_array_equal(seen, preprocessing.stretch(picture()[5:11, 7:19], 24))


@pytest.mark.parametrize(
  'where, message',
  [
    (mask(0, 0, 0, 0), 'the mask is empty'),
    (mask(3, 3, 4, 20), 'the mask is 17 x 1 pixels'),
    (mask(0, 0, 9, 9, (60, 40)), r'the mask is 40 x 60 pixels \(width x height\), its image 60 x'),
  ],
)
def test_masks_without_a_region_are_refused(where, message):
  with pytest.raises(ValueError, match=message):
    preprocessing.score_region(picture(), where, 24)


def test_real_images_are_cut_to_squares_as_published():
  pixels = np.asarray(bench.picture(1, (90, 61)))
  found = preprocessing.square(pixels, 30)
  resized = Image.fromarray(pixels).resize((44, 30), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(found, np.asarray(resized)[:, 7:37])
  np.testing.assert_array_equal(preprocessing.square(found, 30), found)
  np.testing.assert_array_equal(preprocessing.square(pixels, None), pixels)
