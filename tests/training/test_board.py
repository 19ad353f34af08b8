"""What may go wrong with TensorBoard's file; test_log.py tests what TensorBoard shows."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from exedit.training.board import Board
from tests import disks


def shown(folder):
  events = EventAccumulator(str(folder), dict(scalars=0)).Reload().Scalars('loss')
  return [(event.step, event.value) for event in events]


def test_a_full_disk_is_raised_to_the_writer(tmp_path):
  with disks.tmpfs(tmp_path / 'disk', 2**16) as disk:
    board = Board(disk, 0)
    with pytest.raises(OSError, match='No space left'):
      for step in range(10_000):
        board.scalars(step, [('loss', 0.5)])


@pytest.mark.parametrize('back', [0, 10, 10**8])
def test_a_later_start_replaces_an_earlier_one_whatever_the_clock_says(tmp_path, monkeypatch, back):
  now = 2e9
  monkeypatch.setattr('time.time', lambda: now)
  (tmp_path / 'events.out.tfevents.1999999999.host').touch()  # the name of older versions
  for start, value in ((0, 1.0), (2, 2.0), (2, 3.0)):
    board = Board(tmp_path, start)
    for step in range(start + 1, 5):
      board.scalars(step, [('loss', value)])
    board.close()
    now -= back
  assert shown(tmp_path) == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0)]


def test_a_torn_file_is_read_up_to_its_last_whole_record(tmp_path):
  board = Board(tmp_path, 0)
  board.scalars(1, [('loss', 1.0)])
  board.image(1, 'edits', np.zeros((4, 4, 3), np.uint8))
  board.close()
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:-5])
  later = Board(tmp_path, 1)
  later.scalars(2, [('loss', 2.0)])
  later.close()
  assert shown(tmp_path) == [(1, 1.0), (2, 2.0)]
