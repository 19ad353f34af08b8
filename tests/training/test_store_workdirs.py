"""A workdir in gs://: runs with gcsfs, Orbax and TensorStore against a store on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.runtime import remote
from exedit.runtime.errors import Passing, UserError
from exedit.training import checkpoint, workdir
from exedit.training.workdir import Workdir
from exedit.weights import fetch, find
from exedit.weights.formats import run
from tests import fake_gcs, runs
from tests.runs import digests, end, lines, start
from tests.training.test_checkpoint import assert_same, make_state

PLACE = 'gs://bucket/run'
# What Orbax leaves behind of a restore that failed is not our affair.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return runs.shards(tmp_path_factory)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def server(tmp_path_factory):
  with fake_gcs.serve() as (store, variables), pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('caches')))
    for name, value in variables.items():
      patch.setenv(name, value)
    remote._store.cache_clear()
    yield store
    remote._store.cache_clear()
    fsspec.config.conf.pop('gcs', None)


@pytest.fixture
def store(server):
  server.objects.clear()
  server.asked.clear()
  server.refuses = server.hides = ''
  return server


def reached(store, what, process):
  """Return as soon as the store holds so many objects of such names."""
  deadline = time.monotonic() + 300
  while not any(what in name for name in list(store.objects)):
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline, f'{what} does not come'
    time.sleep(0.005)


def copied(store, folder, prefix='bucket/run/'):
  for name, (data, _) in store.objects.items():
    if name.startswith(prefix):
      path = folder / name.removeprefix(prefix)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
  return folder


# Runs as people start them


def test_a_killed_and_stopped_run_in_a_store_ends_as_one_on_the_disk(root, cache, store, tmp_path):
  """SIGKILL, then SIGTERM, then to the end: every number is that of an undisturbed run."""
  whole = tmp_path / 'whole'
  end(start(root, whole, cache))

  process = start(root, PLACE, cache)
  reached(store, 'checkpoints/30/commit_success.txt', process)  # of the step of the first grid
  process.send_signal(signal.SIGKILL)
  end(process, -signal.SIGKILL)

  process = start(root, PLACE, cache)
  reached(store, 'checkpoints/48/', process)
  process.send_signal(signal.SIGTERM)
  output = end(process)
  assert 'going on from step' in output and 'stopped and saved at step' in output
  stopped = int(output.split('stopped and saved at step ')[1].split()[0])
  assert f'bucket/run/checkpoints/{stopped}/commit_success.txt' in store.objects

  output = end(start(root, PLACE, cache))
  assert f'going on from step {stopped}\n' in output
  torn = copied(store, tmp_path / 'torn')
  assert lines(torn) == lines(whole) and len(lines(whole)) == 90
  assert digests(torn, 90) == digests(whole, 90)
  names = lambda folder, *parts: sorted(os.listdir(folder.joinpath(*parts)))
  assert names(torn, 'checkpoints') == names(whole, 'checkpoints') == ['84', '87', '90']
  assert names(torn, 'samples') == names(whole, 'samples')
  assert (torn / 'samples/60.png').read_bytes() == (whole / 'samples/60.png').read_bytes()
  assert len(names(torn, 'tb')) == 3
  assert set(names(torn)) ^ set(names(whole)) == {'lock', 'started.json'}
  assert 'nothing to do' in end(start(root, PLACE, cache))


def test_weights_in_a_store_are_copied_once(store, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  tiny = os.path.join(runs.ROOT, 'weights', 'tiny')
  for name in ('config.json', 'model.safetensors'):
    with open(f'{tiny}/{name}', 'rb') as file:
      store.put(f'bucket/tiny/{name}', file.read())
  here, there = find.weights(tiny), find.weights('gs://bucket/tiny/')
  assert there.digest() == here.digest() and there.where == 'gs://bucket/tiny/'
  store.asked.clear()
  find.weights('gs://bucket/tiny')
  assert store.asked['GET object'] <= 1  # the listing says that nothing has changed
  one = fetch.local_path('gs://bucket/tiny/model.safetensors')
  assert one.name == 'model.safetensors' and one.read_bytes() == there.files[0].read_bytes()


def test_the_newest_checkpoint_of_a_store_is_copied_and_the_older_copy_goes(
  store, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  checkpoint.save_frozen(PLACE, dict(frozen=jnp.ones(3)))
  store.put('bucket/run/checkpoints/3/state/half', b'written')
  with pytest.raises(UserError, match='gs://bucket/run holds no whole checkpoint yet'):
    fetch.local_path(PLACE)
  saved(3, 6)
  for name in ('', 'checkpoints/', 'checkpoints/old/commit_success.txt'):
    store.put(f'bucket/run/{name}', b'')  # what a mount makes for folders, and a person
  del store.objects['bucket/run/checkpoints/6/commit_success.txt']
  path = fetch.local_path(PLACE)
  params, step = run.restore_params(path)
  assert step == 3 and 'frozen' in params
  expected = make_state(3).ema
  for name, value in expected.items():
    np.testing.assert_array_equal(params[name], value)
  saved(9)
  monkeypatch.setattr(fetch, 'KEPT', 0.0)
  newer = fetch.local_path(PLACE)
  assert os.listdir(newer / 'checkpoints') == ['9'] and not path.exists()
  assert run.restore_params(newer)[1] == 9


@pytest.mark.parametrize(
  'src, words',
  [
    ('gs://bucket/none', 'gs://bucket/none does not exist: check its name'),
    ('gs://elsewhere/run', 'gs://elsewhere/run (does not exist|cannot be read)'),
    ('s3://bucket/run', 's3://bucket/run cannot be read: s3:// needs s3fs: pip install s3fs'),
  ],
)
def test_weights_that_are_not_there_are_one_line(store, src, words):
  with pytest.raises(UserError, match=words):
    fetch.local_path(src)


# The small files


def test_only_what_changed_is_sent(store):
  with Workdir(PLACE).open() as place:
    write(place, 'config.json', '{}')
    write(place, 'samples/1.png', 'a picture')
    write(place, '.half.7.0.tmp', 'in writing')
    write(place, 'tb/events', 'events')
    place.claim()
    place.push()
    names = ('started.json', 'config.json', 'samples/1.png', 'tb/events')
    assert {*store.objects} == {f'bucket/run/{name}' for name in names}
    before = store.asked['upload']
    place.push()
    assert store.asked['upload'] == before
    write(place, 'metrics.jsonl', 'one\n')
  assert store.objects['bucket/run/metrics.jsonl'][0] == b'one\n'  # sent at the end
  assert not os.path.exists(place.folder)

  metrics = lambda: store.objects['bucket/run/metrics.jsonl'][0]
  with Workdir(PLACE).open() as again:
    assert Path(again.folder, 'metrics.jsonl').read_text() == 'one\n'
    assert os.listdir(f'{again.folder}/tb') == ['events']
    before = store.asked['upload']
    again.push()
    assert store.asked['upload'] == before
    write(again, 'metrics.jsonl', 'two\n')
    again.push_metrics(every=0.0)
    assert metrics() == b'one\n'  # not before this start trains there
    again.claim()
    again.push_metrics(every=60.0)
    store.refuses = 'metrics'
    again.push_metrics(every=0.0)  # a request that fails does not end the run
    assert metrics() == b'one\n'
    store.refuses = ''
    again.push_metrics(every=0.0)
    assert metrics() == b'two\n'


def test_a_run_ends_when_another_has_started_in_its_place(store):
  with pytest.raises(UserError, match='another run has started in gs://bucket/run: this one ends'):
    with Workdir(PLACE).open() as first:
      first.claim()
      store.put('bucket/run/started.json', b'{"host": "elsewhere"}')
      first.push()


def write(place, name, text):
  path = Path(place.folder, name)
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)


def test_the_first_failure_is_the_one_that_is_raised(store):
  with pytest.raises(KeyError), Workdir(PLACE).open() as place:
    write(place, 'metrics.jsonl', '{}')
    store.refuses = 'metrics'
    raise KeyError
  assert not os.path.exists(place.folder)


def test_a_folder_is_locked_until_the_end(tmp_path):
  name = str(tmp_path / 'run')
  with Workdir(name).open() as place:
    assert place.folder == name and os.listdir(name) == ['lock']
    words = 'another run is at work in .*run .process .*: wait for its end, stop it, or choose'
    with pytest.raises(UserError, match=words):
      Workdir(name).open()
    Workdir(name, process=1).open()
  with Workdir(name).open():
    pass


def test_a_lock_that_cannot_be_taken_is_refused(tmp_path):
  (tmp_path / 'lock').mkdir()
  with pytest.raises(UserError, match='cannot write to the workdir .*: choose another'):
    Workdir(str(tmp_path)).open()


def test_the_folder_above_a_link_is_the_links(tmp_path):
  """As everything else that opens files sees it."""
  (tmp_path / 'disk/deep').mkdir(parents=True)
  (tmp_path / 'link').symlink_to(tmp_path / 'disk/deep')
  found = workdir.path_of(f'{tmp_path}/link/../run')
  found.mkdir()
  assert (tmp_path / 'disk/run').is_dir()


def test_what_a_kill_left_is_swept(tmp_path):
  (tmp_path / 'samples').mkdir()
  for name in ('.probe.3.77.tmp', 'samples/.3.png.77.0.tmp'):
    (tmp_path / name).touch()
  with Workdir(str(tmp_path)).open():
    assert sorted(os.listdir(tmp_path)) == ['lock', 'samples']
    assert os.listdir(tmp_path / 'samples') == []


# Checkpoints


def saved(*steps):
  checkpoints = checkpoint.Checkpoints(PLACE)
  for step in steps:
    checkpoints.save(step, make_state(step))
  checkpoints.close()


def restored(which=make_state):
  said = []
  return checkpoint.Checkpoints(PLACE, say=said.append).restore(which(0)), said


def test_a_checkpoint_without_its_last_file_is_none(store):
  """The writer was killed before it could say that all was there."""
  saved(3, 6)
  del store.objects['bucket/run/checkpoints/6/commit_success.txt']
  assert run.steps_in(workdir.path_of(PLACE) / 'checkpoints') == [3]
  state, said = restored()
  assert_same(state, make_state(3))
  assert said == []
  saved(6)
  assert_same(restored()[0], make_state(6))
  for name in [name for name in store.objects if '/6/state/' in name and '/d/' in name]:
    del store.objects[name]
  assert_same(restored()[0], make_state(3))  # and the damaged one is set aside
  assert not any(name.startswith('bucket/run/checkpoints/6/') for name in store.objects)
  assert 'bucket/run/damaged_checkpoints/6/digest/metadata' in store.objects


def test_frozen_parameters_in_a_store(store, tmp_path, monkeypatch):
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  with pytest.raises(checkpoint.CheckpointError, match='gs://bucket/run/frozen.* is missing'):
    checkpoint.load_frozen(PLACE)
  arrays = dict(a=jnp.arange(5, dtype=jnp.float32))
  checkpoint.save_frozen(PLACE, arrays)
  np.testing.assert_array_equal(checkpoint.load_frozen(PLACE)['a'], arrays['a'])
  data, _ = store.objects['bucket/run/frozen.safetensors']
  store.put('bucket/run/frozen.safetensors', data[:-1] + b'\1')
  with pytest.raises(checkpoint.CheckpointError, match='gs://bucket/run/frozen.* is damaged'):
    checkpoint.load_frozen(PLACE)


# What is refused


def test_rights_that_end_later_end_the_run_in_words(root, cache, store):
  process = start(root, PLACE, cache)
  reached(store, 'checkpoints/6/commit_success.txt', process)
  store.refuses = '.*'
  output = end(process, 2)
  assert 'error: the workdir gs://bucket/run cannot be used (' in output
  assert 'Traceback' not in output, output
  assert 6 in run.steps_in(workdir.path_of(PLACE) / 'checkpoints')


def test_a_store_that_cannot_be_reached_is_no_mistake(monkeypatch):
  """Exit status 1: whatever started the run may start it again."""
  monkeypatch.setattr(remote, 'read', offline)
  with pytest.raises(Passing, match='gs://bucket/run cannot be reached .no route.: the same comm'):
    Workdir(PLACE).open()
  assert Passing.status == 1 and UserError.status == 2


def offline(*_, **__):
  raise OSError(0, 'no route')


def test_rights_to_read_that_are_gone_are_no_damage(store):
  saved(3)
  store.hides = r'checkpoints/3/state/.*manifest'
  with pytest.raises(UserError, match='cannot be used .*PERMISSION_DENIED'):
    restored()
  store.hides = 'checkpoints/3/digest'
  with pytest.raises(UserError, match='cannot be used .*no storage.objects.get'):
    restored()
  store.hides = 'frozen'
  checkpoint.save_frozen(PLACE, dict(a=jnp.ones(2)))
  with pytest.raises(UserError, match='cannot be used .*no storage.objects.get'):
    checkpoint.load_frozen(PLACE)
  store.hides = ''
  assert_same(restored()[0], make_state(3))


@pytest.mark.parametrize(
  'name, words',
  [
    ('s3://bucket/run', 's3://bucket/run cannot be a workdir: checkpoints go to folders and gs://'),
    ('https://host/run', 'https://host/run cannot be a workdir'),
    ('gs://elsewhere/run', r'the workdir gs://elsewhere/run cannot be used \('),
    (PLACE, r'the workdir gs://bucket/run cannot be used \(.*no storage.objects.create'),
  ],
)
def test_what_cannot_be_a_workdir_is_one_line(store, name, words):
  store.refuses = '^run/'
  with pytest.raises(UserError, match=words):
    Workdir(name).open().claim()


def test_without_its_driver_a_store_says_what_to_install():
  """gcsfs is no part of requirements.txt."""
  code = (
    'import sys; sys.modules["gcsfs"] = None\n'
    'from exedit.training.workdir import Workdir\n'
    'Workdir("gs://bucket/run").open()'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=runs.ROOT, capture_output=True, text=True)
  assert 'DataError: gs:// needs gcsfs: pip install gcsfs' in done.stderr
