"""Weight files of every kind as named tensors that are read one at a time: open them, save them.

Nothing in a file is executed and nothing is read before it is asked for. Kinds are told by their
bytes, not by their endings. The safetensors format: github.com/huggingface/safetensors, README.
"""

import contextlib
import errno
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights.formats import legacy, torch_zip, torchscript
from exedit.weights.formats.pread import File, damaged, quoted
from exedit.weights.formats.tensor import Tensor
from exedit.weights.formats.zips import Zip

INDEX = '.index.json'  # the ending of the list of shards that stands in for a single file
LONGEST_HEADER = 100_000_000  # bytes; the library's own bound
LONGEST_NAME = 255  # of a file, in characters
MOST_AXES = 32

# Codes of the format; a file's tensors are written in this order, as the library does.
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


# Reading


def open_tensors(path: str | os.PathLike) -> dict[str, Tensor]:
  """The tensors of a weight file by name.

  path: a `.safetensors`; a `.bin`, `.pt`, `.pth` or `.ckpt` that any version of torch wrote,
  TorchScript too; or the `.index.json` of shards of any of these kinds.
  Raises:
    UserError: naming the file, what is wrong and what to do. Damage inside a tensor's own bytes
      can only show when it is read.
  """
  file = File(path)
  kind = _kind(file)
  if kind == 'index':
    return _open_shards(file)
  return _open_one(file, kind)


def _open_one(file: File, kind: str) -> dict[str, Tensor]:
  if kind == 'legacy':
    return legacy.open_tensors(file)
  if kind == 'zip':
    archive = Zip(file)
    open_zip = torchscript if torchscript.is_torchscript(archive) else torch_zip
    return open_zip.open_tensors(archive, file.path)
  return _open_safetensors(file)[0]


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """The free text entries in a safetensors file's header."""
  return _open_safetensors(File(path))[1]


def _kind(file: File) -> str:
  """'safetensors', 'zip', 'legacy' or 'index', by the first bytes; refuses the rest by name."""
  head = file.read(0, min(file.size, 512)).tobytes()
  text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if head[:4] in (b'PK\x03\x04', b'PK\x05\x06'):
    return 'zip'
  if legacy.is_legacy(head):
    return 'legacy'
  if head[4:9] == b'\0\0\0\0{':  # a header of less than 4 GB; text has no zeros there
    return 'safetensors'
  if text.startswith(b'{'):
    return 'index'
  if not head:
    raise UserError(f'{file.path} is empty (0 bytes): fetch it again')
  if text.startswith(b'version https://git-lfs'):
    raise UserError(
      f'{file.path} is a Git LFS pointer of {file.size} bytes, not the weights themselves: run'
      ' `git lfs pull` in its folder, or download the file'
    )
  if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
    raise UserError(
      f'{file.path} is a web page saved under the name of a weight file: download the file itself'
    )
  if head[:1] == b'\x80' or head[257:262] == b'ustar':
    raise UserError(
      f'{file.path} is a plain pickle or a tar, which only the first versions of torch wrote: load'
      ' it with torch and save it again (torch.save), or use a .safetensors file'
    )
  if os.path.splitext(file.path)[1] == '.safetensors':
    return 'safetensors'
  raise UserError(
    f'{file.path} begins with {quoted(head[:8])} and is no weight file: give a .safetensors, a'
    f' torch .ckpt/.bin/.pt/.pth, or the *{INDEX} of shards'
  )


