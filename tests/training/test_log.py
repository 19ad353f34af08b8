import io
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from exedit.training import log


def metrics(step, loss=None, in_a_row=0):
  return dict(
    loss=jnp.float32(1 / (step + 2) if loss is None else loss),
    grad_norm=jnp.float32(0.5),
    lr=jnp.float32(1e-5),
    bucket_sum=jnp.array([3.0, 0.0, 1.0, 0.0]),
    bucket_count=jnp.array([2, 0, 4, 0]),
    in_a_row=jnp.int32(in_a_row),
    skipped=jnp.int32(0),
    corrupt=jnp.int32(1),
  )


def write(workdir, which, start=0, **settings):
  settings = {'log_every': 1, 'steps': 100, 'batch_size': 4, **settings}
  run_log = log.Log(workdir, start=start, **settings)
  for step in which:
    run_log.push(step, metrics(step), waited=0.0)
  run_log.flush()
  run_log.close()


def lines(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def test_values_are_written_in_full_precision(tmp_path):
  write(tmp_path, [1, 2, 3])
  written = lines(tmp_path)
  assert [line['step'] for line in written] == [1, 2, 3]
  for line in written:
    assert np.float32(line['loss']) == np.float32(1 / (line['step'] + 2))
  first = written[0]
  assert list(first)[:4] == ['step', 'loss', 'grad_norm', 'lr']
  assert first['loss_by_timestep'] == [1.5, None, 0.25, None]
  assert first['count_by_timestep'] == [2, 0, 4, 0]
  assert first['corrupt'] == 1 and first['skipped'] == 0


def test_only_the_steps_that_log_every_divides_and_the_last_are_written(tmp_path):
  write(tmp_path, range(1, 11), log_every=4, steps=10)
  assert [line['step'] for line in lines(tmp_path)] == [4, 8, 10]


def test_a_step_is_written_when_the_next_is_handed_over(tmp_path):
  run_log = log.Log(tmp_path, steps=100, batch_size=4, log_every=1)
  run_log.push(1, metrics(1), 0.0)
  assert lines(tmp_path) == []
  run_log.push(2, metrics(2), 0.0)
  assert [line['step'] for line in lines(tmp_path)] == [1]
  run_log.flush()
  run_log.flush()
  assert [line['step'] for line in lines(tmp_path)] == [1, 2]
  run_log.close()


def test_a_resumed_file_reads_like_one_run(tmp_path):
  write(tmp_path, range(1, 8))
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 8, "lo')  # killed in the middle of a line
  write(tmp_path, range(6, 11), start=5)
  assert [line['step'] for line in lines(tmp_path)] == list(range(1, 11))
  assert not list(tmp_path.glob('*.tmp'))


def test_tensorboard_shows_one_run_too(tmp_path):
  write(tmp_path, range(1, 8))
  write(tmp_path, range(6, 11), start=5)
  board = EventAccumulator(str(tmp_path / 'tb'), dict(scalars=0, images=0)).Reload()
  assert [e.step for e in board.Scalars('loss')] == list(range(1, 11))
  np.testing.assert_allclose(board.Scalars('loss')[0].value, 1 / 3, rtol=1e-6)
  assert 'loss_by_timestep/0' in board.Tags()['scalars']
  assert 'loss_by_timestep/1' not in board.Tags()['scalars']


def test_tensorboard_images(tmp_path):
  run_log = log.Log(tmp_path, steps=10, batch_size=4)
  run_log.image(3, 'edits', np.zeros((8, 12, 3), np.uint8))
  run_log.close()
  board = EventAccumulator(str(tmp_path / 'tb')).Reload()
  (image,) = board.Images('edits')
  assert (image.step, image.height, image.width) == (3, 8, 12)


def test_too_many_bad_steps_in_a_row_end_the_run_with_one_line(tmp_path):
  run_log = log.Log(tmp_path, steps=100, batch_size=4, log_every=50, max_bad_steps=3)
  for step in (1, 2):
    run_log.push(step, metrics(step, math.nan, in_a_row=step), 0.0)
  run_log.push(3, metrics(3, math.nan, in_a_row=3), 0.0)
  words = r'not finite in 3 steps in a row, up to step 3 \(loss nan, .* lower optimizer.lr'
  with pytest.raises(log.NotFinite, match=words):
    run_log.flush()
  run_log.close()


class FakeTime:
  def __init__(self, monkeypatch):
    self.now = 0.0
    monkeypatch.setattr(log.time, 'perf_counter', lambda: self.now)


def test_speed_wait_and_flops_leave_out_compilation_and_pauses(tmp_path, monkeypatch):
  clock = FakeTime(monkeypatch)
  run_log = log.Log(
    tmp_path, steps=100, batch_size=8, log_every=2, flops=3e12, peak=1e13, max_bad_steps=9
  )
  clock.now = 60.0  # compiling
  run_log.push(1, metrics(1), waited=5.0)
  run_log.push(2, metrics(2), waited=5.0)
  clock.now += 0.5
  run_log.flush()
  clock.now += 0.5
  run_log.push(3, metrics(3), waited=5.1)
  with run_log.pause('checkpoint'):
    run_log.flush()
    clock.now += 100
  run_log.push(4, metrics(4), waited=5.3)
  clock.now += 0.5
  run_log.flush()
  run_log.close()
  first, second = lines(tmp_path)
  assert first['images_per_second'] == pytest.approx(8 / 0.5)
  assert second['images_per_second'] == pytest.approx(2 * 8 / 1.0)
  assert second['data_wait'] == pytest.approx(0.3)
  assert second['model_tflops'] == pytest.approx(6.0)
  assert second['mfu'] == pytest.approx(0.6)


def test_a_wall_clock_that_jumps_is_not_asked(tmp_path, monkeypatch):
  clock, wall = FakeTime(monkeypatch), [2e9]

  def back():
    wall[0] -= 86400
    return wall[0]

  monkeypatch.setattr('time.time', back)
  out = io.StringIO()
  run_log = log.Log(tmp_path, steps=100, batch_size=8, log_every=1, flops=1e12)
  run_log.progress = log.Progress(100, 8, out=out, every=0.0)
  for step in range(1, 5):
    run_log.push(step, metrics(step), waited=0.1 * step)
    clock.now += 0.5
  run_log.flush()
  run_log.close()
  written = lines(tmp_path)
  assert [line['step'] for line in written] == [1, 2, 3, 4]
  assert [line['images_per_second'] for line in written] == [None, *[pytest.approx(16)] * 3]
  assert [line['data_wait'] for line in written] == [None, *[pytest.approx(0.2)] * 3]
  assert out.getvalue().splitlines()[-1] == 'step 4/100 | loss 0.1667 | 16.0 img/s | 0:00:48 left'


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_stays_on_one_line_of_a_terminal():
  out = Terminal()
  line = log.Progress(200, batch_size=4, out=out, every=0.0)
  line.show(100, 0.25, steps_per_second=2.0)
  line.show(101, 0.25, steps_per_second=2.0)
  line.end()
  shown = out.getvalue()
  assert shown.count('\n') == 1 and shown.count('\r') == 2
  assert 'step 100/200 | loss 0.25 | 8.0 img/s | 0:00:50 left' in shown
  assert shown.endswith('\n')


def test_progress_is_plain_lines_elsewhere():
  out = io.StringIO()
  line = log.Progress(200, batch_size=4, out=out, every=0.0)
  line.show(1, 0.123456, steps_per_second=None)
  line.show(2, 0.1, steps_per_second=1.0)
  assert out.getvalue().splitlines() == [
    'step 1/200 | loss 0.1235',
    'step 2/200 | loss 0.1 | 4.0 img/s | 0:03:18 left',
  ]
