"""Two results files of one benchmark against each other: paired differences, metric by metric."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from exedit.evaluation.report import number
from exedit.metrics import confidence
from exedit.runtime.errors import UserError

COLUMNS = ('metric', 'first', 'second', 'difference', '95 % interval', 'p', 'n', '')


def compare(first: str, second: str) -> dict[str, Any]:
  """Mean difference first - second of each metric, its 95 % interval and p (confidence.paired).

  A pair of scores counts where both are defined. Metrics that only one file has, or that were
  measured with other networks, mixtures or real images, have a `note` instead.

  Raises:
    UserError: for files that are no results of a benchmark, or of different ones.
  """
  a, b = read(first), read(second)
  ours, theirs = a['benchmark'], b['benchmark']
  if ours['sha256'] != theirs['sha256']:
    raise UserError(
      f'{first} is of the benchmark {ours["root"]} (sha256 {ours["sha256"][:12]}, {ours["edits"]}'
      f' edits) but {second} of {theirs["root"]} (sha256 {theirs["sha256"][:12]},'
      f' {theirs["edits"]} edits): only results on the same edits can be compared'
    )
  names = [*a['metrics'], *(name for name in b['metrics'] if name not in a['metrics'])]
  return dict(first=first, second=second, metrics={name: _metric(a, b, name) for name in names})


def read(path: str) -> dict[str, Any]:
  """A results.json of a benchmark; UserError for any other file."""
  try:
    with open(path, encoding='utf-8') as file:
      results = json.load(file)
    if not str(results['format']).startswith('exedit bench '):
      raise KeyError('format')
    parts = [
      (results['benchmark'], ('sha256', 'root', 'edits')),
      *((metric, ('basis', 'value', 'better')) for metric in results['metrics'].values()),
      *((edit, ('id', 'metrics')) for edit in results['edits']),
    ]
    if absent := [name for part, names in parts for name in names if name not in part]:
      raise KeyError(absent[0])
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}') from None
  except (ValueError, KeyError, TypeError, AttributeError):
    raise UserError(
      f'{path} is no results.json of a benchmark: python -m exedit.evaluate'
      ' --config=configs/coco_ee.py writes one'
    ) from None
  return results


def _metric(a, b, name) -> dict[str, Any]:
  pair = [results['metrics'].get(name) for results in (a, b)]
  if None in pair or any(metric['value'] is None for metric in pair):
    return dict(note='not in both')
  if pair[0]['basis'] != pair[1]['basis']:
    return dict(note='measured with other networks, real images or another mixture')
  scores = [{edit['id']: edit['metrics'].get(name) for edit in r['edits']} for r in (a, b)]
  both = [i for i in scores[0] if scores[0][i] is not None and scores[1].get(i) is not None]
  if len(both) < 2:
    return dict(note=f'{len(both)} edits have it in both: a paired test needs 2')
  one, other = (np.array([column[i] for i in both], np.float64) for column in scores)
  found = confidence.paired(one, other)
  return dict(
    first=float(one.mean()),
    second=float(other.mean()),
    difference=found.difference,
    low=found.low,
    high=found.high,
    p=found.p,
    n=found.n,
    better=pair[0]['better'],
    note='',
  )


def table(comparison: Mapping[str, Any]) -> str:
  """The comparison for a person at a shell."""
  rows = [COLUMNS, *(cells(name, m) for name, m in comparison['metrics'].items())]
  widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
  lines = [f'first:  {comparison["first"]}', f'second: {comparison["second"]}', '']
  for row in rows:
    padded = [cell.ljust(width) for cell, width in zip(row, widths)]
    lines.append('  '.join([*padded, row[-1]]).rstrip())
  return '\n'.join(lines)


def cells(name: str, metric: Mapping[str, Any]) -> tuple[str, ...]:
  """One row of the table, in the order of COLUMNS."""
  if 'difference' not in metric:
    return (name, *['-'] * 6, metric['note'])
  return (
    name,
    number(metric['first']),
    number(metric['second']),
    f'{metric["difference"]:+.4g}',
    f'{metric["low"]:+.4g} to {metric["high"]:+.4g}',
    f'{metric["p"]:.3g}',
    str(metric['n']),
    _verdict(metric),
  )


def _verdict(metric):
  """Which one is better, where the interval says so."""
  if metric['low'] <= 0 <= metric['high']:
    return 'no difference shown'
  higher = 'first' if metric['difference'] > 0 else 'second'
  lower = 'second' if higher == 'first' else 'first'
  return f'{higher if metric["better"] == "higher" else lower} is better'
