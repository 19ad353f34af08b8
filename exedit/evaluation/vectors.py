"""Vectors of pictures, each computed once: over threads, devices and processes, into the cache."""

import collections
import contextlib
import dataclasses
import glob
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from exedit.evaluation.bench import EVERY
from exedit.evaluation.cache import Cache
from exedit.input_pipeline.errors import DataError
from exedit.runtime import files, parallel, processes
from exedit.runtime.errors import UserError, one_line

AT_ONCE = 64  # vectors: no more are lost by a kill
WANTED = 'wanted.json'  # in the folder of the processes' shares


@dataclasses.dataclass(frozen=True)
class Job:
  """One vector: what it is of, for messages, and its input; that raises ValueError for none."""

  name: str
  prepare: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Column:
  """A vector for every edit: under which key the cache has it, and what computes those it lacks."""

  what: str
  keys: Sequence[str]
  jobs: Mapping[str, Job]  # by key
  run: Callable[[Iterator[Any]], Iterable[Float[np.ndarray, 'b d']]]


def fill(cache: Cache, column: Column, only: Collection[str] | None = None) -> None:
  """Compute and keep the vectors of a column (`only` those) that the cache lacks, batch by batch.

  Raises:
    UserError: for one that is not finite, and for pictures that cannot be read.
  """
  missing = cache.missing(k for k in column.jobs if only is None or k in only)
  if not missing:
    return
  asked: collections.deque[str] = collections.deque()

  def inputs():
    for key, (value, why) in parallel.in_parallel(lambda k: (k, _attempt(column, k)), missing):
      if why:
        cache.put(key, None, why)
        bar.update()
      else:
        asked.append(key)
        yield value

  with tqdm(desc=column.what, total=len(missing), mininterval=EVERY, leave=False) as bar:
    done = 0
    for piece in column.run(inputs()):
      for vector in piece:
        key = asked.popleft()
        if not np.isfinite(vector).all():
          raise UserError(
            f'{column.what}: what it gives for {column.jobs[key].name} is not finite; are its'
            ' weights sound?'
          )
        cache.put(key, vector)
      bar.update(len(piece))
      done += len(piece)
      if done >= AT_ONCE:
        cache.commit()
        done = 0
  cache.commit()


def _attempt(column, key):
  try:
    return column.jobs[key].prepare(), ''
  except DataError:
    raise
  except ValueError as error:
    return None, one_line(error)


def share_out(cache: Cache | None, columns: Sequence[Column], folder: str) -> None:
  """What the first process's cache lacks, each process an equal share of it; all must come here.

  Afterwards that cache has everything. The shares lie as files of their own in `folder`, which all
  processes see: none writes where another does, and what a killed run left there is not lost.

  Args:
    cache: of the first process; None in the others.
  Raises:
    UserError: in every process, for what one of them cannot compute (`fill`).
  """
  wanted = os.path.join(folder, WANTED)
  with processes.together():
    if cache is not None:
      os.makedirs(folder, exist_ok=True)
      _collect(cache, folder)
      files.write_json(wanted, cache.missing(key for column in columns for key in column.jobs))
  with processes.together():
    with open(wanted, encoding='utf-8') as file:
      ours = set(processes.own_share(json.load(file)))
    with Cache(folder, f'{jax.process_index()}.sqlite') as share:
      for column in columns:
        fill(share, column, ours)
  with processes.together():
    if cache is not None:
      _collect(cache, folder)
      os.remove(wanted)
      with contextlib.suppress(OSError):  # what is not ours stays
        os.rmdir(folder)


def _collect(cache, folder):
  for path in sorted(glob.glob(os.path.join(glob.escape(folder), '*.sqlite'))):
    cache.take(path)
    os.remove(path)
