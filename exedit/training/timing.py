"""Where the time of a run goes: seconds by activity, and steps per second."""

import contextlib
import time
from collections.abc import Iterator

ACTIVITIES = {  # name: its words in the last line of a run
  'productive': 'productive',
  'compile': 'compile',
  'data': 'data wait',
  'checkpoint': 'checkpoints',
  'edits': 'edits',
  'startup': 'start-up',
}


class Account:
  """Counts every second of this start, from `began` on, under one activity.

  began: on the clock of time.perf_counter. Time counts as 'startup' until `loop_begins`, and from
  then on as 'productive', except inside `spend`.
  """

  def __init__(self, began: float):
    self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
    self._since, self._activity = began, 'startup'

  def loop_begins(self) -> None:
    """Ends the start-up."""
    self._switch('productive')

  @contextlib.contextmanager
  def spend(self, activity: str) -> Iterator[None]:
    """Counts the time inside under this activity alone."""
    before = self._switch(activity)
    try:
      yield
    finally:
      self._switch(before)

  def share(self) -> float | None:
    """The productive share of the time of this start, 0 to 1."""
    self._switch(self._activity)
    whole = sum(self.seconds.values())
    return self.seconds['productive'] / whole if whole > 0 else None

  def line(self) -> str:
    """'goodput 87.5 % of 80.0 s: productive 70.0 s, compile 5.0 s, ...'"""
    share = 100 * (self.share() or 0.0)
    parts = ', '.join(f'{words} {span(self.seconds[name])}' for name, words in ACTIVITIES.items())
    return f'goodput {share:.1f} % of {span(sum(self.seconds.values()))}: {parts}'

  def _switch(self, activity: str) -> str:
    now, before = time.perf_counter(), self._activity
    self.seconds[before] += now - self._since
    self._since, self._activity = now, activity
    return before


class Clock:
  """Steps per second, and the share of the time spent waiting for data; pauses do not count.

  It starts when the first step has arrived, so compilation does not count either.
  """

  def __init__(self, step: int, waited: float):
    self.paused = 0.0
    self._now = time.perf_counter()
    self._first = self._last = (step, self._now, 0.0, waited)

  def arrived(self) -> None:
    """Notes that the metrics of a step have arrived."""
    self._now = time.perf_counter()

  def steps_per_second(self, step: int) -> float | None:
    """The rate since the last lap; since the start if that is less than ten steps ago."""
    recent = step - self._last[0] >= 10
    return self._since(self._last if recent else self._first, step)

  def lap(self, step: int, waited: float) -> tuple[float | None, float | None]:
    """(steps per second, share of waiting) since the last lap; None if no step lies between."""
    rate = self._since(self._last, step)
    share = rate and (waited - self._last[3]) / ((step - self._last[0]) / rate)
    self._last = (step, self._now, self.paused, waited)
    return rate, share

  def _since(self, mark, step) -> float | None:
    seconds = self._now - mark[1] - (self.paused - mark[2])
    return (step - mark[0]) / seconds if step > mark[0] and seconds > 0 else None


def duration(seconds: float) -> str:
  """2:05:09 for 7509 seconds."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'


def span(seconds: float) -> str:
  """12.3 s, and 2:05:09 from 100 seconds on."""
  return f'{seconds:.1f} s' if seconds < 100 else duration(float(round(seconds)))
