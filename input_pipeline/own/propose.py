"""Proposes a box of the subject of each picture, for a person to correct; it downloads nothing."""

import functools
import os
from collections.abc import Sequence

import cv2
import numpy as np

from exedit.runtime import files, lists, progress
from exedit.runtime.errors import UserError
from exedit.runtime.parallel import in_parallel

from .. import codec, masks
from ..errors import DataError
from . import examine, sheet
from .labels import EDGES
from .names import label_of
from .subjects import WHOLE

SIDE = 160  # pixels of the longer side that GrabCut sees
BORDER, CENTRE = 0.04, 0.35  # shares: surely background; the middle, perhaps the subject
ROUNDS = 4
SHOWN = 120  # pictures on the sheet


def proposal(pixels: np.ndarray) -> tuple[float, float, float, float]:
  """Returns a box (x0, y0, x1, y1) in shares around what differs from the border of a picture.

  GrabCut (Rother et al. 2004) separates two mixtures of colours. It begins with the places whose
  colour is far from those at the border, nearer to the middle with more weight. Without a result
  of a fitting size, the box is the middle of the picture.
  """
  scale = min(1, SIDE / max(pixels.shape[:2]))
  size = tuple(max(8, round(side * scale)) for side in pixels.shape[1::-1])
  small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  kinds = _seeds(small)
  try:
    subject = masks.grab_cut(small, kinds, ROUNDS).astype(np.uint8)
  except cv2.error:  # all places are of one kind
    return WHOLE
  subject = cv2.morphologyEx(subject, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
  count, _, stats, _ = cv2.connectedComponentsWithStats(subject)
  if count < 2:
    return WHOLE
  x, y, width, height, _ = max(stats[1:].tolist(), key=lambda row: row[4])
  box = (x / size[0], y / size[1], (x + width) / size[0], (y + height) / size[1])
  rules = examine.Rules()
  fits = rules.min_area <= width * height / (size[0] * size[1]) <= rules.max_area
  return box if fits else WHOLE


def _seeds(small: np.ndarray) -> np.ndarray:
  """The kinds of places that GrabCut begins with, uint8 [h w]."""
  height, width = small.shape[:2]
  lab = cv2.cvtColor(cv2.GaussianBlur(small, (0, 0), 2), cv2.COLOR_RGB2LAB).astype(np.float32)
  rows, columns = (max(1, round(BORDER * side)) for side in (height, width))
  inner = np.zeros((height, width), bool)
  inner[rows:-rows, columns:-columns] = True
  border = lab[~inner]
  spread = np.cov(border.T) + 25 * np.eye(3)
  away = lab - border.mean(0)
  far = np.sqrt(np.einsum('hwc,cd,hwd->hw', away, np.linalg.inv(spread), away))
  y, x = np.mgrid[:height, :width]
  middle = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) / CENTRE**2
  weight = far * np.exp(-middle / 2)
  scaled = 255 * weight / max(weight.max(), 1e-6)
  level, _ = cv2.threshold(scaled.astype(np.uint8), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
  kinds = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
  kinds[scaled > level] = cv2.GC_PR_FGD
  kinds[~inner] = cv2.GC_BGD
  return kinds


def write(folder: str, names: Sequence[str], output: str, threads: int) -> None:
  """Writes a table of boxes in pixels, which `--boxes` takes, and beside it a sheet of them.

  Raises:
    DataError: for an output that is no new .csv file, and if no picture can be read.
  """
  if os.path.splitext(output)[1].lower() != '.csv':
    raise DataError(f'--output={output}: --propose writes a table, so name a new .csv file')
  picture = os.path.splitext(output)[0] + '.png'
  for path in (output, picture):  # a corrected table must not be replaced
    files.check_new(path, '--output')
  rows, cells, lost = [], [], []
  found = in_parallel(functools.partial(_proposed, folder), names, threads)
  for name, size, box, shown in progress.bar(found, 'proposing', total=len(names), unit='picture'):
    if size is None:
      lost.append(name)
      continue
    edges = [round(share * side) for share, side in zip(box, size * 2)]
    rows.append((name, *edges, label_of(name)))
    if len(cells) < SHOWN:
      cells.append((name, shown))
  if not cells:
    raise DataError(f'{folder}: none of {len(names)} pictures can be read, the first is {lost[0]}')
  table = lists.as_csv(('image', *EDGES, 'label'), rows)
  encoded = codec.png(np.asarray(sheet.draw(cells)))
  files.write_all({output: table.encode(), picture: encoded})
  unread = f'; {len(lost)} cannot be read, the first is {lost[0]}' if lost else ''
  print(f'{output}: a box for {len(names) - len(lost)} pictures{unread}')
  print(f'look at {picture}, correct the table, and give it as --boxes={output}')


def _proposed(folder: str, name: str):
  try:
    pixels = examine.read(os.path.join(folder, name), name)[1].pixels
  except (UserError, OSError):
    return name, None, None, None
  box = proposal(pixels)
  return name, (pixels.shape[1], pixels.shape[0]), box, sheet.cell(pixels, [box])
