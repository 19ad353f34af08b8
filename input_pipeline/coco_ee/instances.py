"""Builds a benchmark in the COCOEE layout from COCO's boxes, each with another as its exemplar."""

import json
import math
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import PIL.Image

from exedit.runtime import decode
from exedit.runtime.errors import UserError

from ..errors import DataError
from . import build

PROBED = 100  # images that are looked for to find out where their paths start


def from_coco(
  annotations: str,
  images: str,
  output: str,
  *,
  count=3500,
  seed=0,
  size=512,
  exemplar_side=64,
  exemplar_pad=10,
  min_area=0.02,
  max_area=0.5,
) -> dict:
  """Writes a benchmark of `count` boxes from different images; returns its manifest.

  The id of an edit is that of its annotation, as in COCOEE. Its exemplar is an instance of the same
  category in another image, cut with `exemplar_pad` pixels around its box, whose shorter side is at
  least `exemplar_side` pixels. No instance is used twice before all of its category are used. Areas
  are shares of the square source. The choice depends only on the seed and the annotations. If the
  pictures of an edit cannot be read, the next edit replaces it. Annotations that cannot be used are
  passed over, and counted by reason.

  Raises:
    DataError: for settings or files that cannot be used, or too few edits. Nothing is written then.
  """
  if not 0 <= min_area < max_area <= 1:
    raise DataError(f'--min_area={min_area} and --max_area={max_area}: must be 0 <= min < max <= 1')
  found, passed_over = _instances(annotations, images)
  settings = dict(
    count=count, seed=seed, size=size, exemplar_side=exemplar_side, exemplar_pad=exemplar_pad,
    min_area=min_area, max_area=max_area, annotations=os.path.basename(annotations),
  )  # fmt: skip
  fits = lambda a: _source_place(a, size, min_area, max_area)
  wanted = [(a, place) for a in found if (place := fits(a)) is not None]
  usable = [a for a in found if _shorter_side(a['box']) >= exemplar_side]
  pairs = _paired(wanted, usable, seed)
  plans = (_coco_plan(*pair, size, exemplar_pad) for pair in pairs)
  try:
    return build.write(output, plans, count, settings, lambda plan, why: None, passed_over)
  except build.TooFew as error:
    raise DataError(f'{error}{_told(passed_over)}') from None


class Odd(Exception):
  """An annotation that is passed over: the reason."""


def _instances(path: str, folder: str) -> tuple[list[dict], dict[str, str]]:
  """Returns COCO's usable instances by id, and what was passed over.

  An instance is a dict of id, category, name, file, shape (w, h) and box. What was passed over is
  the first annotation's id for each reason, with their number.
  """
  try:
    table = json.loads(_read(path))
    rows, images = table['annotations'], _images(table['images'], folder)
    names = {whole(c['id']): str(c['name']) for c in table.get('categories') or () if c}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(
      f'{path} is not a COCO instances file ({error!r}); it needs images, annotations with bbox'
    ) from error
  found, odd = {}, defaultdict(list)
  for number, row in enumerate(rows if isinstance(rows, list) else ()):
    try:
      instance = _instance(row, images, names)
      if instance['id'] in found:
        raise Odd('its id occurs twice')
      found[instance['id']] = instance
    except Odd as error:
      named = isinstance(row, dict) and row.get('id') is not None
      odd[str(error)].append(f'annotation {row["id"]}' if named else f'row {number + 1}')
  passed_over = {why: f'{len(ids)}, the first is {ids[0]}' for why, ids in odd.items()}
  if not found:
    raise DataError(f'{path} has no annotation that can be used{_told(passed_over)}')
  return [found[key] for key in sorted(found)], passed_over


def _told(passed_over: Mapping[str, str]) -> str:
  listing = '; '.join(f'{why} ({count})' for why, count in passed_over.items())
  return f'; passed over: {listing}' if listing else ''


def _instance(row: Any, images: dict, names: dict) -> dict:
  """Returns one annotation as an instance; raises Odd if it cannot be one."""
  if not isinstance(row, dict):
    raise Odd('it is no object')
  if whole(row.get('iscrowd')) not in (0, None):
    raise Odd('it is a crowd')
  annotation_id, category = whole(row.get('id')), whole(row.get('category_id'))
  if not isinstance(annotation_id, int) or not 0 <= annotation_id < 2**63:
    raise Odd('its id is no whole number from 0 up')
  if category is None:
    raise Odd('it has no category')
  image = images.get(whole(row.get('image_id')))
  if image is None:
    raise Odd('its image is not listed')
  if isinstance(image, str):
    raise Odd(image)
  if image['shape'] is None:
    image['shape'] = _size_of(image['path'])
  if not row.get('bbox'):
    raise Odd('it has no bbox')
  try:
    x, y, w, h = map(float, row['bbox'])
  except (TypeError, ValueError):
    raise Odd('its bbox is not four numbers') from None
  if not all(map(math.isfinite, (x, y, w, h))):
    raise Odd('its bbox is not finite')
  width, height = image['shape']
  box = (max(0.0, x), max(0.0, y), min(x + w, width), min(y + h, height))
  if not (box[0] < box[2] and box[1] < box[3]):
    raise Odd('its bbox is empty or outside the image')
  return dict(
    id=annotation_id, category=category, file=image['file'], path=image['path'],
    name=names.get(category, str(category)), shape=(width, height), box=box,
  )  # fmt: skip


def whole(value: Any) -> Any:
  """Returns 3 for 3, 3.0, '3' and '3.0'; None for NaN, blanks and nested values; other texts."""
  if isinstance(value, str):
    text = value.strip()
    digits = text.removesuffix('.0')
    return int(digits) if digits.isdecimal() and len(digits) < 20 else text or None
  if isinstance(value, float) and not value.is_integer():
    return None
  return int(value) if isinstance(value, int | float) else None


