"""Writes files that `torch.load` reads, without PyTorch.

Format: torch/serialization.py `_save`. The pickle has protocol 2 and only the names that
`torch.load(path, weights_only=True)` allows.
"""

import itertools
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from exedit.weights.formats.tensor import Tensor, bytes_of, native, writing
from exedit.weights.formats.torch_names import DTYPES, STORAGES

TOP = 'archive/'
NOTES = f'{TOP}extra/'  # entries that torch does not look at
HEADER = 30  # bytes of an entry's header before its name
ALIGNMENT = 64  # bytes, as in torch's files, which may be mapped into memory
ENTRY = 512  # bytes that an entry takes at most beside its data
ZIP64 = 20  # bytes that a header has more for sizes above 4 GB; every header here has them
CLASSES = {dtype: name for name, dtype in reversed(STORAGES.items()) if 'Untyped' not in name}


def save_checkpoint(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray | Tensor],
  notes: Mapping[str, str] = {},
) -> None:
  """Writes the file that `torch.load(path)['state_dict']` reads; see `save_tree`."""
  save_tree(path, dict(state_dict=tensors), notes)


def save_tree(
  path: str | os.PathLike, tree: Mapping[str, Any], notes: Mapping[str, str] = {}
) -> None:
  """Writes dicts of tensors, or of such dicts, whole or not at all, with one tensor in memory.

  Every tensor has a storage of its own. notes: texts for `torch.read_notes`.

  Raises:
    UserError: if the disk has not enough space.
    ValueError: for a type that torch does not have.
  """
  tensors = [*_leaves(tree)]
  entries = {'data.pkl': _pickle(tree), 'byteorder': b'little'}
  entries |= {f'extra/{name}': text.encode() for name, text in notes.items()}
  size = sum(len(data) + ENTRY for data in entries.values())
  size += sum(tensor.nbytes + ENTRY for _, tensor in tensors)
  with writing(path, size) as file, zipfile.ZipFile(file, 'w') as archive:
    for name, data in entries.items():
      _add(archive, file, name, data)
    for key, (name, tensor) in enumerate(tensors):
      _add(archive, file, f'data/{key}', bytes_of(name, tensor))
    _add(archive, file, 'version', b'3\n')


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray | Tensor]]:
  """The tensors with their own names, in the order in which the pickle names them."""
  for name, value in tree.items():
    if isinstance(value, Mapping):
      yield from _leaves(value)
    else:
      yield name, value


def _add(archive: zipfile.ZipFile, file: IO[bytes], name: str, data: bytes | memoryview) -> None:
  """Adds an entry whose data begin at a multiple of ALIGNMENT; without a time, to be repeatable."""
  entry = zipfile.ZipInfo(TOP + name)
  begin = file.tell() + HEADER + len(entry.filename) + ZIP64 + 4
  padding = -begin % ALIGNMENT
  entry.extra = b'FB' + padding.to_bytes(2, 'little') + bytes(padding)
  with archive.open(entry, 'w', force_zip64=True) as opened:
    opened.write(data)


# The pickle


def _pickle(tree: Mapping[str, Any]) -> bytes:
  """A dict whose inner dicts are OrderedDicts; the tensors have the keys 0, 1, 2, ..."""
  return b'\x80\x02}' + _items(tree, itertools.count()) + b'.'


def _items(tree: Mapping[str, Any], keys: Iterator[int]) -> bytes:
  """Fills the dict on top of the stack."""
  parts = [b'(']
  for name, value in tree.items():
    inner = isinstance(value, Mapping)
    made = _ORDERED + _items(value, keys) if inner else _tensor(name, str(next(keys)), value)
    parts.append(_text(name) + made)
  return b''.join(parts) + b'u'


def _text(value: str) -> bytes:
  data = value.encode()
  return b'X' + len(data).to_bytes(4, 'little') + data


def _whole(value: int) -> bytes:
  data = value.to_bytes(value.bit_length() // 8 + 1, 'little')
  return b'\x8a' + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
  return b'(' + b''.join(items) + b't'


def _name(full: str) -> bytes:
  return 'c{}\n{}\n'.format(*full.rsplit('.', 1)).encode()


_ORDERED = _name('collections.OrderedDict') + b')R'  # an empty one


def _tensor(name: str, key: str, tensor: np.ndarray | Tensor) -> bytes:
  """A call of torch's builder of tensors; a type without a class of storages is kept in bytes."""
  dtype, count = native(np.dtype(tensor.dtype)), math.prod(tensor.shape)
  if dtype not in DTYPES.values():
    raise ValueError(f'torch has no type for {dtype} ({name})')
  rebuild, storage, rest = 'v2', CLASSES.get(dtype), []
  if storage is None:
    rebuild, storage, count = 'v3', 'torch.storage.UntypedStorage', count * dtype.itemsize
    rest = [_name(f'torch.{dtype.name}')]
  words = [_text('storage'), _name(storage), _text(key), _text('cpu'), _whole(count)]
  shape = tuple(tensor.shape)
  strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  window = [_whole(0), _tuple(*map(_whole, shape)), _tuple(*map(_whole, strides))]
  arguments = [_tuple(*words) + b'Q', *window, b'\x89', _ORDERED, *rest]
  return _name(f'torch._utils._rebuild_tensor_{rebuild}') + _tuple(*arguments) + b'R'
