import functools
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from exedit import images, systems
from exedit import paint_by_example as pbe
from exedit.editing import edit_files, jobs, session
from exedit.runtime import parallel
from exedit.runtime.errors import UserError
from exedit.weights import find
from tests import ROOT, pictures, runs, simulated, small

PLAIN = dict(feather=0.0, match='none')  # stitched as `edit` pastes


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with small.loaded_once():
    yield


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return small.export(tmp_path_factory.mktemp('weights') / 'small')


@pytest.fixture
def files(tmp_path, weights):
  """The paths of the weights, of a photo of 50 x 36, its mask and an exemplar."""
  return dict(pictures.write(tmp_path, 36, 50, 10, 17, 27, 41), weights=weights)


def pixels(path):
  return np.asarray(Image.open(path))


def run(files, output, **settings):
  said = []
  return edit_files.edit_once(**files, output=str(output), say=said.append, **settings), said


def trained_size(files):
  """The files cut to the size that the weights were trained at."""
  for name in ('image', 'mask'):
    Image.open(files[name]).crop((10, 4, 10 + small.SIZE, 4 + small.SIZE)).save(files[name])


def paint(monkeypatch, value=0.0):
  """An edit that costs nothing; returns the list of what it is called with."""
  seen = []

  def edit(model, source, mask, exemplar, key, **settings):
    seen.append(dict(source=source, mask=mask, exemplar=exemplar, key=key, settings=settings))
    return jnp.full_like(source, value)

  monkeypatch.setattr(pbe, 'edit', functools.wraps(pbe.edit)(edit))
  return seen


# what an edit is


def test_outside_the_mask_the_output_holds_the_sources_bytes(files, tmp_path):
  (path,), _ = run(files, tmp_path / 'out.png')
  source, hole, out = (pixels(p) for p in (files['image'], files['mask'], path))
  assert out.shape == source.shape
  np.testing.assert_array_equal(out[hole == 0], source[hole == 0])
  assert (out[hole > 0] != source[hole > 0]).any(-1).mean() > 0.9


def test_nopaste_saves_the_raw_decode(files, tmp_path):
  (path,), said = run(files, tmp_path / 'out.png', paste=False)
  source, hole = pixels(files['image']), pixels(files['mask'])
  assert (pixels(path)[hole == 0] != source[hole == 0]).any(-1).mean() > 0.9
  assert any('outside the mask change' in line for line in said)


@pytest.mark.parametrize('batch_size', [1, 2])
def test_a_sample_depends_on_its_seed_and_not_on_how_many_there_are(files, tmp_path, batch_size):
  three, said = run(files, tmp_path / 'out.png', seed=5, num_samples=3, batch_size=batch_size)
  assert [os.path.basename(p) for p in three] == ['out-0.png', 'out-1.png', 'out-2.png']
  (alone,), _ = run(files, tmp_path / 'alone.png', seed=7)
  off = np.abs(pixels(three[2]).astype(int) - pixels(alone))
  assert off.max() <= (batch_size > 1)  # the same program: to the last bit
  assert (pixels(three[0]) != pixels(three[1])).any()
  assert sum('seed 6' in line for line in said) == 1


def test_at_the_trained_size_the_door_is_edit_in_a_notebook(files, tmp_path):
  trained_size(files)
  (path,), said = run(files, tmp_path / 'out.png', seed=3, **PLAIN)
  result = pbe.edit(
    pbe.load(files['weights']),
    images.load(files['image']),
    images.load_mask(files['mask']),
    images.load(files['exemplar']),
    key=jax.random.key(3),
    steps=3,
    scale=2.0,
    sampler='ddim',
  )
  np.testing.assert_array_equal(pixels(path), images.to_uint8(result)[0])
  assert not [line for line in said if line.startswith('note')]


def test_at_any_size_the_door_is_edit_photo_in_a_notebook(files, tmp_path):
  Image.fromarray(pictures.box(36, 50, 20, 30, 24, 33)).save(files['mask'])
  Image.fromarray(pictures.box(9, 20, 2, 3, 7, 12)).save(tmp_path / 'subject.png')
  cut = dict(exemplar_mask=str(tmp_path / 'subject.png'), exemplar_fit='pad')
  (path,), said = run(files, tmp_path / 'out.png', seed=3, zoom='context', **cut)
  assert any('a window of 8 x 8 of the photo of 50 x 36' in line for line in said)
  result = pbe.edit_photo(
    pbe.load(files['weights']),
    images.load(files['image']),
    images.load_mask(files['mask']),
    images.load(files['exemplar']),
    jax.random.key(3),
    trained=small.SIZE,
    zoom='context',
    fit='pad',
    exemplar_mask=images.load_mask(cut['exemplar_mask']),
    steps=3,
    scale=2.0,
    sampler='ddim',
  )
  np.testing.assert_array_equal(pixels(path), images.to_uint8(result)[0])
  assert (pixels(path) != pixels(files['image'])).any(-1).sum() <= 12


