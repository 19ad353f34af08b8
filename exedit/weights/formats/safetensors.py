"""safetensors files, read and written one tensor at a time.

The safetensors library reads and checks the header. It can read the tensors as well, but not all
types as numpy arrays, and from a memory map (see `File`), so their bytes are read with `File`.
Format: github.com/huggingface/safetensors, README.
"""

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights.formats.tensor import File, Tensor, bytes_of, damaged, native, quoted, writing

# The format's names of types; a file's tensors are written in this order, as the library does.
DTYPES = {
  'U64': np.dtype(np.uint64),
  'I64': np.dtype(np.int64),
  'F64': np.dtype(np.float64),
  'C64': np.dtype(np.complex64),
  'F32': np.dtype(np.float32),
  'U32': np.dtype(np.uint32),
  'I32': np.dtype(np.int32),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F16': np.dtype(np.float16),
  'U16': np.dtype(np.uint16),
  'I16': np.dtype(np.int16),
  'F8_E8M0': np.dtype(ml_dtypes.float8_e8m0fnu),
  'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
  'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
  'I8': np.dtype(np.int8),
  'U8': np.dtype(np.uint8),
  'BOOL': np.dtype(np.bool_),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
MOST_AXES = 32
assert sys.byteorder == 'little', 'the format is little-endian, and bytes are taken as they are'


def open_safetensors(file: File) -> dict[str, Tensor]:
  """Returns the tensors by name, in the order of their bytes.

  Raises:
    UserError: if the header contradicts itself or the file's size, or a type is not in DTYPES.
  """
  at, tensors = 8 + int.from_bytes(file.read(0, 8).tobytes(), 'little'), {}
  with _header_of(file) as header:
    for name in header.offset_keys():  # the library has checked that no bytes lie between them
      entry = header.get_slice(name)
      shape, code = tuple(entry.get_shape()), entry.get_dtype()
      if code not in DTYPES:
        raise UserError(
          f'{file.path}: {quoted(name)} is of type {code}, and exedit reads {", ".join(DTYPES)}:'
          ' convert it to one of them'
        )
      if len(shape) > MOST_AXES or math.prod(n or 1 for n in shape) >= 2**60:
        raise damaged(file.path, f'{quoted(name)} has the impossible shape {quoted(shape)}')
      size = math.prod(shape) * DTYPES[code].itemsize
      read = functools.partial(_read, file, at, size, shape, DTYPES[code])
      tensors[name] = Tensor(shape, DTYPES[code], read)
      at += size
  return tensors


def read_metadata(file: File) -> dict[str, str]:
  """Returns the text entries of the header; UserError if it is no safetensors file."""
  with _header_of(file) as header:
    return header.metadata() or {}


def _read(file: File, at: int, size: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  return file.read(at, size).view(dtype).reshape(shape)


@contextlib.contextmanager
def _header_of(file: File) -> Iterator[Any]:
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(file.path, 'np') as header:
      yield header
  except (SafetensorError, OSError) as error:
    why = ascii(str(error).removeprefix('Error while deserializing header: '))[1:-1]
    raise damaged(file.path, why[:150]) from None


def save_tensors(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray | Tensor],
  metadata: Mapping[str, str] = {},
) -> None:
  """Writes a safetensors file, whole or not at all, with one tensor in memory at a time.

  The bytes are the same as the library's, which needs all tensors in memory. The file may be the
  one that the tensors are read from.

  Raises:
    UserError: if the disk has not enough space.
    ValueError: for a type that the format does not have.
  """
  order = list(CODES)
  names = sorted(tensors, key=lambda name: (order.index(_native(tensors[name].dtype)), name))
  header = _header(names, tensors, metadata)
  size = len(header) + sum(tensors[name].nbytes for name in names)
  with writing(path, size) as file:
    file.write(header)
    for name in names:
      file.write(bytes_of(name, tensors[name]))


def _native(dtype: np.dtype) -> np.dtype:
  """The type in this machine's byte order."""
  if (own := native(dtype)) not in CODES:
    raise ValueError(f'safetensors has no type for {dtype}; it has {", ".join(map(str, CODES))}')
  return own


def _header(names: list[str], tensors: Mapping, metadata: Mapping[str, str]) -> bytes:
  """The header's length and its JSON, padded so that the data begin at a multiple of 8."""
  entries: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  at = 0
  for name in names:
    if name == '__metadata__':
      raise ValueError('no tensor can be called __metadata__')
    tensor, begin = tensors[name], at
    at += tensor.nbytes
    code = CODES[_native(tensor.dtype)]
    entries[name] = dict(dtype=code, shape=list(tensor.shape), data_offsets=[begin, at])
  text = json.dumps(entries, ensure_ascii=False, separators=(',', ':')).encode('utf-8')
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text
