import io
import os
import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from exedit import images
from exedit.runtime.errors import UserError


def picture(h=24, w=40, seed=0):
  """A smooth colourful picture: gradients survive JPEG, noise does not."""
  y, x = np.mgrid[:h, :w]
  return np.stack([255 * x / w, 255 * y / h, 128 + 0 * x], -1).astype(np.uint8)


def refusal(call, *args, **kwargs):
  """The one line with which `call` says no."""
  with pytest.raises(UserError) as caught:
    call(*args, **kwargs)
  line = str(caught.value)
  assert '\n' not in line and len(line) < 300
  return line


# exactness


def test_every_byte_survives_the_float_round_trip():
  levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  floats = images.from_uint8(levels)
  assert floats.dtype == np.float32 and floats.min() == -1 and floats.max() == 1
  np.testing.assert_array_equal(images.to_uint8(floats), levels)
  np.testing.assert_array_equal(images.to_uint8(jnp.asarray(floats)), levels)


def test_to_uint8_rounds_and_clips():
  values = np.array([-1.5, -1.0, 0.0, 0.9999, 1.0, 7.0], np.float32).reshape(1, 6, 1)
  assert images.to_uint8(values).ravel().tolist() == [0, 0, 128, 255, 255, 255]
  assert images.to_uint8(values, truncate=True).ravel().tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize('ending', ['.png', '.webp'])
def test_load_edit_save_keeps_the_sources_bytes_outside_the_mask(tmp_path, ending):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (31, 45, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  hole = np.zeros((31, 45), np.uint8)
  hole[5:20, 7:30] = 255
  Image.fromarray(hole).save(tmp_path / 'm.png')

  source = images.load(tmp_path / 'a.png')
  mask = images.load_mask(tmp_path / 'm.png', like=source)
  result = jax.jit(images.paste)(jnp.full_like(source, 0.3), source, mask)
  written = images.save(result, tmp_path / f'out{ending}')

  out = np.asarray(Image.open(written))
  np.testing.assert_array_equal(out[hole == 0], pixels[hole == 0])
  assert (out[hole > 0] == round(1.3 * 127.5)).all()


def test_pad_then_crop_is_the_identity_and_mirrors(tmp_path):
  image = images.from_uint8(picture(13, 9))[None]
  for array in (image, jnp.asarray(image)):
    padded = images.pad_to_multiple(array, 32)
    assert padded.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(padded[:, :13, :9], image)
    np.testing.assert_array_equal(padded[:, 13], padded[:, 12])
  assert images.pad_to_multiple(padded, 32) is padded


# kinds of files


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_photos_come_upright(tmp_path, orientation):
  undo = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
  }
  stored = Image.fromarray(picture())
  if orientation in undo:
    stored = stored.transpose(undo[orientation])
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored.save(tmp_path / 'photo.png', exif=exif)
  np.testing.assert_array_equal(images.read(tmp_path / 'photo.png'), picture())


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
  levels = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
  for name in ('a.png', 'a.tif', 'a.pgm'):
    Image.fromarray(levels).save(tmp_path / name)
    pixels = images.read(tmp_path / name)
    assert pixels.shape == (24, 40, 3)
    np.testing.assert_allclose(pixels[..., 0], levels / 257, atol=0.51)


def test_sixteen_bit_colour_loads(tmp_path):
  wide = (picture().astype(np.uint16) * 257).astype('>u2')
  (tmp_path / 'a.png').write_bytes(png(wide.reshape(24, -1), 40, depth=16, kind=2))
  np.testing.assert_allclose(images.read(tmp_path / 'a.png'), picture(), atol=1)


def png(rows, width, depth=8, kind=2):
  """A PNG by hand, for headers that Pillow does not write."""

  def chunk(name, body):
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))

  header = struct.pack('>IIBBBBB', width, len(rows), depth, kind, 0, 0, 0)
  body = b''.join(b'\0' + row.tobytes() for row in rows)
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(body))
    + chunk(b'IEND', b'')
  )


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr', 'I'])
def test_every_pillow_mode_becomes_rgb(tmp_path, mode):
  name = {'CMYK': 'a.tif', 'YCbCr': 'a.jpg', 'I': 'a.tif'}.get(mode, 'a.png')
  image = Image.new('RGB', (40, 24), (255, 255, 255))
  image = (
    Image.fromarray(np.full((24, 40), 65535, np.int32)) if mode == 'I' else image.convert(mode)
  )
  image.save(tmp_path / name)
  assert (images.read(tmp_path / name) >= 254).all()


