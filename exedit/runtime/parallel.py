"""Work in threads: results in order, read ahead of their use."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from exedit.runtime.errors import explain


def in_parallel(
  function: Callable[[Any], Any], items: Iterable[Any], threads: int = 0
) -> Generator[Any, None, None]:
  """`map` over threads (0: by the machine), in order, two results a thread early.

  An error comes where its result would have.
  """
  threads = threads or min(16, os.cpu_count() or 1)
  pool = ThreadPoolExecutor(threads)
  futures: collections.deque[Future] = collections.deque()
  try:
    for item in items:
      futures.append(pool.submit(function, item))
      if len(futures) >= 2 * threads:
        yield futures.popleft().result()
    while futures:
      yield futures.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


def ahead(
  pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], depth: int
) -> Iterator[Any]:
  """function(item) for each item in order, up to `depth` of them begun before they are wanted.

  What a person can mend comes out as its one line (str) instead of a value.
  """
  waiting: collections.deque[Future] = collections.deque()
  for item in items:
    waiting.append(pool.submit(function, item))
    if len(waiting) > depth:
      yield _outcome(waiting.popleft())
  while waiting:
    yield _outcome(waiting.popleft())


def _outcome(future):
  try:
    return future.result()
  except Exception as error:
    why = explain(error)
    if why is None:
      raise
    return why


class PixelBudget:
  """Limits the pixels that all threads process at the same time.

  Large photos then do not exhaust the memory. A photo with more than `most` is processed alone.
  """

  def __init__(self, most: int):
    self.most, self._used = most, 0
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def taken(self, pixels: int) -> Iterator[None]:
    """Waits until the pixels fit. Do not nest it: two threads could wait for each other."""
    with self._changed:
      self._changed.wait_for(lambda: not self._used or self._used + pixels <= self.most)
      self._used += pixels
    try:
      yield
    finally:
      with self._changed:
        self._used -= pixels
        self._changed.notify_all()
