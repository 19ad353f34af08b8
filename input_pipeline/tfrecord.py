"""TFRecord shards without TensorFlow: write, index, read at random, and the Example inside.

Format: https://www.tensorflow.org/tutorials/load_data/tfrecord. A record is its length (uint64),
the masked CRC32C of those 8 bytes, the data and the masked CRC32C of the data, all little endian.
"""

import contextlib
import fcntl
import functools
import hashlib
import io
import logging
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np

from . import remote
from .errors import DataError

_HEADER = struct.Struct('<QI')
_CRC = struct.Struct('<I')
_FRAME = _HEADER.size + _CRC.size  # bytes around the data of one record
_OPEN_FILES = 256  # kept open by one Source: far below the usual limit of 1024 per process


class CorruptRecord(DataError):
  """A record that cannot be used: which shard, at which byte offset, and why."""

  def __init__(self, shard: str, offset: int, why: str):
    super().__init__(shard, offset, why)  # all three, so that it pickles across processes
    self.shard, self.offset, self.why = shard, offset, why

  def __str__(self) -> str:
    return f'corrupt record in {self.shard} at byte {self.offset}: {self.why}'


def _masked_crc(data: bytes) -> int:
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Writing.


def framed(record: bytes) -> bytes:
  """A record as it lies in a file: its length and itself, each with its checksum."""
  header = struct.pack('<Q', len(record))
  parts = header, _CRC.pack(_masked_crc(header)), record, _CRC.pack(_masked_crc(record))
  return b''.join(parts)


def write_shard(path: str, records: Iterable[bytes]) -> dict:
  """Writes one shard; `path` appears only once it is whole and on the disk.

  Returns dict(records=how many, bytes=file size, sha256=hex digest of the file).
  """
  path = os.fspath(path)
  count, size, digest = 0, 0, hashlib.sha256()
  with _written(path) as file:
    for record in records:
      frame = framed(record)
      file.write(frame)
      digest.update(frame)
      count, size = count + 1, size + len(frame)
  return dict(records=count, bytes=size, sha256=digest.hexdigest())


def _written(path: str):
  """The file to write, here or in a store, that takes its name once it is whole."""
  return remote.replacing(path) if remote.is_remote(path) else _replacing(path)


class _replacing:
  """A binary file that takes its name only when the `with` block ends without an error."""

  def __init__(self, path: str):
    self.path = path

  def __enter__(self):
    folder, name = os.path.split(os.path.abspath(self.path))
    os.makedirs(folder, exist_ok=True)
    fd, self.temporary = tempfile.mkstemp(prefix=f'.{name}.', dir=folder)
    with contextlib.suppress(OSError):  # so that `sweep` sees that it is in writing
      fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.fchmod(fd, 0o644)  # mkstemp's 0600 would hide the shard from the other users of a pod
    self.file = os.fdopen(fd, 'wb')
    return self.file

  def __exit__(self, kind, error, trace):
    try:
      if kind is None:
        self.file.flush()
        os.fsync(self.file.fileno())
      self.file.close()
      if kind is None:
        os.replace(self.temporary, self.path)
    finally:
      if os.path.exists(self.temporary):
        os.unlink(self.temporary)


def sweep(folder: str) -> None:
  """Remove what killed processes left of files in writing; those in writing now are locked."""
  if remote.is_remote(folder):
    return  # a store shows no file in writing
  for name in os.listdir(folder):
    if not re.fullmatch(r'\..+\.tfrecord-\d+-of-\d+(\.idx\.npy)?\.\w{8}', name):
      continue
    path = os.path.join(folder, name)
    with contextlib.suppress(OSError):  # another's, gone by now, or on a disk that is only read
      with open(path, 'rb') as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.path.getmtime(path) > 1:  # not one that is just being opened
          os.unlink(path)


# Finding and indexing.


