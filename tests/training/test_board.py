"""What TensorBoard shows is tested in test_log.py; here is what may go wrong."""

import threading

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from exedit.training import board as board_module
from exedit.training.board import Board
from tests import disks


def test_there_is_no_thread_that_could_die_and_leave_the_run_waiting(tmp_path):
  before = threading.active_count()
  board = Board(tmp_path, 0)
  board.scalars(1, [('loss', 0.5)])
  assert threading.active_count() == before
  board.close()


def test_a_full_disk_is_raised_to_who_writes(tmp_path):
  with disks.tmpfs(tmp_path / 'disk', 2**16) as disk:
    board = Board(disk, 0)
    with pytest.raises(OSError, match='No space left'):
      for step in range(10_000):
        board.scalars(step, [('loss', 0.5)])
    with pytest.raises(OSError, match='No space left'):
      board.close()


@pytest.mark.parametrize('back', [0, 10, 10**8])
def test_a_later_start_voids_an_earlier_one_whatever_the_clock_says(tmp_path, monkeypatch, back):
  now = 2e9
  monkeypatch.setattr('time.time', lambda: now)
  for start, value in ((0, 1.0), (2, 2.0), (2, 3.0)):
    board = Board(tmp_path, start)
    for step in range(start + 1, 5):
      board.scalars(step, [('loss', value)])
    board.close()
    now -= back
  shown = EventAccumulator(str(tmp_path), dict(scalars=0)).Reload().Scalars('loss')
  assert [(e.step, e.value) for e in shown] == [(1, 1.0), (2, 1.0), (3, 3.0), (4, 3.0)]


def test_a_killed_file_is_read_up_to_its_last_whole_record(tmp_path):
  board = Board(tmp_path, 0)
  board.scalars(1, [('loss', 1.0)])
  board.image(1, 'edits', np.zeros((4, 4, 3), np.uint8))
  board.close()
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:-5])
  later = Board(tmp_path, 1)
  later.scalars(2, [('loss', 2.0)])
  later.close()
  shown = EventAccumulator(str(tmp_path), dict(scalars=0)).Reload().Scalars('loss')
  assert [(e.step, e.value) for e in shown] == [(1, 1.0), (2, 2.0)]


def test_a_long_run_has_several_files_that_are_read_as_one(tmp_path, monkeypatch):
  monkeypatch.setattr(board_module, 'LARGEST', 500)
  board = Board(tmp_path, 0)
  for step in range(1, 41):
    board.scalars(step, [('loss', float(step))])
  board.close()
  sizes = [path.stat().st_size for path in tmp_path.iterdir()]
  assert len(sizes) > 2 and max(sizes) < 600
  shown = EventAccumulator(str(tmp_path), dict(scalars=0)).Reload().Scalars('loss')
  assert [e.step for e in shown] == list(range(1, 41))
