"""The edits of a benchmark: each a function of its id and the seed, and made once."""

import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from exedit import images
from exedit.editing import repaint
from exedit.evaluation import coco_ee, make_edits
from exedit.weights.layouts import own
from tests import bench, evaluations, small
from tests.evaluations import CHEAP, SIZE, refuse, score


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with evaluations.quickly():
    yield


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return evaluations.world(tmp_path_factory.mktemp('world'))


@pytest.fixture
def plain(world, tmp_path):
  """Where the edits matter and no network does."""
  given = evaluations.arguments(world, tmp_path / 'cache')
  return dict(given, features={}, gmm=None, reference={})


@pytest.fixture(scope='module')
def scored(world, tmp_path_factory):
  """The folder of an evaluation of the small weights."""
  place = tmp_path_factory.mktemp('scored')
  given = dict(evaluations.arguments(world, place / 'cache'), features={}, gmm=None, reference={})
  score(str(place / 'out'), weights=str(world / 'weights'), **given, **CHEAP)
  return place / 'out'


@pytest.fixture
def edited(scored, tmp_path):
  """A copy of it for one test."""
  return shutil.copytree(scored, str(tmp_path / 'edited'))


def picture(output, edit_id):
  return np.asarray(Image.open(f'{make_edits.folder(str(output))}/{edit_id:012d}.png'))


def pictures(output):
  return {edit_id: picture(output, edit_id) for edit_id in bench.IDS}


def test_a_killed_run_goes_on_without_repeating_a_finished_edit(
  edited, world, plain, tmp_path, monkeypatch
):
  whole, output, made = pictures(edited), str(tmp_path / 'killed'), []
  save, program = images.save, repaint.program

  def killed(pixels, path, **options):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(os.path.basename(path))
    return save(pixels, path, **options)

  monkeypatch.setattr(images, 'save', killed)
  given = dict(plain, weights=str(world / 'weights'), batch_size=1, **CHEAP)
  with pytest.raises(KeyboardInterrupt):
    score(output, **given)
  monkeypatch.undo()
  place = make_edits.folder(output)
  assert sorted(os.listdir(place)) == sorted(made) and len(made) == 2
  half = os.path.join(place, f'{17:012d}.png.123.4.tmp')
  with open(half, 'w') as file:
    file.write('half')
  times = {name: os.stat(os.path.join(place, name)).st_mtime_ns for name in made}
  rows = []

  def counting(*args):
    run = program(*args)
    return lambda *arrays, **options: (rows.append(len(arrays[0])), run(*arrays, **options))[1]

  monkeypatch.setattr(repaint, 'program', counting)
  score(output, **given)
  assert rows == [1, 1]
  assert times == {name: os.stat(os.path.join(place, name)).st_mtime_ns for name in made}
  assert not os.path.exists(half)
  for edit_id, result in pictures(output).items():
    np.testing.assert_allclose(np.int16(result), whole[edit_id], atol=1)


def test_an_edit_depends_on_its_id_and_the_seed_alone(world, tmp_path, edited, plain):
  whole = pictures(edited)
  sub = bench.write(tmp_path / 'sub', ids=bench.IDS[2:], size=SIZE)  # other pictures, same ids
  for kind, name in (('GT', 'GT'), ('Mask_bbox', 'mask'), ('Ref', 'ref')):
    for edit_id in bench.IDS[2:]:
      file = f'{edit_id:012d}_{name}.png'
      shutil.copy(world / 'bench' / f'{kind}_4' / file, sub / f'{kind}_2' / file)
  given = dict(plain, data=dict(root=str(sub)), weights=str(world / 'weights'), **CHEAP)
  score(str(tmp_path / 'a'), **given)
  for edit_id in bench.IDS[2:]:
    np.testing.assert_allclose(np.int16(picture(tmp_path / 'a', edit_id)), whole[edit_id], atol=1)
  score(str(tmp_path / 'b'), **given, seed=7)
  assert (picture(tmp_path / 'b', 17) != whole[17]).any()


