"""Files of object stores (gs://, s3://, ...) through fsspec, for what a local path does with os.

Local paths never come here: they are read with pread, as fast as the disk.
"""

import functools
import hashlib
import os
import tempfile
from typing import Any

from input_pipeline.errors import DataError

DRIVERS = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs', 'abfs': 'adlfs'}
BLOCK = 2**23  # bytes of one request where a file is read from end to end


def is_remote(path: str | os.PathLike) -> bool:
  return '://' in os.fspath(path)


@functools.lru_cache(64)
def _store(protocol: str) -> Any:
  import fsspec

  try:
    return fsspec.filesystem(protocol)
  except ImportError as error:
    driver = DRIVERS.get(protocol, f"fsspec's driver for {protocol}")
    raise DataError(f'{protocol}:// needs {driver}: pip install {driver}') from error
  except ValueError as error:
    known = ', '.join(f'{name}://' for name in sorted(DRIVERS))
    raise DataError(f'{protocol}:// is no store that is known here: use {known}') from error


def store(path: str) -> Any:
  """The fsspec file system that a path lies in; DataError where there is none."""
  return _store(path.partition('://')[0])


def listing(root: str) -> dict[str, dict]:
  """Names in a folder of a store, with what the store says of each; one request for all."""
  try:
    found = store(root).ls(root.rstrip('/'), detail=True)
  except FileNotFoundError:
    found = []
  except Exception as error:
    raise DataError(f'cannot list {root!r}: {_words(error)}') from error
  return {entry['name'].rstrip('/').rpartition('/')[2]: entry for entry in found}


def info(path: str) -> tuple[int, int]:
  """(size, a number that another version of the file has not); DataError where it is missing."""
  try:
    entry = store(path).info(path)
  except FileNotFoundError:
    raise DataError(f'cannot read shard {path!r}: it does not exist') from None
  except Exception as error:
    raise DataError(f'cannot read shard {path!r}: {_words(error)}') from error
  names = ('etag', 'ETag', 'generation', 'md5Hash', 'updated', 'LastModified', 'mtime', 'created')
  version = next((str(entry[name]) for name in names if entry.get(name)), '')
  digest = hashlib.sha256(version.encode()).digest()
  return int(entry['size']), int.from_bytes(digest[:7], 'little')


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
  """`size` bytes from `start` on, fewer at the end of the file, None: all of it; OSError."""
  try:
    return store(path).cat_file(path, start=start, end=None if size is None else start + size)
  except OSError:
    raise
  except Exception as error:  # drivers raise what their HTTP library does
    raise OSError(0, _words(error)) from error


class Ahead:
  """Reads a file from end to end: a request brings a block, not the few bytes that were asked for.

  What is skipped is not read where it is longer than a block.
  """

  def __init__(self, path: str):
    self.path, self._start, self._block = path, 0, b''

  def read(self, at: int, count: int) -> bytes:
    if not self._start <= at <= at + count <= self._start + len(self._block):
      self._start, self._block = at, read(self.path, at, max(BLOCK, count))
    return self._block[at - self._start : at - self._start + count]


def put(local: str, path: str) -> None:
  """Copy a local file; a store shows it whole or not at all. OSError."""
  try:
    store(path).put_file(local, path)
  except OSError:
    raise
  except Exception as error:
    raise OSError(0, _words(error)) from error


class replacing:
  """A binary file, written here and copied to the store when the block ends without an error."""

  def __init__(self, path: str):
    self.path = path

  def __enter__(self):
    fd, self.temporary = tempfile.mkstemp()
    self.file = os.fdopen(fd, 'wb')
    return self.file

  def __exit__(self, kind, error, trace):
    try:
      self.file.close()
      if kind is None:
        put(self.temporary, self.path)
    finally:
      os.unlink(self.temporary)


def _words(error: BaseException) -> str:
  return ' '.join(str(error).split())[:200] or type(error).__name__
