"""Batch k depends only on (seed, k), and not on the number of hosts, workers and threads."""

import glob
import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from exedit.input_pipeline import loader, tf_example, tfrecord
from exedit.input_pipeline.errors import DataError, Unusable
from exedit.runtime.errors import UserError
from tests import FIXTURES, ROOT, tfds_sets

FIXTURE = FIXTURES / 'open_images_v4-train.tfrecord-00000-of-00001'
RECORDS = 37
BOTH = pytest.mark.parametrize('kind', ['tfrecord', 'array_record'])


def probe(features, rng, *, scale=1):
  """Returns the record's number and random numbers: all that the loader is responsible for."""
  number = int(features['number'][0])
  if number == 1000:
    raise DataError('a.jpg: not a readable image')
  if number == 2000:
    raise Unusable('a.jpg: no box')
  return dict(number=np.int64(number * scale), draw=rng.integers(2**62, size=2))


def write(root, numbers, shards=3):
  records = [tf_example.serialize_example({'number': np.array([number])}) for number in numbers]
  paths = [f'{root}/x-train.tfrecord-{i:05d}-of-{shards:05d}' for i in range(shards)]
  for i, path in enumerate(paths):
    tfrecord.write_shard(path, records[i::shards])
  return paths


@pytest.fixture
def kind():
  return 'tfrecord'


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """The records of `root`, in the same order, as tensorflow-datasets prepares ArrayRecord."""
  order = [number for shard in range(3) for number in range(shard, RECORDS, 3)]
  return tfds_sets.numbers(tmp_path_factory.mktemp('tfds'), order)


@pytest.fixture
def root(kind, request, tmp_path):
  if kind == 'array_record':
    return request.getfixturevalue('prepared')
  write(tmp_path, range(RECORDS))
  return str(tmp_path)


@pytest.fixture
def flipped(kind, request, tmp_path):
  """The same records with one of them (number 4) damaged: root, shard, place and reason."""
  if kind == 'array_record':
    folder = shutil.copytree(request.getfixturevalue('prepared'), tmp_path / 'copy')
    picture = tfds_sets.noise(4)
    (shard,) = (path for path in glob.glob(f'{folder}/*_record-*') if picture in read(path))
    damage(shard, read(shard).index(picture))
    return str(folder), shard, 'record 2', 'Corrupted Riegeli/records file: chunk data hash'
  paths = write(tmp_path, range(RECORDS))
  offset = int(tfrecord.index(paths[1])[1, 0])
  damage(paths[1], offset + 2)
  return str(tmp_path), paths[1], f'byte {offset}', 'bad data CRC'


def read(path):
  with open(path, 'rb') as file:
    return file.read()


def damage(path, offset):
  with open(path, 'r+b') as file:
    file.seek(offset)
    file.write(b'\xff')


def take(root, count, batch_size=8, **options):
  iterator = loader.batches(root, 'train', batch_size, make_example=probe, **options)
  batches = list(itertools.islice(iterator, count))
  iterator.close()
  return batches


def rows(batches):
  """{id: (number, draws)} of all rows, each id once."""
  batches = list(batches)
  keys = [int(i) for batch in batches for i in batch['id']]
  values = [
    (int(number), *draw.tolist())
    for batch in batches
    for number, draw in zip(batch['number'], batch['draw'], strict=True)
  ]
  assert len(set(keys)) == len(keys)
  return dict(zip(keys, values, strict=True))


def same(a, b):
  assert len(a) == len(b)
  for one, other in zip(a, b, strict=True):
    assert sorted(one) == sorted(other)
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_holds_what_the_contract_says(tmp_path):
  shutil.copy(FIXTURE, tmp_path)
  iterator = loader.batches(str(tmp_path), 'train', 6, size=32, exemplar_size=16)
  batch = next(iterator)
  iterator.close()
  assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
    'image': ((6, 32, 32, 3), 'uint8'),
    'mask': ((6, 32, 32), 'uint8'),
    'exemplar': ((6, 16, 16, 3), 'uint8'),
    'id': ((6,), 'int32'),
    'corrupt': ((6,), 'int32'),
  }
  shapes = loader.shapes(root=str(tmp_path), split='train', size=32, exemplar_size=16)
  assert {name: ((6, *shape), np.dtype(dtype)) for name, (shape, dtype) in shapes.items()} == {
    name: (value.shape, value.dtype) for name, value in batch.items()
  }
  assert batch['id'].tolist() == list(range(6))
  assert not batch['corrupt'].any()
  assert batch['mask'].max() == 255


