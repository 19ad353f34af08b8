"""Vectors that were computed once, on the disk, so that no evaluation computes them twice."""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float

from exedit.runtime import caches
from exedit.runtime.errors import UserError

CHUNK = 500  # rows that are asked for, or in memory, at once
FILE = 'features.sqlite'


def key(*parts: str) -> str:
  """The name of a vector: a hash of all that it depends on, contents and not paths."""
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def default_folder() -> str:
  """Beside the other caches of this user, so that several evaluations share a reference set's."""
  return str(caches.folder())


class Cache:
  """Rows by key in one file: a vector, or why there is none.

  Several processes of one machine may use it at a time. What is put is on the disk after `commit`.
  """

  def __init__(self, folder: str, file: str = FILE):
    self.path = os.path.join(folder, file)
    self._waiting: list[tuple[str, bytes | None, str]] = []
    try:
      os.makedirs(folder, exist_ok=True)
      self._file = sqlite3.connect(self.path, timeout=60)
      self._file.execute(
        'create table if not exists rows (key text primary key, vector blob, why text)'
      )
    except (OSError, sqlite3.Error) as error:
      raise self._unusable(error) from error

  def __enter__(self) -> 'Cache':
    return self

  def __exit__(self, *_) -> None:
    self._file.close()

  def missing(self, keys: Iterable[str]) -> list[str]:
    """Those of the keys that have no row, each once, in their order."""
    keys = list(dict.fromkeys(keys))
    there = {row[0] for chunk in _chunks(keys) for row in self._select('key', chunk)}
    return [k for k in keys if k not in there]

  def put(self, name: str, vector: Float[np.ndarray, ' d'] | None, why: str = '') -> None:
    """Keep a vector, or the reason why there is none, from the next `commit` on."""
    self._waiting.append((name, None if vector is None else _packed(vector), why))

  def commit(self) -> None:
    """Write what was put, in one short transaction: from now on a kill does not lose it."""
    try:
      with self._file:
        self._file.executemany('insert or replace into rows values (?, ?, ?)', self._waiting)
    except sqlite3.Error as error:
      raise self._unusable(error) from error
    self._waiting.clear()

  def take(self, path: str) -> None:
    """Copy the rows of another such file that this one has not."""
    try:
      self._file.execute('attach database ? as other', (path,))
      with self._file:
        self._file.execute('insert or ignore into rows select key, vector, why from other.rows')
      self._file.execute('detach database other')
    except sqlite3.Error as error:
      raise UserError(
        f'{path} cannot be used ({error}): remove it, and what it held is computed again'
      ) from error

  def rows(self, keys: Sequence[str]) -> Iterator[list[tuple[np.ndarray | None, str]]]:
    """(vector, '') or (None, why) of each key in order, in pieces of at most CHUNK.

    Raises:
      KeyError: for a key that has no row.
    """
    for chunk in _chunks(keys):
      found = {name: (blob, why) for name, blob, why in self._select('key, vector, why', chunk)}
      yield [(None if found[k][0] is None else _unpacked(found[k][0]), found[k][1]) for k in chunk]

  def _select(self, what, keys):
    marks = ','.join('?' * len(keys))
    try:
      return self._file.execute(f'select {what} from rows where key in ({marks})', keys).fetchall()
    except sqlite3.Error as error:
      raise self._unusable(error) from error

  def _unusable(self, error):
    remedy = 'remove the file if it is damaged, or name another folder in config.cache'
    return UserError(f'the cache {self.path} cannot be used ({error}): {remedy}')


def _chunks(items):
  return (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))


def _packed(vector):
  kind = np.dtype(vector.dtype)
  if kind not in (np.float32, np.float64):
    raise TypeError(f'a vector of {kind}: float32 or float64')
  return kind.str.encode() + vector.tobytes()


def _unpacked(blob):
  return np.frombuffer(blob, blob[:3].decode(), offset=3)
