"""Where the time of a run went, over all its starts: an account on disk, and one line of it.

`<workdir>/goodput.jsonl` only grows. Each line is the account of one start so far: seconds by class
and the step that was reached. So what a killed process did is known up to its last line.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

CLASSES = {  # the name in the file: the words of the line
  'productive': 'productive',
  'lost': 'lost work',
  'compile': 'compile',
  'data': 'data wait',
  'checkpoint': 'checkpoints',
  'edits': 'edits',
  'startup': 'start-up',
}


class Goodput:
  """Books every second since `began` under one class; process 0 writes.

  It starts under 'startup', which is also what closing takes. From `start` on time is 'productive'
  unless it is spent on something else.
  """

  def __init__(self, workdir: str | os.PathLike, began: float, every: float = 10.0):
    self.seconds = {name: 0.0 for name in CLASSES if name != 'lost'}
    self._since, self._now, self._every = began, 'startup', every
    self._path = Path(workdir) / 'goodput.jsonl'
    self._before = account([])
    self._step: int | None = None
    self._written = -math.inf
    self._file = None
    self.attempt = 1
    if jax.process_index() == 0:
      self.attempt = max([line['attempt'] for line in read(self._path)], default=0) + 1
      self._file = open(self._path, 'a', encoding='utf-8')
      if _torn(self._path):
        self._file.write('\n')
      self._write()

  def start(self, step: int) -> None:
    """The loop begins behind this step: what earlier starts did beyond it was in vain."""
    self._step = step
    self._switch('productive')
    self._write()
    if self._file is not None:
      mine = dict(attempt=self.attempt, step=step, seconds={})
      earlier = [line for line in read(self._path) if line['attempt'] != self.attempt]
      self._before = account([*earlier, mine])

  @contextlib.contextmanager
  def spend(self, what: str) -> Iterator[None]:
    """Time inside goes to this class alone, whatever was booked around it."""
    before = self._switch(what)
    try:
      yield
    finally:
      self._switch(before)
    if what == 'checkpoint':
      self._write()

  def reached(self, step: int) -> None:
    """A step is done; it is written now and then."""
    self._step = step
    if time.perf_counter() - self._written >= self._every:
      self._write()

  def share(self) -> float | None:
    """The productive part of the time of all starts, 0 to 1."""
    self._switch(self._now)
    mine = sum(self.seconds.values())
    whole = mine + sum(self._before.values())
    return (self.seconds['productive'] + self._before['productive']) / whole if whole > 0 else None

  def close(self) -> None:
    """Write the last line of this start."""
    with contextlib.suppress(OSError):  # a full disk has been said by whoever met it first
      self._write()
      if self._file is not None:
        self._file.close()
    self._file = None

  def line(self) -> str:
    """The account of all starts in words."""
    lines = read(self._path)
    return describe(account(lines), len({line['attempt'] for line in lines}))

  def _switch(self, what: str) -> str:
    now, before = time.perf_counter(), self._now
    self.seconds[before] += now - self._since
    self._since, self._now = now, what
    return before

  def _write(self) -> None:
    self._switch(self._now)
    self._written = time.perf_counter()
    if self._file is not None:
      seconds = {name: round(value, 6) for name, value in self.seconds.items()}
      line = dict(attempt=self.attempt, step=self._step, seconds=seconds, time=time.time())
      self._file.write(json.dumps(line) + '\n')
      self._file.flush()


def read(path: Path) -> list[dict[str, Any]]:
  """The lines of an account; what a kill has torn is left out."""
  try:
    text = path.read_text(encoding='utf-8', errors='replace')
  except FileNotFoundError:
    return []
  found = []
  for line in text.splitlines():
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
      entry = json.loads(line)
      seconds = {name: float(entry['seconds'].get(name, 0)) for name in CLASSES}
      step = None if entry['step'] is None else int(entry['step'])
      found.append(dict(attempt=int(entry['attempt']), step=step, seconds=seconds))
  return found


def account(lines: list[dict[str, Any]]) -> dict[str, float]:
  """Seconds of all starts by class; together they are the starts' time, each second once.

  Steps that a later start did again were lost by the earlier one. How long they took is read
  between its lines, of which each save has one.
  """
  total = dict.fromkeys(CLASSES, 0.0)
  kept_to = math.inf  # the last step of a start that no later one did again
  for attempt in sorted({line['attempt'] for line in lines}, reverse=True):
    mine = [line for line in lines if line['attempt'] == attempt]
    for name, value in mine[-1]['seconds'].items():
      total[name] += value
    done: dict[int, float] = {}  # productive seconds when a step was first reached
    for line in mine:
      if line['step'] is not None:
        done.setdefault(line['step'], line['seconds'].get('productive', 0.0))
    if done and kept_to < max(done):
      kept = float(np.interp(kept_to, list(done), list(done.values())))
      lost = mine[-1]['seconds']['productive'] - kept
      total['lost'] += lost
      total['productive'] -= lost
    kept_to = min([kept_to, *done])
  return total


def describe(total: Mapping[str, float], attempts: int) -> str:
  """'goodput 87.5 % of 80.0 s in 2 starts: productive 70.0 s, lost work 5.0 s, ...'"""
  whole = sum(total.values())
  parts = ', '.join(f'{words} {span(total[name])}' for name, words in CLASSES.items())
  share = 100 * total['productive'] / whole if whole > 0 else 0.0
  starts = '1 start' if attempts == 1 else f'{attempts} starts'
  return f'goodput {share:.1f} % of {span(whole)} in {starts}: {parts}'


def span(seconds: float) -> str:
  """12.3 s, and 2:05:09 from a hundred seconds on."""
  if seconds < 100:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{rest:02d}'


def _torn(path: Path) -> bool:
  """Whether the last line has no end."""
  with open(path, 'rb') as file:
    file.seek(0, os.SEEK_END)
    if file.tell() == 0:
      return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b'\n'
