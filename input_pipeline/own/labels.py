"""Reads label files: COCO, Pascal VOC, YOLO and tables, each to subjects by picture."""

import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from exedit.runtime import decode, lists
from exedit.runtime.errors import UserError

from ..coco_ee.instances import parts_of, size_of, whole
from ..errors import DataError
from ..reports import Odd, Reasons
from .names import Names, below
from .subjects import Subject

UNITS = ('pixels', 'shares')
EDGES = ('x0', 'y0', 'x1', 'y1')
CLASSES = ('classes.txt', 'obj.names', 'data.yaml', 'data.yml', 'dataset.yaml')
Table = dict[str, list[Subject]]


def read(path: str, names: Names, units: str, reasons: Reasons) -> tuple[Table, list[str]]:
  """Returns the subjects by picture, and the label files that were read.

  units: of a table of boxes; '': pixels. reasons: gets what cannot be used.

  Raises:
    DataError: if nothing can be read.
  """
  ending = os.path.splitext(path)[1].lower()
  if os.path.isdir(path):
    found = [os.path.join(path, name) for name in below(path, ('.xml',))]
    rows = (_voc(file, names, reasons) for file in found)
    if not found:
      found = _yolo_files(path)
      rows = _yolo(path, found, names, reasons)
  elif not os.path.exists(path):
    raise DataError(f'{path} does not exist: name a label file, or a folder of them, as --boxes')
  elif ending == '.json':
    found, rows = [path], _coco(path, names, reasons)
  elif ending in ('.csv', '.tsv', '.jsonl'):
    found, rows = [path], _table(path, names, units or UNITS[0], reasons)
  elif ending == '.xml':
    found, rows = [path], iter([_voc(path, names, reasons)])
  else:
    raise DataError(
      f'{path} is no label file: name COCO (.json), a table (.csv, .jsonl), Pascal VOC (.xml, or a'
      ' folder of them) or a folder of YOLO (.txt) as --boxes'
    )
  if units and not path.lower().endswith(('.csv', '.tsv', '.jsonl')):
    raise DataError(f'--units={units} is of a table, and {path} says itself what it counts')
  table = defaultdict(list)
  for picture, subjects in rows:
    if picture:
      table[picture] += subjects
  return dict(table), found


Row = tuple[str, list[Subject]]  # a picture, '' if there is none, and subjects of it


def _tried(reasons: Reasons, read: Callable[..., Any], *given: Any) -> Any:
  """What `read(*given)` returns, or None if it is odd, which is counted."""
  try:
    return read(*given)
  except Odd as odd:
    reasons.add(odd)
    return None


# COCO


def _coco(path: str, names: Names, reasons: Reasons) -> Iterator[Row]:
  try:
    found = json.loads(Path(path).read_bytes())
    rows = found['annotations']
    images = {whole(row['id']): row for row in found['images'] if isinstance(row, dict)}
    titles = {whole(row['id']): str(row['name']) for row in found.get('categories') or ()}
  except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
    raise DataError(
      f'{path} is not a COCO file ({error!r:.80}); it needs images, and annotations with bbox or '
      'segmentation'
    ) from None
  of = {}
  for key, row in images.items():
    of[key] = _tried(reasons, names.find, '/'.join(parts_of(row)))
  for number, row in enumerate(rows if isinstance(rows, list) else ()):
    where = f'{os.path.basename(path)}, annotation {number + 1}'
    subject = _tried(reasons, _annotation, row, where, images, titles)
    if subject is not None:
      yield of[whole(row['image_id'])] or '', [subject]


