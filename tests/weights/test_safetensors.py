"""safetensors files are written as the library writes them, and damaged ones are refused."""

import errno
import json
import os
import shutil
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from exedit.runtime.errors import UserError
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import DTYPES, read_metadata, save_tensors
from exedit.weights.formats.tensor import File, Tensor
from tests.pickled import refusal


def arrays():
  """An array of every type of the format, and arrays of unusual shapes."""
  rng = np.random.default_rng(0)
  every = {
    code: np.frombuffer(rng.bytes(6 * dtype.itemsize), dtype).reshape(2, 3)
    for code, dtype in DTYPES.items()
    if code != 'BOOL'
  }
  edges = dict(scalar=np.array(3, np.float32), empty=np.zeros((0, 4), np.int16))
  return every | edges | {'ü"\n': np.array([True, False, True])}


# reading and writing


def test_the_bytes_written_are_the_librarys_own(tmp_path):
  save_tensors(tmp_path / 'a.safetensors', arrays(), {'by': 'exedit "ü"'})
  expected = safetensors.numpy.save(arrays(), {'by': 'exedit "ü"'})
  assert (tmp_path / 'a.safetensors').read_bytes() == expected
  assert read_metadata(File(tmp_path / 'a.safetensors')) == {'by': 'exedit "ü"'}
  save_tensors(tmp_path / 'none.safetensors', {})
  assert (tmp_path / 'none.safetensors').read_bytes() == safetensors.numpy.save({})
  assert open_tensors(tmp_path / 'none.safetensors') == {}


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path):
  (tmp_path / 'a.safetensors').write_bytes(safetensors.numpy.save(arrays()))
  tensors = open_tensors(tmp_path / 'a.safetensors')
  assert set(tensors) == set(arrays())
  for name, array in arrays().items():
    tensor = tensors[name]
    back = tensor.read()
    assert back.dtype == tensor.dtype == array.dtype and back.shape == tensor.shape == array.shape
    assert back.tobytes() == array.tobytes() and back.flags['C_CONTIGUOUS']


def test_every_read_gives_memory_of_its_own(tmp_path):
  save_tensors(tmp_path / 'a.safetensors', {'a': np.ones(4, np.float32)})
  tensor = open_tensors(tmp_path / 'a.safetensors')['a']
  first = tensor.read()
  first[:] = 7
  assert tensor.read().tolist() == [1, 1, 1, 1] and first.flags.writeable


def test_arrays_in_any_memory_layout_are_written_as_they_read(tmp_path):
  array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
  odd = dict(t=array.transpose(2, 0, 1), s=array[:, ::-1, ::2], big=array.astype('>f4'))
  save_tensors(tmp_path / 'a.safetensors', odd)
  for name, tensor in open_tensors(tmp_path / 'a.safetensors').items():
    np.testing.assert_array_equal(tensor.read(), odd[name], err_msg=name)


def test_a_file_can_be_written_over_itself(tmp_path):
  path = tmp_path / 'a.safetensors'
  save_tensors(path, {'a': np.arange(3.0), 'b': np.ones((2, 2), ml_dtypes.bfloat16)})
  before = path.read_bytes()
  save_tensors(path, open_tensors(path))
  assert path.read_bytes() == before and os.listdir(tmp_path) == ['a.safetensors']


# headers that lie: the library refuses them, and the user gets its words on one line


def raw(header, data=b''):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text)) + text + data


def entry(shape=(2,), end=8, dtype='F32'):
  return dict(dtype=dtype, shape=shape, data_offsets=[0, end])


LIES = {
  'truncated data': (raw({'a': entry()}, b'1234'), 'file not fully covered'),
  'not UTF-8': (raw(b'{"\xff\xfe": {}}'), 'utf-8'),
  'a type that numpy has not': (raw({'a': entry((16,), dtype='F4')}, b'8' * 8), 'of type F4, and'),
  'too many axes': (raw({'a': entry(shape=[1] * 65 + [2])}, b'8' * 8), 'impossible shape'),
  'empty and endless': (raw({'a': entry(shape=(0, 2**62), end=0)}), 'impossible shape'),
}


@pytest.mark.parametrize('lie', LIES)
def test_a_header_that_lies_is_refused(tmp_path, lie):
  data, expected = LIES[lie]
  (tmp_path / 'a.safetensors').write_bytes(data)
  line = refusal(open_tensors, tmp_path / 'a.safetensors')
  assert 'a.safetensors' in line and expected in line


def test_a_file_that_shrinks_after_it_was_opened_is_refused_when_read(tmp_path):
  path = tmp_path / 'a.safetensors'
  save_tensors(path, {'a': np.ones(100)})
  tensor = open_tensors(path)['a']
  os.truncate(path, 200)
  assert 'shrank' in refusal(tensor.read)


# writing, whole or not at all


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a.safetensors'
  save_tensors(path, {'a': np.ones(3)})
  before = path.read_bytes()

  def fail():
    raise UserError('the source is damaged')

  bad = Tensor((2,), np.dtype(np.float32), fail)
  assert 'damaged' in refusal(save_tensors, path, {'a': np.ones(9), 'b': bad})
  lying = Tensor((2,), np.dtype(np.float32), lambda: np.ones(3, np.float32))
  with pytest.raises(ValueError, match='announced'):
    save_tensors(path, {'a': np.ones(9), 'b': lying})
  assert path.read_bytes() == before and os.listdir(tmp_path) == ['a.safetensors']


def test_a_full_disk_is_said_before_and_during_the_write(tmp_path, monkeypatch):
  path = tmp_path / 'a.safetensors'
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=10**6))
  line = refusal(save_tensors, path, {'a': np.ones(10**6)})
  assert str(path) in line and '8.0 MB' in line and '1.0 MB are free' in line

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  assert 'no space left' in refusal(save_tensors, path, {'a': np.ones(3)})
  assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_refused(tmp_path):
  for tensors in ({'a': np.array(['text'])}, {'__metadata__': np.ones(3)}):
    with pytest.raises(ValueError):
      save_tensors(tmp_path / 'a.safetensors', tensors)
  assert os.listdir(tmp_path) == []
