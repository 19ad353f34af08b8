"""TensorBoard's event file."""

import os
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

_proto: Any = event_pb2  # its classes are made at run time


class Board:
  """Writes scalars and pictures by step into a new event file.

  It uses tensorboardX's EventsWriter and not its SummaryWriter, because that one leaves the writing
  to a thread: when the thread dies of a full disk, the training waits for it for ever. Here an
  error of the disk is raised at once.
  """

  def __init__(self, folder: str | os.PathLike, start: int):
    """start: the last step before this file. TensorBoard drops later steps of older files."""
    os.makedirs(folder, exist_ok=True)
    # TensorBoard reads the files in the order of their names, so a number comes before the time,
    # which may go backwards. Older versions named their files events.out.tfevents...
    number = sum('.tfevents.' in name for name in os.listdir(folder))
    self._writer = EventsWriter(os.path.join(folder, f'start.{number:06d}'), f'.{start}')
    self._write(start + 1, session_log=_proto.SessionLog(status=_proto.SessionLog.START))

  def scalars(self, step: int, values: Iterable[tuple[str, float]]) -> None:
    """Writes numbers by name."""
    for name, value in values:
      self._write(step, summary=summary.scalar(name, value))
    self._writer.flush()

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [h w 3]."""
    self._write(step, summary=summary.image(name, picture, dataformats='HWC'))
    self._writer.flush()

  def close(self) -> None:
    """Closes the file."""
    self._writer.close()

  def _write(self, step: int, **what) -> None:
    self._writer.write_event(_proto.Event(step=step, wall_time=time.time(), **what))
