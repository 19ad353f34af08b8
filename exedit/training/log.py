"""What a run writes while it trains: metrics.jsonl, TensorBoard's file, and a progress line."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.training.board import Board
from exedit.training.timing import Account, Clock, duration
from exedit.training.workdir import METRICS


class NotFinite(UserError):
  """Too many steps in a row had no finite loss or gradient."""


class Log:
  """Takes the metrics of each step and reads them one step later, so that the devices never wait.

  It writes the steps that `log_every` divides and the last one; restarts do not change which. It
  drops what an earlier process logged after `start`, the step that was restored.

  flops: model FLOPs of one step. peak: peak FLOP/s of all devices together. account: the time of
  this start.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    steps: int,
    batch_size: int,
    start: int = 0,
    log_every: int = 100,
    max_bad_steps: int = 10,
    flops: float | None = None,
    peak: float | None = None,
    account: Account | None = None,
  ):
    self.account = account or Account(time.perf_counter())
    self.steps, self.batch_size, self.log_every = steps, batch_size, log_every
    self.max_bad_steps, self.flops, self.peak = max_bad_steps, flops, peak
    self.progress = Progress(steps, batch_size)
    self._pending: tuple[int, Mapping[str, Any], float] | None = None
    self._clock: Clock | None = None
    self._file = self._board = None
    if jax.process_index() == 0:
      path = Path(folder) / METRICS
      drop_after(path, start)
      self._file = open(path, 'a', encoding='utf-8')
      self._board = Board(os.path.join(folder, 'tb'), start)

  def push(self, step: int, metrics: Mapping[str, Any], waited: float) -> None:
    """Takes the metrics of the step just started; waited: seconds spent waiting for data so far."""
    self.flush()
    self._pending = (step, metrics, waited)

  def flush(self) -> None:
    """Reads and writes the metrics of the last step, and waits for that step.

    Raises:
      NotFinite: after `max_bad_steps` steps in a row without finite loss and gradient.
    """
    if self._pending is None:
      return
    (step, metrics, waited), self._pending = self._pending, None
    in_a_row = int(metrics['in_a_row'])
    clock = self._clock = self._clock or Clock(step, waited)
    clock.arrived()
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

  def values(self, step: int, values: Mapping[str, float]) -> None:
    """Writes what was measured after a step, as a line of its own."""
    self._write(step, values)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Shows a picture, uint8 [h w 3], in TensorBoard."""
    if self._board is not None:
      self._board.image(step, name, picture)

  @contextlib.contextmanager
  def pause(self, activity: str) -> Iterator[None]:
    """Waits for the last step; the time inside belongs to this activity and not to the steps."""
    self.flush()
    start = time.perf_counter()
    with self.account.spend(activity):
      yield
    if self._clock is not None:
      self._clock.paused += time.perf_counter() - start

  def close(self) -> None:
    """Closes the files."""
    self.progress.end()
    for file in (self._file, self._board):
      if file is not None:
        with contextlib.suppress(OSError):  # whoever met a full disk first has reported it
          file.close()

  def _speed(self, clock: Clock, step: int, waited: float) -> dict[str, float | None]:
    rate, share = clock.lap(step, waited)
    speed = rate and self.flops and rate * self.flops
    return dict(
      images_per_second=rate and rate * self.batch_size,
      data_wait=share,
      model_tflops=speed and speed / 1e12,
      mfu=speed and self.peak and speed / self.peak,
      goodput=self.account.share(),
    )

  def _write(self, step: int, values: Mapping[str, Any]) -> None:
    if self._file is None or self._board is None:
      return
    self._file.write(json.dumps({'step': step, **_finite(values)}) + '\n')
    self._file.flush()
    self._board.scalars(step, _scalars(values))


class Progress:
  """Shows the progress on one line of a terminal, elsewhere on a new line every 30 s.

  tqdm would not end its lines in a log file, and does not show the loss. Only process 0 shows it.
  """

  def __init__(self, steps: int, batch_size: int, out=None, every: float | None = None):
    self.steps, self.batch_size = steps, batch_size
    self.out = out or sys.stdout
    self.terminal = self.out.isatty()
    self.every = (0.2 if self.terminal else 30.0) if every is None else every
    self.active = jax.process_index() == 0
    self._width, self._shown = 0, -math.inf

  def due(self) -> bool:
    """Whether it is time to show the next line."""
    return self.active and time.perf_counter() - self._shown >= self.every

  def show(self, step: int, loss: float, steps_per_second: float | None) -> None:
    """Shows the state after a step."""
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

  def end(self) -> None:
    """Ends the line on a terminal."""
    if self.active and self.terminal and self._width:
      self.out.write('\n')
      self._width = 0


def say(text: str) -> None:
  """Prints a line; only process 0 does."""
  if jax.process_index() == 0:
    print(text, flush=True)


def drop_after(path: Path, step: int) -> None:
  """Removes the lines of a metrics file after a step, and an incomplete last one."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines():
    with contextlib.suppress(ValueError, KeyError, TypeError):
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
  files.write_text(path, ''.join(kept))


def _plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Converts device values to Python numbers and lists, and timestep buckets to their means."""
  values = {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}
  if 'bucket_sum' in values:
    sums, counts = values.pop('bucket_sum'), values.pop('bucket_count')
    means = [float(s) / int(n) if n else None for s, n in zip(sums, counts)]
    values |= dict(loss_by_timestep=means, count_by_timestep=counts)
  first = {name: values.pop(name) for name in ('loss', 'grad_norm', 'lr') if name in values}
  return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in (first | values).items()}


def _finite(value: Any) -> Any:
  """Replaces numbers that are not finite by None, because JSON has no NaN."""
  if isinstance(value, Mapping):
    return {name: _finite(v) for name, v in value.items()}
  if isinstance(value, list):
    return [_finite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(values: Mapping[str, Any]):
  """Yields (name, number) for TensorBoard; the parts of a list are numbered."""
  for name, value in values.items():
    items = enumerate(value) if isinstance(value, list) else [(None, value)]
    for i, number in items:
      if number is not None:
        yield (name if i is None else f'{name}/{i}'), number
