"""What a run writes down: metrics.jsonl, TensorBoard, one progress line, and a few records."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exedit.runtime import files
from exedit.training.board import Board
from exedit.training.goodput import Goodput


class NotFinite(ValueError):
  """Too many steps in a row whose loss or gradient was not finite."""


class Log:
  """Takes each step's metrics and reads them one step late, so that the devices never wait.

  Logged are the steps that `log_every` divides and the last one: which steps, and what of the
  run's course they say, does not depend on how often it was restarted. `start` is the step that was
  restored; what an earlier process logged beyond it is dropped.

  flops: model FLOPs of one step. peak: FLOP/s of all devices together. hours: where the run's time
  is booked. All may be None.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    steps: int,
    batch_size: int,
    start: int = 0,
    log_every: int = 100,
    max_bad_steps: int = 10,
    flops: float | None = None,
    peak: float | None = None,
    hours: Goodput | None = None,
  ):
    self.hours = hours
    self.steps, self.batch_size, self.log_every = steps, batch_size, log_every
    self.max_bad_steps, self.flops, self.peak = max_bad_steps, flops, peak
    self.progress = Progress(steps, batch_size)
    self._pending: tuple[int, Mapping[str, Any], float] | None = None
    self._clock: Clock | None = None
    self._file = self._board = None
    if jax.process_index() == 0:
      path = Path(workdir) / 'metrics.jsonl'
      drop_after(path, start)
      self._file = open(path, 'a', encoding='utf-8')
      self._board = Board(os.path.join(workdir, 'tb'), start)

  def push(self, step: int, metrics: Mapping[str, Any], waited: float) -> None:
    """Hand over the metrics of the step just started; `waited`: seconds spent without data."""
    self.flush()
    self._pending = (step, metrics, waited)

  def flush(self) -> None:
    """Read and write what was handed over; waits for that step."""
    if self._pending is None:
      return
    (step, metrics, waited), self._pending = self._pending, None
    in_a_row = int(metrics['in_a_row'])
    clock = self._clock = self._clock or Clock(step, waited)
    clock.arrived()
    if self.hours is not None:
      self.hours.reached(step)
    if in_a_row >= self.max_bad_steps:
      raise NotFinite(
        f'loss or gradient was not finite in {in_a_row} steps in a row, up to step {step} (loss '
        f'{float(metrics["loss"])}, gradient norm {float(metrics["grad_norm"])}); those steps '
        'changed nothing: lower optimizer.lr, set optimizer.clip, or look at the data'
      )
    if step % self.log_every == 0 or step == self.steps:
      self._write(step, {**_plain(metrics), **self._speed(clock, step, waited)})
    if self.progress.due():
      self.progress.show(step, float(metrics['loss']), clock.steps_per_second(step))

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """A picture uint8 [h w 3] for TensorBoard."""
    if self._board is not None:
      self._board.image(step, name, picture)

  @contextlib.contextmanager
  def pause(self, what: str):
    """Time spent inside is not the steps' time, but that of `what`, a class of goodput."""
    start = time.perf_counter()
    with self.hours.spend(what) if self.hours is not None else contextlib.nullcontext():
      yield
    if self._clock is not None:
      self._clock.paused += time.perf_counter() - start

  def close(self) -> None:
    self.progress.end()
    for file in (self._file, self._board):
      if file is not None:
        with contextlib.suppress(OSError):  # a full disk has been said by whoever met it first
          file.close()

  def _speed(self, clock: 'Clock', step: int, waited: float) -> dict[str, float | None]:
    rate, share = clock.lap(step, waited)
    speed = rate and self.flops and rate * self.flops
    return dict(
      images_per_second=rate and rate * self.batch_size,
      data_wait=share,
      model_tflops=speed and speed / 1e12,
      mfu=speed and self.peak and speed / self.peak,
      goodput=self.hours and self.hours.share(),
    )

  def _write(self, step: int, values: Mapping[str, Any]) -> None:
    if self._file is None or self._board is None:
      return
    self._file.write(json.dumps({'step': step, **_finite(values)}) + '\n')
    self._file.flush()
    self._board.scalars(step, _scalars(values))