def test_bfloat16_is_near_float32_and_not_the_same(files, tmp_path):
  trained_size(files)
  paths = [run(files, tmp_path / f'{p}.png', precision=p)[0][0] for p in ('float32', 'bfloat16')]
  off = np.abs(pixels(paths[0]).astype(int) - pixels(paths[1]))
  assert 0 < off.max() and off.mean() < 8


def test_the_network_sees_the_trained_size_and_nothing_of_the_hole(files, tmp_path, monkeypatch):
  seen = paint(monkeypatch)
  hole = pixels(files['mask'])
  photo = pixels(files['image']) // 4
  photo[hole > 0] = 255
  Image.fromarray(photo).save(files['image'])
  _, said = run(files, tmp_path / 'a.png')
  [call] = seen
  mask = np.asarray(call['mask'])
  assert call['source'].shape == (1, 16, 24, 3) and mask.shape == (1, 16, 24, 1)  # 22, grown to 8s
  kept = np.asarray(call['source'])[mask[..., 0] == 0]
  covered = mask[:, :, :22].mean()
  assert (hole > 0).mean() <= covered < 1.4 * (hole > 0).mean()
  assert np.mean(kept > 0.5) < 0.05  # bicubic reaches over the hole's edge by a pixel, no more
  assert any('22 x 16' in line for line in said)


def test_what_an_edit_cannot_keep_is_noted(files, tmp_path, monkeypatch):
  paint(monkeypatch)
  Image.new('L', (50, 36), 255).save(files['mask'])
  (path,), said = run(files, tmp_path / 'out.jpg', guidance_interval='0,.5')
  assert any('1 of 6 runs of the network are saved' in line for line in said)
  assert Image.open(path).format == 'JPEG'
  assert any('white everywhere' in line for line in said) and any('JPEG' in line for line in said)
  Image.fromarray(np.zeros((36, 50), np.uint16)).save(tmp_path / 'deep.png')
  Image.open(files['image']).convert('CMYK').save(tmp_path / 'inks.tif')
  for name, word in (('deep.png', '16 bits'), ('inks.tif', 'CMYK')):
    _, said = run(files | dict(image=str(tmp_path / name)), tmp_path / 'out.png')
    assert any(word in line for line in said), name


# what is kept of the photo


@pytest.mark.parametrize('ending', ['png', 'webp'])
def test_transparency_is_kept_and_what_is_repainted_is_opaque(files, tmp_path, ending):
  rgba = np.random.default_rng(3).integers(0, 256, (36, 50, 4), dtype=np.uint8)
  rgba[:12, :, 3] = 0  # colours that nobody sees, which are the file's own all the same
  Image.fromarray(rgba).save(files['image'])
  (path,), _ = run(files, tmp_path / f'out.{ending}')
  out, hole = pixels(path), pixels(files['mask']) > 0
  np.testing.assert_array_equal(out[~hole], rgba[~hole])
  assert (out[hole, 3] == 255).all()
  (path,), said = run(files, tmp_path / 'out.jpg')
  assert pixels(path).shape == (36, 50, 3) and any('no transparency' in line for line in said)


def test_the_colour_profile_of_the_photo_is_kept(files, tmp_path):
  from PIL import ImageCms

  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()
  Image.open(files['image']).save(files['image'], icc_profile=profile)
  (path,), _ = run(files, tmp_path / 'out.png')
  assert Image.open(path).info['icc_profile'] == profile


# what is refused


def test_a_result_that_is_not_finite_is_not_written(files, tmp_path, monkeypatch):
  paint(monkeypatch, np.nan)
  with pytest.raises(UserError, match='not finite'):
    run(files, tmp_path / 'out.png')
  assert not list(tmp_path.glob('out*'))


