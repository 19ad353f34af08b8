"""TensorBoard's event file."""

import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

FLUSH = 10.0  # seconds between two writes that wait for the disk


class Board:
  """Scalars and pictures by step, written where they are given.

  tensorboardX's SummaryWriter leaves that to a thread, which dies when the disk is full or the
  clock goes back by weeks; after ten more numbers its queue waits for it for ever, and a training
  with it. Errors of the disk are raised here.
  """

  def __init__(self, folder: str | os.PathLike, start: int):
    """A file for what comes after step `start`; of earlier files what lies beyond it is void."""
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto import event_pb2

    os.makedirs(folder, exist_ok=True)
    self._pb: Any = event_pb2
    self._file = EventsWriter(os.path.join(folder, 'events'), f'.{start}')
    begin = self._pb.SessionLog(status=self._pb.SessionLog.START)
    self._write(start + 1, session_log=begin)
    self._flushed = time.monotonic()

  def scalars(self, step: int, values: Iterable[tuple[str, float]]) -> None:
    """Numbers by name."""
    from tensorboardX import summary

    for name, value in values:
      self._write(step, summary=summary.scalar(name, value))
    if time.monotonic() - self._flushed >= FLUSH:
      self.flush()

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """A picture uint8 [h w 3]."""
    from tensorboardX import summary

    self._write(step, summary=summary.image(name, picture, dataformats='HWC'))
    self.flush()

  def flush(self) -> None:
    self._file.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    self._file.close()

  def _write(self, step: int, **what) -> None:
    self._file.write_event(self._pb.Event(step=step, wall_time=time.time(), **what))
