"""The pickle reader calls nothing; parity/test_pickles.py compares it with torch."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from exedit.weights.formats import pickles
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.pickles import Names, Pairs, Placeholder, unpickle
from tests.fuzz_files import hostile_call
from tests.pickled import (
  Code,
  call,
  checkpoint,
  code,
  floats,
  name,
  opened,
  program,
  refusal,
  refused,
  state_dict,
  storage,
  tensor,
)

NOTHING = Names({}, (), (), lambda pid: pid)


# plain values, against Python's own pickler


def plain(value):
  """Converts all Pairs in a value to dicts."""
  if isinstance(value, Pairs):
    return {plain(key): plain(item) for key, item in value.items}
  if isinstance(value, (list, tuple)):
    return type(value)(map(plain, value))
  return value


VALUES = {
  'numbers': [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**70, -(2**2000), 0.5, -1e300, 1e-3],
  'constants': [None, True, False],
  'text': ['', 'a', 'ü\n\\', 'é' * 300, '\U0001f600', 'a\ud800'],
  'bytes': [b'a' * 300, b'\0\xff'],
  'tuples': [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,) * 5)],
  'dicts': {'a': {}, 'b': {1: [], (1, 'x'): {None: 0.0}}, True: 'yes'},
}
VALUES['shared'] = [VALUES['numbers']] * 2


@pytest.mark.parametrize(
  'kind, protocol',  # before protocol 3, bytes are calls of a codec
  [(k, p) for k in VALUES for p in range(2, 6) if k != 'bytes' or p > 2],
)
def test_plain_values_of_every_protocol(kind, protocol):
  data = pickle.dumps(VALUES[kind], protocol)
  assert plain(unpickle(data, 'a', NOTHING)) == VALUES[kind]


def test_a_list_that_holds_itself():
  loop = []
  loop.append(loop)
  found = unpickle(pickle.dumps(loop), 'a', NOTHING)
  assert found[0] is found


def test_python_2_text():
  data = b']q\0(U\x01bT\x01\0\0\0ce.'
  assert unpickle(data, 'a', NOTHING) == ['b', 'c']


# what is refused


def test_nothing_is_ever_called(tmp_path):
  canary, (weights, storages) = tmp_path / 'sung', state_dict({'a': np.ones(2, np.float32)})
  evils = [hostile_call(np.random.default_rng(seed), canary) for seed in range(60)]
  system = call(name('os', 'system'), f'touch {canary}')
  for evil in [system, *(evil for evil in evils if b'typing' not in evil)]:  # an admitted package
    for value in (
      evil,
      {'state_dict': weights, 'x': evil},
      {'state_dict': {'a': evil}},
      {evil: 1},
      Code(evil + b'0N'),
    ):
      line = refused(tmp_path, value, storages)
      assert 'asks for' in line or 'opcode' in line, line
  assert not canary.exists()
  pickle.loads(b'\x80\x04' + system + b'.')  # Python's unpickler does run it
  assert canary.exists()


@pytest.mark.parametrize(
  'full',
  [
    'nt.system',
    'subprocess.Popen',
    'builtins.exec',
    'builtins.__import__',
    'builtins.open',
    '__builtin__.apply',
    'importlib.import_module',
    'torch.load',
    'torch.hub.load',
    'torch.storage._load_from_bytes',
    'torch._utils._rebuild_sparse_tensor',
    'torch.nn.modules.linear.Linear',
    'numpy.load',
    'numpy.testing._private.utils.runstring',
    'operator.attrgetter',
    'types.CodeType',
    'types.FunctionType',
    'copyreg.add_extension',
    'pickle.loads',
    'ctypes.CDLL',
    'typingx.Any',
    '__main__.Net',
    'collections.namedtuple',
  ],
)
def test_other_names_are_refused_by_name(tmp_path, full):
  module, attribute = full.rsplit('.', 1)
  assert repr(full) in refused(tmp_path, {'x': name(module, attribute)})


def test_a_path_into_an_admitted_package_is_refused(tmp_path):
  sneaky = Code(code('typing') + code('sys.modules') + b'\x93')
  assert "'typing.sys.modules'" in refused(tmp_path, {'x': sneaky})
  assert 'characters' in refused(tmp_path, {'x': name('typing', 'A' * 1000)})


def test_admitted_classes_are_placeholders_that_hold_nothing():
  names = Names({}, (), ('typing',), lambda pid: pid)
  cls = name('typing', 'Any')
  value = Code(cls + b')\x81' + code({'secret': 1}) + b'b(' + code('k') + b'Nu')
  found = unpickle(program([cls, value, call(cls, 1), call(cls)]), 'a', names)
  assert str(found[0]) == 'typing.Any'
  for placeholder in found[1:]:
    assert type(placeholder) is Placeholder and placeholder.name == 'typing.Any'
    assert not hasattr(placeholder, '__dict__')


BAD = {
  'the extension registry': (b'\x82\x01', '0x82'),
  'a buffer': (b'\x97', '0x97'),
  'a persistent id in text': (b'Pstorage\n', '0x50'),
  'an instance of protocol 0': (b'(ios\nsystem\n', '0x69'),
  'an object of protocol 1': (b'(' + name('typing', 'A') + b'o', '0x6f'),
  'an unknown opcode': (b'\xff', '0xff'),
  'nothing left': (b'', 'nothing there'),
  'an empty stack': (b'R', 'nothing there'),
  'no mark': (b't', 'nothing there'),
  'no memo': (b'h\x07', 'nothing there'),
  'a long string that is not there': (b'X\xff\xff\xff\xff', '4294967295 bytes asked for'),
  'a longer one': (b'\x8d' + b'\xff' * 8, 'bytes asked for'),
  'a negative length': (b'\x8b\xff\xff\xff\xff', 'bytes asked for'),
  'a huge integer': (b'\x8b' + struct.pack('<I', 2000) + bytes(2000), 'integer of 2000 bytes'),
  'bad UTF-8': (b'X\x01\0\0\0\xff', 'utf-8'),
  'a line without an end': (b'ctyping', 'without an end'),
  'a call of a list': (b'])R', 'a call of'),
  'a call of a call': (call(call(name('typing', 'A'))), 'a call of'),
  'arguments that are no tuple': (name('typing', 'A') + b'NR', 'a call of'),
  'a thousand arguments': (name('typing', 'A') + b'(' + b'N' * 1000 + b'tR', 'a call of'),
  'state of a list': (b']Nb', 'state set on'),
  'state of a class': (name('typing', 'A') + b'Nb', 'state set on'),
  'items into a tuple': (b')Na', 'items added'),
  'keys into a list': (b'](NNu', 'keys set'),
  'a key alone': (b'}(Nu', 'key without a value'),
  'a dict from arguments': (call(name('collections', 'OrderedDict'), [['a', 1]]), 'arguments'),
  'a call of a storage class': (call(name('torch', 'FloatStorage'), 3), 'storage class'),
  'a storage of an unknown class': (storage('0', 2, name('torch', 'Size')), 'torch.Size'),
  'a storage of a negative size': (storage('0', -2), '-2'),
  'a persistent id that is text': (code('storage') + b'Q', 'persistent id'),
  'a tensor of nothing': (tensor(code(None), (2,), (1,)), 'instead of a storage'),
  'too few arguments': (call(name('torch._utils', '_rebuild_tensor_v2'), 1), '1 arguments'),
  'a parameter of nothing': (call(name('torch._utils', '_rebuild_parameter'), 1), 'parameter'),
  'a rebuilt call': (
    call(name('torch._tensor', '_rebuild_from_type_v2'), name('typing', 'A'), None, (), {}),
    'rebuilt by',
  ),
  'shape without stride': (tensor(('0', 2), (2,), ()), 'do not belong'),
  'a shape that is a list': (tensor(('0', 2), [2], [1]), 'do not belong'),
  'a negative stride': (tensor(('0', 2), (2,), (-1,), 1), 'out of range'),
  'a boolean axis': (tensor(('0', 2), (True,), (1,)), 'out of range'),
  'beyond its storage': (tensor(('0', 2), (3,), (1,)), 'element 3 of a storage that has 2'),
  'an offset beyond it': (tensor(('0', 2), (1,), (1,), 2), 'element 3'),
  'endless by stride 0': (tensor(('0', 2), (2**30, 2**20), (0, 0)), 'over a storage of 2'),
  'forty axes': (tensor(('0', 2), (1,) * 40, (1,) * 40), '40 axes'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_pickles_are_refused(tmp_path, what):
  data, expected = BAD[what]
  line = refused(tmp_path, b'\x80\x02' + bytes(data) + b'.', {'0': floats(1, 2)})
  assert expected in line


def test_billion_laughs_and_deep_nesting_cost_nothing(tmp_path):
  weights, storages = state_dict({'a': np.ones(2, np.float32)})
  laughs = b']' + b''.join(b'q\0]' + b'(' + b'h\0' * 9 + b'e' for _ in range(60))
  deep = b'](' * 5_000 + b'e' * 5_000
  tuples = b'N' + b'\x85' * 5_000
  calls = name('typing', 'A') * 2_000 + b'N' + b'\x85R' * 2_000
  for bomb in (laughs, deep, tuples, calls):
    value = {'state_dict': weights, Code(bomb): Code(bomb)}
    assert opened(tmp_path, value, storages)['a'].read().sum() == 2
    assert 'no weights' in refused(tmp_path, {Code(bomb): 1})
    assert 'not a dict' in refused(tmp_path, Code(bomb))


def test_a_pickle_that_never_stops_is_refused():
  assert '0 left' in refusal(unpickle, b'N', 'a', NOTHING)


def test_the_number_of_steps_is_bounded(monkeypatch):
  monkeypatch.setattr(pickles, 'MOST_STEPS', 10_000)
  assert 'more than 10000 steps' in refusal(unpickle, b']' * 20_000 + b'.', 'a', NOTHING)
  builders = {'a.walk': lambda items: len(items)}  # a builder gets a long list many times
  again = b'](' + b'N' * 1000 + b'e\x85q\0ca\nwalk\nq\1' + b'h\1h\0R' * 100 + b'.'
  line = refusal(unpickle, again, 'a', Names(builders, (), (), lambda pid: pid))
  assert 'more than 10000 steps' in line


def test_checkpoints_that_do_not_hold_weights_say_what_they_hold(tmp_path):
  assert "at the top: 'epoch', 'loss'" in refused(tmp_path, {'epoch': 1, 'loss': 0.5})
  assert 'nothing' in refused(tmp_path, {})
  assert 'one tensor' not in refused(tmp_path, [1, 2])
  assert 'not a dict of tensors' in refused(
    tmp_path, tensor(('0', 1), (1,), (1,)), {'0': floats(1)}
  )
  assert 'by 3' in refused(tmp_path, {3: tensor(('0', 1), (1,), (1,))}, {'0': floats(1)})
  one = tensor(('0', 1), (1,), (1,))
  twice = Code(b'}(' + (code('a') + one) * 2 + b'u')
  assert "'a' stands there twice" in refused(tmp_path, twice, {'0': floats(1)})


def test_an_archive_that_does_not_fit_its_pickle_is_refused(tmp_path):
  weights, storages = state_dict({'a': np.ones(3, np.float32)})
  assert "'archive/data/0', which is not there" in refused(tmp_path, weights)
  assert "12 bytes in 'archive/data/0', which has 8" in refused(tmp_path, weights, {'0': bytes(8)})
  path = tmp_path / 'a.ckpt'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('readme.txt', 'hello')
  assert '0 data.pkl' in refusal(open_tensors, path)
  path.write_bytes(checkpoint(weights, storages | {'../data.pkl': b''}, top='data/'))
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('other/data.pkl', b'')
  assert '2 data.pkl' in refusal(open_tensors, path)


def test_a_flipped_bit_in_a_tensor_shows_when_it_is_read(tmp_path):
  path = tmp_path / 'a.ckpt'
  whole = bytearray(checkpoint(*state_dict({'a': np.full(100, 3.0), 'b': np.ones(2)})))
  at = whole.index(np.float64(3).tobytes() * 2)
  whole[at + 9] ^= 1
  path.write_bytes(whole)
  tensors = open_tensors(path)
  assert "Bad CRC-32 for file 'archive/data/0'" in refusal(tensors['a'].read)
  assert tensors['b'].read().tolist() == [1, 1]


def test_a_pickle_of_absurd_length_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr('exedit.weights.formats.torch.LONGEST_PICKLE', 100)
  assert 'a pickle of' in refused(tmp_path, {'a': 'b' * 200})
  assert os.listdir(tmp_path) == ['a.ckpt']
