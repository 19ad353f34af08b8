"""Two systems' pictures of one benchmark on one page: the paired table, and where they differ."""

import html
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exedit import images
from exedit.evaluation import benchmark, coco_ee, compare, make_edits, report
from exedit.evaluation.benchmark import Scored
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime import files
from exedit.runtime.errors import UserError

SYSTEMS = ('first', 'second')
KINDS = ('source', 'exemplar', *SYSTEMS)


def write(output: str, comparison: Mapping[str, Any]) -> str:
  """Write index.html and its pictures into a folder; returns the page's path.

  comparison: what `compare.compare` found, on the machine that has the pictures.
  Raises:
    UserError: where the benchmark or a picture is gone, or is not what was scored; for a folder
      that holds an evaluation, whose page this would replace.
  """
  if os.path.exists(os.path.join(output, coco_ee.RESULTS)):
    raise UserError(f'{output} holds an evaluation with a page of its own: name another --output')
  paths = [comparison[name] for name in SYSTEMS]
  results = [compare.read(path) for path in paths]
  scored = _pictures(paths, results)
  ranked = {name: _extremes(name, results) for name in comparison['metrics']}
  ids = [edit['id'] for edit in results[0]['edits']]
  shown = dict.fromkeys(ids[: report.SHOWN])
  shown |= dict.fromkeys(i for sides in ranked.values() for side in sides for i in side)
  reader = benchmark.Reader(Bench(results[0]['benchmark']['root'], exemplar_size=None))
  folder = Path(output) / report.PICTURES
  folder.mkdir(parents=True, exist_ok=True)
  for i in shown:
    first, second = (pictures[i] for pictures in scored)
    edit = reader(first)
    drawn = (report.tinted(edit), edit['exemplar'], edit['result'], reader.result(second))
    for kind, pixels in zip(KINDS, drawn, strict=True):
      images.save(report.small(pixels), folder / f'{i:012d}_{kind}.png')
  page = os.path.join(output, report.PAGE)
  files.write_text(page, '\n'.join(_parts(comparison, results, ranked, ids[: report.SHOWN])))
  return page


def _pictures(paths: Sequence[str], results: Sequence[dict]) -> list[dict[int, Scored]]:
  """The pictures of both by the ids of their edits, the same bytes as when they were scored."""
  root = results[0]['benchmark']['root']
  edits = benchmark.survey(Bench(root, exemplar_size=None))
  if benchmark.digest(edits) != results[0]['benchmark']['sha256']:
    raise UserError(f'{root} is no longer the benchmark that was scored: score it again')
  found = []
  for path, result in zip(paths, results, strict=True):
    folder = result.get('pictures') or make_edits.folder(os.path.dirname(path) or '.')
    scored = {item.edit.id: item for item in benchmark.results(edits, folder)}
    for edit in result['edits']:
      if scored[edit['id']].sha256 != edit.get('sha256'):
        raise UserError(f'{scored[edit["id"]].path} is not what {path} scored: score it again')
    found.append(scored)
  return found


def _extremes(name, results) -> list[list[int]]:
  """The edits in which the first is ahead by the most, and the second."""
  scores = [{e['id']: e['metrics'].get(name) for e in result['edits']} for result in results]
  both = [i for i, x in scores[0].items() if x is not None and scores[1].get(i) is not None]
  metric = results[0]['metrics'].get(name) or results[1]['metrics'][name]
  sign = 1 if metric['better'] == 'higher' else -1
  ahead = {i: sign * (scores[0][i] - scores[1][i]) for i in both}
  order = sorted(both, key=lambda i: ahead[i], reverse=True)
  return [
    [i for i in order[: report.EXTREMES] if ahead[i] > report.ALIKE],
    [i for i in order[: -report.EXTREMES - 1 : -1] if ahead[i] < -report.ALIKE],
  ]


def _parts(comparison, results, ranked, ids) -> Iterator[str]:
  names = [html.escape(comparison[name]) for name in SYSTEMS]
  yield report.beginning(f'{names[0]} against {names[1]}')
  root = html.escape(results[0]['benchmark']['root'])
  yield f'<p class="head">{len(results[0]["edits"])} edits of {root}, paired</p>'
  yield '<table>'
  yield '<tr>' + ''.join(f'<th>{column}</th>' for column in compare.COLUMNS) + '</tr>'
  for name, metric in comparison['metrics'].items():
    first, *cells, note = (html.escape(cell) for cell in compare.cells(name, metric))
    if any(ranked[name]):
      first = f'<a href="#{first}">{first}</a>'
    cells = ''.join(f'<td class="n">{cell}</td>' for cell in cells)
    yield f'<tr><td>{first}</td>{cells}<td class="why">{note}</td></tr>'
  yield '</table>'
  figure = lambda i, name=None: _figure(results, i, name)
  shown = f'The first {len(ids)} of {len(results[0]["edits"])}. '
  yield f'<h2>Edits</h2><p>{shown}Source with what is repainted in pink, exemplar, {names[0]},'
  yield f' {names[1]}.</p>'
  yield report.row(figure(i) for i in ids)
  for name, sides in ranked.items():
    if not any(sides):
      continue
    yield f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>'
    for system, side in zip(names, sides, strict=True):
      if side:
        yield f'<h3>{system} ahead by the most</h3>'
        yield report.row(figure(i, name) for i in side)
  yield '</body></html>\n'


def _figure(results, i, name):
  shown = ''.join(
    f'<img src="{report.PICTURES}/{i:012d}_{kind}.png" alt="{kind} of {i}" loading="lazy">'
    for kind in KINDS
  )
  caption = str(i)
  if name is not None:
    edits = [next(e for e in result['edits'] if e['id'] == i) for result in results]
    caption += ': ' + ', '.join(report.number(edit['metrics'][name]) for edit in edits)
  return f'<figure>{shown}<figcaption>{caption}</figcaption></figure>'
