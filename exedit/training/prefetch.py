"""Reads the next batch and sends it to the devices while the present step computes."""

import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Sharding

Batch = dict[str, jax.Array]


class Prefetch:
  """Iterates over batches on the devices, one batch ahead.

  `waited` is the number of seconds that the caller has waited. An error of the reading thread is
  raised by the `next` call that would have returned the batch.

  batches: this process's rows. sharding: of the global batch.
  """

  def __init__(self, batches: Iterator[Mapping[str, np.ndarray]], sharding: Sharding):
    self.waited = 0.0
    self._batches = batches
    self._put = to_devices(sharding)
    self._ready: queue.Queue = queue.Queue(maxsize=1)
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._read, name='prefetch', daemon=True)
    self._thread.start()

  def __iter__(self) -> 'Prefetch':
    return self

  def __next__(self) -> Batch:
    start = time.perf_counter()
    batch = self._ready.get()
    self.waited += time.perf_counter() - start
    if isinstance(batch, BaseException):
      self._ready.put(batch)
      raise batch
    return batch

  def close(self) -> None:
    """Stops the reading thread."""
    self._stop.set()
    while not self._ready.empty():
      self._ready.get_nowait()
    self._thread.join(timeout=10)

  def _read(self):
    # Data workers are started by this thread and inherit its mask. Ctrl-C, Slurm and systemd send
    # signals to all processes of a run; they must not end the workers before the run has saved.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
      for batch in self._batches:
        self._offer(self._put(batch))
        if self._stop.is_set():
          break
      else:
        self._offer(StopIteration())
    except BaseException as error:  # the loop that waits raises it
      self._offer(error)
    finally:
      getattr(self._batches, 'close', lambda: None)()

  def _offer(self, item):
    while not self._stop.is_set():
      try:
        return self._ready.put(item, timeout=0.1)
      except queue.Full:
        continue


def to_devices(sharding: Sharding) -> Callable[[Mapping[str, np.ndarray]], Batch]:
  """A function that makes global arrays from the rows of each process."""

  def put(batch):
    return {
      name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
      for name, rows in batch.items()
    }

  return put
