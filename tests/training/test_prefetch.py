import os
import signal
import threading
from multiprocessing import resource_tracker
from pathlib import Path

import jax
import numpy as np
import pytest

from exedit.training.prefetch import Prefetch
from exedit.training.sharding import batch_sharding, make_mesh


def sharding():
  return batch_sharding(make_mesh())


def numbers(count):
  for i in range(count):
    yield dict(id=np.full(4, i, np.int32))


def test_batches_come_in_order_as_device_arrays():
  feed = Prefetch(numbers(5), sharding())
  batches = list(feed)
  assert [int(b['id'][0]) for b in batches] == [0, 1, 2, 3, 4]
  assert isinstance(batches[0]['id'], jax.Array) and batches[0]['id'].sharding == sharding()
  assert feed.waited >= 0
  feed.close()


def test_no_more_than_one_batch_is_read_ahead():
  read = []
  enough = threading.Event()

  def source():
    for batch in numbers(100):
      read.append(batch)
      if len(read) == 3:
        enough.set()
      yield batch

  feed = Prefetch(source(), sharding())
  next(feed)
  assert enough.wait(10)  # one given, one ready, one in hand
  feed.close()
  assert len(read) <= 4


def test_an_error_while_reading_comes_where_the_batch_would_have():
  def source():
    yield from numbers(1)
    raise OSError('the disk is gone')

  feed = Prefetch(source(), sharding())
  next(feed)
  for _ in range(2):
    with pytest.raises(OSError, match='the disk is gone'):
      next(feed)
  feed.close()


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='needs /proc')
def test_what_the_source_starts_is_deaf_to_signals_for_the_run():
  masks = []

  def source():
    import multiprocessing

    process = multiprocessing.get_context('spawn').Process(target=signal.pause, daemon=True)
    process.start()
    status = Path(f'/proc/{process.pid}/status').read_text()
    masks.append(int(status.split('SigBlk:')[1].split()[0], 16))
    process.kill()
    process.join()
    yield from numbers(1)

  resource_tracker.ensure_running()  # as the loader does
  feed = Prefetch(source(), sharding())
  next(feed)
  feed.close()
  for number in (signal.SIGTERM, signal.SIGINT):
    assert masks[0] >> number - 1 & 1


def test_close_ends_the_source_and_the_thread():
  closed = threading.Event()

  def endless():
    try:
      while True:
        yield dict(id=np.zeros(4, np.int32))
    finally:
      closed.set()

  feed = Prefetch(endless(), sharding())
  next(feed)
  feed.close()
  assert closed.wait(10) and not feed._thread.is_alive()
