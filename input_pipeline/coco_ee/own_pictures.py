"""Builds a benchmark in the COCOEE layout from the user's own images, masks and exemplars."""

import os

import numpy as np
from PIL import Image

from exedit.runtime import decode, lists, mask_files
from exedit.runtime.errors import UserError

from ..errors import DataError
from . import build, layout

PICTURES = dict(source='image', mask='mask', exemplar='exemplar')  # kind -> column or folder


def from_pictures(pictures: str, output: str, *, size=512, rectangles=False) -> dict:
  """Writes a benchmark from a folder with image/, mask/, exemplar/, or from a list.

  A list is .csv or .jsonl with the columns `image`, `mask`, `exemplar` and optionally `id`. Masks
  repaint the pixels that are at least half bright, or with `rectangles` their bounding box. The ids
  are the files' names if all of them are numbers, else 0, 1, ... Returns the manifest.

  Raises:
    DataError: if one edit cannot be made. Nothing is written then.
  """
  rows, base = _rows(pictures)
  plans = []
  for edit_id, row in sorted(zip(_ids(rows), rows.values()), key=lambda pair: pair[0]):
    files = {kind: os.path.join(base, row[name]) for kind, name in PICTURES.items()}
    make = lambda files=files: _own_edit(files, size, rectangles)
    plans.append(build.Plan(edit_id, {name: row[name] for name in PICTURES.values()}, make))

  def give_up(plan: build.Plan, why: str) -> None:
    raise DataError(f'{why} (edit {plan.id}); correct it or leave it out')

  settings = dict(size=size, rectangles=rectangles)
  return build.write(output, plans, len(plans), settings, give_up)


def _rows(path: str) -> tuple[dict[str, dict], str]:
  """Returns the rows by name or number, and the folder in which their paths start."""
  names = list(PICTURES.values())
  found, base = lists.read(path, names, names)
  rows = {}
  for number, (where, row) in enumerate(found, 1):
    if isinstance(row, UserError):
      raise DataError(f'{path}, {where}: {row}')
    for name in names:
      if not isinstance(row.get(name), str) or not row[name]:
        raise DataError(f'{path}, {where}: it has no {name!r}; it needs {", ".join(names)}')
    rows[where if os.path.isdir(path) else str(number)] = row
  return rows, base


def _ids(rows: dict[str, dict]) -> list[int]:
  given = [row.get('id', '') != '' for row in rows.values()]
  if any(given) and not all(given):
    raise DataError(f'{sum(given)} of {len(rows)} edits have an id; give one to all or to none')
  own = (str(row['id']).removesuffix('.0') for row in rows.values())  # pandas writes 3.0
  texts = list(own if all(given) else rows)
  numbers = [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) <= 12]
  if len(set(numbers)) == len(rows):
    return numbers
  if all(given):
    raise DataError('ids must be whole numbers of at most 12 digits, and no two alike')
  return list(range(len(rows)))


def _own_edit(files: dict[str, str], size: int, rectangles: bool) -> dict:
  source, exemplar = (decode.upright(files[k], 'RGB', 'white') for k in ('source', 'exemplar'))
  found = mask_files.read(files['mask'])
  if found.said:
    decode.note(f'{files["mask"]}: the mask {found.said}')
  mask = Image.fromarray(found.levels)
  if mask.size != source.size:
    raise DataError(
      f'{files["mask"]} is {mask.width}x{mask.height} (width x height), its image '
      f'{source.width}x{source.height}; they must be alike'
    )
  if np.asarray(mask).max() < 128:
    raise DataError(f'{files["mask"]} is empty: no pixel is at least half bright')
  box = layout.bounding_box(np.asarray(mask))
  place = build.square(source.size, box, size)
  if place is None:
    side, (w, h) = min(source.size), source.size
    raise DataError(
      f'{files["mask"]}: no {side}x{side} square of the {w}x{h} image holds the region, which is '
      f'{box[2] - box[0]}x{box[3] - box[1]}; make it smaller'
    )
  if rectangles:
    cut_mask = build.rectangle(box, source.size, place, size)
  else:
    cut_mask = np.where(build.cut(mask, place, size) >= 128, np.uint8(255), np.uint8(0))
  if not cut_mask.any():
    raise DataError(f'{files["mask"]} is empty at {size}x{size}; its region is too small')
  return dict(source=build.cut(source, place, size), mask=cut_mask, exemplar=np.asarray(exemplar))
