"""Shards survive what disks do to them, and agree with what TensorFlow writes."""

import hashlib
import os
import pathlib
import pickle
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from exedit.input_pipeline import tf_example, tfrecord
from exedit.input_pipeline.errors import DataError
from tests import FIXTURES

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


def test_what_is_written_is_read(shard):
  source = tfrecord.Source([shard])
  assert [source[i] for i in range(len(source))] == [b'first', b'', b'third' * 100]
  assert source.damaged == []


def test_write_shard_tells_what_it_wrote(tmp_path):
  path = tmp_path / 'folder' / 'x'
  told = tfrecord.write_shard(str(path), [b'ab', b'cde'])
  data = path.read_bytes()
  assert told == dict(records=2, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def test_a_shard_that_fails_half_way_leaves_the_old_one(shard):
  before = pathlib.Path(shard).read_bytes()

  def records():
    yield b'new'
    raise RuntimeError('no more')

  with pytest.raises(RuntimeError):
    tfrecord.write_shard(shard, records())
  assert pathlib.Path(shard).read_bytes() == before
  assert os.listdir(os.path.dirname(shard)) == [os.path.basename(shard)]


# Damage.


def test_a_flipped_bit_is_named(shard):
  offset = int(tfrecord.index(shard)[2, 0])
  poke(shard, offset + 7, b'\xff')
  source = tfrecord.Source([shard])
  assert source[0] == b'first'
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


def test_a_shard_cut_between_two_records_is_only_shorter(shard):
  os.truncate(shard, os.path.getsize(shard) - 516)
  assert len(tfrecord.Source([shard])) == 2


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


def test_an_empty_file_is_an_empty_shard(tmp_path):
  path = tmp_path / 'x-train.tfrecord-00000-of-00001'
  path.touch()
  source = tfrecord.Source([str(path)])
  assert len(source) == 0 and not source.damaged


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


def test_an_index_of_the_same_size_but_another_file_is_made_again(shard):
  tfrecord.index(shard)
  tfrecord.write_shard(shard, [b'', b'first', b'third' * 100])  # the same number of bytes
  os.utime(shard, ns=(1, 1))
  assert tfrecord.index(shard)[:, 1].tolist() == [0, 5, 500]


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


def test_many_shards_share_few_open_files(tmp_path, monkeypatch):
  monkeypatch.setattr(tfrecord, '_OPEN_FILES', 3)
  paths = [str(tmp_path / f'{i}') for i in range(20)]
  for i, path in enumerate(paths):
    tfrecord.write_shard(path, [f'{i}.{j}'.encode() for j in range(i % 3)])
  source = tfrecord.Source(paths)
  before = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else None
  read = [source[i] for i in range(len(source))]
  assert read == [f'{i}.{j}'.encode() for i in range(20) for j in range(i % 3)]
  if before is not None:
    assert len(os.listdir('/proc/self/fd')) <= before + 3
  assert pickle.loads(pickle.dumps(source))[5] == source[5]
  assert repr(pickle.loads(pickle.dumps(source))) == repr(source)
  indexes = tfrecord.index_all(paths)
  assert [len(rows) for rows in indexes] == [i % 3 for i in range(20)]


def test_threads_may_read_while_files_are_closed_behind_them(tmp_path, monkeypatch):
  monkeypatch.setattr(tfrecord, '_OPEN_FILES', 1)
  paths = [str(tmp_path / f'{i}') for i in range(4)]
  for i, path in enumerate(paths):
    tfrecord.write_shard(path, [b'%d' % i * 5000])
  source = tfrecord.Source(paths)
  with ThreadPoolExecutor(8) as pool:
    read = list(pool.map(lambda i: source[i % 4], range(4000)))
  assert read == [b'%d' % (i % 4) * 5000 for i in range(4000)]


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
  make_shards(tmp_path, *names)
  with pytest.raises(DataError, match=message) as caught:
    tfrecord.shard_paths(str(tmp_path), split)
  assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_missing_root_is_said():
  with pytest.raises(DataError, match='/nowhere.*not a folder'):
    tfrecord.shard_paths('/nowhere', 'train')


# Examples.


def test_features_survive():
  features = {
    'image': b'\x00\xff' * 1000,
    'names': [b'a', b'', b'ccc'],
    'box': np.float32([0.25, 1 / 3, -1e-30, 3e38]),
    'label': np.int64([0, -1, 127, 128, 2**63 - 1, -(2**63)]),
    'flag': np.array([True, False]),
    'no bytes': [],
    'no floats': np.zeros(0, np.float32),
    'no numbers': np.zeros(0, np.int8),
  }
  parsed = tf_example.parse_example(tf_example.serialize_example(features))
  assert sorted(parsed) == sorted(features)
  assert parsed['image'] == [features['image']]
  assert parsed['names'] == features['names'] and parsed['no bytes'] == []
  for name in ('box', 'label', 'flag', 'no floats', 'no numbers'):
    np.testing.assert_array_equal(parsed[name], features[name])
    assert parsed[name].dtype == (np.float32 if name in ('box', 'no floats') else np.int64)


def test_lists_may_be_unpacked():
  """Protocol buffers let a writer give one field per value; this is such a record, by hand."""

  def chunk(number, payload):
    return bytes([number << 3 | 2, len(payload)]) + payload

  floats = b''.join(b'\x0d' + struct.pack('<f', value) for value in (1.5, -2))
  numbers = b'\x08\x05' + b'\x08\xac\x02' + b'\x08' + b'\xff' * 9 + b'\x01'
  record = chunk(
    1,
    chunk(1, chunk(1, b'f') + chunk(2, chunk(2, floats)))
    + chunk(1, chunk(1, b'i') + chunk(2, chunk(3, numbers))),
  )
  parsed = tf_example.parse_example(record)
  np.testing.assert_array_equal(parsed['f'], np.float32([1.5, -2]))
  np.testing.assert_array_equal(parsed['i'], [5, 300, -1])


def test_no_cut_of_an_example_is_read_as_a_whole_one():
  record = tf_example.serialize_example({'image': b'x' * 9, 'label': np.arange(3)})
  for length in range(1, len(record)):
    with pytest.raises(DataError, match='not a tf.train.Example'):
      tf_example.parse_example(record[:length])


def test_a_feature_of_no_kind_is_refused():
  with pytest.raises(DataError, match="'when'.*datetime"):
    tf_example.serialize_example({'when': np.array(['2020-01-01'], 'datetime64[D]')})


# Agreement with tensorflow-datasets (tests/fixtures/make_tfds_fixture.py).


def tfds_records(tmp_path):
  shutil.copy(FIXTURE, tmp_path)
  source = tfrecord.Source(tfrecord.shard_paths(str(tmp_path), 'train'))
  assert not source.damaged
  return [source[i] for i in range(len(source))]


def test_a_shard_written_by_tensorflow_datasets_is_read(tmp_path):
  parsed = [tf_example.parse_example(record) for record in tfds_records(tmp_path)]
  by_name = {features['image/filename'][0].decode(): features for features in parsed}
  assert len(by_name) == 4
  features = by_name['000a1249af2bc5f0.jpg']
  assert features['image'][0][:2] == b'\xff\xd8'
  np.testing.assert_array_equal(
    features['bobjects/bbox'].reshape(-1, 4),  # ymin, xmin, ymax, xmax
    np.float32([[0.2, 0.1, 0.7, 0.6], [0.05, 0.55, 0.3, 0.95], [0.4, 0.4, 0.45, 0.45]]),
  )
  np.testing.assert_array_equal(features['bobjects/label'], [0, 600, 2])
  np.testing.assert_array_equal(features['bobjects/source'], [4, 5, 4])
  np.testing.assert_array_equal(features['bobjects/is_occluded'], [0, 1, -1])
  assert by_name['00723dac8201a83e.jpg']['bobjects/bbox'].shape == (0,)


def test_our_records_of_the_same_content_parse_to_the_same(tmp_path):
  for record in tfds_records(tmp_path):
    theirs = tf_example.parse_example(record)
    ours = tf_example.parse_example(tf_example.serialize_example(theirs))
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
      assert type(ours[name]) is type(value)
      np.testing.assert_array_equal(ours[name], value)


def test_our_shard_of_their_records_is_their_shard(tmp_path):
  """The framing, lengths and masked CRCs are TensorFlow's to the byte."""
  told = tfrecord.write_shard(str(tmp_path / 'ours'), tfds_records(tmp_path))
  assert told['sha256'] == hashlib.sha256(FIXTURE.read_bytes()).hexdigest()