def shard_paths(root: str, split: str) -> list[str]:
  """The shards `<root>/[name-]<split>.tfrecord-00000-of-00008` of a split, in order, all there."""
  root = os.fspath(root)
  if remote.is_remote(root):
    names = sorted(remote.listing(root))
  elif os.path.isdir(root):
    names = sorted(os.listdir(root))
  else:
    raise DataError(f'data root {root!r} is not a folder; write one with input_pipeline.synthetic')
  shape = re.compile(r'(?P<name>(?:.*-)?(?P<split>[^-]+))\.tfrecord-(?P<at>\d+)-of-(?P<of>\d+)')
  found = [match for match in map(shape.fullmatch, names) if match]
  ours = [match for match in found if match['split'] == split]
  if not found:
    raise DataError(f'data root {root!r} holds no *.tfrecord-00000-of-00001 shards')
  if not ours:
    splits = ', '.join(sorted({match['split'] for match in found}))
    raise DataError(f'no shards of split {split!r} in {root!r}; splits there: {splits}')
  sets = sorted({f'{match["name"]} of {match["of"]}' for match in ours})
  if len(sets) > 1:
    raise DataError(f'{root!r} holds several sets for split {split!r}: {"; ".join(sets)}; keep one')
  total = int(ours[0]['of'])
  missing = sorted(set(range(total)) - {int(match['at']) for match in ours})
  if missing:
    raise DataError(
      f'{root!r} holds {total - len(missing)} of the {total} shards of split {split!r}; the first '
      f'one missing is number {missing[0]:05d}'
    )
  return [os.path.join(root, match[0]) for match in ours]


def index(path: str) -> np.ndarray:
  """Where each whole record's data lies in a shard: int64 [n 2] of (offset, length).

  Walked once and kept beside the shard as `<path>.idx.npy` (in memory alone where the folder cannot
  be written). A shard cut short gives the records before the cut; `damage` says so.
  """
  path = os.fspath(path)
  sidecar = path + '.idx.npy'
  state = _state(path)
  known = _read_sidecar(sidecar, state)
  if known is not None:
    return known
  rows = np.array(list(_walk(path, state[0])), np.int64).reshape(-1, 2)
  try:
    with _written(sidecar) as file:
      np.save(file, np.concatenate([[state], rows]))
  except OSError:
    logging.getLogger(__name__).info('%s cannot be written; the index stays in memory', sidecar)
  return rows


def _state(path: str) -> tuple[int, int]:
  """(size, a number that changes with the file); DataError where it cannot be read."""
  if remote.is_remote(path):
    return remote.info(path)
  try:
    state = os.stat(path)
  except OSError as error:
    raise DataError(f'cannot read shard {path!r}: {error.strerror}') from error
  return state.st_size, state.st_mtime_ns


def _read_sidecar(sidecar: str, state: tuple[int, int]) -> np.ndarray | None:
  """The rows kept beside the shard, or None where they are absent, damaged or of another file."""
  try:
    far = remote.is_remote(sidecar)
    file = io.BytesIO(remote.read(sidecar)) if far else sidecar
    rows = np.load(file, allow_pickle=False)
  except (OSError, ValueError, EOFError):
    return None
  if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
    return None
  return rows[1:] if tuple(rows[0]) == state else None


def _walk(path: str, size: int) -> Iterator[tuple[int, int]]:
  """(offset, length) of every whole record's data, up to the end or to the first broken header."""
  with contextlib.ExitStack() as stack:
    if remote.is_remote(path):
      read = remote.Ahead(path).read
    else:
      fd = os.open(path, os.O_RDONLY)
      stack.callback(os.close, fd)
      read = lambda at, count: os.pread(fd, count, at)
    at = 0
    while at + _FRAME <= size:
      header = read(at, _HEADER.size)
      length, crc = _HEADER.unpack(header)
      if crc != _masked_crc(header[:8]) or at + _FRAME + length > size:
        return
      yield at + _HEADER.size, length
      at += _FRAME + length


