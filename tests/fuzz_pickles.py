"""Bad pickles in sound zips: hostile, damaged, costly and impossible; makers as in fuzz_weights."""

import functools
import os
import pickle
import struct

import numpy as np

from tests.mutations import arrays, mutated, pick
from tests.pickled import Code, call, checkpoint, code, name, program, state_dict
from tests.pickled import storage as stored
from tests.pickled import tensor as tensor_code

CALLABLES = (
  *('os.system', 'posix.system', 'nt.system', 'os.popen', 'os.execv', 'subprocess.Popen'),
  *('subprocess.check_output', 'builtins.eval', 'builtins.exec', 'builtins.compile'),
  *('builtins.__import__', 'builtins.getattr', 'builtins.setattr', 'builtins.open', 'builtins.map'),
  *('__builtin__.eval', '__builtin__.apply', 'runpy._run_code', 'runpy.run_path', 'timeit.timeit'),
  *('functools.partial', 'functools.reduce', 'operator.attrgetter', 'operator.methodcaller'),
  *(
    'types.CodeType',
    'types.FunctionType',
    'importlib.import_module',
    'pty.spawn',
    'code.interact',
  ),
  *('ctypes.CDLL', 'shutil.rmtree', 'pathlib.Path.touch', 'webbrowser.open', 'socket.socket'),
  *('pickle.loads', 'torch.load', 'torch.hub.load', 'torch.storage._load_from_bytes', 'numpy.load'),
  *('torch._utils._rebuild_tensor_v2.__globals__', 'torch.FloatStorage.from_file', 'sys.exit'),
  *('collections.OrderedDict.fromkeys', 'typing.get_type_hints', 'typing.sys', 'copyreg.pickle'),
  *('numpy.core.multiarray.fromfile', 'numpy.f2py.compile', 'signal.alarm', 'os._exit', 'os.abort'),
)


def arguments(rng, canary):
  """What a hostile call would be given."""
  command = f'touch {canary}'
  source = f'__import__("os").system({command!r})'
  return pick(
    rng,
    [
      *[
        (command,),
        (source,),
        (['touch', str(canary)],),
        (source, {}),
        ('touch', ['touch', str(canary)]),
      ],
      *[(name('os', 'path'), 'os'), (name('os', 'system'), [command]), (str(canary), 'w'), ()],
    ],
  )


def hostile_call(rng, canary, depth=0) -> Code:
  """A call of something by one of the ways that a pickle has."""
  module, attribute = pick(rng, CALLABLES).rsplit('.', 1)
  args = arguments(rng, canary)
  function = pick(
    rng,
    [
      name(module, attribute),
      name(module, attribute),
      Code(code(module) + code(attribute) + b'\x93'),
      Code(code('typing') + code(f'{module}.{attribute}') + b'\x93'),
      call(name('builtins', 'getattr'), name(module, '__dict__'), attribute),
    ],
  )
  if depth < 2 and rng.random() < 0.3:
    args = (*args, hostile_call(rng, canary, depth + 1))
  return pick(
    rng,
    [
      call(function, *args),
      Code(function + code(args) + b'\x81'),
      Code(function + code(args) + code({'a': 1}) + b'\x92'),
      Code(b'(' + function + b''.join(map(code, args)) + b'o'),
      Code(b'(' + b''.join(map(code, args)) + f'i{module}\n{attribute}\n'.encode()),
      Code(call(function) + code({'__setstate__': function, '__class__': function}) + b'b'),
      Code(call(name('collections', 'OrderedDict')) + code({'__init__': function}) + b'b'),
      Code(call(name('torch._tensor', '_rebuild_from_type_v2'), function, function, args, {})),
      Code(function + code(args) + b'Q'),
      Code(b'\x82' + rng.bytes(1) + code(args) + b'R'),
      Code(b'P' + f'{module}.{attribute}'.encode() + b'\n'),
    ],
  )


