import errno
import functools
import io
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from exedit import images, sample
from exedit import paint_by_example as pbe
from exedit.errors import UserError
from tests import small


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return small.export(tmp_path_factory.mktemp('weights') / 'small')


@pytest.fixture
def files(tmp_path, weights):
  """The paths of the weights, of a photo of 50 x 36, its mask and an exemplar."""
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 256, (36, 50, 3), dtype=np.uint8)).save(tmp_path / 'photo.png')
  hole = np.zeros((36, 50), np.uint8)
  hole[10:27, 17:41] = 255
  Image.fromarray(hole).save(tmp_path / 'mask.png')
  Image.fromarray(rng.integers(0, 256, (9, 20, 3), dtype=np.uint8)).save(tmp_path / 'ex.png')
  names = dict(image='photo.png', mask='mask.png', exemplar='ex.png')
  return dict({name: str(tmp_path / path) for name, path in names.items()}, weights=weights)


def pixels(path):
  return np.asarray(Image.open(path))


def run(files, output, **settings):
  said = []
  return sample.sample(**files, output=str(output), say=said.append, **settings), said


def test_outside_the_mask_the_output_holds_the_sources_bytes(files, tmp_path):
  (path,), _ = run(files, tmp_path / 'out.png')
  source, hole, out = (pixels(p) for p in (files['image'], files['mask'], path))
  assert out.shape == source.shape
  np.testing.assert_array_equal(out[hole == 0], source[hole == 0])
  assert (out[hole > 0] != source[hole > 0]).any(-1).mean() > 0.9


def test_nopaste_saves_the_raw_decode(files, tmp_path):
  (path,), _ = run(files, tmp_path / 'out.png', paste=False)
  source, hole = pixels(files['image']), pixels(files['mask'])
  assert (pixels(path)[hole == 0] != source[hole == 0]).any(-1).mean() > 0.9


def test_a_sample_depends_on_its_seed_and_not_on_how_many_there_are(files, tmp_path):
  three, said = run(files, tmp_path / 'out.png', seed=5, num_samples=3)
  assert [os.path.basename(p) for p in three] == ['out-0.png', 'out-1.png', 'out-2.png']
  (alone,), _ = run(files, tmp_path / 'alone.png', seed=7)
  np.testing.assert_array_equal(pixels(three[2]), pixels(alone))
  assert (pixels(three[0]) != pixels(three[1])).any()
  assert sum('seed 6' in line for line in said) == 1


def test_at_the_trained_size_the_door_is_edit_in_a_notebook(files, tmp_path):
  for name in ('image', 'mask'):
    Image.open(files[name]).crop((10, 4, 10 + small.SIZE, 4 + small.SIZE)).save(files[name])
  (path,), said = run(files, tmp_path / 'out.png', seed=3)
  source = images.load(files['image'])
  result = pbe.edit(
    pbe.load(files['weights']),
    source,
    images.load_mask(files['mask']),
    images.load(files['exemplar']),
    key=jax.random.key(3),
    steps=3,
    scale=2.0,
    sampler='ddim',
  )
  np.testing.assert_array_equal(pixels(path), images.to_uint8(result)[0])
  assert not [line for line in said if line.startswith('note')]


def test_settings_are_the_weights_own_unless_given(files, tmp_path, monkeypatch):
  seen = []

  def edit(model, source, mask, exemplar, key, **settings):
    seen.append(settings)
    return jnp.zeros_like(source)

  monkeypatch.setattr(pbe, 'edit', functools.wraps(pbe.edit)(edit))
  run(files, tmp_path / 'a.png')
  run(files, tmp_path / 'a.png', steps=7, sampler='plms', mask_resize='nearest')
  own = dict(steps=3, scale=2.0, sampler='ddim', mask_resize='bilinear', paste=False)
  assert seen == [own, own | dict(steps=7, sampler='plms', mask_resize='nearest')]


