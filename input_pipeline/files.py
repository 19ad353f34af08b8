"""Files and folders that take their name only when they are whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from .errors import DataError


def write(path: str, data: bytes) -> str:
  """Writes a file, all of it or nothing; returns its path. DataError where it cannot be written."""
  folder, name = os.path.split(os.path.abspath(path))
  temporary = ''
  try:
    os.makedirs(folder, exist_ok=True)
    fd, temporary = tempfile.mkstemp(prefix=f'.{name}.', dir=folder)
    with os.fdopen(fd, 'wb') as file:
      file.write(data)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)
  except OSError as error:
    raise _refused(path, error) from error
  finally:
    if os.path.exists(temporary):
      os.unlink(temporary)
  return path


@contextlib.contextmanager
def folder(path: str) -> Iterator[str]:
  """A hidden folder beside `path` to write to, renamed to it if the `with` block ends well.

  `path` must not exist or be an empty folder; of a block that fails nothing is left.
  """
  path = os.path.abspath(path)
  refuse_existing(path)
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    stage = tempfile.mkdtemp(prefix=f'.{os.path.basename(path)}.', dir=os.path.dirname(path))
  except OSError as error:
    raise _refused(path, error) from error
  try:
    yield stage
    os.chmod(stage, 0o755)
    os.replace(stage, path)
  finally:
    shutil.rmtree(stage, ignore_errors=True)


def refuse_existing(path: str) -> None:
  """DataError unless `path` can become a new folder."""
  if os.path.isdir(path) and not os.listdir(path):
    return
  if os.path.lexists(path):
    what = 'is a folder with files in it' if os.path.isdir(path) else 'is a file'
    raise DataError(f'{path} {what}; remove it or name another --output')


def _refused(path: str, error: OSError) -> DataError:
  return DataError(f'{path}: cannot be written ({error.strerror}); name another place')