def surrounded(rng, evil: Code):
  """A checkpoint around some hostile code, in one of the places where it might be missed."""
  weights, storages = state_dict(arrays(rng))
  value = pick(
    rng,
    [
      evil,
      {'state_dict': weights, 'callbacks': {evil: 1}},
      {'state_dict': weights, 'x': evil},
      {'state_dict': {'a': evil}},
      {'state_dict': evil},
      Code(evil + b'0' + weights),
      Code(weights + evil + b'b'),
      Code(weights + evil + b'b0' + weights),
      [weights, evil],
      tensor_code(evil, (2,), (1,)),
    ],
  )
  return {'a.ckpt': checkpoint(value, storages)}


def pickle_hostile(rng, canary):
  return surrounded(rng, hostile_call(rng, canary))


class Evil:
  """Pickled, this asks for the call of `function` in one of Python's own ways."""

  def __init__(self, way, function, args):
    self.way, self.function, self.args = way, function, args

  def __reduce_ex__(self, protocol):
    reduced = (self.function, self.args)
    return {
      'plain': reduced,
      'state': (*reduced, {'a': self.args}),
      'items': (*reduced, None, iter([self.args]), iter([(1, self.args)])),
      'setter': (list, (), self.args, None, None, self.function),
    }[self.way]


def pickle_reduce(rng, canary):
  """What Python's pickler writes for hostile `__reduce__` methods, in every protocol."""
  command = f'touch {canary}'
  function, args = pick(
    rng,
    [
      (os.system, (command,)),
      (eval, (f'__import__("os").system({command!r})',)),
      (exec, (f'import os; os.system({command!r})',)),
      (getattr, (Evil, '__reduce_ex__')),
      (functools.partial, (os.system, command)),
      (map, (os.system, [command])),
      (__import__, ('antigravity',)),
      (open, (str(canary), 'w')),
    ],
  )
  ways = ['plain', 'state', 'items', 'setter']
  value = {'state_dict': {}, 'x': Evil(pick(rng, ways), function, args)}
  protocol = int(rng.integers(6))
  data = pickle.dumps(value if rng.random() < 0.5 else value['x'], protocol)
  if rng.random() < 0.2:
    return {'a.bin': data}  # not even in a zip
  return {'a.ckpt': checkpoint(data, {})}


def pickle_mutated(rng, canary):
  """A sound zip, CRCs and all, around a damaged pickle."""
  weights, storages = state_dict(arrays(rng))
  whole = program(pick(rng, [weights, {'state_dict': weights, 'a': [1, 'x', None, 2.5]}]))
  return {'a.ckpt': checkpoint(mutated(rng, whole, program(hostile_call(rng, canary))), storages)}


SIMPLE = '(012NR)]}abdelostu.Q\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98'


def pickle_soup(rng, canary):
  """Opcodes in any order, most of them with arguments that make sense."""
  parts = []
  for _ in range(int(rng.integers(1, 300))):
    number = int(rng.integers(1, 9))
    parts += pick(
      rng,
      [
        [pick(rng, SIMPLE).encode('latin-1')],
        [pick(rng, SIMPLE).encode('latin-1')],
        [code(pick(rng, ['storage', 'a', '0', 'state_dict', '', 7, -1, 2**100, 0.5, True, ()]))],
        [name('torch._utils', pick(rng, ['_rebuild_tensor_v2', '_rebuild_parameter']))],
        [name('collections', 'OrderedDict') + b')R', name('typing', 'Any')],
        [stored('0', number), tensor_code(('0', number), (number,), (1,))],
        [pick(rng, [b'q', b'h', b'K', b'\x80', b'\x82']) + bytes([number])],
        [pick(rng, [b'p', b'g', b'I', b'L', b'F', b'S', b'V', b'P']) + rng.bytes(number) + b'\n'],
        [pick(rng, [b'X', b'T', b'B', b'\x8b', b'r', b'j', b'J']) + rng.bytes(4)],
        [pick(rng, [b'\x8d', b'\x8e', b'\x95', b'\x96', b'G']) + rng.bytes(8)],
      ],
    )
  return {'a.ckpt': checkpoint(b'\x80\x04' + b''.join(parts) + b'.', {'0': bytes(4 * 8)})}


