"""TensorBoard's event file."""

import os
import re
import socket
import time
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from exedit.input_pipeline import tfrecord

LARGEST = 2**25  # bytes; then the next file begins, for stores are sent whole files


class Board:
  """Scalars and pictures by step, written where they are given.

  tensorboardX's SummaryWriter leaves that to a thread, which dies when the disk is full or the
  clock goes back by weeks; after ten more numbers its queue waits for it for ever, and a training
  with it. Errors of the disk are raised here.
  """

  def __init__(self, folder: str | os.PathLike, start: int):
    """A new file for what comes after step `start`; what earlier ones have beyond it is void."""
    from tensorboardX.proto import event_pb2

    os.makedirs(folder, exist_ok=True)
    self._folder, self._start = folder, start
    self._pb: Any = event_pb2
    self._file = self._next()
    self._write(start + 1, session_log=self._pb.SessionLog(status=self._pb.SessionLog.START))

  def _next(self) -> IO[bytes]:
    """One more file, behind those that are there."""
    # TensorBoard reads files in the order of their names, whatever the clock has done since.
    there = os.listdir(self._folder)
    names = (re.match(r'events\.out\.tfevents\.(\d+)\.', name) for name in there)
    stamp = max([int(time.time()), *(int(name[1]) + 1 for name in names if name)])
    name = f'events.out.tfevents.{stamp}.{socket.gethostname()}.{self._start}'
    file = open(os.path.join(self._folder, name), 'xb')
    file.write(self._framed(0, file_version='brain.Event:2'))
    return file

  def scalars(self, step: int, values: Iterable[tuple[str, float]]) -> None:
    """Numbers by name."""
    from tensorboardX import summary

    for name, value in values:
      self._write(step, summary=summary.scalar(name, value))
    self._file.flush()

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """A picture uint8 [h w 3]."""
    from tensorboardX import summary

    self._write(step, summary=summary.image(name, picture, dataformats='HWC'))
    self._file.flush()

  def close(self) -> None:
    self._file.close()

  def _write(self, step: int, **what) -> None:
    if self._file.tell() > LARGEST:
      self._file.close()
      self._file = self._next()
    self._file.write(self._framed(step, **what))

  def _framed(self, step: int, **what) -> bytes:
    event = self._pb.Event(step=step, wall_time=time.time(), **what)
    return tfrecord.framed(event.SerializeToString())
