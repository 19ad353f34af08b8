"""TFRecord shards without TensorFlow: write them, index them, and read their records in any order.

Format: https://www.tensorflow.org/tutorials/load_data/tfrecord. A record is its length (uint64),
the masked CRC32C of those 8 bytes, the data, and the masked CRC32C of the data, in little endian.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np

from exedit.runtime import remote

from .errors import DataError

SHARD = re.compile(r'(?P<name>(?:.*-)?(?P<split>[^-]+))\.tfrecord-(?P<at>\d+)-of-(?P<of>\d+)')
INDEX = '.idx.npy'
_HEADER = struct.Struct('<QI')
_CRC = struct.Struct('<I')
_FRAME = _HEADER.size + _CRC.size  # bytes around the data of one record


class CorruptRecord(DataError):
  """A record that cannot be used; `shard`, `offset` (a number of `unit`s) and `why` say which."""

  def __init__(self, shard: str, offset: int, why: str, unit: str = 'byte'):
    super().__init__(f'corrupt record in {shard} at {unit} {offset}: {why}')
    self.shard, self.offset, self.why, self.unit = shard, offset, why, unit

  def __reduce__(self):  # worker processes send it to the trainer
    return type(self), (self.shard, self.offset, self.why, self.unit)


def _masked_crc(data: bytes) -> int:
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Writing.


def framed(record: bytes) -> bytes:
  """Returns the bytes of a record in a file: its length and its data, each with its checksum."""
  header = struct.pack('<Q', len(record))
  parts = header, _CRC.pack(_masked_crc(header)), record, _CRC.pack(_masked_crc(record))
  return b''.join(parts)


def write_shard(path: str, records: Iterable[bytes]) -> dict:
  """Writes one shard, which appears at `path` only when it is complete.

  Returns dict(records=their number, bytes=size of the file, sha256=hex digest of the file).
  """
  count, size, digest = 0, 0, hashlib.sha256()
  with remote.writing(path, durable=True) as file:
    for record in records:
      frame = framed(record)
      file.write(frame)
      digest.update(frame)
      count, size = count + 1, size + len(frame)
  return dict(records=count, bytes=size, sha256=digest.hexdigest())


# Finding and indexing.


def shard_paths(root: str, split: str) -> list[str]:
  """Returns the paths `<root>/[name-]<split>.tfrecord-00000-of-00008`, ... of a split, in order.

  Raises:
    DataError: if the root is no folder, or the shards of the split are missing or incomplete, or
      belong to several data sets.
  """
  root = os.fspath(root)
  if not remote.is_remote(root) and not os.path.isdir(root):
    raise DataError(f'data root {root!r} is not a folder; write one with input_pipeline.synthetic')
  found = [match for match in map(SHARD.fullmatch, sorted(remote.listing(root))) if match]
  ours = [match for match in found if match['split'] == split]
  if not found:
    names = [name for name in remote.listing(root) if SHARD.match(name)]
    if names:  # such as x-train.tfrecord-00000-of-00001.gz
      _refuse_compressed(os.path.join(root, min(names)))
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
  """Returns where the data of each complete record lies in a shard: int64 [n 2], (offset, length).

  The index is kept beside the shard as `<path>.idx.npy`, or in memory if that cannot be written.
  A truncated shard gives the records before the cut; `damage` describes the rest.

  Raises:
    DataError: for a shard that is compressed as a whole.
  """
  path = os.fspath(path)
  sidecar = path + INDEX
  state = remote.info(path)
  known = _read_sidecar(sidecar, state)
  if known is not None and len(known):
    return known
  rows = np.array(list(_walk(path, state[0])), np.int64).reshape(-1, 2)
  if not len(rows) and state[0]:
    _refuse_compressed(path)
  try:
    with remote.writing(sidecar) as file:
      np.save(file, np.concatenate([[state], rows]))
  except OSError:
    logging.getLogger(__name__).info('%s cannot be written; the index stays in memory', sidecar)
  return rows


def compression(data: bytes) -> str:
  """Returns 'GZIP', 'ZLIB' or '', as the first bytes of a file say; a valid record is neither."""
  if len(data) >= _HEADER.size and _HEADER.unpack_from(data)[1] == _masked_crc(data[:8]):
    return ''
  if data[:2] == b'\x1f\x8b':
    return 'GZIP'
  zlib = data[:1] == b'\x78' and len(data) > 1 and int.from_bytes(data[:2]) % 31 == 0
  return 'ZLIB' if zlib else ''


def _refuse_compressed(path: str) -> None:
  """Raises DataError if a shard is compressed."""
  if kind := compression(remote.read(path, 0, _HEADER.size)):
    raise DataError(
      f'{path} is compressed with {kind}, and records are read from any place of a shard: rewrite '
      f'them by `python -m input_pipeline.decompress --input={os.path.dirname(path)} --output=NEW`'
    )


def _read_sidecar(sidecar: str, state: tuple[int, int]) -> np.ndarray | None:
  """Returns the index in the file, or None if it is missing, damaged or of another shard."""
  try:
    rows = np.load(io.BytesIO(remote.read(sidecar)), allow_pickle=False)
  except (OSError, ValueError, EOFError):
    return None
  if rows.dtype != np.int64 or rows.ndim != 2 or rows.shape[1] != 2 or not len(rows):
    return None
  return rows[1:] if tuple(rows[0]) == state else None


def _walk(path: str, size: int) -> Iterator[tuple[int, int]]:
  """Yields (offset, length) of each complete record's data, up to the first invalid header."""
  with contextlib.ExitStack() as stack:
    if remote.is_remote(path):
      read = remote.Ahead(path).read
    else:
      file = stack.enter_context(open(path, 'rb', buffering=0))
      read = lambda at, count: os.pread(file.fileno(), count, at)
    at = 0
    while at + _FRAME <= size:
      header = read(at, _HEADER.size)
      length, crc = _HEADER.unpack(header)
      if crc != _masked_crc(header[:8]) or at + _FRAME + length > size:
        return
      yield at + _HEADER.size, length
      at += _FRAME + length