def test_keys_are_of_the_whole_id():
  ids = [1, 1 + 2**32, 900100065455, 900100065455 % 2**32, 2**62]
  data = {tuple(np.asarray(k)) for k in jax.random.key_data(make_edits.keys(3, ids))}
  assert len(data) == 5
  one = jax.random.key_data(make_edits.keys(3, [900100065455]))
  np.testing.assert_array_equal(one[0], jax.random.key_data(make_edits.keys(3, ids))[2])


def test_two_processes_make_every_edit_once(world, edited, plain, tmp_path, monkeypatch):
  whole, output = pictures(edited), str(tmp_path / 'shared')
  weights = str(world / 'weights')
  monkeypatch.setattr(jax, 'process_count', lambda *_: 2)

  def waiting(name):
    if name == 'made':
      raise TimeoutError

  monkeypatch.setattr(coco_ee.processes, 'wait_for_others', waiting)
  (tmp_path / 'shared' / 'results').mkdir(parents=True)
  monkeypatch.setattr(jax, 'process_index', lambda *_: 1)
  with pytest.raises(TimeoutError):  # its share is made; the other's pictures are not there yet
    score(output, weights=weights, **plain, **CHEAP)
  second = set(os.listdir(make_edits.folder(output)))
  assert second == {f'{edit_id:012d}.png' for edit_id in bench.IDS[1::2]}
  shutil.move(make_edits.folder(output), tmp_path / 'kept')
  monkeypatch.setattr(jax, 'process_index', lambda *_: 0)

  def come(name):
    if name == 'made':
      shutil.copytree(tmp_path / 'kept', make_edits.folder(output), dirs_exist_ok=True)
      monkeypatch.setattr(jax, 'process_count', lambda *_: 1)  # to score is another test's affair

  monkeypatch.setattr(coco_ee.processes, 'wait_for_others', come)
  made = []
  save = images.save
  monkeypatch.setattr(
    make_edits.images, 'save', lambda p, path, **o: (made.append(str(path)), save(p, path, **o))[1]
  )
  score(output, weights=weights, **plain, **CHEAP)
  ours = {os.path.basename(path) for path in made if 'results' in path}
  assert ours == {f'{edit_id:012d}.png' for edit_id in bench.IDS[::2]}
  for edit_id, result in pictures(output).items():
    np.testing.assert_allclose(np.int16(result), whole[edit_id], atol=1)


def test_without_paste_the_picture_is_the_raw_decode(world, plain, tmp_path):
  output = str(tmp_path / 'raw')
  weights = str(world / 'weights')
  results = score(output, weights=weights, **plain, **CHEAP, paste=False)
  assert results['metrics']['background_exactness']['value'] < 0.5
  assert not results['sampling']['paste']


def test_edits_of_other_weights_are_never_mixed(world, edited, plain, tmp_path):
  output = edited
  before = pictures(output)
  line = refuse(output, weights=str(world / 'weights'), **plain, steps=3, sampler='ddim')
  assert 'made with steps 2, now it is 3: name another --output' in line
  changed = {name: 1.01 * array for name, array in small.params().items()}
  own.write(tmp_path / 'other', small.CONFIG, changed, step=13)
  line = refuse(output, weights=str(tmp_path / 'other'), **plain, **CHEAP)
  assert 'made with weights' in line
  os.remove(f'{output}/{make_edits.CLAIM}')
  line = refuse(output, weights=str(world / 'weights'), **plain, **CHEAP)
  assert f'no {make_edits.CLAIM}' in line
  for edit_id, result in pictures(output).items():
    np.testing.assert_array_equal(result, before[edit_id])


def test_a_result_that_is_not_finite_is_not_written(world, plain, tmp_path, monkeypatch):
  program = lambda model, devices: lambda source, *_, **__: np.full_like(source, np.nan)
  monkeypatch.setattr(repaint, 'program', program)
  line = refuse(str(tmp_path / 'out'), weights=str(world / 'weights'), **plain, **CHEAP)
  assert 'not finite' in line and os.listdir(tmp_path / 'out' / 'results') == []
