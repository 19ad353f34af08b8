"""Vectors of pictures, kept on the disk so that no evaluation computes one twice.

A column has a folder, and every file in it holds up to SHARD vectors. A process writes only new
files, each of them whole or not at all, so that processes and evaluations can share a folder.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit.runtime import caches, files, parallel, processes, progress
from exedit.runtime.errors import DataError, UserError, one_line

SHARD = 256  # vectors per file; a killed run loses at most this many
PIECE = 500  # vectors in memory at a time


def digest(*parts: str) -> str:
  """Hash everything that a vector or a score depends on: contents, not paths."""
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def default_folder() -> str:
  """The folder in this user's cache that all evaluations share."""
  return str(caches.folder('features'))


@dataclasses.dataclass(frozen=True)
class Job:
  """The input of one vector; `prepare` raises ValueError if the picture has no such vector."""

  name: str  # of the picture, for messages
  prepare: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Column:
  """One vector per edit.

  what: the words of the progress bar. digest: names the computation, as `digest` makes it. keys:
  the hash of the pictures of every edit. jobs: by key. run: computes the vectors of inputs.
  """

  what: str
  digest: str
  keys: Sequence[str]
  jobs: Mapping[str, Job]
  run: Callable[[Iterator[Any]], Iterable[Float[np.ndarray, 'b d']]]


class Store:
  """The vectors of one column on the disk; for some keys a reason why there is no vector."""

  def __init__(self, folder: str, column: Column):
    self.folder = os.path.join(folder, column.digest[:32])
    self._places: dict[str, tuple[str, int]] = {}  # file and row
    self._reasons: dict[str, str] = {}
    self._known: set[str] = set()
    self._waiting: dict[str, Float[np.ndarray, ' d'] | str] = {}
    try:
      os.makedirs(self.folder, exist_ok=True)
    except OSError as error:
      raise UserError(
        f'the folder {folder} cannot be used ({error.strerror}): name another in config.cache'
      ) from error
    self.read_new_files()

  def read_new_files(self) -> None:
    """Read which vectors the files hold that other processes wrote since the last call."""
    for name in sorted(os.listdir(self.folder)):
      if name.endswith('.npz') and not name.startswith('.') and name not in self._known:
        path = os.path.join(self.folder, name)
        with _opened(path) as arrays:
          self._learn(path, arrays['keys'].tolist(), arrays['without'].tolist(), arrays['reasons'])

  def missing(self, keys: Iterable[str]) -> list[str]:
    """The keys that have neither a vector nor a reason on the disk, without repetitions."""
    return [k for k in dict.fromkeys(keys) if k not in self._places and k not in self._reasons]

  def put(self, key: str, value: Float[np.ndarray, ' d'] | str) -> None:
    """Keep a vector, or the reason why there is none; `close` writes the last ones."""
    self._waiting[key] = value
    if len(self._waiting) >= SHARD:
      self.close()

  def close(self) -> None:
    """Write everything that was put."""
    vectors = {k: value for k, value in self._waiting.items() if not isinstance(value, str)}
    reasons = {k: value for k, value in self._waiting.items() if isinstance(value, str)}
    if self._waiting:
      path = os.path.join(self.folder, f'{uuid.uuid4().hex}.npz')
      with files.writing(path) as file:
        np.savez(
          file,
          keys=np.array([*vectors], str),
          vectors=np.stack([*vectors.values()]) if vectors else np.zeros((0, 0)),
          without=np.array([*reasons], str),
          reasons=np.array([*reasons.values()], str),
        )
      self._learn(path, vectors, reasons, reasons.values())
    self._waiting = {}

  def rows(self, keys: Sequence[str]) -> Iterator[list[tuple[Float[np.ndarray, ' d'] | None, str]]]:
    """Yield (vector, '') or (None, reason) for each key in order, in lists of at most PIECE.

    Raises:
      KeyError: for a key that is missing.
    """
    shard = functools.lru_cache(4)(_vectors)

    def row(key):
      if key in self._reasons:
        return None, self._reasons[key]
      path, position = self._places[key]
      return shard(path)[position], ''

    for start in range(0, len(keys), PIECE):
      yield [row(key) for key in keys[start : start + PIECE]]

  def _learn(self, path, keys, without, reasons):
    self._known.add(os.path.basename(path))
    self._places |= {key: (path, row) for row, key in enumerate(keys)}
    self._reasons |= dict(zip(without, map(str, reasons)))


def _vectors(path):
  with _opened(path) as arrays:
    return arrays['vectors']


@contextlib.contextmanager
def _opened(path):
  try:
    with np.load(path, allow_pickle=False) as arrays:
      yield arrays
  except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(
      f'{path} cannot be read ({one_line(error)}): remove it, and its vectors are computed again'
    ) from error


def fill(store: Store, column: Column, only: Collection[str] | None = None) -> None:
  """Compute and keep the vectors (or those of `only`) that the store lacks, batch by batch.

  Raises:
    UserError: if a vector is not finite, or a picture cannot be read.
  """
  missing = store.missing(key for key in column.jobs if only is None or key in only)
  if not missing:
    return
  asked: collections.deque[str] = collections.deque()

  def inputs(bar):
    for key, (value, why) in parallel.in_parallel(lambda k: (k, _attempt(column, k)), missing):
      if why:
        store.put(key, why)
        bar.update()
      else:
        asked.append(key)
        yield value

  with (
    contextlib.closing(store),
    progress.bar(what=column.what, total=len(missing), leave=False) as bar,
  ):
    for piece in column.run(inputs(bar)):
      for vector in piece:
        key = asked.popleft()
        if not np.isfinite(vector).all():
          raise UserError(
            f'{column.what}: the vector of {column.jobs[key].name} is not finite; are the'
            " network's weights sound?"
          )
        store.put(key, vector)
      bar.update(len(piece))


def _attempt(column, key):
  try:
    return column.jobs[key].prepare(), ''
  except DataError:
    raise
  except ValueError as error:
    return None, one_line(error)


def fill_together(folder: str, columns: Sequence[Column]) -> None:
  """Compute the missing vectors of all columns; each process computes an equal share.

  All processes must call it, with the same columns and with a folder that all of them see. If only
  process 0 sees the folder, it computes the other shares itself when it needs them.

  Raises:
    UserError: in every process, if one of them fails as `fill` does.
  """
  every = {(column.digest, key): None for column in columns for key in column.jobs}
  share = set(processes.own_share([*every]))
  with processes.together():
    for column in columns:
      only = {key for key in column.jobs if (column.digest, key) in share}
      fill(Store(folder, column), column, only)
