"""The pictures of the ablation's report: bar charts over the seeds, and a sheet of edits."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from exedit.input_pipeline import codec
from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import references
from exedit.runtime import decode, files
from exedit.runtime.errors import DataError, UserError

SHOWN = ('identification', 'psnr', 'copy_paste', 'pasted')
WIDTH, HEIGHT = 620, 380  # pixels of a chart
LEFT, RIGHT, TOP, BOTTOM = 62, 128, 56, 40  # pixels of its margins
BAR, DOT, INK, GREY, LINE = '#9db8d9', '#1f3f66', '#222222', '#777777', '#c25b2a'
EDITS = 10  # rows of the sheet


def bars(found: Mapping[str, Any], path: str, metrics: Mapping[str, Any]) -> None:
  """Draws a chart for each of SHOWN: a bar for each row, a dot for each seed, lines: references.

  found: what `ablation_report.gather` returns. metrics: its METRICS.
  """
  canvas = PIL.Image.new('RGB', (2 * WIDTH, 2 * HEIGHT), 'white')
  for i, name in enumerate(SHOWN):
    rows = {row: values[name] for row, values in found['rows'].items()}
    chart = _chart(metrics[name], rows, _references(found, name))
    canvas.paste(chart, ((i % 2) * WIDTH, (i // 2) * HEIGHT))
  files.write_bytes(path, codec.png(np.asarray(canvas)))


def _references(found, name):
  """The values that stand as lines: {label: value}."""
  lines = {kind.replace('_', '-'): v[name]['value'] for kind, v in found['references'].items()}
  if name == 'psnr':  # that of the truth to itself has no meaning
    del lines['truth']
  if name == 'copy_paste':  # the score that chance gives, over all rows
    chance = [values['copy_paste_other']['value'] for values in found['rows'].values()]
    lines["another's exemplar"] = float(np.mean(chance))
  return lines


def _chart(metric, rows, lines):
  chart = PIL.Image.new('RGB', (WIDTH, HEIGHT), 'white')
  draw = ImageDraw.Draw(chart)
  ticks = _ticks(max([*lines.values(), *(v for row in rows.values() for v in row['seeds'])]))
  y = lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / ticks[-1]
  draw.text((LEFT, 10), metric.title, INK, _font(18))
  draw.text((LEFT, 32), f'{metric.better} is better' if metric.better else '', GREY, _font(13))
  for tick in ticks:
    draw.line([(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], '#e4e4e4')
    draw.text((LEFT - 6, y(tick)), f'{tick:g}', GREY, _font(13), anchor='rm')
  step = (WIDTH - LEFT - RIGHT) / len(rows)
  centres = [LEFT + (i + 0.5) * step for i in range(len(rows))]
  for x, (row, values) in zip(centres, rows.items()):
    draw.rectangle([x - 0.3 * step, y(max(values['value'], 0)), x + 0.3 * step, y(0)], BAR)
    draw.text((x, HEIGHT - BOTTOM + 14), row, INK, _font(13), anchor='mm')
  places = _apart([y(value) for value in lines.values()], 15)
  for place, (label, value) in zip(places, lines.items()):
    draw.line([(LEFT, y(value)), (WIDTH - RIGHT, y(value)), (WIDTH - RIGHT + 8, place)], LINE)
    draw.text((WIDTH - RIGHT + 10, place), label, LINE, _font(12), anchor='lm')
  for x, values in zip(centres, rows.values()):
    for k, value in enumerate(values['seeds']):
      dot = x + 9 * (k - (len(values['seeds']) - 1) / 2)
      draw.ellipse([dot - 3.5, y(value) - 3.5, dot + 3.5, y(value) + 3.5], DOT)
  return chart


def _ticks(most: float) -> list[float]:
  """About five round numbers from 0 to at least `most`."""
  raw = max(most, 1e-6) / 5
  power = 10 ** np.floor(np.log10(raw))
  step = next(float(m * power) for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
  return [float(step * i) for i in range(max(1, int(np.ceil(most / step - 1e-9))) + 1)]


def _apart(places: Sequence[float], least: float) -> list[float]:
  """Moves labels apart, so that neighbours are at least `least` pixels from each other."""
  moved, above = [*places], -np.inf
  for i in np.argsort(places, kind='stable'):
    moved[i] = above = max(places[i], above + least)
  below = HEIGHT - BOTTOM + least  # none lies under the axis
  for i in np.argsort(moved, kind='stable')[::-1]:
    moved[i] = below = min(moved[i], below - least)
  return moved


def _font(size):
  return ImageFont.load_default(size)


def sheet(bench: str, columns: Mapping[str, str], path: str) -> None:
  """Draws the first edits as rows: the hole, the exemplar, and one column for each {name: folder}.

  The results are pasted into the source, as `edit` does by default.
  """
  edits = coco_ee.Bench(bench, exemplar_size=None)
  rows = []
  for edit in (edits[i] for i in range(min(EDITS, len(edits)))):
    inside = edit['mask'][..., None] >= 128
    shown = [np.uint8(128), *(read_picture(folder, edit['id']) for folder in columns.values())]
    hole, *results = (np.where(inside, picture, edit['source']) for picture in shown)
    rows.append([hole, edit['exemplar'], *results])
  from exedit import images  # imports JAX

  files.write_bytes(path, codec.png(images.grid(rows, ('source', 'exemplar', *columns))))


def read_picture(folder: str, edit_id: int) -> np.ndarray:
  """Reads the result of an edit, uint8 [h w 3]."""
  path = os.path.join(folder, f'{edit_id:012d}.png')
  try:
    return np.asarray(decode.upright(path, 'RGB', 'white'))
  except UserError as error:
    raise DataError(f'{path} cannot be read ({error}): run launch/ablation.sh again') from None


def paste(edit: dict) -> np.ndarray:
  """The source with the exemplar pasted into the hole, uint8 [h w 3]."""
  return references.copy_paste(edit)