def test_bad_inputs_are_found_before_the_weights_are_read(files, tmp_path, monkeypatch):
  def load(*_, **__):
    raise AssertionError('the weights were read')

  monkeypatch.setattr(systems, 'load', load)
  (tmp_path / 'taken.json').write_text('{"mine": 1}')
  bad = [
    dict(image=str(tmp_path / 'nowhere.png')),
    dict(mask=files['exemplar']),
    dict(exemplar_mask=files['mask']),
    dict(output=str(tmp_path / 'out.gif')),
    dict(output='/dev/null'),
    dict(output='/proc/out.png'),
    dict(output='/proc/new/out.png'),
    dict(mask=files['image']),
    dict(output=files['image']),
    dict(output=str(tmp_path / 'taken.png')),
    dict(steps=0),
    dict(seed=2**31 - 2, num_samples=3),
    dict(weights=str(tmp_path)),
  ]
  for change in bad:
    arguments = dict(files, output=str(tmp_path / 'out.png')) | change
    with pytest.raises(UserError):
      edit_files.edit_once(**arguments)
  assert (tmp_path / 'taken.json').read_text() == '{"mine": 1}'


def test_files_are_checked_before_weights_are_fetched(files, tmp_path, monkeypatch):
  monkeypatch.setattr(find, 'weights', lambda *_, **__: pytest.fail('the weights were fetched'))
  files |= dict(weights='owner/name')
  listed = tmp_path / 'list.jsonl'
  for change, says in (
    (dict(image=str(tmp_path / 'typo.png')), 'typo.png does not exist'),
    (dict(mask=files['image']), 'photo.png is no mask'),
    (dict(sampler='none'), "sampler is 'none'"),
  ):
    listed.write_text(json.dumps({n: v for n, v in (files | change).items() if n != 'weights'}))
    with pytest.raises(UserError, match=says):
      run(files | change, tmp_path / 'out.png')
    with pytest.raises(UserError, match=says):
      run_list(files, str(listed), tmp_path / 'out')
  with pytest.raises(UserError, match='takes no new files'):
    run(files, '/proc/out.png')


# what becomes of an older file


def test_a_file_is_replaced_and_that_is_said_or_kept_when_it_is_asked_for(
  files, tmp_path, monkeypatch
):
  paint(monkeypatch)
  (path,), said = run(files, tmp_path / 'new' / 'deeper' / 'out.png')  # makes the folder
  old = contents(tmp_path / 'new')
  assert not any('(replaced)' in line for line in said) and len(old) == 2
  _, said = run(files, path, seed=1)
  assert any(line.startswith(f'{path} (replaced)  seed 1') for line in said)
  _, said = run(files, path, seed=0, keep=True)
  kept = f'{path[:-4]}-old.png'
  assert any(f'the old one is kept as {kept})' in line for line in said)
  assert json.loads(Path(images.recipe_path(kept)).read_text())['settings']['seed'] == 1
  assert {name: contents(tmp_path / 'new')[name] for name in old} == old
  made, said = run_list(files, make_list(tmp_path, files), tmp_path / 'new' / 'deeper', seed=3)
  assert made == [path]
  assert any('1 files that were made otherwise are replaced' in line for line in said)


def make_list(folder, files):
  row = {name: path for name, path in files.items() if name != 'weights'} | dict(output='out.png')
  (folder / 'one.jsonl').write_text(json.dumps(row))
  return str(folder / 'one.jsonl')


def test_weights_that_saw_only_drawn_scenes_say_so(files, tmp_path, monkeypatch):
  paint(monkeypatch)
  _, said = run(files | dict(weights=str(ROOT / 'weights/tiny')), tmp_path / 'out.png', steps=1)
  [line] = [line for line in said if 'drawn scenes' in line]
  assert '32 pixels' in line and '--weights=Fantasy-Studio/Paint-by-Example' in line


# a list


@pytest.fixture
def listed(files, tmp_path):
  """Five edits of two working sizes, as a list whose paths are relative to its folder."""
  rng = np.random.default_rng(5)
  Image.fromarray(pictures.noise(rng, 48, 24)).save(tmp_path / 'tall.png')
  Image.fromarray(pictures.box(48, 24, 10, 4, 40, 20)).save(tmp_path / 'hole.png')
  rows = [
    dict(image='photo.png', mask='mask.png', exemplar='ex.png', output='a.png'),
    dict(image='tall.png', mask='hole.png', exemplar='ex.png', seed=4),
    dict(image='photo.png', mask='mask.png', exemplar='tall.png', output='deep/b.png', seed=2),
    dict(image='photo.png', mask='mask.png', exemplar='ex.png', output='c.webp', seed=1),
    dict(image='photo.png', mask='mask.png', exemplar='ex.png', output='d.png', steps=2),
  ]
  path = tmp_path / 'list.jsonl'
  path.write_text('\n'.join(json.dumps(row) for row in rows))
  return str(path)