def _annotation(row: Any, where: str, images: dict, titles: dict) -> Subject:
  if not isinstance(row, dict):
    raise Odd('malformed', f'{where} is no object')
  image = images.get(whole(row.get('image_id')))
  if image is None:
    raise Odd('malformed', f'{where}: its image is not listed')
  if whole(row.get('iscrowd')) not in (0, None):
    raise Odd('crowd', f'{where} is of a crowd')
  category = whole(row.get('category_id'))
  common: dict[str, Any] = dict(
    label=titles.get(category, '' if category is None else str(category)),
    size=size_of(image),
    where=where,
  )
  if outline := row.get('segmentation'):
    return Subject(outline=outline, **common)
  try:
    x, y, width, height = map(float, row['bbox'])
  except (TypeError, ValueError, KeyError):
    raise Odd('malformed', f'{where}: its bbox is not four numbers') from None
  return Subject((x, y, x + width, y + height), **common)


# Pascal VOC


def _voc(path: str, names: Names, reasons: Reasons) -> Row:
  return _tried(reasons, _voc_file, path, names, reasons) or ('', [])


def _voc_file(path: str, names: Names, reasons: Reasons) -> Row:
  name = os.path.basename(path)
  try:
    root = ElementTree.parse(path).getroot()
  except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
    raise Odd('label_unreadable', f'{name} is not XML ({error})') from None
  objects = root.findall('.//object')
  if not objects:
    raise Odd('no_object', f'{name} has no object')
  said, stem = root.findtext('filename') or '', PurePosixPath(name).stem
  found, last = [], Odd('malformed', f'{name} names no picture')
  for other in dict.fromkeys(filter(None, (stem, said))):
    try:
      found.append(names.find(other))
    except Odd as odd:
      last = odd
  if not found:
    raise last
  if len({*found}) > 1:
    raise Odd('names_two_pictures', f'{name} says it is of {said}: rename it, or correct it')
  size = _number(root, 'size/width'), _number(root, 'size/height')
  size = (int(size[0]), int(size[1])) if size[0] and size[1] else None
  subjects = []
  for number, entry in enumerate(objects):
    where = f'{name}, object {number + 1}'
    x0, y0, x1, y1 = (_number(entry, f'bndbox/{e}') for e in ('xmin', 'ymin', 'xmax', 'ymax'))
    if x0 is None or y0 is None or x1 is None or y1 is None:
      reasons.add(Odd('malformed', f'{where}: its bndbox is not four numbers'))
      continue
    label = (entry.findtext('name') or '').strip()
    subjects.append(Subject((x0, y0, x1, y1), label=label, size=size, where=where))
  return found[0], subjects


def _number(element, path: str) -> float | None:
  try:
    return float(element.findtext(path))
  except (TypeError, ValueError):
    return None


# YOLO


def _yolo_files(folder: str) -> list[str]:
  found = [os.path.join(folder, name) for name in below(folder, ('.txt',))]
  found = [path for path in found if os.path.basename(path) not in CLASSES and _is_yolo(path)]
  if not found:
    raise DataError(
      f'{folder} holds no labels: name a folder with Pascal VOC (.xml) or YOLO (.txt) files'
    )
  return found


def _is_yolo(path: str) -> bool:
  """Whether the first line that is not blank has numbers alone; an empty file has no subject."""
  with open(path, encoding='utf-8-sig', errors='replace') as file:
    line = next((line for line in file if line.strip()), '')
  return is_numbers(line)


def is_numbers(line: str) -> bool:
  """Whether a line is one of YOLO: a class and at least four more numbers; or blank."""
  words = line.split()
  return not words or (
    len(words) >= 5 and all(re.fullmatch(r'-?[\d.]+(e[+-]?\d+)?', word) for word in words)
  )


def _yolo(folder: str, found: list[str], names: Names, reasons: Reasons) -> Iterator[Row]:
  titles = _classes(folder)
  if not titles:
    decode.note(
      f'{folder} has none of {", ".join(CLASSES)}, nor has the folder above: labels are numbers'
    )
  for path in found:
    relative = os.path.relpath(os.path.splitext(path)[0], folder).replace(os.sep, '/')
    relative = re.sub(r'(^|/)labels/', r'\1images/', relative)
    picture = _tried(reasons, names.find, relative)
    subjects = []
    for number, line in enumerate(Path(path).read_text('utf-8-sig', 'replace').splitlines()):
      if line.strip():
        where = f'{os.path.relpath(path, folder)}, line {number + 1}'
        subject = _tried(reasons, _yolo_line, line, where, titles)
        subjects += [subject] if subject else []
    yield picture or '', subjects


