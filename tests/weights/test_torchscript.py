"""TorchScript archives by hand: tensors by the way to them, and nothing of their code."""

import io
import zipfile

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats import torchscript
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.pread import File
from exedit.weights.formats.zips import Zip
from tests.pickled import Code, call, checkpoint, code, name, ordered, storage, tensor


def module(**attributes) -> Code:
  """An object of a class of the archive's own code, as its pickler writes it."""
  made = name('__torch__.torch.nn.modules.module', '___torch_mangle_7') + b')\x81'
  return Code(made + code(attributes) + b'b')


def weight(key, count=2) -> Code:
  return tensor(storage(key, count), (count,), (1,))


def archive(root, storages, **others) -> bytes:
  buffer = io.BytesIO(checkpoint(root, storages, top='net/'))
  with zipfile.ZipFile(buffer, 'a') as packed:
    packed.writestr('net/constants.pkl', b'\x80\x02).')
    packed.writestr('net/code/__torch__.py', 'import os; os.abort()')
    for entry, data in others.items():
      packed.writestr(entry, data)
  return buffer.getvalue()


@pytest.fixture
def opened(tmp_path):
  def open_bytes(data):
    (tmp_path / 'net.pt').write_bytes(data)
    return open_tensors(tmp_path / 'net.pt')

  return open_bytes


TWO = {str(i): np.array([i, i + 0.5], np.float32).tobytes() for i in range(3)}


def test_tensors_are_called_by_the_way_to_them(opened):
  layers = module(**{'0': module(bias=weight('1'), training=False)})
  root = module(weight=weight('0'), layers=layers, scale=3.5, _hook=None, other=weight('2'))
  found = opened(archive(root, TWO))
  assert found.keys() == {'weight', 'layers.0.bias', 'other'}
  np.testing.assert_array_equal(found['layers.0.bias'].read(), [1, 1.5])
  assert found['other'].shape == (2,) and found['other'].dtype == np.float32


def test_a_module_in_two_places_is_found_in_both(opened):
  shared = Code(module(bias=weight('0')) + b'q\x05')  # remembered, and fetched below
  found = opened(archive(module(a=shared, b=Code(b'h\x05')), TWO))
  assert found.keys() == {'a.bias', 'b.bias'}


@pytest.mark.parametrize(
  'root, message',
  [
    (module(a=call(name('os', 'system'), 'true')), "asks for 'os.system'"),
    (module(a=weight('9')), "needs 8 bytes in 'net/data/9'"),
    (module(a=3), 'without any tensors'),
    (ordered({}), 'without any tensors'),
    (
      Code(name('__torch__', 'M') + b')\x81q\x01' + code({'a': Code(b'h\x01')}) + b'b'),
      'without end',
    ),
  ],
)
def test_hostile_archives_are_refused(opened, root, message):
  with pytest.raises(UserError) as caught:
    opened(archive(root, TWO))
  assert message in str(caught.value) and '\n' not in str(caught.value)


def test_other_files_are_no_torchscript(tmp_path):
  for i, data in enumerate([b'PK\5\6' + bytes(18), checkpoint(ordered({}), {})]):
    (tmp_path / str(i)).write_bytes(data)
    assert not torchscript.is_torchscript(Zip(File(tmp_path / str(i))))
