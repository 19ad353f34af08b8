"""What Custom-Edit's comparison writes: a table of the curves, their figure and a page."""

from collections.abc import Mapping, Sequence
from typing import Any

from exedit.evaluation import pages, plot, published
from exedit.runtime import lists

FIGURE = 'figure.svg'
SCORES = dict(
  source='similarity to the source, CLIP',
  reference='similarity to the references, CLIP',
  text='similarity to the target prompt, CLIP',
  identity='similarity to the references, DINO',
)
POINTS = ('method', 'strength', 'n', *SCORES, '')
COMPARED = ('similarity to the references', 'method', 'against', 'value', '95 % interval', 'n', '')


def table(results: Mapping[str, Any]) -> str:
  """Returns the points and the comparisons as text."""
  points = pages.text_table(POINTS, point_rows(results['points']))
  comparisons = pages.text_table(COMPARED, compared_rows(results['comparisons']))
  return '\n'.join([*points, '', *comparisons])


def as_csv(points: Sequence[Mapping[str, Any]]) -> str:
  """One row per method and strength: each score's mean and the ends of its interval."""
  parts, rows = ('value', 'low', 'high'), []
  scores = [f'{n}_{p}'.removesuffix('_value') for n in SCORES for p in parts]
  for point in points:
    cells = [point.get(name, {}).get(part) for name in SCORES for part in parts]
    numbers = ['' if value is None else f'{value:.6g}' for value in cells]
    rows.append([point['method'], f'{point["strength"]:g}', point['n'], *numbers])
  return lists.as_csv(['method', 'strength', 'n', *scores], rows)


def figure(points: Sequence[Mapping[str, Any]]) -> str:
  """The paper's figure 4 with these points, and with its own points dashed."""
  ours: dict[str, list[plot.Point]] = {}
  for point in points:
    x, y = point['source'], point['reference']
    ends = lambda score: () if score['low'] is None else (score['low'], score['high'])
    place = plot.Point(x['value'], y['value'], ends(x), ends(y))
    ours.setdefault(point['method'], []).append(place)
  theirs = {
    f'{name} (paper)': [plot.Point(*xy) for xy in curve]
    for name, curve in published.FIGURE_4.items()
  }
  return plot.svg(ours, theirs, SCORES['source'], SCORES['reference'])


def write_page(output: str, results: Mapping[str, Any]) -> str:
  """Write index.html; returns its path."""
  plotted = f'<img src="{FIGURE}" alt="the curves" style="width:100%;height:auto">'
  theirs = [
    (name, *(f'{x:g}, {y:g}' for x, y in curve), '') for name, curve in published.FIGURE_4.items()
  ]
  sections = [
    pages.Section('Figure', 'Points are means, with 95 % intervals.', {'': [plotted]}),
    pages.Section(
      'Compared',
      'Intervals resample the edits.',
      {},
      COMPARED,
      compared_rows(results['comparisons']),
    ),
    pages.Section(
      "The paper's points",
      'Source, reference; read off figure 4 of arXiv 2305.15779, +-0.2.',
      {},
      ('method', *(f'point {i}' for i in range(1, 5)), ''),
      theirs,
    ),
  ]
  head = [f'{results["benchmark"]["edits"]} edits of {results["benchmark"]["root"]}']
  return pages.write(output, 'Custom-Edit', head, POINTS, point_rows(results['points']), sections)


def point_rows(points):
  cell = lambda score: '-' if score is None else pages.number(score['value']) + _interval(score)
  return [
    (p['method'], f'{p["strength"]:g}', str(p['n']), *(cell(p.get(n)) for n in SCORES), '')
    for p in points
  ]


def compared_rows(comparisons):
  return [
    (
      c['what'],
      c['method'],
      c['against'],
      '-'
      if c['value'] is None
      else (f'{c["value"]:+.3g}' if c['against'] else f'{c["value"]:.4g}'),
      _interval(c).strip(' []'),
      str(c['n']),
      c['note'],
    )
    for c in comparisons
  ]


def _interval(score):
  return '' if score['low'] is None else f' [{score["low"]:.4g}, {score["high"]:.4g}]'
