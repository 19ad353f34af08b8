"""The page and the table of an evaluation: pictures, best and worst edits, each number with n."""

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from exedit import images
from exedit.evaluation.benchmark import Reader, Scored
from exedit.runtime import files

PAGE, PICTURES = 'index.html', 'page'
SHOWN = 24  # edits of the grid
EXTREMES = 6  # best and worst edits of a metric
ALIKE = 1e-9  # scores that differ by less show rounding
CELL = 256  # pixels: the longer side of a picture's file on the page
SHOWN_AT = 120  # pixels: of the square that it is shown in
TINT = np.array([255, 0, 255])  # of what is to be repainted
COLUMNS = ('metric', 'value', '95 % interval', 'n', 'better', '')


def table(results: Mapping[str, Any]) -> str:
  """The summary for a person at a shell."""
  rows = [COLUMNS, *(_cells(name, m) for name, m in results['metrics'].items())]
  widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
  lines = [*_head(results), '']
  for row in rows:
    cells = [cell.ljust(width) for cell, width in zip(row, widths)]
    lines.append('  '.join([*cells, row[-1]]).rstrip())
  return '\n'.join(lines)


def _head(results):
  bench = results['benchmark']
  yield f'{bench["edits"]} edits of {bench["root"]} (sha256 {bench["sha256"][:12]})'
  if 'weights' in results:
    w, s = results['weights'], results['sampling']
    step = '' if w['step'] is None else f' at step {w["step"]}'
    yield f'{w["path"]}{step} (sha256 {w["sha256"][:12]})'
    pasted = 'pasted into the source' if s['paste'] else 'raw decode'
    yield f'{s["sampler"]}, {s["steps"]} steps, scale {s["scale"]:g}, seed {s["seed"]}, {pasted}'
  else:
    yield f'pictures of {results["pictures"]}'
  if results['reference']:
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
    metric['note'],
  )


def number(value: float) -> str:
  """Four figures, whole numbers in full, and what rounding left of nothing as 0."""
  if abs(value) < 1e-12:
    return '0'
  return f'{value:.0f}' if abs(value) >= 10_000 else f'{value:.4g}'


def write(output: str, results: Mapping[str, Any], scored: Sequence[Scored], reader: Reader) -> str:
  """Write index.html and its pictures into the folder; returns the page's path."""
  extremes = {name: _extremes(name, results) for name in results['metrics']}
  shown = {*range(min(SHOWN, len(scored)))}
  shown |= {i for pair in extremes.values() if pair for side in pair for i in side}
  folder = Path(output) / PICTURES
  folder.mkdir(parents=True, exist_ok=True)
  written = {name for i in sorted(shown) for name in _pictures(folder, scored[i], reader)}
  for old in set(os.listdir(folder)) - written:
    if old.endswith('.png'):
      os.remove(folder / old)
  page = os.path.join(output, PAGE)
  files.write_text(page, _page(output, results, scored, extremes))
  return page


