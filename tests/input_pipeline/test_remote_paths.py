"""Data in an object store: a local substitute for gs:// behind fsspec counts the requests."""

import glob
import os
import shutil
from collections import Counter

import fsspec
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from exedit.input_pipeline import loader, synthetic, tfrecord
from exedit.input_pipeline.errors import DataError
from exedit.runtime import remote


class FakeStore(DirFileSystem):
  """Buckets are folders below `home`; like a store it knows no append and no rename."""

  protocol = 'gs'
  home = ''
  asked = Counter()

  def __init__(self, *args, **kwargs):
    super().__init__(path=type(self).home, fs=LocalFileSystem(auto_mkdir=True), **kwargs)

  @classmethod
  def _strip_protocol(cls, path):
    return path.removeprefix('gs://').rstrip('/')

  def _join(self, path):
    return super()._join(self._strip_protocol(path))

  def cat_file(self, path, start=None, end=None, **kwargs):
    self.asked['bytes'] += 1
    return super().cat_file(path, start, end, **kwargs)

  def mv(self, *args, **kwargs):
    raise NotImplementedError

  def _open(self, path, mode='rb', *args, **kwargs):
    assert mode in ('rb', 'wb'), 'a store can only be read, or written whole'
    return super()._open(path, mode, *args, **kwargs)


@pytest.fixture
def bucket(tmp_path):
  """The folder that is gs://bucket."""
  fsspec.register_implementation('gs', FakeStore, clobber=True)
  FakeStore.home = str(tmp_path)
  FakeStore.asked.clear()
  FakeStore.clear_instance_cache()
  remote._store.cache_clear()
  (tmp_path / 'bucket').mkdir()
  yield tmp_path / 'bucket'
  remote._store.cache_clear()


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
  folder = tmp_path_factory.mktemp('scenes')
  synthetic.ensure(str(folder), scenes=24, val_scenes=4, seed=0, size=64, shards=3)
  return folder


SETTINGS = dict(batch_size=4, size=16, exemplar_size=16, threads=1)


def first(root, steps=2, **settings):
  stream = loader.batches(str(root), 'train', **{**SETTINGS, **settings})
  return [next(stream) for _ in range(steps)]


def same(one, other):
  for a, b in zip(one, other, strict=True):
    assert set(a) == set(b)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_batches_from_a_store_are_those_from_the_disk(scenes, bucket):
  shutil.copytree(scenes, bucket / 'data', ignore=shutil.ignore_patterns('*.idx.npy'))
  same(first('gs://bucket/data'), first(scenes))
  same(first(f'file://{scenes}', workers=1), first(scenes))  # a process that knows fsspec's stores
  assert len(glob.glob(f'{bucket}/data/*.idx.npy')) == 3  # the indexes are kept there too
  assert loader.survey('gs://bucket/data/', 'train') == loader.survey(str(scenes), 'train')


def test_an_index_that_is_kept_saves_the_walk(scenes, bucket):
  shutil.copytree(scenes, bucket / 'data', ignore=shutil.ignore_patterns('*.idx.npy'))
  (path, *_) = tfrecord.shard_paths('gs://bucket/data', 'train')
  rows = tfrecord.index(path)
  assert FakeStore.asked['bytes'] == 1 + 1  # the index that is not there, one block of records
  FakeStore.asked.clear()
  np.testing.assert_array_equal(tfrecord.index(path), rows)
  assert FakeStore.asked['bytes'] == 1
  with open(bucket / 'data' / os.path.basename(path), 'ab') as file:  # another file by that name
    file.write(b'more')
  np.testing.assert_array_equal(tfrecord.index(path), rows)
  assert FakeStore.asked['bytes'] == 1 + 2


def test_a_walk_reads_blocks_and_not_what_lies_between(bucket, monkeypatch):
  monkeypatch.setattr(remote, 'BLOCK', 1000)
  records = [bytes(10), bytes(5000), bytes(990), b'', bytes(2000), b'end']
  tfrecord.write_shard('gs://bucket/a.tfrecord', records)
  local = tfrecord.write_shard(str(bucket / 'b.tfrecord'), records)
  assert (bucket / 'a.tfrecord').read_bytes() == (bucket / 'b.tfrecord').read_bytes()
  assert local['bytes'] == (bucket / 'a.tfrecord').stat().st_size
  rows = tfrecord.index('gs://bucket/a.tfrecord')
  np.testing.assert_array_equal(rows, tfrecord.index(str(bucket / 'b.tfrecord')))
  source = tfrecord.Source(['gs://bucket/a.tfrecord'])
  assert [source[i] for i in range(len(source))] == records


def test_damage_in_a_store_is_found(scenes, bucket):
  shutil.copytree(scenes, bucket / 'data', ignore=shutil.ignore_patterns('*.idx.npy'))
  first_, second, _ = sorted(glob.glob(f'{bucket}/data/*-train.tfrecord-*'))
  with open(first_, 'r+b') as file:
    file.seek(100)
    file.write(b'\xff')
  os.truncate(second, os.path.getsize(second) - 3)
  source = tfrecord.Source(tfrecord.shard_paths('gs://bucket/data', 'train'))
  with pytest.raises(tfrecord.CorruptRecord, match='corrupt record in gs://bucket/data.*bad data'):
    source[0]
  (error,) = source.damaged
  assert 'cut short' in str(error) and error.shard.startswith('gs://bucket/data/')
  assert loader.survey('gs://bucket/data', 'train').truncated == 1
  shutil.rmtree(bucket / 'data')
  with pytest.raises(tfrecord.CorruptRecord, match='cannot read: No such file'):
    source[1]


@pytest.mark.parametrize(
  'root, words',
  [
    ('gs://bucket/none', "data root 'gs://bucket/none' holds no"),
    ('gs://bucket', "data root 'gs://bucket' holds no"),
    ('s3://bucket/data', 's3:// needs s3fs: pip install s3fs'),
    ('gopher://there/data', 'gopher:// is not a known store: use abfs://'),
  ],
)
def test_what_is_not_there_is_one_line(bucket, root, words):
  with pytest.raises(DataError, match=words) as caught:
    first(root)
  assert '\n' not in str(caught.value)


def test_scenes_in_a_store_are_copied_there_not_drawn(scenes, bucket):
  settings = dict(scenes=24, val_scenes=4, seed=0, size=64, shards=3)
  with pytest.raises(DataError, match='drawn into a folder .* copy the folder to gs://bucket/data'):
    synthetic.ensure('gs://bucket/data', **settings)
  shutil.copytree(scenes, bucket / 'data')
  assert synthetic.ensure('gs://bucket/data', **settings) == synthetic.ensure(
    str(scenes), **settings
  )
  with pytest.raises(DataError, match='was made with seed=0, not seed=1'):
    synthetic.ensure('gs://bucket/data', **{**settings, 'seed': 1})
  path = sorted(glob.glob(f'{bucket}/data/*-train.tfrecord-00000-of-00003'))[0]
  os.truncate(path, 10)
  with pytest.raises(DataError, match='not a whole copy'):
    synthetic.ensure('gs://bucket/data', **settings)


def test_an_index_that_cannot_be_written_stays_in_memory(scenes, bucket, monkeypatch):
  shutil.copytree(scenes, bucket / 'data', ignore=shutil.ignore_patterns('*.idx.npy'))

  def forbidden(*_, **__):
    raise RuntimeError('403: no storage.objects.create')

  monkeypatch.setattr(FakeStore, 'put_file', forbidden)
  same(first('gs://bucket/data'), first(scenes))
  assert not glob.glob(f'{bucket}/data/*.idx.npy')
