"""Plan one batch size, or find the largest batch size that fits."""

import contextlib
import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exedit.planning import compile_step, report
from exedit.planning.topology import Topology
from exedit.runtime import progress

MOST = 4096  # images per chip; a search goes no further

Config = Mapping[str, Any]
Tick = Callable[[str], None]


def plan(
  config: Config,
  where: Topology,
  *,
  images: int,
  search: bool = False,
  compiled: Callable[..., compile_step.Findings] = compile_step.cached_compile,
) -> report.Report:
  """The report for the config's batch size, or with `search` for the largest one that fits.

  Args:
    config: the settings of a training run.
    images: the number of images of the whole run.
    search: start with the config's batch size, but find the largest.
    compiled: called as compiled(config, topology, tick=tick).
  """
  rows = where.size * config['accumulate']  # a batch must be a multiple of this number
  tried: list[dict[str, Any]] = []

  def attempt(batch_size: int) -> compile_step.Findings:
    with status(f'batch {batch_size} on {where}{_outlook(tried, rows)}') as tick:
      found = compiled({**config, 'batch_size': batch_size}, str(where), tick=tick)
    spent = 0.0 if found['cached'] else sum(found['seconds'].values())
    needs = found['memory']['peak'] if found['fits'] else found['needs']
    tried.append(dict(batch_size=batch_size, fits=found['fits'], seconds=spent, bytes=needs))
    return found

  if not search:
    return report.make(config, where, attempt(config['batch_size']), images)
  results: dict[int, compile_step.Findings] = {}

  def fits(per_row: int) -> bool:
    results[per_row] = attempt(per_row * rows)
    return results[per_row]['fits']

  # If nothing fits, the report is about the smallest batch.
  chosen = largest(fits, max(1, config['batch_size'] // rows)) or 1
  config = {**config, 'batch_size': chosen * rows}
  return {**report.make(config, where, results[chosen], images), 'search': tried}


def largest(fits: Callable[[int], bool], start: int, most: int = MOST) -> int:
  """The largest n up to `most` that fits, or 0: it doubles n, then halves the gap."""
  low, high, n = 0, most + 1, min(start, most)
  while high - low > 1:
    if fits(n):
      low = n
    else:
      high = n
    n = min(2 * low, most) if high > most else (low + high) // 2
  return low


@contextlib.contextmanager
def status(what: str) -> Iterator[Tick]:
  """A line with the elapsed time, shown from the first call of tick(current activity) on."""
  line, shown = None, ''
  with contextlib.ExitStack() as stack:

    def tick(doing: str) -> None:
      nonlocal line, shown
      if line is None:
        line = stack.enter_context(progress.bar(what=what, bar_format='{desc}, {elapsed}'))
      line.set_description_str(f'{what}: {doing}', refresh=doing != shown)
      line.update(0)
      shown = doing

    yield tick


def _outlook(tried: list[dict[str, Any]], rows: int) -> str:
  """How many attempts a search still needs, as far as that is known."""
  if not tried:
    return ''
  spent = [one['seconds'] for one in tried if one['seconds']]
  mean = datetime.timedelta(seconds=round(sum(spent) / len(spent))) if spent else None
  each = f' of about {mean}' if spent else ''
  fit = max((one['batch_size'] // rows for one in tried if one['fits']), default=0)
  not_fit = min((one['batch_size'] // rows for one in tried if not one['fits']), default=None)
  left = f'at most {(not_fit - fit - 1).bit_length()} more' if not_fit else 'more to come'
  return f' (try {len(tried) + 1}, {left}{each})'