def _extremes(name, results):
  """(best, worst) edits of a metric by position, or None where all are alike."""
  metric = results['metrics'][name]
  values = [edit['metrics'].get(name) for edit in results['edits']]
  known = [i for i, value in enumerate(values) if value is not None]
  if not known or max(values[i] for i in known) - min(values[i] for i in known) < ALIKE:
    return None
  order = sorted(known, key=lambda i: values[i], reverse=metric['better'] == 'higher')
  count = min(EXTREMES, len(order) // 2)
  return order[:count], order[::-1][:count]


def _pictures(folder, item, reader):
  """Write an edit's three small pictures; yields their names."""
  edit = reader(item)
  pictures = dict(source=tinted(edit), exemplar=edit['exemplar'], result=edit['result'])
  for kind, pixels in pictures.items():
    name = f'{item.edit.id:012d}_{kind}.png'
    images.save(small(pixels), folder / name)
    yield name


def tinted(edit: Mapping[str, Any]) -> UInt8[np.ndarray, 'h w 3']:
  """The source with what is repainted in pink."""
  share = edit['mask'][..., None] / 255 / 2
  return np.round(edit['source'] * (1 - share) + TINT * share).astype(np.uint8)


def small(pixels: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'p q 3']:
  """At most CELL long; a tiny picture's pixels become squares, that a browser would blur."""
  longest = max(pixels.shape[:2])
  if longest <= SHOWN_AT // 2:
    return pixels.repeat(SHOWN_AT // longest, 0).repeat(SHOWN_AT // longest, 1)
  if longest <= CELL:
    return pixels
  size = [max(1, round(side * CELL / longest)) for side in pixels.shape[1::-1]]
  return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


STYLE = f"""
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem }}
body {{ padding: 0 1rem }}
h1 {{ font-size: 1.6rem; margin-bottom: .5rem }} h2 {{ margin: 2.5rem 0 0 }}
h3 {{ margin: 1rem 0 .3rem }} p {{ margin: .2rem 0 1rem }} p.head {{ color: #555 }}
table {{ border-collapse: collapse; margin-top: 1rem }} tr {{ border-bottom: 1px solid #ddd }}
td, th {{ padding: .3rem 1rem .3rem 0; text-align: left; vertical-align: top }}
td.n {{ font-variant-numeric: tabular-nums; white-space: nowrap }}
td.why, .none td, .none a {{ color: #666 }}
.edits {{ display: flex; flex-wrap: wrap; gap: 1rem }} figure {{ margin: 0 }}
figure img {{ width: {SHOWN_AT}px; height: {SHOWN_AT}px; object-fit: contain; background: #eee }}
figcaption {{ color: #666; font-size: 13px }}
"""


def _page(output, results, scored, extremes):
  head = ''.join(f'<p class="head">{html.escape(line)}</p>\n' for line in _head(results))
  figure = lambda i, name=None: _figure(output, results, scored, i, name)
  count = min(SHOWN, len(scored))
  who = results['weights']['path'] if 'weights' in results else results['pictures']
  title = f'{html.escape(str(who))} on {html.escape(str(results["benchmark"]["root"]))}'
  shown = '' if count == len(scored) else f'The first {count} of {len(scored)}. '
  parts = [
    beginning(title),
    head,
    _html_table(results, extremes),
    f'<h2>Edits</h2><p>{shown}{ABOUT_EDITS}</p>',
    row(figure(i) for i in range(count)),
  ]
  for name, pair in extremes.items():
    if pair is None:
      continue
    metric = results['metrics'][name]
    parts.append(f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2>')
    parts.append(f'<p>{html.escape(metric["about"])}; {metric["better"]} is better. {SCORES}</p>')
    for title, side in zip(('Best', 'Worst'), pair, strict=True):
      parts += [f'<h3>{title}</h3>', row(figure(i, name) for i in side)]
  return '\n'.join([*parts, '</body></html>\n'])


def beginning(title: str) -> str:
  """A page up to its heading; `title` is HTML."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f'<title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>'
  )


ABOUT_EDITS = (
  'Source with what is repainted in pink, exemplar, result (click for the whole picture), and the'
  " edit's id."
)
SCORES = "Under each edit: its id and its own score, whose mean is the metric's value."


def _html_table(results, extremes):
  rows = ['<tr>' + ''.join(f'<th>{column}</th>' for column in COLUMNS) + '</tr>']
  for name, metric in results['metrics'].items():
    first, *cells, note = (html.escape(cell) for cell in _cells(name, metric))
    cells = ''.join(f'<td class="n">{cell}</td>' for cell in cells)
    if extremes[name] is not None:
      first = f'<a href="#{first}">{first}</a>'
    about = html.escape(metric['about']) + (f'<br>{note}' if note else '')
    kind = ' class="none"' if metric['value'] is None else ''
    rows.append(f'<tr{kind}><td>{first}</td>{cells}<td class="why">{about}</td></tr>')
  return '<table>\n' + '\n'.join(rows) + '\n</table>'


def row(figures):
  return '<div class="edits">\n' + '\n'.join(figures) + '\n</div>'


def _figure(output, results, scored, i, name):
  item = scored[i]
  full = html.escape(Path(os.path.relpath(item.path, output)).as_posix())
  stem = f'{PICTURES}/{item.edit.id:012d}'
  picture = lambda kind: (
    f'<img src="{stem}_{kind}.png" alt="{kind} of {item.edit.id}" loading="lazy">'
  )
  caption = str(item.edit.id)
  if name is not None:
    caption += f': {number(results["edits"][i]["metrics"][name])}'
  return (
    f'<figure>{picture("source")}{picture("exemplar")}<a href="{full}">{picture("result")}</a>'
    f'<figcaption>{caption}</figcaption></figure>'
  )