class Clock:
  """Steps per second and the share of time spent waiting for data, pauses left out.

  It starts when the first step arrives, so compilation is no part of it.
  """

  def __init__(self, step: int, waited: float):
    self.paused = 0.0
    self._now = time.perf_counter()
    self._first = self._last = (step, self._now, 0.0, waited)

  def arrived(self) -> None:
    self._now = time.perf_counter()

  def steps_per_second(self, step: int) -> float | None:
    """Since the last lap or, soon after it, since the start."""
    recent = step - self._last[0] >= 10
    return self._since(self._last if recent else self._first, step)

  def lap(self, step: int, waited: float) -> tuple[float | None, float | None]:
    """(steps per second, share of waiting) since the last lap; None where no step lies between."""
    rate = self._since(self._last, step)
    share = rate and (waited - self._last[3]) / ((step - self._last[0]) / rate)
    self._last = (step, self._now, self.paused, waited)
    return rate, share

  def _since(self, mark, step) -> float | None:
    seconds = self._now - mark[1] - (self.paused - mark[2])
    return (step - mark[0]) / seconds if step > mark[0] and seconds > 0 else None


class Progress:
  """One line: in place on a terminal, else a new one now and then. Only process 0 shows it."""

  def __init__(self, steps: int, batch_size: int, out=None, every: float | None = None):
    self.steps, self.batch_size = steps, batch_size
    self.out = out or sys.stdout
    self.terminal = self.out.isatty()
    self.every = (0.2 if self.terminal else 30.0) if every is None else every
    self.active = jax.process_index() == 0
    self._width, self._shown = 0, -math.inf

  def due(self) -> bool:
    return self.active and time.perf_counter() - self._shown >= self.every

  def show(self, step: int, loss: float, steps_per_second: float | None) -> None:
    parts = [f'step {step}/{self.steps}', f'loss {loss:.4g}']
    if steps_per_second:
      left = duration((self.steps - step) / steps_per_second)
      parts += [f'{steps_per_second * self.batch_size:.1f} img/s', f'{left} left']
    text = ' | '.join(parts)
    if self.terminal:
      self.out.write(f'\r{text:<{self._width}}')
      self._width = len(text)
    else:
      self.out.write(text + '\n')
    self.out.flush()
    self._shown = time.perf_counter()

  def say(self, text: str) -> None:
    """A line of its own that stays."""
    if self.active:
      self.end()
      print(text, file=self.out, flush=True)

  def end(self) -> None:
    """Leave the line as it stands."""
    if self.active and self.terminal and self._width:
      self.out.write('\n')
      self._width = 0


def drop_after(path: Path, step: int) -> None:
  """Drop the lines of a metrics file beyond a step, and a torn last one; atomic."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    with contextlib.suppress(ValueError, KeyError, TypeError):
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
  files.write_text(path, ''.join(kept))


def duration(seconds: float) -> str:
  """2:05:09 for 7509 seconds."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Device values as Python numbers and lists; timestep buckets as their means."""
  values = {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}
  if 'bucket_sum' in values:
    sums, counts = values.pop('bucket_sum'), values.pop('bucket_count')
    means = [float(s) / int(n) if n else None for s, n in zip(sums, counts)]
    values |= dict(loss_by_timestep=means, count_by_timestep=counts)
  first = {name: values.pop(name) for name in ('loss', 'grad_norm', 'lr') if name in values}
  return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in (first | values).items()}


def _finite(value: Any) -> Any:
  """JSON knows no NaN: not-finite numbers become null."""
  if isinstance(value, Mapping):
    return {name: _finite(v) for name, v in value.items()}
  if isinstance(value, list):
    return [_finite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values: Mapping[str, Any]):
  """(name, number) for TensorBoard; a list's parts are numbered."""
  for name, value in values.items():
    items = enumerate(value) if isinstance(value, list) else [(None, value)]
    for i, number in items:
      if number is not None:
        yield (name if i is None else f'{name}/{i}'), number