def run_list(files, listed, output, **options):
  said = []
  made = edit_files.edit_list(files['weights'], listed, str(output), say=said.append, **options)
  return made, said


def contents(folder):
  return {path: path.read_bytes() for path in sorted(Path(folder).rglob('*')) if path.is_file()}


def test_a_list_is_the_single_edits(files, listed, tmp_path):
  made, said = run_list(files, listed, tmp_path / 'out', batch_size=1)
  names = ['a.png', 'tall.png', 'deep/b.png', 'c.webp', 'd.png']
  assert made == [str(tmp_path / 'out' / name) for name in names]
  assert all(os.path.exists(images.recipe_path(path)) for path in made)
  (alone,), _ = run(files | dict(exemplar=str(tmp_path / 'tall.png')), tmp_path / 'b.png', seed=2)
  np.testing.assert_array_equal(pixels(made[2]), pixels(alone))
  (alone,), _ = run(files, tmp_path / 'd.png', steps=2)
  np.testing.assert_array_equal(pixels(made[4]), pixels(alone))
  assert any('3 working sizes or settings' in line for line in said)
  assert '5 edits: first' in said[-1]


def test_an_edit_depends_neither_on_its_neighbours_nor_much_on_the_batch_size(
  files, listed, tmp_path
):
  """The same number of rows: to the last bit, whoever is beside it. Another: within 1 of 255."""
  whole, _ = run_list(files, listed, tmp_path / 'whole', batch_size=2)
  lines = Path(listed).read_text().splitlines()
  other = tmp_path / 'other.jsonl'
  other.write_text('\n'.join([lines[3], lines[1], lines[0]]))
  other, _ = run_list(files, str(other), tmp_path / 'others', batch_size=2)
  for a, b in ((whole[0], other[2]), (whole[3], other[0])):
    np.testing.assert_array_equal(pixels(a), pixels(b))
  for size in (1, 3):
    alone, _ = run_list(files, listed, tmp_path / str(size), batch_size=size)
    for a, b in zip(whole, alone):
      assert np.abs(pixels(a).astype(int) - pixels(b)).max() <= 1


def test_edits_of_one_working_size_share_a_program_and_the_last_batch_is_filled(
  files, listed, tmp_path, monkeypatch
):
  seen = paint(monkeypatch)
  run_list(files, listed, tmp_path / 'out', batch_size=2)
  assert [call['source'].shape[:3] for call in seen] == [
    (2, 16, 24), (2, 16, 24), (1, 32, 16), (1, 16, 24),
  ]  # fmt: skip
  keys = jax.random.key_data(seen[1]['key'])
  np.testing.assert_array_equal(keys[0], keys[1])


def test_an_interrupted_list_goes_on_and_ends_as_the_whole_one(files, listed, tmp_path):
  whole = tmp_path / 'whole'
  run_list(files, listed, whole, batch_size=2)
  expected = contents(whole)
  for name in ('c.webp', 'a.json', 'deep/b.png'):
    (whole / name).unlink()
  (whole / 'd.png').write_bytes((whole / 'd.png').read_bytes()[:200])
  (whole / '.c.webp.4194305.7.tmp').write_bytes(b'half')
  kept = (whole / 'tall.png').stat().st_mtime_ns
  made, said = run_list(files, listed, whole, batch_size=2)
  assert len(made) == 5 and contents(whole) == expected
  assert (whole / 'tall.png').stat().st_mtime_ns == kept
  assert any('1 of 5 edits are finished already' in line for line in said)
  assert said[-1].startswith('4 edits: ')


def test_a_finished_list_reads_no_weights(files, listed, tmp_path, monkeypatch):
  run_list(files, listed, tmp_path / 'out', batch_size=2)
  monkeypatch.setattr(systems, 'load', lambda *_, **__: pytest.fail('the weights were read'))
  made, said = run_list(files, listed, tmp_path / 'out')
  assert len(made) == 5 and any('5 of 5 edits are finished' in line for line in said)


