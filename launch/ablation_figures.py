"""The ablation's pictures, drawn with Pillow: bars over the seeds, and a sheet of the edits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from exedit import images
from exedit.input_pipeline import codec
from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import references
from exedit.input_pipeline.errors import DataError
from exedit.runtime import files

SHOWN = ('identification', 'psnr', 'copy_paste', 'pasted')
WIDTH, HEIGHT = 620, 380  # pixels of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 128, 56, 40  # of its margins: numbers, references, title, names
BAR, DOT, INK, GREY, LINE = '#9db8d9', '#1f3f66', '#222222', '#777777', '#c25b2a'
EDITS = 10  # rows of the sheet


def bars(found: Mapping[str, Any], path: str, metrics: Mapping[str, Any]) -> None:
  """A panel for each of SHOWN: the rows' means, a dot per seed, the references as lines."""
  canvas = PIL.Image.new('RGB', (2 * WIDTH, 2 * HEIGHT), 'white')
  for i, name in enumerate(SHOWN):
    panel = _panel(found, name, metrics[name])
    canvas.paste(panel, ((i % 2) * WIDTH, (i // 2) * HEIGHT))
  files.write_bytes(path, codec.png(np.asarray(canvas)))


def _panel(found, name, metric):
  panel = PIL.Image.new('RGB', (WIDTH, HEIGHT), 'white')
  draw = ImageDraw.Draw(panel)
  rows = {row: values[name] for row, values in found['rows'].items()}
  lines = {kind.replace('_', '-'): v[name]['value'] for kind, v in found['references'].items()}
  if name == 'psnr':  # the truth's own is infinite
    del lines['truth']
  if name == 'copy_paste':  # what the score is by chance, over all rows
    others = [values['copy_paste_other']['value'] for values in found['rows'].values()]
    lines["another's exemplar"] = float(np.mean(others))
  seen = [*lines.values(), *(v for row in rows.values() for v in row['seeds'])]
  ticks = _ticks(max(seen))
  y = lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / ticks[-1]
  draw.text((LEFT, 10), metric.title, INK, _font(18))
  draw.text((LEFT, 32), f'{metric.better} is better' if metric.better else '', GREY, _font(13))
  for tick in ticks:
    draw.line([(LEFT, y(tick)), (WIDTH - RIGHT, y(tick))], '#e4e4e4')
    draw.text((LEFT - 6, y(tick)), f'{tick:g}', GREY, _font(13), anchor='rm')
  step = (WIDTH - LEFT - RIGHT) / len(rows)
  for i, (row, values) in enumerate(rows.items()):
    x = LEFT + (i + 0.5) * step
    draw.rectangle([x - 0.3 * step, y(max(values['value'], 0)), x + 0.3 * step, y(0)], BAR)
    draw.text((x, HEIGHT - BOTTOM + 14), row, INK, _font(13), anchor='mm')
  # Lines over the bars, so that one can see which bars reach them, and the seeds over both.
  for place, (kind, value) in zip(_apart([y(v) for v in lines.values()], 15), lines.items()):
    _dashed(draw, LEFT, WIDTH - RIGHT, y(value))
    draw.line([(WIDTH - RIGHT, y(value)), (WIDTH - RIGHT + 8, place)], LINE)
    draw.text((WIDTH - RIGHT + 10, place), kind, LINE, _font(12), anchor='lm')
  for i, values in enumerate(rows.values()):
    for k, value in enumerate(values['seeds']):
      x = LEFT + (i + 0.5) * step + 9 * (k - (len(values['seeds']) - 1) / 2)
      draw.ellipse([x - 3.5, y(value) - 3.5, x + 3.5, y(value) + 3.5], DOT)
  return panel


def _ticks(most: float) -> list[float]:
  """Round numbers from 0 to beyond `most`, five or so."""
  raw = max(most, 1e-6) / 5
  power = 10 ** np.floor(np.log10(raw))
  step = next(float(m * power) for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
  return [float(step * i) for i in range(max(1, int(np.ceil(most / step - 1e-9))) + 1)]


def _apart(places: Sequence[float], least: float) -> list[float]:
  """The places moved as little as keeps each `least` from the next, in the order given."""
  order, moved = np.argsort(places, kind='stable'), list(places)
  for a, b in zip(order, order[1:], strict=False):
    moved[b] = max(moved[b], moved[a] + least)
  over = max(0.0, max(moved) - (HEIGHT - BOTTOM))  # the lowest ones end at the axis
  for i, b in enumerate(order[::-1]):
    moved[b] = min(moved[b], HEIGHT - BOTTOM - least * i) if over else moved[b]
  return moved


def _dashed(draw, left, right, y):
  for x in range(int(left), int(right), 8):
    draw.line([(x, y), (min(x + 4, right), y)], LINE)


def _font(size):
  return ImageFont.load_default(size)


def sheet(bench: str, columns: Mapping[str, str], path: str) -> None:
  """The first edits as rows: the hole, the exemplar, and a column for each {name: folder}.

  Outside the hole the results are the source's own, as `edit` leaves them by default.
  """
  edits = coco_ee.Bench(bench, exemplar_size=None)
  rows = []
  for position in range(min(EDITS, len(edits))):
    edit = edits[position]
    inside = edit['mask'][..., None] >= 128
    hole = np.where(inside, np.uint8(128), edit['source'])
    results = [picture(folder, edit['id']) for folder in columns.values()]
    results = [np.where(inside, result, edit['source']) for result in results]
    rows.append([hole, edit['exemplar'], *results])
  files.write_bytes(path, codec.png(images.grid(rows, ('source', 'exemplar', *columns))))


def picture(folder: str, edit_id: int) -> np.ndarray:
  """An edit's result, uint8 [h w 3]; DataError where it is not there."""
  path = f'{folder}/{edit_id:012d}.png'
  try:
    with PIL.Image.open(path) as image:
      return np.asarray(image.convert('RGB'))
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error}): run launch/ablation.sh again') from None


def paste(edit: dict) -> np.ndarray:
  """The edit that pastes its exemplar, uint8 [h w 3]."""
  return references.copy_paste(edit)
