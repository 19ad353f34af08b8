"""Writes a contact sheet of what the network will see, with statistics of boxes and masks.

  python -m input_pipeline.show --config=configs/pbe.py:tiny --output=sheet.png --count=24

Each example is four cells: image, mask, image with the hole, and the augmented exemplar.
"""

import io
import os
from collections.abc import Sequence

import cv2
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from exedit.runtime import doors, files, settings

from . import codec, latent_shards, synthetic, tfds_data
from .errors import DataError

_CELL = 128  # pixels of the sheet
_GAP = 8
_COLUMNS = 2  # examples side by side
_CAPTIONS = 3  # of the first records, below the sheet
_TITLES = ('image', 'mask', 'masked image', 'exemplar')
_FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}
_INK, _PAPER, _BAR = (30, 30, 30), (255, 255, 255), (70, 110, 170)


# The sheet.


def contact_sheet(
  batch: dict[str, np.ndarray], plots: dict[str, np.ndarray], lines: list[str]
) -> PIL.Image.Image:
  """Draws the examples of a batch, a histogram over 0..1 per entry of `plots`, and the lines."""
  count = len(batch['image'])
  rows = -(-count // _COLUMNS)
  step = _CELL + _GAP
  width = _COLUMNS * (4 * step + _GAP) + _GAP
  top, below = 22, rows * step + 30
  font = PIL.ImageFont.load_default(13)
  sheet = PIL.Image.new('RGB', (width, below + 130 + 20 * len(lines)), _PAPER)
  pen = PIL.ImageDraw.Draw(sheet)
  for i in range(count):
    x, y = _GAP + i % _COLUMNS * (4 * step + _GAP), top + i // _COLUMNS * step
    example = {name: batch[name][i] for name in ('image', 'mask', 'exemplar')}
    for k, cell in enumerate(cells(example)):
      sheet.paste(PIL.Image.fromarray(cell), (x + k * step, y))
      if i < _COLUMNS:
        pen.text((x + k * step, 3), _TITLES[k], _INK, font)
  for k, (title, values) in enumerate(plots.items()):
    _histogram(pen, font, (_GAP + k * 250, below), title, values)
  for k, line in enumerate(lines):
    pen.text((_GAP, below + 120 + 20 * k), line, _INK, font)
  return sheet


def cells(example: dict[str, np.ndarray]) -> list[np.ndarray]:
  """Returns the four pictures of an example, uint8 [_CELL _CELL 3]; the hole is mid-grey."""
  image, mask, exemplar = (example[name] for name in ('image', 'mask', 'exemplar'))
  keep = 1 - mask[..., None] / 255.0
  masked = (image * keep + 127.5 * (1 - keep)).astype(np.uint8)
  return [_fit(cell) for cell in (image, np.repeat(mask[..., None], 3, -1), masked, exemplar)]


def _fit(cell: np.ndarray) -> np.ndarray:
  how = cv2.INTER_AREA if cell.shape[0] >= _CELL else cv2.INTER_NEAREST
  return cv2.resize(cell, (_CELL, _CELL), interpolation=how)


def _histogram(pen, font, corner: tuple[int, int], title: str, values: np.ndarray) -> None:
  x, y = corner
  counts = np.histogram(values, 20, (0, 1))[0]
  pen.text((x, y), title, _INK, font)
  for k, count in enumerate(counts):
    height = 70 * count / max(1, counts.max())
    pen.rectangle((x + 11 * k, y + 92 - height, x + 11 * k + 9, y + 92), _BAR)
  for at in (0, 0.5, 1):
    pen.text((x + 220 * at - 4, y + 95), f'{at:g}', _INK, font)


# The statistics.


def statistics(
  root: str, split: str, batch: dict[str, np.ndarray], records=500
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns values for histograms and lines of text, from the first records and from a batch."""
  source = tfds_data.source(root, split)
  boxes, shapes, captions, unreadable = [], [], [], 0
  for i in range(min(records, len(source))):
    try:
      features = tfds_data.features(source[i])
      shapes.append(codec.decode(features['image'][0]).shape[:2])
      boxes.append(np.asarray(features['bobjects/bbox'], np.float32).reshape(-1, 4))
      captions += features.get('caption', ())
    except (DataError, KeyError, IndexError):
      unreadable += 1
  sides = np.concatenate(boxes)[:, 2:] - np.concatenate(boxes)[:, :2] if boxes else np.zeros((0, 2))
  area, share = sides.prod(1), (batch['mask'] / 255.0).mean((1, 2))
  usable = (area >= 0.02) & (area <= 0.8)
  full = np.mean([_fills_its_box(mask) for mask in batch['mask']])
  heights, widths = np.array(shapes).T if shapes else ([0], [0])
  lines = [
    f'{root} {split}: {len(source)} records; of the first {len(boxes) + unreadable}: '
    f'{unreadable} unreadable, {len(area)} boxes, {usable.sum()} of them usable',
    f'images {min(widths)}..{max(widths)} wide, {min(heights)}..{max(heights)} high; '
    f'box width {_quantiles(sides[:, 1])}, height {_quantiles(sides[:, 0])} of the image',
    f'box area {_quantiles(area)} of the image; repainted {_quantiles(share)} of the crop',
    f'masks: {full:.0%} rectangles; {np.mean(batch["corrupt"]):.0%} of the examples replace '
    f'corrupt records',
  ]
  for text in captions[:_CAPTIONS]:
    lines.append(f'caption: {text.decode("utf-8", "replace")}')
  return {'box area / image': area, 'repainted share': share}, lines


def _fills_its_box(mask: np.ndarray) -> bool:
  rows, columns = np.nonzero(mask)
  return len(rows) > 0 and len(rows) == int((np.ptp(rows) + 1) * (np.ptp(columns) + 1))


def _quantiles(values: np.ndarray) -> str:
  if not len(values):
    return 'none'
  low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
  return f'{middle:.2f} ({low:.2f}..{high:.2f})'


# The door.

FLAGS = (
  doors.Flag('config', None, 'a config with the group `data`', 'config'),
  ('output', '', 'picture to write, .png or .jpg'),
  ('split', '', 'split to show instead of config.data.split'),
  ('count', 24, 'number of examples on the sheet'),
)


def main(config, output: str, split: str, count: int) -> None:
  """Writes `count` examples of config.data and their statistics to `output`."""
  if config is None:
    raise DataError('--config is missing, for instance --config=configs/pbe.py:tiny')
  from . import loader  # grain imports JAX

  kind = _FORMATS.get(os.path.splitext(output)[1].lower())
  if kind is None:
    raise DataError(f'--output={output}: name a .png or .jpg file')
  files.check_output(output)
  if count < 1:
    raise DataError(f'--count={count}: must be at least 1')
  config = settings.training(config)
  data = config['data'] | dict(workers=0) | (dict(split=split) if split else {})
  if 'missing_captions' in data:
    raise DataError(
      'this config trains on captions, and the sheet shows masks and exemplars: a training shows '
      'pictures with their captions in its samples/'
    )
  latents = latent_shards.manifest(data['root'])
  if latents and latents['split'] == data['split']:
    raise DataError(f'{data["root"]} holds latents and no pictures: show what it was encoded from')
  synthetic.provide(data['root'], config.get('synthetic'))
  batch = next(loader.batches(batch_size=count, seed=config.get('seed', 0), **data))
  plots, lines = statistics(data['root'], data['split'], batch)
  print('\n'.join(lines))
  encoded = io.BytesIO()
  contact_sheet(batch, plots, lines).save(encoded, kind)
  files.write_bytes(output, encoded.getvalue())
  print(output)


def run(argv: Sequence[str] | None = None) -> None:
  """The command."""
  doors.call(main, FLAGS, __doc__, argv)


if __name__ == '__main__':
  run()
