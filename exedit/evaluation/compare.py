"""Compares two results of one benchmark edit by edit: a table, and a page with both pictures."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from exedit.evaluation import benchmark, coco_ee, make_edits, pages
from exedit.evaluation.benchmark import Scored
from exedit.evaluation.pages import number
from exedit.metrics import confidence
from exedit.runtime.errors import UserError

COLUMNS = ('metric', 'first', 'second', 'difference', '95 % interval', 'p', 'n', '')
SYSTEMS = ('first', 'second')


def compare(first: str, second: str) -> dict[str, Any]:
  """For each metric return the mean difference first - second, its interval and p.

  A pair of scores counts if both are defined (see `confidence.paired`). A metric that only one file
  has, or that was measured with other networks, mixtures or real images, has a `note` instead.

  Raises:
    UserError: for files that are not results of a benchmark, or results of different benchmarks.
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
  """Read the results.json of a benchmark; raise UserError for any other file."""
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
  both = _pairs(name, (a, b))
  if len(both) < 2:
    return dict(note=f'{len(both)} edits have it in both: a paired test needs 2')
  one, other = (np.array(scores, np.float64) for scores in zip(*both.values()))
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


def _pairs(name, results):
  """{id: scores of both} of the edits that have a score in both results."""
  scores = [{edit['id']: edit['metrics'].get(name) for edit in r['edits']} for r in results]
  pairs = {i: (score, scores[1].get(i)) for i, score in scores[0].items()}
  return {i: pair for i, pair in pairs.items() if None not in pair}


def table(comparison: Mapping[str, Any]) -> str:
  """Return the comparison as text."""
  head = [f'first:  {comparison["first"]}', f'second: {comparison["second"]}', '']
  return '\n'.join([*head, *pages.text_table(COLUMNS, _rows(comparison))])


def _rows(comparison):
  for name, metric in comparison['metrics'].items():
    if 'difference' not in metric:
      yield (name, *['-'] * 6, metric['note'])
      continue
    yield (
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
  """Say which system is better if the interval excludes 0."""
  if metric['low'] <= 0 <= metric['high']:
    return 'no difference shown'
  higher = 'first' if metric['difference'] > 0 else 'second'
  lower = 'second' if higher == 'first' else 'first'
  return f'{higher if metric["better"] == "higher" else lower} is better'


# The page


def write(output: str, comparison: Mapping[str, Any]) -> str:
  """Write index.html and its pictures into a folder; return the page's path.

  comparison: the result of `compare`, on the machine that has the pictures.
  Raises:
    UserError: if the benchmark or a picture is gone or has changed since it was scored; for a
      folder that holds an evaluation, because the page would replace its own.
  """
  if os.path.exists(os.path.join(output, coco_ee.RESULTS)):
    raise UserError(f'{output} holds an evaluation with a page of its own: name another --output')
  paths = [comparison[name] for name in SYSTEMS]
  results = [read(path) for path in paths]
  scored = _pictures(paths, results)
  ends = {name: found for name in comparison['metrics'] if (found := _ends(name, results, paths))}
  ids = [edit['id'] for edit in results[0]['edits']]
  first = ids[: pages.SHOWN]
  root, layout = results[0]['benchmark']['root'], benchmark.layout_of(results[0]['benchmark'])
  reader = benchmark.Reader(layout.open(results[0]['benchmark']), layout)
  kinds = (*layout.shown, *SYSTEMS)
  about = f'The first {len(first)} of {len(ids)}. The source with the region of the edit in pink, '
  about += ''.join(f'the {kind}, ' for kind in layout.shown[1:]) + f'{paths[0]}, {paths[1]}.'
  figures = {'': [pages.figure(i, kinds, str(i)) for i in first]}
  sections = [pages.Section('Edits', about, figures)]
  for name, sides in ends.items():
    pairs = _pairs(name, results)
    caption = lambda i, pairs=pairs: f'{i}: {", ".join(map(number, pairs[i]))}'
    figures = {t: [pages.figure(i, kinds, caption(i)) for i in s] for t, s in sides.items()}
    sections.append(pages.Section(name, '', figures))
  head = [f'{len(ids)} edits of {root}, paired']
  title = f'{paths[0]} against {paths[1]}'
  page = pages.write(output, title, head, COLUMNS, _rows(comparison), sections)  # marks the folder
  for i in {*first, *(i for sides in ends.values() for side in sides.values() for i in side)}:
    edit, second = reader(scored[0][i]), reader.result(scored[1][i])
    shown = {kind: edit[kind] for kind in layout.shown} | dict(source=pages.tinted(edit))
    pages.save_pictures(output, i, shown | dict(first=edit['result'], second=second))
  return page


def _pictures(paths: Sequence[str], results: Sequence[dict]) -> list[dict[int, Scored]]:
  """Find both systems' pictures by the ids of their edits, and check that they have not changed."""
  root, layout = results[0]['benchmark']['root'], benchmark.layout_of(results[0]['benchmark'])
  edits = benchmark.survey(layout.open(results[0]['benchmark']))
  if benchmark.digest(edits) != results[0]['benchmark']['sha256']:
    raise UserError(f'{root} is no longer the benchmark that was scored: score it again')
  found = []
  for path, result in zip(paths, results, strict=True):
    folder = result.get('pictures') or make_edits.folder(os.path.dirname(path) or '.')
    scored = {item.edit.id: item for item in benchmark.results(edits, folder, layout)}
    for edit in result['edits']:
      if scored[edit['id']].sha256 != edit.get('sha256'):
        raise UserError(f'{scored[edit["id"]].path} is not what {path} scored: score it again')
    found.append(scored)
  return found


def _ends(name, results, paths) -> dict[str, list[int]]:
  """{heading: ids} of the edits in which either system is ahead by the most."""
  metric = results[0]['metrics'].get(name) or results[1]['metrics'][name]
  sign = 1 if metric['better'] == 'higher' else -1
  ahead = {i: sign * (one - other) for i, (one, other) in _pairs(name, results).items()}
  order = sorted(ahead, key=lambda i: ahead[i], reverse=True)
  sides = (
    [i for i in order[: pages.EXTREMES] if ahead[i] > pages.ALIKE],
    [i for i in order[: -pages.EXTREMES - 1 : -1] if ahead[i] < -pages.ALIKE],
  )
  return {f'{path} ahead by the most': side for path, side in zip(paths, sides) if side}
