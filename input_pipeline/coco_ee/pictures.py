"""A benchmark in the COCOEE layout from pictures of one's own: image, mask and exemplar."""

import contextlib
import csv
import io
import json
import os
from collections import Counter

import numpy as np
import PIL.Image
import PIL.ImageOps

from ..errors import DataError
from . import build, layout

PICTURES = dict(source='image', mask='mask', exemplar='exemplar')  # kind -> column or folder


def from_pictures(
  pictures: str, output: str, *, size=512, crop='nearest', rectangles=False
) -> dict:
  """A benchmark from a folder with image/, mask/, exemplar/ (same stems), or from a list.

  A list is .csv or .jsonl with `image`, `mask`, `exemplar` (paths from its own folder) and, if one
  likes, `id`. Masks repaint where they are at least half bright, or, with `rectangles`, in their
  bounding box. Ids are the stems where all are numbers, else 0, 1, ... Returns the manifest.
  DataError, with nothing written, if a single edit cannot be made.
  """
  settings = dict(size=size, crop=crop, rectangles=rectangles)
  build.check(size, crop)
  rows = _folder_rows(pictures) if os.path.isdir(pictures) else _list_rows(pictures)
  ids = _row_ids(rows)
  plans = []
  for edit_id, row in sorted(zip(ids, rows), key=lambda pair: pair[0]):
    files = {kind: os.path.join(row['folder'], row[name]) for kind, name in PICTURES.items()}
    make = lambda files=files: _own_edit(files, size, crop, rectangles)
    plans.append(build.Plan(edit_id, {name: row[name] for name in PICTURES.values()}, make))

  def give_up(plan: build.Plan, why: str) -> None:
    raise DataError(f'{why} (edit {plan.id}); mend it or leave it out')

  return build.write(output, plans, len(plans), settings, give_up)


def _folder_rows(root: str) -> list[dict]:
  found = {}
  for name in PICTURES.values():
    folder = os.path.join(root, name)
    if not os.path.isdir(folder):
      raise DataError(f'{root} has no folder {name}; it needs {", ".join(PICTURES.values())}')
    files = [n for n in sorted(os.listdir(folder)) if not n.startswith('.')]
    stems = Counter(os.path.splitext(n)[0] for n in files)
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
      raise DataError(f'{folder} holds {twice[0]!r} with several endings; keep one')
    found[name] = {os.path.splitext(n)[0]: f'{name}/{n}' for n in files}
  stems = set().union(*found.values())
  for name, files in found.items():
    missing = sorted(stems - files.keys())
    if missing:
      raise DataError(
        f'{os.path.join(root, name)} lacks {len(missing)} of {len(stems)} pictures, the first is '
        f'{missing[0]!r}; image, mask and exemplar go together by name'
      )
  if not stems:
    raise DataError(f'{root} holds no pictures')
  return [
    dict(folder=root, stem=stem, **{name: files[stem] for name, files in found.items()})
    for stem in sorted(stems)
  ]


def _list_rows(path: str) -> list[dict]:
  try:
    with open(path, encoding='utf-8-sig', newline='') as file:
      text = file.read()
  except (OSError, UnicodeDecodeError) as error:
    why = getattr(error, 'strerror', None) or error
    raise DataError(f'{path} cannot be read ({why}); name a folder, a .csv or a .jsonl') from error
  kind = os.path.splitext(path)[1].lower()
  try:
    if kind == '.csv':
      rows = list(csv.DictReader(io.StringIO(text), strict=True))
    elif kind in ('.jsonl', '.ndjson'):
      rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    else:
      raise DataError(f'{path} must be a folder, or end in .csv or .jsonl')
  except (csv.Error, json.JSONDecodeError) as error:
    raise DataError(f'{path} is not a whole {kind[1:]} file ({error})') from error
  for number, row in enumerate(rows, 1):
    for name in PICTURES.values():
      if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name]:
        raise DataError(f'{path}: entry {number} has no {name!r}; it needs image, mask, exemplar')
    row['folder'] = os.path.dirname(path)
    row['stem'] = str(number)
  if not rows:
    raise DataError(f'{path} lists no edits')
  return rows


def _row_ids(rows: list[dict]) -> list[int]:
  given = [row.get('id') not in (None, '') for row in rows]
  if any(given) and not all(given):
    raise DataError(f'{sum(given)} of {len(rows)} edits have an id; give one to all or to none')
  texts = [str(row['id']) if all(given) else row['stem'] for row in rows]
  numbers = [int(text) for text in texts if text.isascii() and text.isdigit() and len(text) <= 12]
  if len(set(numbers)) == len(rows):
    return numbers
  if all(given):
    raise DataError('ids must be whole numbers of at most 12 digits, and no two alike')
  return list(range(len(rows)))


def _own_edit(files: dict[str, str], size: int, crop: str, rectangles: bool) -> dict:
  source, exemplar = (_upright(files[k], 'white').convert('RGB') for k in ('source', 'exemplar'))
  mask = _upright(files['mask'], 'black').convert('L')
  if mask.size != source.size:
    raise DataError(
      f'{files["mask"]} is {mask.width}x{mask.height} (width x height), its image '
      f'{source.width}x{source.height}; they must be alike'
    )
  if np.asarray(mask).max() < 128:
    raise DataError(f'{files["mask"]} is empty: no pixel is at least half bright')
  box = layout.bounding_box(np.asarray(mask))
  place = build.square(source.size, box, size, crop)
  if place is None:
    raise DataError(f'{files["mask"]}: {build.no_square(source.size, box, crop)}')
  if rectangles:
    cut_mask = build.rectangle(box, source.size, place, size)
  else:
    cut_mask = np.where(build.cut(mask, place, size) >= 128, np.uint8(255), np.uint8(0))
  if not cut_mask.any():
    raise DataError(f'{files["mask"]} is empty at {size}x{size}; its region is too small')
  return dict(source=build.cut(source, place, size), mask=cut_mask, exemplar=np.asarray(exemplar))


def _upright(path: str, paper: str) -> PIL.Image.Image:
  """A photo as the camera held it, on paper of a colour where it is transparent."""
  image = layout.decode(build.read(path), path)
  with contextlib.suppress(Exception):  # a damaged EXIF block is no reason to refuse the picture
    image = PIL.ImageOps.exif_transpose(image)
  if image.mode.startswith('I'):  # 16-bit grey, which convert() would clip to white
    image = PIL.Image.fromarray((np.asarray(image, np.int64) >> 8).clip(0, 255).astype(np.uint8))
  if image.has_transparency_data:
    canvas = PIL.Image.new('RGBA', image.size, paper)
    image = PIL.Image.alpha_composite(canvas, image.convert('RGBA'))
  return image
