"""Files of torch before 1.6, written byte by byte: tensors are read, anything else is refused."""

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats import torch
from exedit.weights.formats.files import open_tensors
from tests.pickled import FLOATS, Code, call, code, name, ordered, program

SYSTEM = dict(protocol_version=1001, little_endian=True, type_sizes={'int': 4})
ARRAYS = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a.bias': np.array([7.5], np.float32),
  'step': np.array(3, np.int64),
}
KINDS = {'f4': FLOATS, 'i8': name('torch', 'LongStorage')}


def storage(key, count, cls=FLOATS, view=None) -> Code:
  return Code(code(('storage', cls, key, 'cuda:0', count, view)) + b'Q')


def tensor(store, shape, stride, offset=0) -> Code:
  rebuild = name('torch._utils', '_rebuild_tensor_v2')
  return call(rebuild, store, offset, shape, stride, False, ordered({}))


def weights(arrays=ARRAYS) -> dict[str, Code]:
  return {
    label: tensor(
      storage(str(key), array.size, KINDS[array.dtype.str[1:]]),
      array.shape,
      tuple(s // array.itemsize for s in array.strides),
    )
    for key, (label, array) in enumerate(arrays.items())
  }


def stored(arrays=ARRAYS) -> dict[str, bytes]:
  return {
    str(key): array.size.to_bytes(8, 'little') + array.tobytes()
    for key, array in enumerate(arrays.values())
  }


def whole(value=None, storages=None, *, magic=torch.MAGIC, version=1001, system=SYSTEM, keys=None):
  """The bytes of a file; `value` are the opcodes of its state dict."""
  value = ordered(weights()) if value is None else value
  storages = stored() if storages is None else storages
  number = Code(b'\x8a\x0a' + magic.to_bytes(10, 'little'))
  keys = list(storages) if keys is None else keys
  head = [program(part) for part in (number, version, system, value, keys)]
  return b''.join([*head, *storages.values()])


@pytest.fixture
def opened(tmp_path):
  def open_bytes(data):
    (tmp_path / 'old.pth').write_bytes(data)
    assert torch.is_legacy(data)
    return open_tensors(tmp_path / 'old.pth')

  return open_bytes


def refusal(opened, data) -> str:
  with pytest.raises(UserError) as caught:
    for tensor in opened(data).values():
      tensor.read()
  line = str(caught.value)
  assert '\n' not in line and len(line) < 500
  return line


def check(found, expected=ARRAYS):
  assert found.keys() == expected.keys()
  for key, array in expected.items():
    assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype)
    value = found[key].read()
    np.testing.assert_array_equal(value, array)
    assert value.flags['C_CONTIGUOUS'] and value.dtype == array.dtype


def test_tensors_come_out_by_name(opened):
  check(opened(whole()))
  check(opened(whole(ordered({'epoch': code(3), 'state_dict': ordered(weights())}))))


def test_storages_come_in_the_order_of_their_list(opened):
  check(opened(whole(storages=dict(reversed(stored().items())))))


def test_files_of_python_2_are_read(opened):
  pairs = [[key, value] for key, value in weights().items()]
  check(opened(whole(call(name('collections', 'OrderedDict'), pairs))))


def test_windows_on_a_shared_storage(opened):
  shared = np.arange(10, dtype=np.float32)
  value = dict(
    turned=tensor(storage('7', 10), (3, 2), (1, 3), 2),
    all=tensor(storage('7', 10), (10,), (1,)),
    none=tensor(storage('7', 10), (0, 4), (4, 1)),
  )
  found = opened(whole(ordered(value), {'7': (10).to_bytes(8, 'little') + shared.tobytes()}))
  expected = dict(turned=shared[2:8].reshape(2, 3).T, all=shared, none=np.zeros((0, 4), np.float32))
  check(found, expected)


@pytest.mark.parametrize(
  'data, message',
  [
    (whole(magic=5), 'magic number and version are 5, 1001'),
    (whole(version=1002), '1002'),
    (whole(system=dict(little_endian=False)), 'little-endian'),
    (whole(system=3), 'little-endian'),
    (whole()[:-1], 'truncated'),
    (whole()[:200], 'pickles'),
    (whole(keys=['0', '1']), 'list of storages'),
    (whole(keys=['0', '1', '2', '2']), 'list of storages'),
    (whole(keys=dict(a=1)), 'list of storages'),
    (whole(keys=[[], '1', '2']), 'list of storages'),
    (whole(storages={**stored(), '0': (7).to_bytes(8, 'little') + bytes(28)}), 'has 7 elements'),
    (whole(ordered({'a': tensor(storage('0', 4), (5,), (1,))}), {'0': bytes(24)}), 'up to element'),
    (whole(ordered({'a': tensor(storage('0', 4, view=('1', 0, 4)), (4,), (1,))})), 'part of'),
    (whole(call(name('collections', 'OrderedDict'), [[1]])), 'other things than pairs'),
    (whole(call(name('collections', 'OrderedDict'), {}, {})), 'other things than pairs'),
    (whole(ordered({'a': call(name('os', 'system'), 'true')})), "asks for 'os.system'"),
    (whole(ordered({'a': code(1)})), 'holds no weights'),
  ],
)
def test_damaged_and_hostile_files_are_refused(opened, data, message):
  assert message in refusal(opened, data)


def test_two_kinds_of_one_storage_are_refused(opened):
  value = dict(
    a=tensor(storage('0', 2), (2,), (1,)), b=tensor(storage('0', 1, KINDS['i8']), (1,), (1,))
  )
  assert 'two kinds' in refusal(opened, whole(ordered(value), {'0': bytes(16)}))


def test_damage_anywhere_is_a_refusal_or_other_numbers(tmp_path, opened):
  """A thousand files with a changed byte or a missing end raise UserError or give other numbers."""
  random = np.random.default_rng(0)
  good = whole()
  for i in range(1000):
    data = bytearray(good)
    data[random.integers(4, len(data))] = random.integers(256)
    data = bytes(data[: random.integers(5, len(data))] if i % 5 == 0 else data)
    try:
      for found in opened(data).values():
        found.read()
    except UserError as error:
      assert '\n' not in str(error)


def test_other_files_are_not_legacy():
  for data in (b'', b'PK\3\4', b'\x80\x02}', b'\x80\x04\x95'):
    assert not torch.is_legacy(data)
