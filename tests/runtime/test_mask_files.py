"""What the files of many tools mean as masks: one rectangle of a picture of 64 x 48."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFilter

from exedit.runtime import mask_files
from exedit.runtime.errors import UserError
from tests import pictures

HOLE = pictures.box(48, 64, 12, 20, 30, 44)
GREY = np.where(HOLE, 255, 0).astype(np.uint8)
Y, X = np.mgrid[:48, :64]
SMOOTH = np.stack([140 + X, 120 + 2 * Y, 200 + 0 * X], -1).astype(np.uint8)
ROUGH = (0.6 * SMOOTH + np.random.default_rng(0).integers(0, 100, SMOOTH.shape)).astype(np.uint8)
SOFT = np.asarray(Image.fromarray(GREY).filter(ImageFilter.GaussianBlur(3)))
RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


def on(ground, paint):
  return np.where(HOLE[..., None], np.uint8(paint), np.uint8(ground))


def palette(indices, colours):
  image = Image.fromarray(indices.astype(np.uint8)).convert('P')
  table = np.zeros((256, 3), int)
  for index, colour in colours.items():
    table[index] = colour
  image.putpalette(table.ravel().tolist())
  return image


def with_alpha(pixels, alpha):
  return np.dstack([pixels, alpha])


def two_paints():
  paint = on(BLACK, RED)
  paint[12:20, 20:44] = (0, 255, 0)
  return paint


def bands(*values, first=3):
  """The hole in the first value, and a band of each other value above it."""
  found = np.where(HOLE, values[0], 0).astype(np.uint8)
  for i, value in enumerate(values[1:]):
    found[first * i : first * (i + 1)] = value
  return found


PLAIN = {
  '8 bits': GREY,
  'one bit': HOLE,
  'RGB': on(BLACK, WHITE),
  '16 bits': (HOLE * 65535).astype(np.uint16),
  'white paint on transparency': with_alpha(on(WHITE, WHITE), GREY),
  'white paint, grey and alpha': with_alpha(np.full_like(GREY, 255), GREY),
  'white paint over hidden colours': with_alpha(on(SMOOTH, WHITE), GREY),
  'opaque alpha': with_alpha(on(BLACK, WHITE), np.full_like(GREY, 255)),
  'round corners': with_alpha(on(BLACK, WHITE), np.where(X + Y < 3, 0, 255).astype(np.uint8)),
  'palette': palette(HOLE, {1: WHITE}),
}
UNDERSTOOD = {
  'a photo with a hole': (with_alpha(ROUGH, 255 - GREY), 'several colours'),
  'a smooth photo with a hole': (with_alpha(SMOOTH, 255 - GREY), 'transparent part: that part'),
  'a grey photo with a hole': (with_alpha(ROUGH[..., :1], 255 - GREY), 'that part is meant'),
  'black paint': (with_alpha(0 * SMOOTH, GREY), 'black on transparency: the visible part'),
  'red paint': (with_alpha(on(BLACK, RED), GREY), '(255, 0, 0) on transparency'),
  'two paints': (with_alpha(two_paints(), GREY), 'the visible part is meant'),
  'weak paint': (with_alpha(on(RED, RED), GREY // 3), 'the visible part is meant'),
  'alpha 0 everywhere': (with_alpha(on(BLACK, WHITE), 0 * GREY), 'its colours count'),
  '0 and 1': (HOLE.astype(np.uint8), 'only the values 0 and 1, of 255'),
  '0 and 1 in 16 bits': (HOLE.astype(np.uint16), 'only the values 0 and 1, in 16 bits'),
  '255 in 16 bits': ((HOLE * 255).astype(np.uint16), '255 counts as white'),
  '255 in 32 bits': ((HOLE * 255).astype(np.int32), '255 counts as white'),
  '12 bits': ((HOLE * 4095).astype(np.uint16), '4095 counts as white'),
  '31 bits': ((HOLE * (2**31 - 1)).astype(np.int32), '2147483647 counts as white'),
  'VOC': (palette(HOLE, {1: (128, 0, 0)}), '(128, 0, 0) on a dark ground'),
  'VOC, dark': (palette(8 * HOLE, {8: (64, 0, 0)}), '(64, 0, 0) on a dark ground'),
  'red': (on(BLACK, RED), '(255, 0, 0) on a dark ground'),
  'blue': (on(BLACK, (0, 0, 255)), '(0, 0, 255) on a dark ground'),
  'viridis': (on((68, 1, 84), (253, 231, 36)), '(253, 231, 36) on a dark ground'),
  'low contrast': (np.where(HOLE, 200, 60).astype(np.uint8), 'the values 60 and 200'),
  'three levels': (bands(255, 100), 'neither black nor white'),
}
REFUSED = {
  'a photo': (ROUGH, 'no mask, because it has the colours'),
  'a smooth photo': (SMOOTH, 'no mask'),
  'a grey photo': (ROUGH[..., 0], '100% of its pixels are neither black nor white'),
  'white paint on a photo': (on(ROUGH, WHITE), 'no mask'),
  'white paint on a smooth photo': (on(SMOOTH, WHITE), 'the colours white'),
  'blue over a photo': ((0.4 * SMOOTH + 0.6 * on(0.67 * SMOOTH, (0, 90, 255))), 'no mask'),
  'red on white': (on(WHITE, RED), 'the colours white, (255, 0, 0)'),
  'all red': (on(RED, RED), 'the colours (255, 0, 0)'),
  'two paints on black': (two_paints(), 'black, (255, 0, 0), (0, 255, 0)'),
  'labels': (X // 3 * (Y > 9), 'a map of labels'),
  'labels 1 and 255': (bands(1, 255), 'values 0, 1, 255'),
  'labels 15 and 255': (bands(15, 255), 'values 0, 15, 255'),
  'VOC with a border': (
    palette(bands(15, 255), {15: (192, 128, 128), 255: (224, 224, 192)}),
    '224',
  ),
  'nothing painted': (with_alpha(on(WHITE, WHITE), 0 * GREY), 'transparent everywhere'),
  'a hole in black': (with_alpha(0 * SMOOTH, 255 - GREY), '86% of it is visible'),
  'a cut-out subject': (with_alpha(ROUGH, GREY), '14% of it is visible'),
  'labels and 255': (bands(255, 1, 2), 'the values 0, 1, 2, 255'),
  '1 and 2': (1 + HOLE, 'only the values 1 and 2'),
  '110 and 160': (np.where(HOLE, 160, 110), 'only the values 110 and 160'),
  '0 and -1': (-HOLE.astype(np.int32), 'from -1 to 0'),
}


def picture(pixels) -> Image.Image:
  if isinstance(pixels, Image.Image):
    return pixels
  if pixels.ndim == 3 and pixels.shape[-1] == 2:
    return Image.merge('LA', [Image.fromarray(pixels[..., i].copy()) for i in range(2)])
  wide = pixels.dtype in (np.uint16, np.int32, np.bool_)
  return Image.fromarray(pixels if wide else pixels.astype(np.uint8))


@pytest.mark.parametrize('kind', PLAIN)
def test_a_plain_mask_needs_no_words(kind):
  found = mask_files.understand(picture(PLAIN[kind]), 'm.png')
  np.testing.assert_array_equal(found.meant, HOLE)
  assert not found.said


@pytest.mark.parametrize('kind', UNDERSTOOD)
def test_another_mask_is_understood_and_says_how(kind):
  pixels, says = UNDERSTOOD[kind]
  found = mask_files.understand(picture(pixels), 'm.png')
  np.testing.assert_array_equal(found.meant, HOLE)
  assert says in found.said


@pytest.mark.parametrize('kind', REFUSED)
def test_what_is_no_mask_or_could_mean_the_opposite_is_refused(kind):
  pixels, says = REFUSED[kind]
  with pytest.raises(UserError) as caught:
    mask_files.understand(picture(pixels), 'm.png')
  line = str(caught.value)
  assert (
    line.startswith('m.png ')
    and says in line
    and ('white' in line or 'save it' in line)
    and len(line) < 250
  )


@pytest.mark.parametrize('quality', [30, 75, 95])
@pytest.mark.parametrize('paint', [WHITE, RED])
def test_the_noise_of_jpeg_does_no_harm(tmp_path, quality, paint):
  large = Image.fromarray(on(BLACK, paint)).resize((512, 384), Image.Resampling.NEAREST)
  large.save(tmp_path / 'm.jpg', quality=quality)
  found = mask_files.read(tmp_path / 'm.jpg')
  expected = np.asarray(Image.fromarray(HOLE).resize(large.size))
  assert (found.meant != expected).mean() < 0.005 and bool(found.said) == (paint == RED)


def test_a_grey_that_only_noise_lifts_over_half_is_refused(tmp_path):
  grey = Image.fromarray((127 * HOLE).astype(np.uint8)).resize((500, 380), Image.Resampling.NEAREST)
  grey.save(tmp_path / 'm.jpg', quality=75)
  with pytest.raises(UserError, match='of its pixels are dark grey and'):
    mask_files.read(tmp_path / 'm.jpg')


def test_deep_colours_are_refused(tmp_path):
  cv2.imwrite(str(tmp_path / 'm.png'), np.dstack([255 * HOLE.astype(np.uint16)] * 3))
  with pytest.raises(UserError, match='several channels of more than 8 bits: save it with 8 bits'):
    mask_files.read(tmp_path / 'm.png')


def test_soft_edges_keep_their_levels():
  for pixels in (SOFT, SOFT.astype(np.uint16) * 257, with_alpha(np.full_like(SOFT, 255), SOFT)):
    found = mask_files.understand(picture(pixels), 'm.png')
    np.testing.assert_array_equal(found.levels, SOFT)


def test_of_a_cut_out_exemplar_the_visible_part_is_the_subject():
  found = mask_files.understand(picture(with_alpha(ROUGH, GREY)), 'm.png', subject=True)
  np.testing.assert_array_equal(found.meant, HOLE)
  assert 'the visible part is meant' in found.said


def test_large_pictures_are_counted_in_parts():
  large = np.tile(on((68, 1, 84), (253, 231, 36)), (25, 20, 1))
  np.testing.assert_array_equal(
    mask_files.understand(picture(large), 'm.png').meant, np.tile(HOLE, (25, 20))
  )
