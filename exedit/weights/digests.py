"""SHA-256 of weight files, remembered in the user's cache folder so that 5 GB are hashed once."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from exedit.runtime import caches

FRESH = 2.0  # seconds; a file this young may change again without a change in its time


def sha256(path: str | os.PathLike) -> str:
  """The file's SHA-256 in hexadecimal; a file of known place, size and time is not read again."""
  path = os.path.realpath(path)
  status = os.stat(path)
  state = [status.st_size, status.st_mtime_ns]
  known = _known().get(path, [])
  if known[:2] == state:
    return known[2]
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  if time.time_ns() - status.st_mtime_ns > FRESH * 1e9:
    _remember(path, [*state, digest])
  return digest


def together(paths: Iterable[str | os.PathLike], also: str = '') -> str:
  """One SHA-256 for several files (their order counts, their names do not) and a word beside them.

  Of a single file and no word it is the file's own, as `sha256sum` prints it.
  """
  parts = [sha256(path) for path in paths]
  if len(parts) == 1 and not also:
    return parts[0]
  return hashlib.sha256('\n'.join([*parts, also]).encode()).hexdigest()


def _book() -> Path:
  return caches.folder('digests.json')


def _known() -> dict[str, list]:
  try:
    known = json.loads(_book().read_text(encoding='utf-8'))
    good = lambda v: isinstance(v, list) and len(v) == 3 and isinstance(v[2], str)
    return {path: value for path, value in known.items() if good(value)}
  except (OSError, ValueError, AttributeError):
    return {}


def _remember(path: str, entry: list) -> None:
  """Best effort: a cache folder that cannot be written only costs time."""
  book = _book()
  half = book.with_name(f'{book.name}.{os.getpid()}.tmp')
  with contextlib.suppress(OSError):
    book.parent.mkdir(parents=True, exist_ok=True)
    half.write_text(json.dumps({**_known(), path: entry}), encoding='utf-8')
    os.replace(half, book)