def _yolo_line(line: str, where: str, titles: dict[int, str]) -> Subject:
  words = line.split()
  try:
    number, *values = int(float(words[0])), *map(float, words[1:])
  except (ValueError, OverflowError):
    raise Odd('malformed', f'{where} is {line.strip()!r:.40}, and not numbers') from None
  label = titles.get(number, str(number))
  if titles and number not in titles:
    raise Odd('unknown_class', f'{where} is of class {number}, and {len(titles)} are named')
  if len(values) in (4, 5):  # the fifth is a detector's confidence
    x, y, width, height = values[:4]
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return Subject(box, shares=True, label=label, where=where)
  if len(values) < 6 or len(values) % 2:
    raise Odd('malformed', f'{where} has {len(values)} numbers behind the class')
  if max(map(abs, values)) > 2:
    raise Odd('in_pixels', f'{where}: {max(values):g} is no share of the picture')
  return Subject(shares=True, label=label, outline=[values], where=where)


def _classes(folder: str) -> dict[int, str]:
  """The names of the classes by number, of the first of CLASSES here or in a folder above."""
  above = os.path.dirname(os.path.abspath(folder))
  for place in (folder, above, os.path.dirname(above)):
    for name in CLASSES:
      path = os.path.join(place, name)
      if os.path.isfile(path):
        return _titles(path)
  return {}


def _titles(path: str) -> dict[int, str]:
  text = Path(path).read_text('utf-8-sig', 'replace')
  if not path.endswith(('.yaml', '.yml')):
    return dict(enumerate(line.strip() for line in text.strip().splitlines()))
  try:
    found = yaml.safe_load(text)['names']
    pairs = found.items() if isinstance(found, dict) else enumerate(found)
    return {int(number): str(name) for number, name in pairs}
  except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
    raise DataError(f'{path} has no `names` of classes ({error!r:.60}): add them') from None


# Tables


def _table(path: str, names: Names, units: str, reasons: Reasons) -> Iterator[Row]:
  if units not in UNITS:
    raise DataError(f'--units={units}: use one of {", ".join(UNITS)}')

  def check(columns: list[str]) -> None:
    if missing := [name for name in ('image', *EDGES) if name not in columns]:
      raise UserError(f'it has no column {missing[0]}: it needs image, {", ".join(EDGES)}')

  subjects, largest = [], 0.0
  for where, row in lists.read(path, (), (), check)[0]:
    where = f'{os.path.basename(path)}, {where}'
    found = _tried(reasons, _table_row, row, where, units)
    if found:
      largest = max(largest, *map(abs, found[1].box))
      subjects.append(found)
  if units == 'pixels' and 0 < largest <= 1:
    raise DataError(
      f'{path}: no number of its boxes is above 1, so they look like shares of the picture: add '
      '--units=shares'
    )
  for name, subject in subjects:
    yield _tried(reasons, names.find, name) or '', [subject]


def _table_row(row: Any, where: str, units: str) -> tuple[str, Subject]:
  if isinstance(row, UserError):
    raise Odd('malformed', f'{where}: {row}')
  name = str(row.get('image', ''))
  try:
    x0, y0, x1, y1 = (float(row[edge]) for edge in EDGES)
  except (KeyError, TypeError, ValueError):
    cells = ', '.join(f'{row.get(edge, "")}' for edge in EDGES)
    raise Odd('malformed', f'{where}: {cells[:60]} are not four numbers') from None
  label = str(row.get('label', ''))
  return name, Subject((x0, y0, x1, y1), units == 'shares', label, where=where)
