"""Work in threads: results in order, computed ahead of their use, and the end with a parent."""

import collections
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from exedit.runtime.errors import explain


def in_parallel(
  function: Callable[[Any], Any], items: Iterable[Any], threads: int = 0
) -> Generator[Any, None, None]:
  """Like `map`, in threads, at most two results per thread ahead.

  An error is raised in the place of its result. threads: 0 for one per processor, at most 16.
  """
  threads = threads or min(16, os.cpu_count() or 1)
  pool = ThreadPoolExecutor(threads)
  try:
    yield from in_order(pool, function, items, 2 * threads - 1)
  finally:
    pool.shutdown(cancel_futures=True)


def ahead(
  pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], depth: int
) -> Iterator[Any]:
  """Like `map`, in the pool, up to `depth` results ahead.

  The result of an item with an error that the user can fix is its line, a str.
  """

  def attempt(item):
    try:
      return function(item)
    except Exception as error:
      line = explain(error)
      if line is None:
        raise
      return line

  return in_order(pool, attempt, items, depth)


def in_order(
  pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], depth: int
) -> Iterator[Any]:
  """Like `map`, in the pool, up to `depth` results ahead."""
  waiting: collections.deque[Future] = collections.deque()
  for item in items:
    waiting.append(pool.submit(function, item))
    if len(waiting) > depth:
      yield waiting.popleft().result()
  while waiting:
    yield waiting.popleft().result()


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


def end_with_parent() -> None:
  """Starts a thread that ends this process when its parent ends, even by SIGKILL."""
  parent = multiprocessing.parent_process()

  def wait():
    if parent is not None:
      parent.join()
      os._exit(1)

  threading.Thread(target=wait, daemon=True).start()