def test_an_opaque_rgba_photo_keeps_its_bytes_and_transparency_lies_on_white(tmp_path):
  rgba = np.dstack([picture(), np.full((24, 40), 255, np.uint8)])
  rgba[:, 20:] = (200, 10, 10, 0)
  Image.fromarray(rgba).save(tmp_path / 'a.png')
  pixels = images.read(tmp_path / 'a.png')
  np.testing.assert_array_equal(pixels[:, :20], picture()[:, :20])
  assert (pixels[:, 20:] == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path):
  frames = [Image.new('RGB', (16, 16), colour) for colour in ('red', 'blue')]
  for name in ('a.gif', 'a.webp', 'a.png'):
    options = dict(lossless=True) if name == 'a.webp' else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert (images.read(tmp_path / name) == (255, 0, 0)).all(), name


def test_cmyk_with_a_broken_colour_profile_still_loads(tmp_path):
  Image.new('CMYK', (16, 16)).save(tmp_path / 'a.tif', icc_profile=b'no profile at all')
  assert (images.read(tmp_path / 'a.tif') == 255).all()
  assert images.read_icc(tmp_path / 'a.tif') is None


# masks


def test_masks_are_binarised_at_one_half(tmp_path):
  levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
  Image.fromarray(levels).save(tmp_path / 'm.png')
  mask = images.load_mask(tmp_path / 'm.png')
  assert mask.shape == (1, 16, 16, 1) and mask.dtype == jnp.float32
  np.testing.assert_array_equal(np.asarray(mask)[0, :, :, 0], levels >= 128)


def test_a_mask_painted_white_on_transparent_repaints_what_was_painted(tmp_path):
  rgba = np.full((16, 16, 4), 255, np.uint8)
  rgba[:, 8:, 3] = 0  # white, but transparent: nobody painted there
  Image.fromarray(rgba).save(tmp_path / 'm.png')
  mask = images.read_mask(tmp_path / 'm.png')
  assert mask[:, :8].all() and not mask[:, 8:].any()


def test_one_bit_and_sixteen_bit_masks(tmp_path):
  half = np.zeros((16, 16), bool)
  half[:8] = True
  Image.fromarray(half).save(tmp_path / 'one.png')
  Image.fromarray((half * 65535).astype(np.uint16)).save(tmp_path / 'sixteen.png')
  for name in ('one.png', 'sixteen.png'):
    np.testing.assert_array_equal(images.read_mask(tmp_path / name), half)


def test_an_unusual_mask_warns_and_says_how_it_was_understood(tmp_path):
  Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / 'm.png')
  with pytest.warns(UserWarning, match=r'm.png: the mask has only the values 0 and 1.* \(6.2% of'):
    mask = images.load_mask(tmp_path / 'm.png')
  np.testing.assert_array_equal(np.asarray(mask)[0, :, :, 0], np.eye(16))


