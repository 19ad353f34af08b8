"""Builds torch checkpoints from opcodes, so that they can contain what no pickler writes."""

import io
import struct
import zipfile

import numpy as np
import pytest

from exedit.runtime.errors import UserError
from exedit.weights.formats import torch
from exedit.weights.formats.files import open_tensors

STORAGES = {'f4': 'FloatStorage', 'f8': 'DoubleStorage', 'f2': 'HalfStorage', 'i8': 'LongStorage'}


class Code(bytes):
  """Opcodes that leave one value on the stack."""


def code(value) -> Code:
  """Opcodes for a plain value, which may contain `Code`."""
  if isinstance(value, Code):
    return value
  if isinstance(value, (tuple, list)):
    items = b''.join(code(item) for item in value)
    return Code(b'(' + items + b't' if isinstance(value, tuple) else b'](' + items + b'e')
  if isinstance(value, dict):
    return Code(b'}(' + b''.join(code(k) + code(v) for k, v in value.items()) + b'u')
  if isinstance(value, str):
    return Code(b'X' + struct.pack('<I', len(value.encode())) + value.encode())
  if isinstance(value, bytes):
    return Code(b'B' + struct.pack('<I', len(value)) + value)
  if isinstance(value, float):
    return Code(b'G' + struct.pack('>d', value))
  if isinstance(value, int) and not isinstance(value, bool):
    return Code(b'\x8a\x20' + value.to_bytes(32, 'little', signed=True))
  return Code({None: b'N', True: b'\x88', False: b'\x89'}[value])


def name(module, attribute) -> Code:
  return Code(f'c{module}\n{attribute}\n'.encode())


def call(function, *args) -> Code:
  return Code(function + code(args) + b'R')


def ordered(items) -> Code:
  """An OrderedDict as torch writes state dicts, with the attribute `_metadata`."""
  pairs = b''.join(code(k) + code(v) for k, v in items.items())
  state = code({'_metadata': ordered({})}) + b'b' if items else b''
  return Code(call(name('collections', 'OrderedDict')) + b'(' + pairs + b'u' + state)


FLOATS = name('torch', 'FloatStorage')
WHOLE = (None,)  # before torch 1.6, a storage says which part of another it is


def storage(key, count, cls=FLOATS, view=()) -> Code:
  return Code(code(('storage', cls, key, 'cuda:0', count, *view)) + b'Q')


def tensor(store, shape, stride, offset=0) -> Code:
  """A float tensor on a storage; `store` is code or (key, elements)."""
  store = store if isinstance(store, Code) else storage(*store)
  rebuild = name('torch._utils', '_rebuild_tensor_v2')
  return call(rebuild, store, offset, shape, stride, False, ordered({}))


def state_dict(arrays, legacy=False) -> tuple[Code, dict[str, bytes]]:
  """(code, storages) of arrays by name, each on a storage of its own, for a zip or an old file."""
  items, storages = {}, {}
  for key, (label, array) in enumerate(arrays.items()):
    array = np.ascontiguousarray(array).reshape(array.shape)
    kind = name('torch', STORAGES[array.dtype.str[1:]])
    store = storage(str(key), array.size, kind, WHOLE if legacy else ())
    items[label] = tensor(store, array.shape, tuple(s // array.itemsize for s in array.strides))
    storages[str(key)] = counted(array) if legacy else array.tobytes()
  return ordered(items), storages


def counted(array) -> bytes:
  """A storage in a file from before torch 1.6."""
  return array.size.to_bytes(8, 'little') + array.tobytes()


def program(value) -> bytes:
  return b'\x80\x02' + code(value) + b'.'


def checkpoint(
  value, storages, *, order='little', pack=zipfile.ZIP_STORED, top='archive/'
) -> bytes:
  """The zip around a pickle; `value` is code, a plain value, or the bytes of a whole pickle."""
  whole = value if type(value) is bytes else program(value)
  entries = {'data.pkl': whole, **({'byteorder': order} if order else {})}
  entries |= {f'data/{key}': data for key, data in storages.items()} | {'version': '3\n'}
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    for entry, data in entries.items():  # a new ZipInfo contains no time
      archive.writestr(zipfile.ZipInfo(top + entry), data, pack)
  return buffer.getvalue()


SYSTEM = dict(protocol_version=1001, little_endian=True, type_sizes={'int': 4})


def whole_legacy(
  value, storages, *, magic=torch.MAGIC, version=torch.VERSION, system=SYSTEM, keys=None
) -> bytes:
  """A file from before torch 1.6: five pickles one behind the other, then the storages."""
  number = Code(b'\x8a\x0a' + magic.to_bytes(10, 'little'))
  keys = list(storages) if keys is None else keys
  head = [program(part) for part in (number, version, system, value, keys)]
  return b''.join([*head, *storages.values()])


# opening them


def refusal(function, *args, **kwargs):
  """The one line of the UserError that `function` raises."""
  with pytest.raises(UserError) as caught:
    function(*args, **kwargs)
  line = str(caught.value)
  assert '\n' not in line and len(line) < 500
  return line


def opened(folder, value, storages={}, legacy=False, **options):
  """Writes a checkpoint and opens it."""
  path = folder / 'a.ckpt'
  path.write_bytes((whole_legacy if legacy else checkpoint)(value, storages, **options))
  return open_tensors(path)


def refused(folder, value, storages={}, **options):
  line = refusal(lambda: opened(folder, value, storages, **options))
  assert 'a.ckpt' in line
  return line


def floats(*values):
  return np.array(values, np.float32).tobytes()
