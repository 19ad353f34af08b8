import errno
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from exedit.runtime.errors import UserError
from exedit.weights.formats import files
from exedit.weights.formats.files import open_tensors, save_tensors
from exedit.weights.formats.tensor import Tensor
from tests.pickled import checkpoint, state_dict


def refusal(call, *args, **kwargs):
  """The one line with which `call` says no."""
  with pytest.raises(UserError) as caught:
    call(*args, **kwargs)
  line = str(caught.value)
  assert '\n' not in line and len(line) < 500
  return line


def arrays():
  """One array of every dtype of the format, and shapes at the edges."""
  rng = np.random.default_rng(0)
  every = {
    code: np.frombuffer(rng.bytes(6 * dtype.itemsize), dtype).reshape(2, 3)
    for code, dtype in files.DTYPES.items()
    if code != 'BOOL'
  }
  edges = dict(scalar=np.array(3, np.float32), empty=np.zeros((0, 4), np.int16))
  return every | edges | {'ü"\n': np.array([True, False, True])}


# reading and writing


def test_the_bytes_written_are_the_librarys_own(tmp_path):
  save_tensors(tmp_path / 'a.safetensors', arrays(), {'by': 'exedit "ü"'})
  expected = safetensors.numpy.save(arrays(), {'by': 'exedit "ü"'})
  assert (tmp_path / 'a.safetensors').read_bytes() == expected
  assert files.read_metadata(tmp_path / 'a.safetensors') == {'by': 'exedit "ü"'}
  save_tensors(tmp_path / 'none.safetensors', {})
  assert (tmp_path / 'none.safetensors').read_bytes() == safetensors.numpy.save({})
  assert open_tensors(tmp_path / 'none.safetensors') == {}


def test_the_library_reads_what_is_written(tmp_path):
  known = {k: a for k, a in arrays().items() if not k.startswith(('F8', 'BF'))}
  save_tensors(tmp_path / 'a.safetensors', known, {'step': '3'})
  loaded = safetensors.numpy.load_file(tmp_path / 'a.safetensors')
  with safe_open(tmp_path / 'a.safetensors', 'numpy') as opened:
    assert opened.metadata() == {'step': '3'} and set(opened.keys()) == set(known)
    for name, array in known.items():
      for back in (loaded[name], opened.get_tensor(name)):
        assert back.dtype == array.dtype and back.shape == array.shape
        assert back.tobytes() == array.tobytes()


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


MEMORY = """
import resource, sys
import numpy as np
from exedit.weights.formats.files import open_tensors, save_tensors
from exedit.weights.tensor import Tensor

def grown(work):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  work()
  return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

folder, size = sys.argv[1], 2**22  # 16 MB each
make = lambda: np.full(size, 3, np.float32)
tensors = {f't{i}': Tensor((size,), np.dtype(np.float32), make) for i in range(12)}
save = lambda: save_tensors(folder + '/a.safetensors', tensors)
read = lambda: [float(t.read()[-1]) for t in open_tensors(sys.argv[2]).values()]
print(grown(read) if len(sys.argv) > 2 else grown(save))
"""


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
  def grown(*arguments):
    done = subprocess.run(
      [sys.executable, '-c', MEMORY, *map(str, arguments)], capture_output=True, text=True
    )
    return float(done.stdout), done.stderr

  assert grown(tmp_path)[0] < 24  # of 192 MB
  assert (tmp_path / 'a.safetensors').stat().st_size > 12 * 2**24
  assert (
    grown(tmp_path, tmp_path / 'a.safetensors')[0] < 40
  )  # two: a new one before the last is let go
  zeros = {f't{i}': np.zeros(2**22, np.float32) for i in range(4)}
  (tmp_path / 'a.ckpt').write_bytes(checkpoint(*state_dict(zeros)))
  assert grown(tmp_path, tmp_path / 'a.ckpt')[0] < 40


# damaged and lying safetensors


def raw(header, data=b'', length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text) if length is None else length) + text + data


def entry(shape=(2,), begin=0, end=8, dtype='F32', **more):
  return dict(dtype=dtype, shape=shape, data_offsets=[begin, end], **more)


