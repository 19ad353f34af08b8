"""Files of torch before 1.6: their order is kept, and damaged ones are refused.

test_torch_names.py reads the same tensors from them as from zip files.
"""

import functools

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats import torch
from exedit.weights.formats.files import open_tensors
from tests import pickled
from tests.pickled import WHOLE, call, code, name, opened, ordered, state_dict, tensor

ARRAYS = {
  'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
  'a.bias': np.array([7.5], np.float32),
  'step': np.array(3, np.int64),
}
WEIGHTS, STORED = state_dict(ARRAYS, legacy=True)
ORDERED = name('collections', 'OrderedDict')
storage = functools.partial(pickled.storage, view=WHOLE)


def whole(value=WEIGHTS, storages=STORED, **options):
  return pickled.whole_legacy(value, storages, **options)


def test_storages_come_in_the_order_of_their_list(tmp_path):
  found = opened(tmp_path, WEIGHTS, dict(reversed(STORED.items())), legacy=True)
  for key, array in ARRAYS.items():
    np.testing.assert_array_equal(found[key].read(), array)


def test_files_of_python_2_are_read(tmp_path):
  found = opened(
    tmp_path,
    call(ORDERED, [['a', tensor(storage('0', 6), (2, 3), (3, 1))]]),
    {'0': STORED['0']},
    legacy=True,
  )
  np.testing.assert_array_equal(found['a'].read(), ARRAYS['a.weight'])


def refusal(folder, data) -> str:
  def read():
    for found in open_tensors(folder / 'old.pth').values():
      found.read()

  (folder / 'old.pth').write_bytes(data)
  assert torch.is_legacy(data)
  return pickled.refusal(read)


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
    (whole(storages={**STORED, '0': (7).to_bytes(8, 'little') + bytes(28)}), 'has 7 elements'),
    (whole(ordered({'a': tensor(storage('0', 4), (5,), (1,))}), {'0': bytes(24)}), 'up to element'),
    (whole(ordered({'a': tensor(storage('0', 4, view=[('1', 0, 4)]), (4,), (1,))})), 'part of'),
    (whole(call(ORDERED, [[1]])), 'other things than pairs'),
    (whole(call(ORDERED, {}, {})), 'other things than pairs'),
    (whole(ordered({'a': call(name('os', 'system'), 'true')})), "asks for 'os.system'"),
    (whole(ordered({'a': code(1)})), 'holds no weights'),
  ],
)
def test_damaged_and_hostile_files_are_refused(tmp_path, data, message):
  assert message in refusal(tmp_path, data)


def test_two_kinds_of_one_storage_are_refused(tmp_path):
  longs = storage('0', 1, name('torch', 'LongStorage'))
  value = dict(a=tensor(storage('0', 2), (2,), (1,)), b=tensor(longs, (1,), (1,)))
  assert 'two kinds' in refusal(tmp_path, whole(ordered(value), {'0': bytes(16)}))


def test_damage_anywhere_is_a_refusal_or_other_numbers(tmp_path):
  """A thousand files with a changed byte or a missing end raise UserError or give other numbers."""
  random = np.random.default_rng(0)
  good = whole()
  for i in range(1000):
    data = bytearray(good)
    data[random.integers(4, len(data))] = random.integers(256)
    data = bytes(data[: random.integers(5, len(data))] if i % 5 == 0 else data)
    (tmp_path / 'old.pth').write_bytes(data)
    try:
      for found in open_tensors(tmp_path / 'old.pth').values():
        found.read()
    except UserError as error:
      assert '\n' not in str(error)


def test_other_files_are_not_legacy():
  for data in (b'', b'PK\3\4', b'\x80\x02}', b'\x80\x04\x95'):
    assert not torch.is_legacy(data)
