"""The entries of a zip file read in place, with its claims about sizes checked first.

The list of entries is the standard library's work; stored data, which is what torch writes, is read
straight from its offset, as much of it as is asked for. Format: PKWARE's APPNOTE, 4.3 and 4.5.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from exedit.runtime.errors import UserError
from exedit.weights.formats.pread import File, damaged, quoted

LARGEST_DIRECTORY = 2**24  # bytes of the list of entries: some 150,000 of them
CHUNK = 2**22  # bytes
# Compressed weights may take this many times the file's size and this many bytes on top, together:
# trained ones hardly compress at all, zeros by a thousand.
MOST_RATIO, MOST_ON_TOP = 20, 2**28
_LOCAL = struct.Struct('<4s22xHH')  # signature, length of the name, length of the extra field


class Zip:
  """The entries of a zip by name; CRCs are checked once, by whichever read comes first."""

  def __init__(self, file: File):
    self._file = file
    try:
      with _Bounded(file.path) as bounded, zipfile.ZipFile(bounded) as archive:
        entries, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, struct.error) as e:
      raise damaged(file.path, f'{str(e)[:150]}; truncated?') from None
    self._entries = {entry.filename: entry for entry in entries}
    self._limits: dict[str, int] = {}
    self._sound: set[str] = set()
    if len(self._entries) < len(entries):
      raise damaged(file.path, 'two of its entries have the same name')
    self._check(sorted(entries, key=lambda entry: entry.header_offset), end)

  def names(self) -> list[str]:
    """The names of all entries."""
    return list(self._entries)

  def size(self, name: str) -> int:
    """Bytes of an entry, unpacked; -1 where there is none."""
    return self._entries[name].file_size if name in self._entries else -1

  def read(self, name: str, start: int = 0, count: int | None = None) -> UInt8[np.ndarray, ' n']:
    """Bytes of an entry, from `start` on, in memory of their own.

    Raises:
      UserError: where the entry's bytes are not those that were once written.
    """
    entry = self._entries[name]
    count = entry.file_size - start if count is None else count
    begin = self._begin(entry)
    if entry.compress_type == zipfile.ZIP_DEFLATED:
      return self._inflate(entry, begin)[start : start + count].copy()
    if count == entry.file_size:
      data = self._file.read(begin, count)
      self._check_crc(entry, zlib.crc32(data.data))
      return data
    if name not in self._sound:  # a part of a shared storage: look at the whole once, in pieces
      crc = 0
      for at in range(0, entry.file_size, CHUNK):
        piece = self._file.read(begin + at, min(CHUNK, entry.file_size - at))
        crc = zlib.crc32(piece.data, crc)
      self._check_crc(entry, crc)
    return self._file.read(begin + start, count)

  def _check(self, entries: list[zipfile.ZipInfo], end: int) -> None:
    """No entry may be of another kind, reach into the next one, or unpack to absurd sizes."""
    path, total = self._file.path, sum(entry.file_size for entry in entries)
    for entry, limit in zip(entries, [*(e.header_offset for e in entries[1:]), end]):
      name = quoted(entry.filename)
      if entry.flag_bits & 1 or entry.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
      ):
        raise UserError(f'{path}: {name} is encrypted or compressed in a rare way: save it again')
      stored = entry.compress_type == zipfile.ZIP_STORED
      if stored and entry.file_size != entry.compress_size:
        sizes = f'{entry.compress_size} bytes stored, {entry.file_size} claimed'
        raise damaged(path, f'{name}: {sizes}')
      self._limits[entry.filename] = limit
      if entry.header_offset < 0 or entry.header_offset + 30 + entry.compress_size > limit:
        raise damaged(path, f'{name} of {entry.compress_size} bytes reaches into what follows it')
    if total > MOST_RATIO * self._file.size + MOST_ON_TOP:
      raise UserError(
        f'{path} is refused: its {self._file.size} bytes claim to unpack to {total} bytes, which'
        ' weights never do'
      )

  def _begin(self, entry: zipfile.ZipInfo) -> int:
    """Where an entry's data begin: after its own header, whose lengths the directory omits."""
    header = self._file.read(entry.header_offset, _LOCAL.size).tobytes()
    signature, name, extra = _LOCAL.unpack(header)
    begin = entry.header_offset + _LOCAL.size + name + extra
    limit = self._limits[entry.filename]
    if signature != b'PK\3\4' or begin + entry.compress_size > limit:
      raise damaged(self._file.path, f'{quoted(entry.filename)} does not stand where its list says')
    return begin

  def _check_crc(self, entry: zipfile.ZipInfo, crc: int) -> None:
    if entry.CRC not in (0, crc):  # 0: torch was told not to compute it
      raise damaged(
        self._file.path,
        f'{quoted(entry.filename)} has the checksum {crc:08x} instead of {entry.CRC:08x}',
      )
    self._sound.add(entry.filename)

  def _inflate(self, entry: zipfile.ZipInfo, begin: int) -> UInt8[np.ndarray, ' n']:
    """A compressed entry, of exactly the announced size."""
    data, done = np.empty(entry.file_size, np.uint8), 0
    try:
      for piece in self._pieces(entry, begin):
        if done + len(piece) > len(data):
          raise zlib.error(f'more than the {len(data)} bytes announced')
        data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
      if done < len(data):
        raise zlib.error(f'{done} of {len(data)} bytes')
    except zlib.error as error:
      raise damaged(self._file.path, f'{quoted(entry.filename)}: {error}') from None
    self._check_crc(entry, zlib.crc32(data.data))
    return data

  def _pieces(self, entry: zipfile.ZipInfo, begin: int) -> Iterator[bytes]:
    """What a compressed entry unpacks to, in pieces that stay small whatever it claims."""
    engine = zlib.decompressobj(-15)
    for at in range(0, entry.compress_size, CHUNK):
      packed = self._file.read(begin + at, min(CHUNK, entry.compress_size - at)).tobytes()
      while packed:
        yield engine.decompress(packed, CHUNK)
        packed = engine.unconsumed_tail
    yield engine.flush()


class _Bounded(io.FileIO):
  """A file that will not be read in one huge piece: the directory's size is the file's claim."""

  def read(self, size: int | None = -1) -> bytes:
    if size is not None and size > LARGEST_DIRECTORY:
      raise zipfile.BadZipFile(f'a list of entries of {size} bytes')
    return super().read(-1 if size is None else size) or b''