def test_the_held_out_examples_are_the_first_of_validation_and_not_augmented(tmp_path):
  shutil.copy(FIXTURE, tmp_path / FIXTURE.name.replace('train', 'validation'))
  data = dict(root=str(tmp_path), split='train', size=32, exemplar_size=16, workers=2)
  first, again = loader.held_out(3, **data), loader.held_out(3, **data)
  assert first['id'].tolist() == [0, 1, 2]
  same([first], [again])
  plain = next(
    loader.batches(str(tmp_path), 'validation', 3, shuffle=False, augment=False, size=32,
                   exemplar_size=16)
  )  # fmt: skip
  same([first], [plain])


# Determinism.


@pytest.mark.parametrize(
  'kind, how',
  [
    ('tfrecord', dict(threads=7, prefetch=20)),
    ('tfrecord', dict(workers=2, threads=1)),
    ('array_record', dict(threads=7, prefetch=20)),
  ],
)
def test_threads_and_workers_change_nothing(flipped, how):
  same(take(flipped[0], 12), take(flipped[0], 12, **how))


@BOTH
@pytest.mark.parametrize('shard_count', [2, 4])
def test_the_number_of_hosts_changes_nothing_but_who_reads(flipped, shard_count):
  root = flipped[0]
  whole = take(root, 12)
  assert any(batch['corrupt'].any() for batch in whole)
  parts = [take(root, 12, shard_index=i, shard_count=shard_count) for i in range(shard_count)]
  for k in range(12):
    assert rows(part[k] for part in parts) == rows([whole[k]])
    assert all(len(part[k]['id']) == 8 // shard_count for part in parts)


@BOTH
def test_resuming_is_continuing(root):
  whole = take(root, 14)
  same(whole[9:], take(root, 5, start=9 * 8))
  halves = [take(root, 5, start=9 * 8, shard_index=i, shard_count=2) for i in range(2)]
  assert rows(itertools.chain(*halves)) == rows(whole[9:])
  smaller = take(root, 10, start=9 * 8, batch_size=4)
  assert rows(smaller) == rows(whole[9:])


def test_resuming_far_ahead_replays_nothing(root, monkeypatch):
  asked = []
  read = tfrecord.Source.__getitem__
  monkeypatch.setattr(
    tfrecord.Source, '__getitem__', lambda self, i: asked.append(i) or read(self, i)
  )
  batch = take(root, 1, start=8 * 10**9, threads=1, prefetch=1)[0]
  assert len(asked) <= 3 * 8
  np.testing.assert_array_equal(batch['id'], (np.arange(8) + 8 * 10**9) % 2**31)
  assert batch['id'].dtype == np.int32


@BOTH
def test_every_record_comes_once_in_an_epoch_in_another_order_in_the_next(root):
  stream = rows(take(root, 2 * RECORDS // 2, batch_size=2))
  numbers = [stream[i][0] for i in range(2 * RECORDS)]
  assert sorted(numbers[:RECORDS]) == sorted(numbers[RECORDS:]) == list(range(RECORDS))
  assert numbers[:RECORDS] != numbers[RECORDS:]
  other = rows(take(root, 2 * RECORDS // 2, batch_size=2, seed=4))
  assert [other[i][0] for i in range(2 * RECORDS)] != numbers
  assert numbers[:RECORDS] != sorted(numbers[:RECORDS])
  assert len({value[1] for value in stream.values()}) == 2 * RECORDS  # no random number comes twice


def test_the_shuffle_is_global(root):
  """Not shard by shard: the records of each shard are spread over the whole epoch."""
  numbers = [value[0] for value in rows(take(root, RECORDS, batch_size=1)).values()]
  for shard in range(3):  # record n was written to shard n % 3
    places = [place for place, number in enumerate(numbers) if number % 3 == shard]
    assert min(places) < RECORDS / 4 and max(places) > RECORDS * 3 / 4


@BOTH
def test_without_shuffle_the_order_is_that_of_the_shards(root):
  numbers = [v[0] for v in rows(take(root, RECORDS, batch_size=1, shuffle=False)).values()]
  assert numbers == [n for shard in range(3) for n in range(shard, RECORDS, 3)]


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_workers_do_not_outlive_a_killed_trainer(root):
  program = f"""if __name__ == '__main__':
    import multiprocessing, time
    from tests.input_pipeline import test_loader
    iterator = test_loader.loader.batches(
      {root!r}, 'train', 8, workers=1, make_example=test_loader.probe)
    next(iterator)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(1000)
  """
  trainer = subprocess.Popen(
    [sys.executable, '-c', program],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  pids = [int(pid) for pid in trainer.stdout.readline().split()]
  assert pids
  trainer.kill()
  trainer.wait()
  for _ in range(300):
    if not any(os.path.exists(f'/proc/{pid}') for pid in pids):
      break
    time.sleep(0.1)
  else:
    [os.kill(pid, signal.SIGKILL) for pid in pids]
    pytest.fail('a worker process was still there half a minute after its trainer was killed')


# Damage.


@BOTH
def test_a_corrupt_record_is_named_once_counted_and_replaced(flipped, caplog):
  root, shard, place, why = flipped
  sound = take(root, 15, shuffle=False)  # three epochs
  corrupt = [number for batch in sound for number in batch['number'][batch['corrupt'] == 1]]
  assert corrupt == [7, 7, 7]  # the next one in its shard stands in, three times
  named = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
  (line,) = named
  assert line.startswith(f'corrupt record in {shard} at {place}: {why}')
  assert line.endswith('; skipped') and '\n' not in line
  same(sound, take(root, 15, shuffle=False))


@BOTH
@pytest.mark.parametrize('workers', [0, 1])
def test_a_corrupt_record_can_be_fatal(flipped, workers):
  root, shard, place, why = flipped
  with pytest.raises(tfrecord.CorruptRecord, match=why) as caught:
    take(root, 10, on_corrupt='fatal', workers=workers)
  assert (caught.value.shard, f'{caught.value.unit} {caught.value.offset}') == (shard, place)
  first = next(k for k, batch in enumerate(take(root, 10)) if batch['corrupt'].any())
  assert len(take(root, first, on_corrupt='fatal')) == first  # those before it are still given


def test_a_record_that_makes_no_example_is_replaced(tmp_path, caplog):
  """1000 cannot be decoded, which is corrupt; 2000 has no box, which is not."""
  paths = write(tmp_path, [0, 1000, 2, 2000], shards=1)
  batches = take(str(tmp_path), 2, batch_size=4, shuffle=False)
  assert [batch['number'].tolist() for batch in batches] == [[0, 2, 2, 0]] * 2  # around the end
  assert [batch['corrupt'].tolist() for batch in batches] == [[0, 1, 0, 0]] * 2
  offset = tfrecord.index(paths[0])[1, 0]
  assert f'{paths[0]} at byte {offset}: a.jpg: not a readable image' in caplog.text
  assert caplog.text.count('not a readable image') == 1 and 'no box' not in caplog.text


@pytest.mark.parametrize(
  'numbers, message',
  [([2000, 1000, 2000], 'no usable record among 3'), ([], 'no complete record')],
)
def test_shards_without_a_usable_record_end_the_run(tmp_path, numbers, message):
  write(tmp_path, numbers, shards=1)
  with pytest.raises(DataError, match=message):
    take(str(tmp_path), 1, batch_size=2)


def test_a_shard_cut_short_is_skipped_or_fatal(tmp_path, caplog):
  paths = write(tmp_path, range(RECORDS))
  with open(paths[2], 'r+b') as file:
    file.truncate(tfrecord.index(paths[2])[4, 0] + 3)
  batches = take(str(tmp_path), 1, batch_size=29)
  lost = set(range(2, RECORDS, 3)) - {2, 5, 8, 11}
  assert sorted(batches[0]['number'].tolist()) == sorted(set(range(RECORDS)) - lost)
  assert caplog.text.count('shard cut short') == 1 and paths[2] in caplog.text
  with pytest.raises(tfrecord.CorruptRecord, match='shard cut short'):
    take(str(tmp_path), 1, on_corrupt='fatal')


# What a person can get wrong: said at the call, in one line.


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(batch_size=9, shard_count=2), 'batch_size 9 cannot be divided among 2'),
    (dict(batch_size=0), 'batch_size 0'),
    (dict(shard_index=2, shard_count=2), 'shard_index 2'),
    (dict(on_corrupt='ignore'), "'ignore'.*'skip' or 'fatal'"),
    (dict(scal=2), "data.scal is not a setting: did you mean 'scale'"),
    (dict(start=-1), 'start -1'),
  ],
)
def test_a_wrong_argument_is_named(root, options, message):
  arguments = dict(batch_size=8, make_example=probe) | options
  with pytest.raises(UserError, match=message) as caught:
    loader.batches(root, 'train', **arguments)
  assert '\n' not in str(caught.value)