def index_all(paths: Sequence[str]) -> list[np.ndarray]:
  """Returns the `index` of each shard; threads, because the walk waits for the disk."""
  with ThreadPoolExecutor(max_workers=32) as pool:
    return list(pool.map(index, paths))


def damage(path: str, rows: np.ndarray) -> CorruptRecord | None:
  """Returns why the end of a shard cannot be read, or None if its index covers the whole file."""
  size, _ = remote.info(path)
  end = int(rows[-1].sum()) + _CRC.size if len(rows) else 0
  if end == size:
    return None
  header = remote.read(path, end, _HEADER.size)
  whole = len(header) == _HEADER.size
  if whole and _HEADER.unpack(header)[1] != _masked_crc(header[:8]):
    return CorruptRecord(path, end, f'bad header CRC; the last {size - end} bytes cannot be read')
  return CorruptRecord(path, end, f'shard cut short; only {size - end} bytes of the next record')


# Reading.


class Source:
  """All records of some shards by position: `source[i]` is bytes, with its CRC checked.

  Several threads may read it, and it can be pickled: grain sends it to its worker processes.
  `damaged` lists the errors of the shards that cannot be read to the end.
  """

  def __init__(self, paths: Sequence[str]):
    self.paths = [os.fspath(path) for path in paths]
    indexes = index_all(self.paths)
    self.damaged = [e for e in map(damage, self.paths, indexes) if e is not None]
    self._rows = np.concatenate(indexes)
    self._ends = np.cumsum([len(rows) for rows in indexes])

  def __len__(self) -> int:
    return len(self._rows)

  def __repr__(self) -> str:
    names = hashlib.sha256('\n'.join(self.paths).encode()).hexdigest()[:16]
    return f'Source({len(self.paths)} shards, {len(self)} records, {names})'

  def __getitem__(self, position: int) -> bytes:
    """Returns the data of one record.

    Raises:
      CorruptRecord: if it cannot be read or its CRC does not match.
    """
    path, offset, length = self.locate(position)
    try:
      data = remote.read(path, offset, length + _CRC.size)
    except OSError as error:
      raise CorruptRecord(path, offset, f'cannot read: {error.strerror or error}') from error
    if len(data) != length + _CRC.size:
      raise CorruptRecord(path, offset, f'{len(data)} of {length + _CRC.size} bytes are there')
    record, crc = data[:length], _CRC.unpack_from(data, length)[0]
    if crc != _masked_crc(record):
      raise CorruptRecord(path, offset, 'bad data CRC')
    return record

  def corrupt(self, position: int, why: str) -> CorruptRecord:
    """Returns the error that names a record's shard and byte."""
    path, offset, _ = self.locate(position)
    return CorruptRecord(path, offset, why)

  def digest(self) -> str:
    """Returns a digest of the shards' names and of each record's place, but not of their folder."""
    found = hashlib.sha256('\n'.join(map(os.path.basename, self.paths)).encode())
    found.update(np.ascontiguousarray(self._rows, '<i8').data)
    return found.hexdigest()[:16]

  def locate(self, position: int) -> tuple[str, int, int]:
    """Returns the shard, byte offset and length of one record's data."""
    offset, length = self._rows[position].tolist()
    return self.paths[np.searchsorted(self._ends, position, side='right')], offset, length