def test_other_settings_and_other_inputs_are_made_again_and_a_retouched_output_is_kept(
  files, listed, tmp_path
):
  out = tmp_path / 'out'
  run_list(files, listed, out, batch_size=2)
  _, said = run_list(files, listed, out, feather=1.0, batch_size=2)
  assert said[-1].startswith('5 edits: ')
  image = pixels(files['image']).copy()
  image[0, 0] = 1
  Image.fromarray(image).save(files['image'])
  retouched = pixels(out / 'tall.png').copy()
  retouched[5, 5] = 77
  Image.fromarray(retouched).save(out / 'tall.png')
  _, said = run_list(files, listed, out, feather=1.0, batch_size=2)
  assert said[-1].startswith('4 edits: ')
  assert any('1 of them were changed since and are kept' in line for line in said)
  np.testing.assert_array_equal(pixels(out / 'tall.png'), retouched)


def test_faults_are_counted_and_told_before_the_weights_are_read(
  files, listed, tmp_path, monkeypatch
):
  with open(listed, 'a') as file:
    for i, row in enumerate([{}, dict(image='none.png'), dict(mask='hole.png')]):
      row = dict(image='photo.png', mask='mask.png', exemplar='ex.png', output=f'e{i}.png') | row
      file.write('\n' + json.dumps(row))
    file.write('\n' + json.dumps(row | dict(mask='mask.png', output='a.png')))
    file.write('\nno json')
  monkeypatch.setattr(systems, 'load', lambda *_, **__: pytest.fail('the weights were read'))
  with pytest.raises(UserError) as caught:
    run_list(files, listed, tmp_path / 'out')
  line = str(caught.value)
  assert '\n' not in line and 'list.jsonl: 4 of 10 edits cannot be made' in line
  assert 'line 7: ' in line and 'line 8: ' in line and '--skip_bad' in line and '1 more' in line
  assert not (tmp_path / 'out').exists()


