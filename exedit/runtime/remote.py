"""Files by path or URL: gs://, s3://, ... are read and written through fsspec, local paths by os.

`read`, `writing`, `remove`, `listing` and `info` accept both; the other functions accept URLs only.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

from exedit.runtime import files
from exedit.runtime.errors import DataError

DRIVERS = {'gs': 'gcsfs', 'gcs': 'gcsfs', 's3': 's3fs', 'az': 'adlfs', 'abfs': 'adlfs'}
BLOCK = 2**23  # bytes of one request when a file is read from end to end
_REFUSED = (  # in the words of gcsfs, TensorStore and google-auth
  'Forbidden|Unauthorized|Invalid Credentials|DefaultCredentialsError|RefreshError|, 40[0134]|'
  'PERMISSION_DENIED|UNAUTHENTICATED|storage[.]objects'
)


def is_remote(path: str | os.PathLike) -> bool:
  """Whether the path is a URL such as gs://bucket/file."""
  return '://' in os.fspath(path)


@functools.lru_cache(64)
def _store(protocol: str) -> Any:
  import fsspec

  # The drivers log tracebacks of errors that they also raise.
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
    raise DataError(f'{protocol}:// is not a known store: use {known}') from error


def store(path: str) -> Any:
  """Returns the fsspec file system of a URL.

  Raises:
    DataError: if its driver is not installed or the protocol is unknown.
  """
  return _store(path.partition('://')[0])


# Paths and URLs.


def listing(root: str) -> dict[str, dict]:
  """Returns the names in a folder, with the entry that a store has for each; one request.

  What systems leave in folders is left out, as in `files.listing`. A store has no folders: the
  names are empty if nothing lies below the URL.

  Raises:
    DataError: if a store cannot be read. OSError: if a local folder cannot.
  """
  if not is_remote(root):
    return {name: {} for name in files.listing(root)}
  try:
    fs = store(root)
    fs.invalidate_cache()
    found = fs.ls(root.rstrip('/'), detail=True)
  except FileNotFoundError:
    found = []
  except Exception as error:
    raise DataError(f'cannot list {root!r}: {_words(error)}') from error
  names = {entry['name'].rstrip('/').rpartition('/')[2]: entry for entry in found}
  return {name: entry for name, entry in names.items() if not files.is_litter(name)}


def info(path: str) -> tuple[int, int]:
  """Returns the size of a file and a number that changes when the file is written again.

  Raises:
    DataError: if the file is missing or cannot be read.
  """
  try:
    if not is_remote(path):
      state = os.stat(path)
      return state.st_size, state.st_mtime_ns
    entry = store(path).info(path)
  except FileNotFoundError:
    raise DataError(f'cannot read {path!r}: it does not exist') from None
  except Exception as error:
    raise DataError(f'cannot read {path!r}: {_words(error)}') from error
  return int(entry['size']), version(entry)


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
  """Returns `size` bytes from `start` on, or all of them if `size` is None; fewer at the end.

  Raises:
    OSError: if the file cannot be read.
  """
  if not is_remote(path):
    with open(path, 'rb') as file:
      file.seek(start)
      return file.read(size)
  with _as_os_error():
    # None instead of byte 0 if everything is wanted: stores refuse a range of an empty file.
    end = None if size is None else start + size
    return store(path).cat_file(path, start=start or (None if end is None else 0), end=end)


@contextlib.contextmanager
def writing(path: str, *, durable: bool = False) -> Iterator[IO[bytes]]:
  """A binary file to write to; it appears at `path` when the block ends without an error.

  durable: on a local disk, wait until the disk has stored the data.

  Raises:
    OSError: if the file cannot be written.
  """
  if not is_remote(path):
    with files.writing(path, durable=durable) as file:
      yield file
    return
  with tempfile.NamedTemporaryFile() as file:
    yield file  # type: ignore  # its wrapper has every method of a file
    file.flush()
    put(file.name, path)


def remove(path: str) -> None:
  """Removes a file. Raises OSError."""
  if not is_remote(path):
    os.remove(path)
    return
  with _as_os_error():
    store(path).rm_file(path)


# Stores.


def version(entry: Mapping[str, Any]) -> int:
  """Returns a number that changes with the file, from the entry that a store has for it."""
  names = ('etag', 'ETag', 'generation', 'md5Hash', 'updated', 'LastModified', 'mtime', 'created')
  said = next((str(entry[name]) for name in names if entry.get(name)), '')
  return int.from_bytes(hashlib.sha256(said.encode()).digest()[:7], 'little')


class Ahead:
  """Reads a file from end to end: each request brings a block instead of the few bytes asked for.

  Parts that are skipped and longer than a block are not read.
  """

  def __init__(self, path: str):
    self.path, self._start, self._block = path, 0, b''

  def read(self, at: int, count: int) -> bytes:
    if not self._start <= at <= at + count <= self._start + len(self._block):
      self._start, self._block = at, read(self.path, at, max(BLOCK, count))
    return self._block[at - self._start : at - self._start + count]


def put(local: str, path: str) -> None:
  """Copies a local file to a store, where it appears only when it is complete. Raises OSError."""
  with _as_os_error():
    store(path).put_file(local, path)


def get(path: str, local: str) -> None:
  """Copies a file of a store to a local one. Raises OSError."""
  with _as_os_error():
    store(path).get_file(path, local)


def write(path: str, data: bytes) -> None:
  """Writes a file, which appears only when it is complete. Raises OSError."""
  with _as_os_error():
    store(path).pipe_file(path, data)


def move(folder: str, to: str) -> None:
  """Copies a folder to a name that is free, then removes the original. Raises OSError."""
  with _as_os_error():
    store(folder).mv(folder, to, recursive=True)


def find(root: str) -> dict[str, dict]:
  """Returns the entry of every file below a folder, by its path relative to the folder.

  The root may also be a file; its own relative path is empty. Raises OSError.
  """
  fs = store(root)
  top = fs._strip_protocol(root).rstrip('/')
  with _as_os_error():
    fs.invalidate_cache()
    found = fs.find(root, detail=True)
  names = {name[len(top) :].lstrip('/'): entry for name, entry in found.items()}
  # Mounts and web consoles make an object without bytes for a folder.
  return {n: e for n, e in names.items() if n or e['size'] or len(names) == 1}


def refused(error: BaseException) -> bool:
  """Whether the store refused (rights, credentials, a missing name), so that a retry is useless."""
  if isinstance(error, (FileNotFoundError, PermissionError)):
    return True
  return re.search(_REFUSED, f'{type(error).__name__}: {error}') is not None


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
  """Turns the errors of a driver's HTTP library into OSError."""
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    raise OSError(0, _words(error)) from error


def _words(error: BaseException) -> str:
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return ' '.join(str(error).split())[:200] or type(error).__name__
