"""The kind of a weight file is told by its bytes; shards are found through their index."""

import errno
import json
import os
import pickle

import numpy as np
import pytest
import safetensors.numpy

from exedit.weights.formats.files import open_tensors
from tests.pickled import checkpoint, refusal, state_dict

OTHERS = {
  'empty.safetensors': (b'', 'empty (0 bytes)'),
  'pointer.safetensors': (
    b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n',
    'git lfs pull',
  ),
  'page.bin': (b'\n<!DOCTYPE html>\n<html><title>404</title></html>', 'web page'),
  'half.bin': (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2), 'its pickles'),
  'plain.pkl': (pickle.dumps({'a': 1}), 'a plain pickle or a tar'),
  'tar.pt': (b'\0' * 257 + b'ustar\0' + b'\0' * 300, 'a plain pickle or a tar'),
  'text.ckpt': (b'These are not the weights you are looking for', 'These ar'),
  'picture.bin': (b'\x89PNG\r\n\x1a\n' + b'\0' * 50, 'no weight file'),
  'config.json': (b'{"a": 1}', 'no weight_map'),
  'list.json': (b'{"weight_map": ["a"]}', 'no weight_map'),
}


@pytest.mark.parametrize('name', OTHERS)
def test_other_files_are_refused_for_what_they_are(tmp_path, name):
  data, expected = OTHERS[name]
  (tmp_path / name).write_bytes(data)
  line = refusal(open_tensors, tmp_path / name)
  assert name in line and expected in line


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / 'pipe.safetensors')
  assert 'is a pipe or device' in refusal(open_tensors, tmp_path / 'pipe.safetensors')


def test_no_file_and_no_right_to_it(tmp_path, monkeypatch):
  assert 'does not exist' in refusal(open_tensors, tmp_path / 'nowhere.bin')
  assert 'folder' in refusal(open_tensors, tmp_path)
  assert 'cannot be read' in refusal(open_tensors, 'a\0b')
  (tmp_path / 'secret.bin').touch()

  def denied(*_, **__):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(os, 'open', denied)
  assert 'Permission denied' in refusal(open_tensors, tmp_path / 'secret.bin')


def test_the_kind_is_told_by_the_bytes_not_by_the_ending(tmp_path):
  weights = {'a': np.arange(4, dtype=np.float32)}
  (tmp_path / 'a.bin').write_bytes(safetensors.numpy.save(weights))
  (tmp_path / 'b.safetensors').write_bytes(checkpoint(*state_dict(weights)))
  for name in ('a.bin', 'b.safetensors'):
    assert open_tensors(tmp_path / name)['a'].read().tolist() == [0, 1, 2, 3]


# shards


def sharded(folder, ending='safetensors'):
  """Writes two shards and their index: (path of the index, the arrays in the shards)."""
  parts = {'one': {'a': np.arange(3.0), 'b': np.ones(2)}, 'two': {'c': np.zeros((2, 2))}}
  for part, values in parts.items():
    data = (
      safetensors.numpy.save(values) if ending == 'safetensors' else checkpoint(*state_dict(values))
    )
    (folder / f'{part}.{ending}').write_bytes(data)
  where = {name: f'{part}.{ending}' for part, values in parts.items() for name in values}
  path = folder / f'model.{ending}.index.json'
  path.write_text(json.dumps({'metadata': {'total_size': 72}, 'weight_map': where}))
  return path, parts['one'] | parts['two']


@pytest.mark.parametrize('ending', ['safetensors', 'bin'])
def test_shards_are_read_through_their_index(tmp_path, ending):
  path, expected = sharded(tmp_path, ending)
  tensors = open_tensors(path)
  assert list(tensors) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(tensors[name].read(), array)


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
  path, _ = sharded(tmp_path)
  index = json.loads(path.read_text())

  def refused(**weight_map):
    path.write_text(json.dumps({**index, 'weight_map': index['weight_map'] | weight_map}))
    return refusal(open_tensors, path)

  assert 'three.safetensors does not exist' in refused(d='three.safetensors')
  assert "'d' in 'one.safetensors'" in refused(d='one.safetensors')
  for name in (
    '../one.safetensors',
    '/etc/passwd',
    '',
    '..',
    'a\\one.safetensors',
    'x' * 300,
    '\0',
    '\n',
  ):
    assert 'no plain file name' in refused(d=name)
  assert 'index itself' in refused(d=path.name)
  path.write_text('{"weight_map"')
  assert 'JSON' in refusal(open_tensors, path)
