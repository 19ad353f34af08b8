"""SHA-256 of weight files, remembered in the user's cache folder so that 5 GB are hashed once."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from exedit.runtime import caches, files

FRESH = 2.0  # seconds; a younger file may change again without a change of its time


def sha256(path: str | os.PathLike) -> str:
  """Returns the file's SHA-256 in hexadecimal.

  A file whose place, size and time are known is not read again.
  """
  path = os.path.realpath(path)
  status = os.stat(path)
  state = [status.st_size, status.st_mtime_ns]
  known = _known().get(path, [])
  if known[:2] == state:
    return known[2]
  digest = files.sha256(path)
  if time.time_ns() - status.st_mtime_ns > FRESH * 1e9:
    _remember(path, [*state, digest])
  return digest


def together(paths: Iterable[str | os.PathLike], also: str = '') -> str:
  """Returns one SHA-256 for several files in this order and for the word `also`.

  For a single file and no word it is the file's own, as `sha256sum` prints it.
  """
  parts = [sha256(path) for path in paths]
  if len(parts) == 1 and not also:
    return parts[0]
  return hashlib.sha256('\n'.join([*parts, also]).encode()).hexdigest()


def _file() -> Path:
  return caches.folder('digests.json')


def _known() -> dict[str, list]:
  try:
    known = json.loads(_file().read_text(encoding='utf-8'))
    good = lambda v: isinstance(v, list) and len(v) == 3 and isinstance(v[2], str)
    return {path: value for path, value in known.items() if good(value)}
  except (OSError, ValueError, AttributeError):
    return {}


def _remember(path: str, entry: list) -> None:
  """A cache folder that cannot be written is no error: the file is hashed again next time."""
  with contextlib.suppress(OSError):
    files.write_text(_file(), json.dumps({**_known(), path: entry}))
