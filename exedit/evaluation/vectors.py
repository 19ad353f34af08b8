"""Vectors of pictures, kept on the disk so that no evaluation computes one twice.

A column has a folder, and every file in it holds up to SHARD vectors. A process writes only new
files, each of them whole or not at all, so that processes and evaluations can share a folder.
"""

import collections
import contextlib
import dataclasses
import hashlib
import os
import uuid
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit.runtime import caches, files, parallel, processes, progress
from exedit.runtime.errors import DataError, UserError, one_line

SHARD = 256  # vectors per file; a process that is killed loses at most this many


def digest(*parts: str) -> str:
  """Hash everything that a vector or a score depends on: contents, not paths."""
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def default_folder() -> str:
  """The folder in this user's cache that all evaluations share."""
  return str(caches.folder('features'))


@dataclasses.dataclass(frozen=True)
class Column:
  """One vector per edit, or per real image.

  what: the words of the progress bar.
  digest: names the computation (see `digest`).
  keys: names of the pictures that each vector depends on; equal keys have equal vectors.
  names: of the pictures, for messages.
  load(i): the input of vector i; raises ValueError if the picture has no such vector.
  run: makes vectors of inputs, in order and in batches.
  """

  what: str
  digest: str
  keys: Sequence[str]
  names: Sequence[str]
  load: Callable[[int], Any]
  run: Callable[[Iterator[Any]], Iterable[Float[np.ndarray, 'b d']]]


class Store:
  """The vectors of one column on the disk; for some keys the reason why there is no vector."""

  def __init__(self, folder: str, column: Column):
    self.folder = os.path.join(folder, column.digest[:32])
    self._places: dict[str, tuple[str, int]] = {}  # file and row
    self._reasons: dict[str, str] = {}
    self._waiting: dict[str, Float[np.ndarray, ' d'] | str] = {}
    try:
      os.makedirs(self.folder, exist_ok=True)
    except OSError as error:
      raise UserError(
        f'the folder {folder} cannot be used ({error.strerror}): name another in config.cache'
      ) from error
    for name in files.listing(self.folder):
      if name.endswith('.npz'):
        path = os.path.join(self.folder, name)
        with _opened(path) as arrays:
          self._add(path, *(arrays[part].tolist() for part in ('keys', 'without', 'reasons')))

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
    waiting, self._waiting = self._waiting, {}
    reasons = {key: value for key, value in waiting.items() if isinstance(value, str)}
    vectors = {key: value for key, value in waiting.items() if key not in reasons}
    if waiting:
      path = os.path.join(self.folder, f'{uuid.uuid4().hex}.npz')
      with files.writing(path) as file:
        np.savez(
          file,
          keys=np.array([*vectors], str),
          vectors=np.stack([*vectors.values()]) if vectors else np.zeros((0, 0)),
          without=np.array([*reasons], str),
          reasons=np.array([*reasons.values()], str),
        )
      self._add(path, [*vectors], [*reasons], [*reasons.values()])

  def read(self, keys: Sequence[str]) -> tuple[Float[np.ndarray, 'n d'], dict[int, str]]:
    """Return the vectors of the keys, and by position the reasons of those that are NaN instead.

    Raises:
      KeyError: for a key that is missing.
    """
    reasons = {i: self._reasons[key] for i, key in enumerate(keys) if key in self._reasons}
    by_path: dict[str, list[tuple[int, int]]] = {}
    for i, key in enumerate(keys):
      if i not in reasons:
        path, row = self._places[key]
        by_path.setdefault(path, []).append((i, row))
    found = None
    for path, places in by_path.items():
      with _opened(path) as arrays:
        vectors = arrays['vectors']
      if found is None:
        found = np.full((len(keys), vectors.shape[1]), np.nan, vectors.dtype)
      positions, rows = zip(*places)
      found[list(positions)] = vectors[list(rows)]
    return np.full((len(keys), 1), np.nan) if found is None else found, reasons

  def _add(self, path, keys, without, reasons):
    self._places |= {key: (path, row) for row, key in enumerate(keys)}
    self._reasons |= dict(zip(without, reasons))


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
  missing = store.missing(key for key in column.keys if only is None or key in only)
  if not missing:
    return
  positions = {key: i for i, key in enumerate(column.keys)}
  asked: collections.deque[str] = collections.deque()

  def load(key):
    try:
      return key, column.load(positions[key]), ''
    except DataError:
      raise
    except ValueError as error:
      return key, None, one_line(error)

  def inputs(bar):
    for key, value, why in parallel.in_parallel(load, missing):
      if why:
        store.put(key, why)
        bar.update()
      else:
        asked.append(key)
        yield value

  bar = progress.bar(what=column.what, total=len(missing), leave=False)
  with contextlib.closing(store), bar:
    for piece in column.run(inputs(bar)):
      for vector in piece:
        key = asked.popleft()
        if not np.isfinite(vector).all():
          raise UserError(
            f'{column.what}: the vector of {column.names[positions[key]]} is not finite; are the'
            " network's weights sound?"
          )
        store.put(key, vector)
      bar.update(len(piece))


def fill_together(folder: str, columns: Sequence[Column]) -> None:
  """Compute the missing vectors of all columns; each process computes an equal share.

  All processes must call it, with the same columns and with a folder that all of them see. If only
  process 0 sees the folder, it computes the other shares itself when it needs them.

  Raises:
    UserError: in every process, if one of them fails as `fill` does.
  """
  every = {(column.digest, key): None for column in columns for key in column.keys}
  share = set(processes.own_share([*every]))
  with processes.together():
    for column in columns:
      only = {key for key in column.keys if (column.digest, key) in share}
      fill(Store(folder, column), column, only)