def pickle_costly(rng, canary):
  """Small pickles that would cost much: memos, nesting, doubling, long numbers and names."""
  weights, storages = state_dict({'a': np.ones(2, np.float32)})
  deep = int(rng.integers(1000, 60_000))
  evil = pick(
    rng,
    [
      b']' + b''.join(b'q\0](' + b'h\0' * 9 + b'e' for _ in range(99)),
      b'](' * deep + b'e' * deep,
      b'N' + b'\x85' * deep,
      b'}(' + b'(' * deep + b't' * deep + b'Nu',
      name('typing', 'A') * deep + b'N' + b'\x85R' * deep,
      b'N' + b''.join(b'r' + struct.pack('<I', (i * 2654435761) % 2**32) for i in range(deep)),
      b'N' + b''.join(b'p%d\n' % (i * (2**61 - 1)) for i in range(1000)),
      b'}(' + b''.join(code((2**61 - 1) * i) + b'N' for i in range(deep)) + b'u',
      b'I' + b'7' * 300_000 + b'\n',
      b'\x8b' + struct.pack('<I', 2**20) + b'\x01' * 2**20,
      b'X' + struct.pack('<I', 2**20) + b'x' * 2**20 + b'q\0' + b'h\0h\0\x93' * 99,
      b']('
      + b'N' * deep
      + b'e\x85q\0'
      + name('collections', 'OrderedDict')
      + b'q\1'
      + b'h\1h\0R' * deep,
      b'](' + b'N' * deep + b'etq\0',
      b'X' + struct.pack('<I', 2**32 - 1),
      b'F' + b'1' * 300_000 + b'\n',
      b'\x96' + struct.pack('<Q', 2**63),
      b']' * 3_000_001,
    ],
  )
  value = pick(rng, [Code(evil), {'state_dict': weights, 'x': Code(evil)}])
  return {'a.ckpt': checkpoint(value, storages)}


def tensors_lie(rng, canary):
  """Sound pickles of tensors that cannot be: shapes, strides, offsets and storages out of range."""
  numbers = [-1, 0, 1, 2, 3, 7, 8, 9, 100, 2**31, 2**62, 2**63, 2**64, 2**200, True, None, 0.5, 'a']
  some = lambda: tuple(pick(rng, numbers) for _ in range(int(rng.integers(4))))
  cls = name('torch', pick(rng, ['FloatStorage', 'BoolStorage', 'QInt8Storage', 'Size', 'device']))
  key = pick(rng, ['0', '1', '../0', '', 'a' * 1000, '\n', 0])
  pid = pick(
    rng,
    [
      ('storage', cls, key, 'cpu', pick(rng, numbers)),
      ('storage', cls),
      ('file', cls, key, 'cpu', 8),
    ],
  )
  sound = rng.random() < 0.4
  store = stored('0', 8) if sound else Code(code(pid) + b'Q')
  shape = some() if rng.random() < 0.7 else list(some())
  stride = some() if not isinstance(shape, tuple) else tuple(pick(rng, numbers) for _ in shape)
  value = {'a': tensor_code(store, shape, stride, pick(rng, numbers))}
  return {'a.pth': checkpoint(value, {'0': rng.bytes(pick(rng, [0, 8, 32]))})}


MAKERS = {
  'pickle, hostile calls': pickle_hostile,
  'pickle, hostile __reduce__': pickle_reduce,
  'pickle, mutated': pickle_mutated,
  'pickle, opcode soup': pickle_soup,
  'pickle, costly': pickle_costly,
  'pickle, impossible tensors': tensors_lie,
}
