import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from exedit import images
from exedit.runtime import decode
from exedit.runtime.errors import UserError
from tests.systems.test_images import picture, png


def test_a_header_says_what_the_pixels_will_be(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  image = Image.fromarray(picture())  # 24 x 40
  (tmp_path / 'deep.png').write_bytes(
    png((picture().astype(np.uint16) * 257).astype('>u2').reshape(24, -1), 40, depth=16)
  )
  Image.fromarray(np.zeros((24, 40), np.uint16)).save(tmp_path / 'grey.png')
  image.save(tmp_path / 'plain.jpg')
  image.save(tmp_path / 'turned.jpg', exif=exif)
  image.convert('RGBA').save(tmp_path / 'clear.png')
  image.convert('CMYK').save(tmp_path / 'inks.tif')
  found = {path.name: decode.header(path) for path in tmp_path.iterdir()}  # size, alpha, deep, inks
  assert found == {
    'plain.jpg': decode.Header((24, 40), False, False, False),
    'turned.jpg': decode.Header((40, 24), False, False, False),
    'clear.png': decode.Header((24, 40), True, False, False),
    'deep.png': decode.Header((24, 40), False, True, False),
    'grey.png': decode.Header((24, 40), False, True, False),
    'inks.tif': decode.Header((24, 40), False, False, True),
  }


def test_a_header_decodes_no_pixels(tmp_path, monkeypatch):
  for name in ('a.png', 'a.jpg'):
    Image.fromarray(picture()).save(tmp_path / name)
  monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda *_: pytest.fail('pixels were decoded'))
  for name in ('a.png', 'a.jpg'):
    assert decode.header(tmp_path / name).size == (24, 40)


def test_a_photo_keeps_the_colours_that_transparency_hides(tmp_path):
  rgba = np.random.default_rng(0).integers(0, 256, (24, 40, 4), dtype=np.uint8)
  rgba[:12, :, 3] = 0
  Image.fromarray(rgba).save(tmp_path / 'a.png')
  photo = images.read_photo(tmp_path / 'a.png')
  np.testing.assert_array_equal(photo.rgba, rgba)
  np.testing.assert_array_equal(photo.rgb, images.read(tmp_path / 'a.png'))
  assert (photo.rgb[:12] == 255).all()
  Image.fromarray(picture()).save(tmp_path / 'b.png', icc_profile=b'?' * 200)
  assert images.read_photo(tmp_path / 'b.png').rgba is None


def test_too_many_pixels_are_refused_whatever_other_threads_do(tmp_path, monkeypatch):
  """Python's own way to turn a warning into an error holds for one thread at a time."""
  Image.new('RGB', (100, 20)).save(tmp_path / 'large.png')
  Image.new('RGB', (90, 20)).save(tmp_path / 'good.png')
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1900)
  before = list(warnings.filters)

  def look(i):
    try:
      return decode.upright(tmp_path / ('large.png', 'good.png')[i % 2], 'RGB', 'white').size
    except UserError as error:
      return str(error)

  with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(8) as pool:
    found = list(pool.map(look, range(400)))
  assert set(found[1::2]) == {(90, 20)} and not caught
  [line] = set(found[::2])
  assert 'large.png has more than' in str(line)
  assert warnings.filters == before


def test_far_too_many_pixels_are_refused_too(tmp_path, monkeypatch):
  Image.new('RGB', (100, 50)).save(tmp_path / 'large.png')
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1900)
  for look in (decode.header, images.read, images.read_mask, images.read_photo):
    with pytest.raises(UserError, match='large.png has more than'):
      look(tmp_path / 'large.png')


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'pipe.png')
  with pytest.raises(UserError, match='is a pipe or device'):
    images.read(tmp_path / 'pipe.png')