def _images(rows: Any, folder: str) -> dict[Any, dict | str]:
  """Returns {id: dict(file, path, shape), or why its annotations are passed over}."""
  named = {}
  for row in rows:
    if not isinstance(row, dict) or whole(row.get('id')) is None:
      continue
    key, parts = whole(row['id']), parts_of(row)
    if not parts:
      named[key] = 'its image has no file name'
    elif named.setdefault(key, (parts, row))[0] != parts:
      named[key] = 'its image id occurs twice'
  depth = _depth([value[0] for value in named.values() if isinstance(value, tuple)], folder)
  paths = {value[0] for value in named.values() if isinstance(value, tuple)}
  files = Counter(_below(parts, depth) for parts in paths)
  found = {}
  for key, value in named.items():
    if isinstance(value, str):
      found[key] = value
    elif files[file := _below(value[0], depth)] > 1:
      found[key] = 'its file name is that of another image'
    else:
      found[key] = dict(file=file, path=os.path.join(folder, file), shape=size_of(value[1]))
  return found


def size_of(row: dict) -> tuple[int, int] | None:
  """Returns the width and height that a row says its image has; None if it says none."""
  size = whole(row.get('width')), whole(row.get('height'))
  return size if all(isinstance(n, int) and n > 0 for n in size) else None


def parts_of(row: dict) -> tuple[str, ...]:
  """Returns the parts of an image's path; LVIS has no file name but the address of COCO's file."""
  name, url = row.get('file_name'), row.get('coco_url')
  if isinstance(name, str) and name.strip():
    parts = name.replace('\\', '/').split('/')
  else:
    parts = url.partition('://')[2].split('/')[1:] if isinstance(url, str) else []
  return tuple(part for part in parts if part not in ('', '.', '..'))


def _below(parts: tuple[str, ...], depth: int) -> str:
  """Returns the path without its first `depth` folders."""
  return '/'.join(parts[min(depth, len(parts) - 1) :])


def _depth(paths: list[tuple[str, ...]], folder: str) -> int:
  """Returns how many folders at the beginning of the paths stand for `folder` or one above it."""
  for depth in range(max(map(len, paths), default=1)):
    if any(os.path.isfile(os.path.join(folder, _below(p, depth))) for p in paths[:PROBED]):
      return depth
  return 0


def _size_of(path: str) -> tuple[int, int]:
  """Returns the (width, height) of a stored picture that the annotations do not tell."""
  try:
    with decode.opened(path) as file:
      return decode.stored_size(file)
  except UserError:
    raise Odd('its image has no size, and the file cannot be read') from None


def _source_place(a: dict, size: int, min_area: float, max_area: float) -> build.Place | None:
  """Returns where a box's source is cut, or None if no square holds it or its area is wrong."""
  place = build.square(a['shape'], a['box'], size)
  if place is None:
    return None
  x0, y0, x1, y1 = build.scaled(a['box'], a['shape'], place[:2])
  share = (x1 - x0) * (y1 - y0) / size**2
  return place if min_area <= share <= max_area else None


def _shorter_side(box: build.Box) -> float:
  x0, y0, x1, y1 = box
  return min(x1 - x0, y1 - y0)


def _paired(wanted: list, usable: list[dict], seed: int) -> Iterator[tuple[dict, tuple, dict]]:
  """Yields (source, its place, exemplar) in a random order, with each source image once."""
  rng = np.random.default_rng([seed, 0])
  decks, shuffle = defaultdict(deque), rng.permutation(len(usable))
  for i in shuffle:
    decks[usable[i]['category']].append(usable[i])
  seen = set()
  for i in rng.permutation(len(wanted)):
    source, place = wanted[i]
    if source['file'] in seen:
      continue
    deck = decks[source['category']]
    at = next((k for k, other in enumerate(deck) if other['file'] != source['file']), None)
    if at is None:
      continue
    exemplar = deck[at]
    del deck[at]
    deck.append(exemplar)
    seen.add(source['file'])
    yield source, place, exemplar


def _coco_plan(source: dict, place: build.Place, exemplar: dict, size: int, pad: int) -> build.Plan:
  def pictures():
    image, other = (_stored(a['path'], a['shape']) for a in (source, exemplar))
    x0, y0, x1, y1 = exemplar['box']
    window = (
      max(0, math.floor(x0) - pad), max(0, math.floor(y0) - pad),
      min(other.width, math.ceil(x1) + pad), min(other.height, math.ceil(y1) + pad),
    )  # fmt: skip
    return dict(
      source=build.cut(image, place, size),
      mask=build.rectangle(source['box'], source['shape'], place, size),
      exemplar=np.asarray(other.crop(window)),
    )

  about = dict(
    category=source['name'], image=source['file'], box=source['box'],
    exemplar_image=exemplar['file'], exemplar_box=exemplar['box'], exemplar_id=exemplar['id'],
  )  # fmt: skip
  return build.Plan(source['id'], about, pictures)


def _stored(path: str, shape: tuple[int, int]) -> PIL.Image.Image:
  """Reads a photo without EXIF rotation, because COCO's boxes are those of the stored photo."""
  image = decode.upright(path, 'RGB', 'white', turn=False)
  if image.size != shape:
    says = f'its annotation says {shape[0]}x{shape[1]}'
    raise DataError(f'{path} is {image.width}x{image.height}, {says} (width x height)')
  return image


def _read(path: str) -> bytes:
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
