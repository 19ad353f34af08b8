"""Progress bars: one way to show them in every command."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

TERMINAL, ELSEWHERE = 0.1, 10.0  # seconds between two lines


class _Lines:
  """Standard error for tqdm, where each drawing is a line instead of replacing the one before."""

  @property
  def encoding(self) -> str:
    """What tqdm may draw with."""
    return getattr(sys.stderr, 'encoding', None) or 'ascii'

  def write(self, text: str) -> None:
    if text.strip():
      print(text.strip(), file=sys.stderr)

  def flush(self) -> None:
    sys.stderr.flush()


def bar(
  items: Iterable[Any] | None = None,
  what: str | None = None,
  *,
  total: int | None = None,
  unit: str = 'it',
  process: int = 0,
  **options: Any,
) -> tqdm:
  """A tqdm bar on stderr: over `items`, or moved by `.update(n)` inside a `with` block.

  It is drawn every 0.1 s on a terminal. Elsewhere, for example in a log file, it is a line of its
  own every 10 s.

  what: the words before the bar. total: the number of units, if `items` has no length. process: the
  index of this process; only process 0 shows the bar. options: tqdm's own (`initial`, `leave`,
  `unit_scale`, ...).
  """
  terminal = sys.stderr.isatty()
  interval = TERMINAL if terminal else ELSEWHERE
  return tqdm(
    items,
    desc=what,
    total=total,
    unit=unit,
    disable=process != 0,
    file=None if terminal else _Lines(),
    mininterval=interval,
    maxinterval=max(interval, 10.0),
    **options,
  )