def index_all(paths: Sequence[str]) -> list[np.ndarray]:
  """`index` of many shards at once: the walk waits for the disk, so threads serve."""
  with ThreadPoolExecutor(max_workers=32) as pool:
    return list(pool.map(index, paths))


def damage(path: str, rows: np.ndarray) -> CorruptRecord | None:
  """What makes the end of a shard unreadable, or None if its index reaches the end of the file."""
  size, _ = _state(path)
  end = int(rows[-1].sum()) + _CRC.size if len(rows) else 0
  if end == size:
    return None
  header = _bytes(path, end, _HEADER.size)
  whole = len(header) == _HEADER.size
  if whole and _HEADER.unpack(header)[1] != _masked_crc(header[:8]):
    return CorruptRecord(path, end, f'bad header CRC; the last {size - end} bytes cannot be read')
  return CorruptRecord(path, end, f'shard cut short; only {size - end} bytes of the next record')


# Reading.


def _bytes(path: str, offset: int, count: int) -> bytes:
  if remote.is_remote(path):
    return remote.read(path, offset, count)
  with open(path, 'rb') as file:
    file.seek(offset)
    return file.read(count)


class _Descriptor:
  """An open file that closes when the last reader lets go of it."""

  def __init__(self, path: str):
    self.fd = os.open(path, os.O_RDONLY)

  def __del__(self):
    if hasattr(self, 'fd'):
      os.close(self.fd)


class Source:
  """All records of some shards by position: `source[i] -> bytes`, CRC checked, from any thread.

  Has what grain asks of a source (`__len__`, `__getitem__`, `__repr__`) and pickles without its
  open files. `damaged` lists the shards that end early.
  """

  def __init__(self, paths: Sequence[str]):
    self.paths = [os.fspath(path) for path in paths]
    indexes = index_all(self.paths)
    self.damaged = [e for e in map(damage, self.paths, indexes) if e is not None]
    self._rows = np.concatenate(indexes)
    self._ends = np.cumsum([len(rows) for rows in indexes])
    self._remote = any(map(remote.is_remote, self.paths))
    self._open = functools.lru_cache(_OPEN_FILES)(_Descriptor)

  def __len__(self) -> int:
    return len(self._rows)

  def __repr__(self) -> str:
    names = hashlib.sha256('\n'.join(self.paths).encode()).hexdigest()[:16]
    return f'Source({len(self.paths)} shards, {len(self)} records, {names})'

  def __getitem__(self, position: int) -> bytes:
    """The data of one record; CorruptRecord if it cannot be read or its CRC does not match."""
    path, offset, length = self.locate(position)
    try:
      if self._remote:
        data = remote.read(path, offset, length + _CRC.size)
      else:
        file = self._open(path)  # held until the read is done: the cache may let go of it meanwhile
        data = os.pread(file.fd, length + _CRC.size, offset)
    except OSError as error:
      raise CorruptRecord(path, offset, f'cannot read: {error.strerror or error}') from error
    if len(data) != length + _CRC.size:
      raise CorruptRecord(path, offset, f'{len(data)} of {length + _CRC.size} bytes are there')
    record, crc = data[:length], _CRC.unpack_from(data, length)[0]
    if crc != _masked_crc(record):
      raise CorruptRecord(path, offset, 'bad data CRC')
    return record

  def digest(self) -> str:
    """Of the shards' names and the place of every record, wherever the folder lies."""
    found = hashlib.sha256('\n'.join(map(os.path.basename, self.paths)).encode())
    found.update(np.ascontiguousarray(self._rows, '<i8').data)
    return found.hexdigest()[:16]

  def locate(self, position: int) -> tuple[str, int, int]:
    """The shard, byte offset and length of one record's data."""
    offset, length = self._rows[position].tolist()
    return self.paths[np.searchsorted(self._ends, position, side='right')], offset, length

  def __getstate__(self) -> dict:
    return {name: value for name, value in self.__dict__.items() if name != '_open'}

  def __setstate__(self, state: dict):
    self.__dict__.update(state)
    self._open = functools.lru_cache(_OPEN_FILES)(_Descriptor)


