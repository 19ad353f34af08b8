"""Files of object stores (gs://, s3://, ...) through fsspec, for what a local path does with os.

Local paths never come here: they are read with pread, as fast as the disk.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import DataError

DRIVERS = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs', 'abfs': 'adlfs'}
_REFUSED = (  # in the words of gcsfs, TensorStore and google-auth
  'Forbidden|Unauthorized|Invalid Credentials|DefaultCredentialsError|RefreshError|, 40[0134]|'
  'PERMISSION_DENIED|UNAUTHENTICATED|storage[.]objects'
)
BLOCK = 2**23  # bytes of one request where a file is read from end to end


def is_remote(path: str | os.PathLike) -> bool:
  return '://' in os.fspath(path)


@functools.lru_cache(64)
def _store(protocol: str) -> Any:
  import fsspec

  # What it cannot do is raised and said in a line; it would print tracebacks as well.
  if protocol in DRIVERS:
    for library in (DRIVERS[protocol], 'fsspec'):
      logging.getLogger(library).setLevel(logging.CRITICAL)
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
    fs = store(root)
    fs.invalidate_cache()
    found = fs.ls(root.rstrip('/'), detail=True)
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
  return int(entry['size']), version(entry)


def version(entry: Mapping[str, Any]) -> int:
  """A number that another version of the file has not, from what the store says of it."""
  names = ('etag', 'ETag', 'generation', 'md5Hash', 'updated', 'LastModified', 'mtime', 'created')
  said = next((str(entry[name]) for name in names if entry.get(name)), '')
  return int.from_bytes(hashlib.sha256(said.encode()).digest()[:7], 'little')


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
  """`size` bytes from `start` on, fewer at the end of the file, None: all of it; OSError."""
  with _as_os_error():
    # Not from 0 where all is wanted: an empty file has no byte 0, and stores refuse the range.
    end = None if size is None else start + size
    return store(path).cat_file(path, start=start or (None if end is None else 0), end=end)


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
  with _as_os_error():
    store(path).put_file(local, path)


def get(path: str, local: str) -> None:
  """Copy a file of a store to a local one. OSError."""
  with _as_os_error():
    store(path).get_file(path, local)


def write(path: str, data: bytes, new: bool = False) -> None:
  """A file with these bytes, whole or not at all. OSError; FileExistsError for a `new` one."""
  with _as_os_error():
    store(path).pipe_file(path, data, mode='create' if new else 'overwrite')


def remove(path: str) -> None:
  """Remove a file. OSError."""
  with _as_os_error():
    store(path).rm_file(path)


def move(folder: str, to: str) -> None:
  """Copy a folder to a name that is free, and remove it then. OSError."""
  with _as_os_error():
    store(folder).mv(folder, to, recursive=True)


def find(root: str) -> dict[str, dict]:
  """Every file below a folder by its path from there on, with what the store says of it. OSError.

  Of a file itself: its own, under an empty name.
  """
  fs = store(root)
  top = fs._strip_protocol(root).rstrip('/')
  with _as_os_error():
    fs.invalidate_cache()
    found = fs.find(root, detail=True)
  names = {name[len(top) :].lstrip('/'): entry for name, entry in found.items()}
  # What a mount or the console makes for a folder is an object without bytes.
  return {n: e for n, e in names.items() if n or e['size'] or len(names) == 1}


def refused(error: BaseException) -> bool:
  """Whether the store said no: rights, credentials, a name that is not there. Else it may pass."""
  if isinstance(error, (FileNotFoundError, PermissionError)):
    return True
  return re.search(_REFUSED, f'{type(error).__name__}: {error}') is not None


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


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Drivers raise what their HTTP library does."""
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    raise OSError(0, _words(error)) from error


def _words(error: BaseException) -> str:
  return ' '.join(str(error).split())[:200] or type(error).__name__
