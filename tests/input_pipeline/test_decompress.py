"""Compressed shards are told by their first bytes, and rewritten as plain ones."""

import gzip
import os
import shlex
import sys
import zlib

import pytest

from exedit.input_pipeline import decompress, tfrecord
from exedit.input_pipeline.errors import DataError
from exedit.runtime import doors
from tests.refusals import refusal

NAME = 'x-train.tfrecord-{:05d}-of-00002'
KINDS = dict(GZIP=gzip.compress, ZLIB=zlib.compress)


def call(*argv):
  doors.call(decompress.main, decompress.FLAGS, decompress.__doc__, ['decompress', *argv])


@pytest.fixture(params=KINDS)
def compressed(request, tmp_path):
  """(its kind, a folder with one compressed shard of two records and one plain shard)."""
  first = tfrecord.framed(b'first'), tfrecord.framed(b'second' * 100)
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / NAME.format(0)).write_bytes(KINDS[request.param](b''.join(first)))
  (tmp_path / 'in' / NAME.format(1)).write_bytes(tfrecord.framed(b'third'))
  return request.param, tmp_path / 'in'


def test_a_compressed_shard_is_named_with_the_command_that_rewrites_it(compressed, capsys):
  kind, folder = compressed
  with pytest.raises(DataError, match=f'00000-of-00002 is compressed with {kind}') as caught:
    tfrecord.Source(tfrecord.shard_paths(str(folder), 'train'))
  assert not (folder / f'{NAME.format(0)}{tfrecord.INDEX}').exists()
  command = shlex.split(str(caught.value).split('`')[1].replace('NEW', str(folder / 'new')))
  assert command[:3] == ['python', '-m', 'input_pipeline.decompress']
  call(*command[3:])
  source = tfrecord.Source(tfrecord.shard_paths(str(folder / 'new'), 'train'))
  assert [source[i] for i in range(3)] == [b'first', b'second' * 100, b'third']
  assert '2 shards' in capsys.readouterr().out


def test_shards_named_gz_and_of_several_members_are_read_too(tmp_path):
  (tmp_path / 'in').mkdir()
  members = (gzip.compress(tfrecord.framed(data)) for data in (b'a', b'b'))
  (tmp_path / 'in' / 'x-train.tfrecord-00000-of-00001.gz').write_bytes(b''.join(members))
  with pytest.raises(DataError, match='is compressed with GZIP'):
    tfrecord.shard_paths(str(tmp_path / 'in'), 'train')
  call(f'--input={tmp_path / "in"}', f'--output={tmp_path / "out"}')
  source = tfrecord.Source(tfrecord.shard_paths(str(tmp_path / 'out'), 'train'))
  assert [source[0], source[1]] == [b'a', b'b']


def test_a_damaged_or_missing_shard_leaves_nothing(compressed, tmp_path, capsys):
  _, folder = compressed
  flags = f'--input={folder}', f'--output={tmp_path / "out"}'
  shard = folder / NAME.format(0)
  whole = shard.read_bytes()
  for data, says in ((whole[:-9], 'is cut short'), (whole[:20] + b'\0' * 20, 'is damaged')):
    shard.write_bytes(data)
    assert says in refusal(capsys, call, *flags)
  assert 'holds no shards' in refusal(capsys, call, f'--input={tmp_path}', flags[1])
  assert sorted(os.listdir(tmp_path)) == ['in']


def test_a_record_that_begins_like_gzip_is_no_compression():
  assert tfrecord.compression(tfrecord.framed(b'x' * 0x8B1F)) == ''
  assert sys.byteorder == 'little' and tfrecord.framed(b'x' * 0x8B1F)[:2] == b'\x1f\x8b'