# tf.train.Example, the few lines of its wire format that matter:
#   Example {1: Features}, Features {1: entry}*, entry {1: key, 2: Feature},
#   Feature {1: BytesList | 2: FloatList | 3: Int64List}, each list {1: value}*.


def parse_example(record: bytes) -> dict[str, list[bytes] | np.ndarray]:
  """The features of one serialised tf.train.Example: list[bytes], float32 [n] or int64 [n] each."""
  try:
    features = {}
    for _, message in _fields(memoryview(record)):
      for _, entry in _fields(message):
        parts = dict(_fields(entry))
        features[bytes(parts[1]).decode()] = _feature(parts.get(2, memoryview(b'')))
    return features
  except (IndexError, KeyError, ValueError) as error:
    raise DataError(f'not a tf.train.Example: {error!r}') from error


def _feature(message: memoryview) -> list[bytes] | np.ndarray:
  kind, values = 1, memoryview(b'')
  for number, value in _fields(message):
    kind, values = number, value
  if kind == 1:
    return [bytes(value) for _, value in _fields(values)]
  if kind == 2:  # packed (one run of bytes) or one field per value, both are legal
    return np.frombuffer(b''.join(value for _, value in _fields(values)), '<f4').copy()
  numbers = [number for _, value in _fields(values) for number in _varints(value)]
  return np.array(numbers, np.uint64).astype(np.int64)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
  """(field number, payload) of every field of a protocol-buffer message; a varint stays encoded."""
  at, end = 0, len(message)
  while at < end:
    tag, at = _varint(message, at)
    wire = tag & 7
    if wire == 0:
      size = _varint(message, at)[1] - at
    elif wire == 2:
      size, at = _varint(message, at)
    else:
      size = {1: 8, 5: 4}[wire]
    if at + size > end:
      raise IndexError('a field runs past the end of its message')
    yield tag >> 3, message[at : at + size]
    at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[at]
    at += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value & 0xFFFFFFFFFFFFFFFF, at
    shift += 7


def _varints(data: memoryview) -> list[int]:
  values, at = [], 0
  while at < len(data):
    value, at = _varint(data, at)
    values.append(value)
  return values


def serialize_example(features: dict[str, bytes | list[bytes] | np.ndarray]) -> bytes:
  """One tf.train.Example as bytes, keys sorted so that equal features give equal bytes.

  Floating arrays become float lists, integer and boolean ones int64 lists, flattened.
  """
  entries = []
  for name in sorted(features):
    entry = _chunk(1, name.encode()) + _chunk(2, _feature_bytes(name, features[name]))
    entries.append(_chunk(1, entry))
  return _chunk(1, b''.join(entries))


def _feature_bytes(name: str, value: bytes | list[bytes] | np.ndarray) -> bytes:
  if isinstance(value, bytes):
    value = [value]
  if isinstance(value, list):
    return _chunk(1, b''.join(_chunk(1, item) for item in value))
  array = np.asarray(value).reshape(-1)
  if array.dtype.kind == 'f':
    packed = array.astype('<f4').tobytes()
    return _chunk(2, _chunk(1, packed) if packed else b'')
  if array.dtype.kind in 'iub':
    packed = b''.join(_varint_bytes(number) for number in array.astype(np.int64).tolist())
    return _chunk(3, _chunk(1, packed) if packed else b'')
  raise DataError(f'feature {name!r} is {array.dtype}; an Example holds bytes, floats and integers')


def _chunk(number: int, payload: bytes) -> bytes:
  return bytes([number << 3 | 2]) + _varint_bytes(len(payload)) + payload


def _varint_bytes(number: int) -> bytes:
  number &= 0xFFFFFFFFFFFFFFFF  # negative numbers as 64-bit two's complement
  out = bytearray()
  while number > 127:
    out.append(number & 127 | 128)
    number >>= 7
  out.append(number)
  return bytes(out)