def _open_safetensors(file: File) -> tuple[dict[str, Tensor], dict[str, str]]:
  """(tensors, metadata); every claim of the header is checked before any of them is believed."""
  length = int.from_bytes(file.read(0, 8).tobytes(), 'little')
  if length > min(LONGEST_HEADER, file.size - 8):
    raise damaged(file.path, f'its header claims {length} bytes, the file has {file.size}')
  header = _json(file, file.read(8, length).tobytes())
  metadata = header.pop('__metadata__', None) or {}
  if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
    raise damaged(file.path, '__metadata__ is not a mapping from text to text')
  start, tensors, spans = 8 + length, {}, []
  for name, entry in header.items():
    shape, dtype, begin, end = _checked(file, name, entry)
    spans.append((begin, end, name))
    tensors[name] = Tensor(shape, dtype, _reader(file, start + begin, end - begin, shape, dtype))
  _check_spans(file, sorted(spans), file.size - start)
  return tensors, metadata


def _checked(file: File, name: str, entry: Any) -> tuple[tuple[int, ...], np.dtype, int, int]:
  """(shape, dtype, begin, end) of one entry of a safetensors header."""
  try:
    code, shape, (begin, end) = entry['dtype'], tuple(entry['shape']), entry['data_offsets']
    numbers = [*shape, begin, end]
  except (TypeError, KeyError, ValueError):
    raise damaged(file.path, f'{quoted(name)}: no dtype, shape and two data_offsets') from None
  if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or len(shape) > MOST_AXES:
    raise damaged(file.path, f'{quoted(name)}: a shape or an offset that is no possible number')
  if not isinstance(code, str) or code not in DTYPES:
    raise UserError(
      f'{file.path}: {quoted(name)} is of type {code if isinstance(code, str) else type(code)}, and'
      f' exedit reads {", ".join(DTYPES)}: convert it to one of them'
    )
  size = math.prod(shape) * DTYPES[code].itemsize
  if size != end - begin or math.prod(n or 1 for n in shape) >= 2**60:
    raise damaged(
      file.path,
      f'{quoted(name)}: shape {quoted(list(shape))} in {code} takes {size} bytes, its offsets'
      f' {begin} to {end} span {end - begin}',
    )
  return shape, DTYPES[code], begin, end


def _check_spans(file: File, spans: list[tuple[int, int, str]], size: int) -> None:
  """The tensors must fill the data from its first byte to its last, without gap or overlap."""
  at = 0
  for begin, end, name in spans:
    if begin != at:
      what = 'overlaps the tensor before it' if begin < at else 'leaves a gap'
      raise damaged(file.path, f'{quoted(name)} {what}: it begins at {begin}, not at {at}')
    at = end
  if at != size:
    raise damaged(file.path, f'its tensors take {at} bytes, {size} are there')


def _reader(file: File, offset: int, size: int, shape: tuple[int, ...], dtype: np.dtype):
  return lambda: file.read(offset, size).view(dtype).reshape(shape)


def _json(file: File, data: bytes) -> dict[str, Any]:
  """A JSON object, none of whose keys stands there twice."""
  try:
    value = json.loads(data.decode('utf-8'), object_pairs_hook=_once)
    if not isinstance(value, dict):
      raise ValueError('it is not an object')
    return value
  except (ValueError, RecursionError) as error:
    raise damaged(file.path, f'its JSON: {str(error)[:150]}') from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  values = {}
  for key, value in pairs:
    if key in values:
      raise ValueError(f'{quoted(key)} stands there twice')
    key.encode('utf-8')  # half a surrogate pair is a ValueError
    values[key] = value
  return values


def _open_shards(file: File) -> dict[str, Tensor]:
  """The tensors that an index distributes over the files beside it."""
  if file.size > LONGEST_HEADER:
    raise damaged(file.path, f'an index of {file.size} bytes')
  names = _json(file, file.read(0, file.size).tobytes()).get('weight_map')
  if not isinstance(names, dict) or not all(isinstance(s, str) for s in names.values()):
    raise UserError(
      f'{file.path} is no index of shards (it has no weight_map from names to files): give a weight'
      f' file or a *{INDEX}'
    )
  shards = {}
  for shard in sorted(set(names.values())):
    plain = shard.isprintable() and not set(shard) & set('/\\') and shard not in ('', '..')
    if not plain or len(shard) > LONGEST_NAME:
      raise damaged(file.path, f'it names the shard {quoted(shard)}, which is no plain file name')
    part = File(Path(file.path).parent / shard)
    if (kind := _kind(part)) == 'index':
      raise damaged(file.path, f'its shard {quoted(shard)} is an index itself')
    shards[shard] = _open_one(part, kind)
  for name, shard in names.items():
    if name not in shards[shard]:
      raise damaged(file.path, f'it looks for {quoted(name)} in {quoted(shard)}, which has none')
  return {name: shards[shard][name] for name, shard in names.items()}