LIES = {
  'no length': (b'1234', '4 bytes long, 8 expected'),
  'a huge length': (raw(b'{}', length=2**60), str(2**60)),
  'a length beyond the file': (raw(b'{}', length=3), 'claims 3 bytes, the file has 10'),
  'no JSON': (raw(b'{"a": '), 'JSON'),
  'not UTF-8': (raw(b'{"\xff\xfe": {}}'), 'utf-8'),
  'half a surrogate pair': (raw(b'{"\\ud800": {}}'), 'surrogates not allowed'),
  'a list': (raw(b'[1, 2]'), 'not an object'),
  'deep JSON': (raw(b'{"a":' * 50_000), 'recursion'),
  'a key twice': (raw(b'{"a": 1, "a": 2}'), "'a' stands there twice"),
  'no dtype': (raw({'a': {'shape': [2]}}), "'a'"),
  'no object': (raw({'a': 3}), "'a'"),
  'an unknown dtype': (raw({'a': entry(dtype='F4')}, b'8' * 8), 'F4'),
  'a dtype that is a list': (raw({'a': entry(dtype=['F32'])}, b'8' * 8), 'list'),
  'a negative axis': (raw({'a': entry(shape=(-1, -2))}, b'8' * 8), 'no possible number'),
  'a boolean axis': (raw({'a': entry(shape=(True, 2))}, b'8' * 8), 'no possible number'),
  'half an axis': (raw({'a': entry(shape=(0.5, 4))}, b'8' * 8), 'no possible number'),
  'a nested axis': (raw({'a': entry(shape=([2],))}, b'8' * 8), 'no possible number'),
  'axes without end': (raw({'a': entry(shape=[1] * 65 + [2])}, b'8' * 8), 'no possible number'),
  'too long a shape': (raw({'a': entry(shape=(3,))}, b'8' * 8), 'takes 12 bytes'),
  'an overflowing shape': (raw({'a': entry(shape=(2**62, 4))}, b'8' * 8), 'span 8'),
  'empty and endless': (raw({'a': entry(shape=(0, 2**62), end=0)}), 'takes 0 bytes'),
  'backwards': (raw({'a': entry(begin=8, end=0)}, b'8' * 8), 'span -8'),
  'truncated data': (raw({'a': entry()}, b'1234'), 'take 8 bytes, 4 are there'),
  'data left over': (raw({'a': entry()}, b'8' * 9), 'take 8 bytes, 9 are there'),
  'an overlap': (
    raw({'a': entry(), 'b': entry(begin=4, end=12)}, b'8' * 12),
    "'b' overlaps the tensor before it: it begins at 4, not at 8",
  ),
  'a gap': (raw({'a': entry(), 'b': entry(begin=9, end=17)}, b'8' * 17), 'gap'),
  'metadata of numbers': (raw({'__metadata__': {'a': 1}}), '__metadata__'),
  'metadata that is a list': (raw({'__metadata__': ['a']}), '__metadata__'),
}


@pytest.mark.parametrize('lie', LIES)
def test_a_header_that_lies_is_refused(tmp_path, lie):
  data, expected = LIES[lie]
  (tmp_path / 'a.safetensors').write_bytes(data)
  line = refusal(open_tensors, tmp_path / 'a.safetensors')
  assert 'a.safetensors' in line and expected in line


def test_every_truncation_is_refused(tmp_path):
  path, whole = (
    tmp_path / 'a.safetensors',
    safetensors.numpy.save({'a': np.ones(3), 'b': np.ones(2)}),
  )
  for size in range(len(whole)):
    path.write_bytes(whole[:size])
    refusal(open_tensors, path)


def test_a_file_that_shrinks_after_it_was_opened_is_refused_when_read(tmp_path):
  path = tmp_path / 'a.safetensors'
  save_tensors(path, {'a': np.ones(100)})
  tensor = open_tensors(path)['a']
  os.truncate(path, 200)
  assert 'shrank' in refusal(tensor.read)


# other things under the name of a weight file


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
  """An index over two shards: (path, the arrays in them)."""
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
  path.write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
  assert 'twice' in refusal(open_tensors, path)
  path.write_text('{"weight_map"')
  assert 'JSON' in refusal(open_tensors, path)


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
  line = refusal(save_tensors, tmp_path / 'no' / 'a.safetensors', {'a': np.ones(3)})
  assert 'does not exist' in line
  for tensors in ({'a': np.array(['text'])}, {'__metadata__': np.ones(3)}):
    with pytest.raises(ValueError):
      save_tensors(tmp_path / 'a.safetensors', tensors)
  assert os.listdir(tmp_path) == []