def test_the_network_sees_the_trained_size_and_nothing_of_the_hole(files, tmp_path, monkeypatch):
  seen = {}

  def edit(model, source, mask, exemplar, key, **settings):
    seen.update(source=source, mask=mask)
    return jnp.zeros_like(source)

  monkeypatch.setattr(pbe, 'edit', functools.wraps(pbe.edit)(edit))
  hole = pixels(files['mask'])
  photo = pixels(files['image']) // 4
  photo[hole > 0] = 255
  Image.fromarray(photo).save(files['image'])
  _, said = run(files, tmp_path / 'a.png')
  assert seen['source'].shape == (1, 16, 22, 3) and seen['mask'].shape == (1, 16, 22, 1)
  kept = np.asarray(seen['source'])[np.asarray(seen['mask'])[..., 0] == 0]
  covered = np.asarray(seen['mask']).mean()
  assert (hole > 0).mean() <= covered < 1.4 * (hole > 0).mean()
  assert np.mean(kept > 0.5) < 0.05  # bicubic reaches over the hole's edge by a pixel, no more
  assert any('22 x 16' in line for line in said)


def test_a_white_mask_and_jpeg_are_noted(files, tmp_path):
  Image.new('L', (50, 36), 255).save(files['mask'])
  (path,), said = run(files, tmp_path / 'out.jpg')
  assert Image.open(path).format == 'JPEG'
  assert any('white everywhere' in line for line in said) and any('JPEG' in line for line in said)


def test_a_rotated_photo_is_edited_upright(files, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  upright = Image.open(files['image'])
  upright.transpose(Image.Transpose.ROTATE_90).save(files['image'], exif=exif)
  (path,), _ = run(files, tmp_path / 'out.png')
  hole = pixels(files['mask'])
  np.testing.assert_array_equal(pixels(path)[hole == 0], np.asarray(upright)[hole == 0])
  assert Image.open(path).getexif().get(0x0112, 1) == 1


def test_a_result_that_is_not_finite_is_not_written(files, tmp_path, monkeypatch):

  def edit(model, source, *_, **__):
    return source * np.nan

  monkeypatch.setattr(pbe, 'edit', functools.wraps(pbe.edit)(edit))
  with pytest.raises(UserError, match='not finite'):
    run(files, tmp_path / 'out.png')
  assert not (tmp_path / 'out.png').exists()


def test_no_space_leaves_no_file_and_names_the_output(files, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  before = sorted(os.listdir(tmp_path))
  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(OSError) as caught:
    run(files, tmp_path / 'out.png')
  assert caught.value.filename.endswith('out.png')
  assert sorted(os.listdir(tmp_path)) == before


def test_bad_inputs_are_found_before_the_weights_are_read(files, tmp_path, monkeypatch):
  def load(path):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(pbe, 'load', load)
  bad = [
    dict(image=str(tmp_path / 'nowhere.png')),
    dict(mask=files['exemplar']),
    dict(exemplar=files['weights']),
    dict(output=str(tmp_path / 'out.gif')),
    dict(output=str(tmp_path / 'no' / 'out.png')),
    dict(output=files['image']),
    dict(steps=0),
    dict(scale=float('nan')),
    dict(weights=str(tmp_path)),
  ]
  for change in bad:
    arguments = dict(files, output=str(tmp_path / 'out.png')) | change
    with pytest.raises(UserError) as caught:
      sample.sample(**arguments)
    assert '\n' not in str(caught.value)


def test_a_very_long_photo_is_refused(files, tmp_path):
  Image.new('RGB', (90, 20)).save(files['image'])
  Image.new('L', (90, 20), 255).save(files['mask'])
  with pytest.raises(UserError, match='90 x 20'):
    run(files, tmp_path / 'out.png')


def test_the_colour_profile_of_the_photo_is_kept(files, tmp_path):
  from PIL import ImageCms

  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  Image.open(files['image']).save(files['image'], icc_profile=profile)
  (path,), _ = run(files, tmp_path / 'out.png')
  assert Image.open(path).info['icc_profile'] == profile


def test_ticking_shows_seconds_on_a_terminal_only(monkeypatch):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal, file = Terminal(), io.StringIO()
  for out in (terminal, file):
    monkeypatch.setattr(sys, 'stdout', out)
    with sample.ticking('working', every=0.01):
      time.sleep(0.1)
  assert 'working' in terminal.getvalue() and terminal.getvalue().endswith('\r\033[K')
  assert file.getvalue() == ''
