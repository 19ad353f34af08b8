"""Checkpoints for torch.load, written without torch; tests/parity loads them with it."""

import zipfile

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats.files import open_tensors, read_metadata
from exedit.weights.formats.tensor import Tensor
from exedit.weights.formats.torch_names import DTYPES
from exedit.weights.formats.torch_saving import ALIGNMENT, save_checkpoint


def every_dtype():
  """An array of each type that torch has, and arrays of unusual shapes."""
  random = np.random.default_rng(0).integers(0, 256, (3, 64)).astype(np.uint8)
  arrays = {
    name: random.view(dtype) if name != 'bool' else random > 100 for name, dtype in DTYPES.items()
  }
  turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
  arrays |= dict(scalar=np.array(3, np.float32), empty=np.zeros((0, 4), np.float32))
  return arrays | {'turned.ü': turned, 'shared': turned, 'long': np.arange(70_000) % 3 == 0}


def assert_same(path, arrays):
  tensors = open_tensors(path)
  assert list(tensors) == list(arrays)
  for name, array in arrays.items():
    read = tensors[name].read()
    assert read.shape == tensors[name].shape == array.shape and read.dtype == array.dtype
    assert read.tobytes() == array.tobytes(), name


def test_every_type_comes_back_bit_by_bit(tmp_path):
  arrays = every_dtype()
  save_checkpoint(tmp_path / 'a.ckpt', arrays, dict(exedit='"ü"'))
  assert_same(tmp_path / 'a.ckpt', arrays)
  assert read_metadata(tmp_path / 'a.ckpt') == dict(exedit='"ü"')
  save_checkpoint(tmp_path / 'b.ckpt', open_tensors(tmp_path / 'a.ckpt'), dict(exedit='"ü"'))
  assert (tmp_path / 'a.ckpt').read_bytes() == (tmp_path / 'b.ckpt').read_bytes()
  big = np.arange(5, dtype='>i8')
  save_checkpoint(tmp_path / 'a.ckpt', dict(big=big))
  assert_same(tmp_path / 'a.ckpt', dict(big=big.astype('<i8')))


@pytest.mark.parametrize('limit', [zipfile.ZIP64_LIMIT, 1000])
def test_data_are_aligned_and_sizes_above_4_gb_have_a_place(tmp_path, monkeypatch, limit):
  monkeypatch.setattr(zipfile, 'ZIP64_LIMIT', limit)  # as if 1000 bytes were 4 GB
  arrays = every_dtype()
  save_checkpoint(tmp_path / 'a.ckpt', arrays)
  assert_same(tmp_path / 'a.ckpt', arrays)
  data = (tmp_path / 'a.ckpt').read_bytes()
  assert (b'PK\x06\x06' in data) == (limit == 1000)  # the end of a zip with 64 bits
  with zipfile.ZipFile(tmp_path / 'a.ckpt') as archive:
    assert archive.testzip() is None
    for entry in archive.infolist():
      header = data[entry.header_offset :]
      lengths = [int.from_bytes(header[at : at + 2], 'little') for at in (26, 28)]
      begin = entry.header_offset + 30 + sum(lengths)
      assert begin % ALIGNMENT == 0
      if entry.filename.startswith('archive/data/'):
        array = list(arrays.values())[int(entry.filename.rpartition('/')[2])]
        assert data[begin : begin + entry.file_size] == array.tobytes()


def test_a_tensor_is_read_when_its_turn_comes_and_a_failure_leaves_nothing(tmp_path):
  alive = []

  def read(fail=False):
    if fail:
      raise UserError('no more')
    alive.append(len(alive))
    return np.zeros(3, np.float32)

  tensors = {str(i): Tensor((3,), np.dtype(np.float32), read) for i in range(3)}
  last = dict(last=Tensor((3,), np.dtype(np.float32), lambda: read(fail=True)))
  with pytest.raises(UserError, match='no more'):
    save_checkpoint(tmp_path / 'a.ckpt', tensors | last)
  assert alive == [0, 1, 2] and not list(tmp_path.iterdir())
  with pytest.raises(ValueError, match='torch has no type for <U1'):
    save_checkpoint(tmp_path / 'a.ckpt', dict(a=np.array(['x'])))