def test_skip_bad_makes_the_others_and_lists_the_bad(files, listed, tmp_path):
  data = (tmp_path / 'tall.png').read_bytes()
  (tmp_path / 'tall.png').write_bytes(data[: len(data) // 2])  # the header is good
  with open(listed, 'a') as file:
    file.write('\n' + json.dumps(dict(image='none.png', mask='mask.png', exemplar='ex.png')))
  made, said = run_list(files, listed, tmp_path / 'out', skip_bad=True, batch_size=2)
  assert [os.path.basename(path) for path in made] == ['a.png', 'c.webp', 'd.png']
  left = [line for line in said if line.startswith('left out: ')]
  assert [line.split(':')[1] for line in left] == [' line 2', ' line 3', ' line 6']
  assert 'none.png does not exist' in left[2] and 'tall.png cannot be decoded' in left[1]


def test_a_file_found_damaged_on_the_way_does_not_stop_the_others(files, listed, tmp_path):
  data = (tmp_path / 'tall.png').read_bytes()
  (tmp_path / 'tall.png').write_bytes(data[: len(data) // 2])
  with pytest.raises(UserError, match=r'2 of 5 edits .* line 2: .*tall.png .*All others are made'):
    run_list(files, listed, tmp_path / 'out', batch_size=2)
  assert sorted(p.name for p in (tmp_path / 'out').glob('*.png')) == ['a.png', 'd.png']


def test_the_photos_of_a_list_are_in_memory_one_by_one_where_there_is_room_for_one(
  files, listed, tmp_path, monkeypatch
):
  """Each is there while it is looked at and while it is written, not while it waits for others."""
  run_list(files, listed, tmp_path / 'roomy', batch_size=4)
  monkeypatch.setattr(jobs, 'PHOTOS', parallel.PixelBudget(1))
  inside, most, decode = [], [], session.Session.decode

  def counted(*arguments):
    found = decode(*arguments)
    inside.append(weakref.ref(found.photo.rgb))
    most.append(sum(photo() is not None for photo in inside))
    return found

  monkeypatch.setattr(session.Session, 'decode', counted)
  made, _ = run_list(files, listed, tmp_path / 'narrow', batch_size=4)
  assert len(made) == 5 and len(most) == 10
  assert max(most) <= 2  # one, and perhaps another that is being let go of
  assert [*contents(tmp_path / 'narrow').values()] == [*contents(tmp_path / 'roomy').values()]


def test_several_samples_of_each_edit(files, listed, tmp_path):
  made, _ = run_list(files, listed, tmp_path / 'out', num_samples=2, batch_size=2)
  assert [os.path.basename(path) for path in made[:4]] == [
    'a-0.png', 'a-1.png', 'tall-0.png', 'tall-1.png',
  ]  # fmt: skip
  recipe = json.loads((tmp_path / 'out' / 'tall-1.json').read_text())
  assert recipe['settings']['seed'] == 5 and recipe['batch'] == 2


# processes and devices


def start(arguments, devices=1, **env):
  """The door in a process of its own."""
  flags = [f'--{name}={value}' for name, value in arguments.items()]
  env = {**os.environ, 'PYTHONPATH': str(ROOT), **env, **simulated(devices)}
  return subprocess.Popen(
    [sys.executable, '-m', 'exedit.sample', *flags],
    env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
  )  # fmt: skip


def end(process, expected=0):
  out, err = process.communicate(timeout=300)
  assert process.returncode == expected, err
  return out, err


def test_four_devices_make_the_same_bytes_as_one(files, tmp_path):
  """The rows per device decide about the bits, not the number of devices.

  In one process, because the CPU's thread pool is split among its simulated devices.
  """
  program = f"""
import jax
from exedit.editing import edit_files
for name, count in ('four', 4), ('one', 1):
  devices = jax.local_devices()[:count]
  jax.local_devices = lambda: devices
  edit_files.edit_once(output={str(tmp_path)!r} + f'/{{name}}.png', num_samples=8,
                       batch_size=2 * count - (count > 1), **{files!r})
"""
  env = {**os.environ, 'PYTHONPATH': str(ROOT), **simulated(4)}
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=env)
  assert done.returncode == 0, done.stderr
  assert 'note: batches of 8, not 7: as many for each of 4 devices' in done.stdout
  for i in range(8):
    four, one = (tmp_path / f'{name}-{i}.png' for name in ('four', 'one'))
    assert four.read_bytes() == one.read_bytes()
    assert json.loads(four.with_suffix('.json').read_text())['batch'] == 2


def test_two_processes_share_a_list_and_what_one_cannot_make_both_say(files, listed, tmp_path):
  """The damaged file of the second process does not stop the first one."""
  import socket

  alone, _ = run_list(files, listed, tmp_path / 'alone', batch_size=1)
  data = (tmp_path / 'tall.png').read_bytes()
  (tmp_path / 'tall.png').write_bytes(data[: len(data) // 2])  # the header is good
  Image.open(files['exemplar']).resize((24, 48)).save(tmp_path / 'sound.png')
  lines = Path(listed).read_text().splitlines()
  lines[2] = lines[2].replace('tall.png', 'sound.png')
  Path(listed).write_text('\n'.join(lines))

  arguments = dict(weights=files['weights'], edits=listed, output=tmp_path / 'two', batch_size=1)
  both = [start(arguments, **place) for place in runs.places(2)]
  (out, others), (silent, own) = [end(process, 2) for process in both]
  assert '3 edits: first' in out and 'edits' not in silent
  fault = f'1 of 5 edits cannot be made: line 2: {tmp_path}/tall.png cannot be decoded'
  for said in (own, others):
    assert f'error: process 1 on {socket.gethostname()}: {listed}: {fault}' in said
  assert 'Traceback' not in own + others
  for path in alone:
    other = str(path).replace(str(tmp_path / 'alone'), str(tmp_path / 'two'))
    if 'tall' in other:
      assert not os.path.exists(other)
    elif 'b.png' not in other:  # its exemplar is another
      np.testing.assert_array_equal(pixels(path), pixels(other))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_killed_list_leaves_whole_files_and_goes_on(files, listed, tmp_path, number):
  arguments = dict(weights=files['weights'], edits=listed, output=tmp_path / 'out', batch_size=1)
  arguments |= dict(num_samples=200, steps=3)
  process = start(arguments)
  deadline = time.time() + 120
  while len(list((tmp_path / 'out').glob('*.json'))) < 8 and time.time() < deadline:
    time.sleep(0.02)
  process.send_signal(number)
  _, err = end(process, 130 if number == signal.SIGINT else -number)
  if number == signal.SIGINT:
    assert 'Traceback' not in err and 'stopped; the same command goes on' in err
  left = list((tmp_path / 'out').rglob('*.json'))
  assert 8 <= len(left) < 1000
  for path in left:
    image = next(p for p in path.parent.glob(path.stem + '.*') if p.suffix in ('.png', '.webp'))
    Image.open(image).load()