@pytest.mark.parametrize('size', [(80, 48), (20, 12), (27, 16)])  # the last one is rounded
def test_a_mask_of_the_same_shape_is_scaled_when_it_is_asked_for(tmp_path, size):
  half = np.zeros(size[::-1], bool)
  half[:, : size[0] // 2] = True
  Image.fromarray(half).save(tmp_path / 'm.png')
  source = np.zeros((1, 24, 40, 3), np.float32)
  assert '--scale_mask' in refusal(images.load_mask, tmp_path / 'm.png', like=source)
  mask = np.asarray(images.load_mask(tmp_path / 'm.png', like=source, scale=True))
  assert mask.shape == (1, 24, 40, 1) and set(np.unique(mask)) == {0, 1}
  np.testing.assert_allclose(mask.mean(), half.mean(), atol=0.02)


@pytest.mark.parametrize('size', [(40, 25), (24, 40), (30, 20)])
def test_a_mask_of_another_shape_is_not_scaled(tmp_path, size):
  Image.new('L', (size[0], size[1] + 4), 255).save(tmp_path / 'm.png')
  source = np.zeros((1, 24, 40, 3), np.float32)
  assert '--scale_mask' not in refusal(images.load_mask, tmp_path / 'm.png', source, scale=True)


def test_masks_in_arrays_have_one_meaning():
  hole = np.zeros((1, 4, 4, 1), bool)
  hole[0, 1:3] = True
  for array in (hole, hole.astype(np.uint8), hole.astype(int), hole * np.uint8(255)):
    for given in (array, jnp.asarray(array)):
      np.testing.assert_array_equal(images.as_mask(given), hole.astype(np.float32))
  soft = hole * np.float32(0.3)
  np.testing.assert_array_equal(images.as_mask(soft), soft)
  for wrong in (hole * 255.0, hole * 256, hole * -1, hole * np.nan):
    with pytest.raises(ValueError, match='1 means repaint'):
      images.as_mask(wrong)


def test_a_mask_of_another_size_names_both_sizes(tmp_path):
  Image.new('L', (30, 20), 255).save(tmp_path / 'm.png')
  source = np.zeros((1, 24, 40, 3), np.float32)
  line = refusal(images.load_mask, tmp_path / 'm.png', like=source)
  assert 'm.png' in line and '30 x 20' in line and '40 x 24' in line
  turned = refusal(images.load_mask, tmp_path / 'm.png', like=np.zeros((1, 30, 20, 3), np.float32))
  assert 'upright' in turned


def test_an_empty_mask_is_refused_and_says_how_bright_it_is(tmp_path):
  Image.new('L', (16, 16), 1).save(tmp_path / 'm.png')  # 0/1 instead of 0/255: a common slip
  line = refusal(images.load_mask, tmp_path / 'm.png')
  assert 'empty' in line and ' 1 of 255' in line


# bad files


def damaged(folder):
  """Name and bytes of files that must be refused."""
  buffer = io.BytesIO()
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
    buffer, 'JPEG'
  )
  jpeg = buffer.getvalue()
  buffer = io.BytesIO()
  Image.fromarray(picture(64, 64)).save(buffer, 'PNG')
  whole = buffer.getvalue()
  flipped = bytearray(whole)
  flipped[len(whole) // 2] ^= 0xFF
  return {
    'empty.png': b'',
    'text.png': b'this is no image',
    'cut.jpg': jpeg[: len(jpeg) // 2],
    'header.jpg': jpeg[:20],
    'cut.png': whole[: len(whole) // 2],
    'flipped.png': bytes(flipped),
    'zero.png': png(np.zeros((0, 0), np.uint8), 0),
    'zero.ppm': b'P6 0 0 255\n',
    'flat.png': png(np.zeros((0, 30), np.uint8), 10),
    'lfs.png': b'version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n',
  }


@pytest.mark.parametrize('name', sorted(damaged('')))
def test_damaged_files_are_refused_by_name(tmp_path, name):
  (tmp_path / name).write_bytes(damaged('')[name])
  for read in (images.load, images.load_mask):
    assert name in refusal(read, tmp_path / name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
  assert 'does not exist' in refusal(images.load, tmp_path / 'nowhere.png')
  assert 'folder' in refusal(images.load, tmp_path)


@pytest.mark.parametrize(
  'side', [25_000, 60_000]
)  # more than any memory allows by itself, and more than Pillow opens
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side):
  header = struct.pack('>IIBBBBB', side, side, 8, 0, 0, 0, 0)
  body = b'IHDR' + header
  data = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + body + struct.pack('>I', zlib.crc32(body))
  data += struct.pack('>I', 0) + b'IDAT' + struct.pack('>I', zlib.crc32(b'IDAT'))
  (tmp_path / 'bomb.png').write_bytes(data)
  assert 'million pixels' in refusal(images.load, tmp_path / 'bomb.png')


def test_a_damaged_exif_block_is_ignored(tmp_path):
  Image.fromarray(picture()).save(tmp_path / 'a.png', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
  np.testing.assert_array_equal(images.read(tmp_path / 'a.png'), picture())


# saving


def test_save_refuses_what_it_cannot_write(tmp_path):
  image = images.from_uint8(picture())
  assert '.gif' in refusal(images.save, image, tmp_path / 'a.gif')
  assert 'does not exist' in refusal(images.save, image, tmp_path / 'no' / 'a.png')
  assert 'folder' in refusal(images.save, image, tmp_path)
  assert 'not finite' in refusal(images.save, image * np.nan, tmp_path / 'a.png')
  with pytest.raises(ValueError, match='one image'):
    images.save(np.zeros((2, 8, 8, 3), np.float32), tmp_path / 'a.png')
  assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = images.save(images.from_uint8(picture()), tmp_path / 'a.png')
  before = open(path, 'rb').read()

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(OSError, match='No space') as caught:
    images.save(-images.from_uint8(picture()), tmp_path / 'a.png')
  assert caught.value.filename == path
  assert open(path, 'rb').read() == before and os.listdir(tmp_path) == ['a.png']


def test_the_colour_profile_travels(tmp_path):
  from PIL import ImageCms

  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  Image.fromarray(picture()).save(tmp_path / 'a.png', icc_profile=profile)
  Image.fromarray(picture()).save(tmp_path / 'b.png')
  assert images.read_icc(tmp_path / 'a.png') == profile
  assert images.read_icc(tmp_path / 'b.png') is None
  written = images.save(
    images.load(tmp_path / 'a.png'),
    tmp_path / 'c.png',
    icc_profile=images.read_icc(tmp_path / 'a.png'),
  )
  assert images.read_icc(written) == profile


def test_the_recipe_is_in_the_png_and_beside_every_kind(tmp_path):
  for name in ('a.png', 'b.jpg', 'c.webp'):
    images.save(picture(), tmp_path / name, recipe='{"ü": 1}')
    assert (tmp_path / name).with_suffix('.json').read_text(encoding='utf-8') == '{"ü": 1}'
  assert Image.open(tmp_path / 'a.png').info['exedit'] == '{"ü": 1}'
  np.testing.assert_array_equal(images.read(tmp_path / 'a.png'), picture())


@pytest.mark.parametrize('fails', [0, 1])
def test_image_and_recipe_are_written_both_or_neither(tmp_path, monkeypatch, fails):
  moves, move = [], os.replace

  def replace(old, new):
    moves.append(new)
    if len(moves) > fails:
      raise OSError(28, 'No space left on device')
    move(old, new)

  monkeypatch.setattr(os, 'replace', replace)
  with pytest.raises(OSError):
    images.save(picture(), tmp_path / 'a.png', recipe='{}')
  assert [os.path.basename(path) for path in moves] == ['a.png', 'a.json'][: fails + 1]
  assert os.listdir(tmp_path) == []


def test_transparency_is_saved_where_the_format_holds_it(tmp_path):
  rgba = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
  rgba[:12, :, 3] = 0
  for name in ('a.png', 'b.webp'):
    images.save(rgba, tmp_path / name)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name)), rgba)
  with pytest.raises(ValueError, match=r'\[24, 40, 4\]'):
    images.save(rgba, tmp_path / 'c.jpg')


def test_what_a_format_cannot_hold_is_refused(tmp_path):
  wide = np.zeros((8, 16384, 3), np.uint8)
  with pytest.raises(UserError, match='WEBP holds at most 16383 a side'):
    images.save(wide, tmp_path / 'a.webp')
  images.check_holds('a.png', (10**6, 8))
  with pytest.raises(UserError, match='8 x 70000 pixels, and JPEG'):
    images.check_holds('a.jpg', (70000, 8))
  assert os.listdir(tmp_path) == []


# sizes and sheets


def test_squash_is_pillows_bicubic():
  pixels = picture(50, 30)
  expected = np.asarray(Image.fromarray(pixels).resize((16, 16)))  # bicubic is Pillow's default
  got = images.squash(jnp.asarray(images.from_uint8(pixels))[None], 16)
  assert got.shape == (1, 16, 16, 3)
  np.testing.assert_array_equal(images.to_uint8(got)[0], expected)


def test_grid_shows_every_image_and_never_blurs_a_small_one():
  small = np.zeros((32, 32, 3), np.uint8)
  small[:16] = (250, 0, 0)
  big = np.full((50, 80, 3), 0.0, np.float32)
  sheet = images.grid([[small, big], [small]], captions=['one', 'two'])
  assert sheet.dtype == np.uint8 and min(sheet.shape[:2]) > 192
  red = (sheet == (250, 0, 0)).all(-1)
  assert red.sum() == 2 * (16 * 32) * (160 // 32) ** 2  # nearest: only whole pixels of the colour
  assert (sheet[:20] < 100).any()  # the captions