# Writing


def save_tensors(
  path: str | os.PathLike,
  tensors: Mapping[str, np.ndarray | Tensor],
  metadata: Mapping[str, str] = {},
) -> None:
  """Write a safetensors file, whole or not at all, with one tensor in memory at a time.

  The bytes are those that the safetensors library writes. An older file of that name is replaced,
  and may be the one that the tensors are being read from.
  Raises:
    UserError: where the folder does not exist or the disk has too little room.
  """
  path = Path(path)
  order = list(CODES)
  names = sorted(tensors, key=lambda name: (order.index(_native(tensors[name].dtype)), name))
  header = _header(names, tensors, metadata)
  size = len(header) + sum(_bytes(tensors[name]) for name in names)
  with _whole(path, size) as file:
    file.write(header)
    for name in names:
      file.write(_data(name, tensors[name]))


def _native(dtype: np.dtype) -> np.dtype:
  """The dtype in this machine's byte order, if the format has it."""
  native = dtype.newbyteorder('=') if dtype.byteorder == '>' else dtype
  if native not in CODES:
    raise ValueError(f'safetensors has no type for {dtype}; it has {", ".join(map(str, CODES))}')
  return native


def _bytes(tensor: np.ndarray | Tensor) -> int:
  return math.prod(tensor.shape) * tensor.dtype.itemsize


def _header(names: list[str], tensors: Mapping, metadata: Mapping[str, str]) -> bytes:
  """The length and the JSON, padded so that the data begin at a multiple of 8."""
  entries: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  at = 0
  for name in names:
    if name == '__metadata__':
      raise ValueError('no tensor can be called __metadata__')
    tensor, begin = tensors[name], at
    at += _bytes(tensor)
    code = CODES[_native(tensor.dtype)]
    entries[name] = dict(dtype=code, shape=list(tensor.shape), data_offsets=[begin, at])
  text = json.dumps(entries, ensure_ascii=False, separators=(',', ':')).encode('utf-8')
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text


def _data(name: str, tensor: np.ndarray | Tensor) -> memoryview:
  """The tensor's bytes, read now if it is still in a file."""
  array = tensor.read() if isinstance(tensor, Tensor) else tensor
  if array.shape != tensor.shape or array.dtype != tensor.dtype:
    raise ValueError(
      f'{name}: read as {array.dtype} {array.shape}, announced as {tensor.dtype} {tensor.shape}'
    )
  array = np.ascontiguousarray(array, _native(array.dtype))
  return array.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def _whole(path: Path, size: int):
  """A binary file that takes its name only when the block ends well; room for it is checked."""
  if not path.parent.is_dir():
    raise UserError(f'cannot write {path}: the folder {path.parent} does not exist; make it first')
  if (free := shutil.disk_usage(path.parent).free) < size:
    raise _no_space(path, size, free)
  half = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(half, 'wb') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(half, path)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise _no_space(path, size, shutil.disk_usage(path.parent).free) from None
    error.filename = str(path)  # a temporary name tells nobody anything
    raise
  finally:
    half.unlink(missing_ok=True)


def _no_space(path: Path, size: int, free: int) -> UserError:
  return UserError(
    f'no space left for {path}: it takes {size / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; free'
    ' some, or choose another folder'
  )


assert sys.byteorder == 'little', 'the bytes of these formats are taken as they lie in memory'
