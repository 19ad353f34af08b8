"""Shards survive damage, and agree with those that TensorFlow writes."""

import hashlib
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest

from exedit.input_pipeline import tfrecord
from exedit.input_pipeline.errors import DataError
from tests import FIXTURES, pictures

FIXTURE = FIXTURES / 'open_images_v4-train.tfrecord-00000-of-00001'


@pytest.fixture
def shard(tmp_path):
  path = str(tmp_path / 'x-train.tfrecord-00000-of-00001')
  tfrecord.write_shard(path, [b'first', b'', b'third' * 100])
  return path


def poke(path, offset, data):
  with open(path, 'r+b') as file:
    file.seek(offset)
    file.write(data)


def test_a_shard_that_fails_half_way_leaves_the_old_one(shard):
  before = pathlib.Path(shard).read_bytes()

  def records():
    yield b'new'
    raise RuntimeError('no more')

  with pytest.raises(RuntimeError):
    tfrecord.write_shard(shard, records())
  assert pathlib.Path(shard).read_bytes() == before
  assert os.listdir(os.path.dirname(shard)) == [os.path.basename(shard)]


def test_what_systems_leave_is_no_shard(shard, tmp_path):
  pictures.strew(tmp_path)
  assert tfrecord.shard_paths(str(tmp_path), 'train') == [shard]


# Damage.


def test_a_flipped_bit_is_named(shard):
  offset = int(tfrecord.index(shard)[2, 0])
  poke(shard, offset + 7, b'\xff')
  source = tfrecord.Source([shard])
  assert [source[0], source[1]] == [b'first', b'']
  with pytest.raises(tfrecord.CorruptRecord, match='data CRC') as caught:
    source[2]
  assert (caught.value.shard, caught.value.offset) == (shard, offset)
  again = pickle.loads(pickle.dumps(caught.value))  # as it comes back from a worker process
  assert str(again) == str(caught.value)


@pytest.mark.parametrize('cut', [1, 4, 300, 511, 515])
def test_a_shard_cut_short_keeps_its_whole_records_and_says_so(shard, cut):
  size = os.path.getsize(shard)  # the third record takes 516 bytes, the last 4 its CRC
  os.truncate(shard, size - cut)
  source = tfrecord.Source([shard])
  assert len(source) == 2
  [error] = source.damaged
  assert error.offset == size - 516 and f'only {516 - cut} bytes' in error.why


def test_a_broken_header_ends_the_shard_and_says_so(shard):
  start = int(tfrecord.index(shard)[1, 0]) - 12
  poke(shard, start, struct.pack('<Q', 3))
  source = tfrecord.Source([shard])
  assert len(source) == 1
  assert source.damaged[0].offset == start and 'header CRC' in source.damaged[0].why


def test_a_shard_cut_after_it_was_opened_is_a_corrupt_record(shard):
  source = tfrecord.Source([shard])
  os.truncate(shard, 30)
  with pytest.raises(tfrecord.CorruptRecord, match='bytes are there'):
    source[2]


# The index beside the shard.


def test_the_index_is_kept_and_used(shard, monkeypatch):
  rows = tfrecord.index(shard)
  assert rows.tolist() == [[12, 5], [33, 0], [49, 500]]
  monkeypatch.setattr(tfrecord, '_walk', lambda *_: pytest.fail('walked again'))
  np.testing.assert_array_equal(tfrecord.index(shard), rows)


def test_the_index_of_a_rewritten_shard_is_made_again(shard):
  tfrecord.index(shard)
  tfrecord.write_shard(shard, [b'other', b'', b'THIRD' * 100, b'4'])
  assert len(tfrecord.index(shard)) == 4
  tfrecord.write_shard(shard, [b'', b'other', b'THIRD' * 100, b'4'])  # the same number of bytes
  os.utime(shard, ns=(1, 1))
  assert tfrecord.index(shard)[:, 1].tolist() == [0, 5, 500, 1]


@pytest.mark.parametrize('content', [b'', b'not numpy', None])
def test_a_damaged_index_is_made_again(shard, content):
  side = pathlib.Path(shard + '.idx.npy')
  if content is None:
    np.save(side, np.zeros((3, 3)))
  else:
    side.write_bytes(content)
  assert len(tfrecord.index(shard)) == 3
  assert len(np.load(side)) == 4


def test_where_nothing_can_be_written_the_index_stays_in_memory(shard):
  os.mkdir(shard + '.idx.npy')  # also for root, whom permissions do not stop
  assert len(tfrecord.index(shard)) == 3
  assert sorted(os.listdir(os.path.dirname(shard))) == sorted(
    [os.path.basename(shard), os.path.basename(shard) + '.idx.npy']
  )


def test_records_of_many_shards_come_in_order_and_the_source_can_be_pickled(tmp_path):
  paths = [str(tmp_path / f'{i}') for i in range(20)]
  for i, path in enumerate(paths):
    tfrecord.write_shard(path, [f'{i}.{j}'.encode() for j in range(i % 3)])
  source = tfrecord.Source(paths)
  read = [source[i] for i in range(len(source))]
  assert read == [f'{i}.{j}'.encode() for i in range(20) for j in range(i % 3)]
  again = pickle.loads(pickle.dumps(source))
  assert again[5] == source[5] and repr(again) == repr(source)
  assert [len(rows) for rows in tfrecord.index_all(paths)] == [i % 3 for i in range(20)]


# Finding shards.


def make_shards(root, *names):
  for name in names:
    (root / name).touch()


def test_shards_of_a_split_come_in_order(tmp_path):
  make_shards(tmp_path, *[f'a-b-train.tfrecord-{i:05d}-of-00003' for i in (2, 0, 1)])
  make_shards(tmp_path, 'a-b-validation.tfrecord-00000-of-00001', 'features.json')
  make_shards(tmp_path, 'a-b-train.tfrecord-00000-of-00003.idx.npy')
  found = [os.path.basename(path) for path in tfrecord.shard_paths(str(tmp_path), 'train')]
  assert found == [f'a-b-train.tfrecord-{i:05d}-of-00003' for i in range(3)]


@pytest.mark.parametrize(
  'names, split, message',
  [
    ([], 'train', r'holds no \*\.tfrecord'),
    (None, 'train', 'is not a folder'),
    (['x-train.tfrecord-00000-of-00001'], 'val', "'val'.*splits there: train"),
    (['x-train.tfrecord-00000-of-00002'], 'train', '1 of the 2 shards.*00001'),
    (
      ['x-train.tfrecord-00000-of-00001', 'y-train.tfrecord-00000-of-00001'],
      'train',
      'several sets.*x-train of 00001; y-train',
    ),
  ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path, names, split, message):
  if names is None:
    tmp_path /= 'nowhere'
  else:
    make_shards(tmp_path, *names)
  with pytest.raises(DataError, match=message) as caught:
    tfrecord.shard_paths(str(tmp_path), split)
  assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)


# Agreement with tensorflow-datasets (tests/fixtures/make_tfds_fixture.py).


def test_our_shard_of_their_records_is_their_shard(tmp_path):
  """The framing, lengths and masked CRCs are TensorFlow's to the byte."""
  source = tfrecord.Source([str(FIXTURE)])
  assert not source.damaged and len(source) == 4
  path = tmp_path / 'folder' / 'ours'
  told = tfrecord.write_shard(str(path), (source[i] for i in range(4)))
  data = FIXTURE.read_bytes()
  assert path.read_bytes() == data
  assert told == dict(records=4, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
