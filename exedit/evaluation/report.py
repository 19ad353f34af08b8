"""The table and the page of an evaluation: each number with n, pictures, best and worst edits."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exedit.evaluation import pages
from exedit.evaluation.benchmark import Reader, Scored
from exedit.evaluation.pages import number
from exedit.runtime import files

COLUMNS = ('metric', 'value', '95 % interval', 'n', 'better', '')
ABOUT_EDITS = (
  'The source with the region of the edit in pink, {}the result (click it for the whole picture)'
  " and the edit's id."
)
ABOUT_SCORES = "Under each edit: its id and its own score; the metric's value is the scores' mean."


def table(results: Mapping[str, Any]) -> str:
  """Return the summary as text."""
  rows = (_cells(name, metric) + (metric['note'],) for name, metric in results['metrics'].items())
  lines = [*_head(results), '', *pages.text_table(COLUMNS, rows)]
  for more in results.get('tables', ()):
    lines += ['', more['title'], more['about'], *pages.text_table(more['columns'], more['rows'])]
  return '\n'.join(lines)


def _head(results):
  bench = results['benchmark']
  yield f'{bench["edits"]} edits of {bench["root"]} (sha256 {bench["sha256"][:12]})'
  if 'weights' in results:
    w, s = results['weights'], dict(results['sampling'])
    step = '' if w['step'] is None else f' at step {w["step"]}'
    yield f'{w["path"]}{step} (sha256 {w["sha256"][:12]})'
    paste, truncate = s.pop('paste', None), s.pop('truncate', False)
    said = [f'{name} {value}' for name, value in s.items()]
    if paste is not None:
      said.append('pasted into the source' if paste else 'raw decode')
    said += ['rounded down'] if truncate else []
    yield ', '.join(said) or 'all settings by default'
    if 'evaluations' in results:
      yield results['evaluations']
  else:
    yield f'pictures of {results["pictures"]}'
  if results.get('reference'):
    real = results['reference']
    yield f'{real["images"]} real images of {real["root"]} (sha256 {real["sha256"][:12]})'


def _cells(name, metric):
  value, low, high = (metric[key] for key in ('value', 'low', 'high'))
  return (
    name,
    '-' if value is None else number(value),
    '-' if low is None else f'{number(low)} to {number(high)}',
    str(metric['n']),
    metric['better'],
  )


def write(output: str, results: Mapping[str, Any], scored: Sequence[Scored], reader: Reader) -> str:
  """Write index.html and its pictures into the folder; return the page's path."""
  ends = {name: found for name in results['metrics'] if (found := _ends(name, results))}
  kinds = (*reader.layout.shown, 'result')
  first = range(min(pages.SHOWN, len(scored)))
  written = set()
  for i in sorted({*first, *(i for pair in ends.values() for side in pair for i in side)}):
    edit = reader(scored[i])
    shown = {kind: edit[kind] for kind in kinds} | dict(source=pages.tinted(edit))
    written |= pages.save_pictures(output, scored[i].edit.id, shown)
  folder = Path(output) / pages.PICTURES
  for old in set(files.listing(folder)) - written:
    if pages.is_picture(old):
      os.remove(folder / old)

  def figure(i, name=None):
    score = f': {number(results["edits"][i]["metrics"][name])}' if name else ''
    full = Path(os.path.relpath(scored[i].path, output)).as_posix()
    edit_id = scored[i].edit.id
    return pages.figure(edit_id, kinds, f'{edit_id}{score}', dict(result=full))

  shown = '' if len(first) == len(scored) else f'The first {len(first)} of {len(scored)}. '
  sections = [
    pages.Section(more['title'], more['about'], {}, more['columns'], more['rows'])
    for more in results.get('tables', ())
  ]
  shown += ABOUT_EDITS.format(''.join(f'the {kind}, ' for kind in kinds[1:-1]))
  sections.append(pages.Section('Edits', shown, {'': [figure(i) for i in first]}))
  for name, pair in ends.items():
    metric = results['metrics'][name]
    about = f'{metric["about"]}; {metric["better"]} is better. {ABOUT_SCORES}'
    sides = zip(('Best', 'Worst'), pair, strict=True)
    figures = {title: [figure(i, name) for i in side] for title, side in sides}
    sections.append(pages.Section(name, about, figures))
  rows = [
    (*_cells(name, metric), '\n'.join(filter(None, (metric['about'], metric['note']))))
    for name, metric in results['metrics'].items()
  ]
  who = results['weights']['path'] if 'weights' in results else results['pictures']
  title = f'{who} on {results["benchmark"]["root"]}'
  return pages.write(output, title, _head(results), COLUMNS, rows, sections)


def _ends(name, results):
  """Return the positions of a metric's (best, worst) edits, or None if all scores are equal."""
  metric = results['metrics'][name]
  values = [edit['metrics'].get(name) for edit in results['edits']]
  known = [i for i, value in enumerate(values) if value is not None]
  if not known or max(values[i] for i in known) - min(values[i] for i in known) < pages.ALIKE:
    return None
  order = sorted(known, key=lambda i: values[i], reverse=metric['better'] == 'higher')
  count = min(pages.EXTREMES, len(order) // 2)
  return order[:count], order[::-1][:count]
