"""Builds a benchmark in the COCOEE layout from COCO's boxes, each with another as its exemplar."""

import json
import math
import os
from collections import defaultdict, deque
from collections.abc import Iterator

import numpy as np
import PIL.Image

from .. import codec
from ..errors import DataError
from . import build


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
  are shares of the square source. Crowds are left out. The choice depends only on the seed and the
  annotations. If the pictures of an edit cannot be read, the next edit replaces it.

  Raises:
    DataError: for settings or files that cannot be used, or too few edits. Nothing is written then.
  """
  if not 0 <= min_area < max_area <= 1:
    raise DataError(f'--min_area={min_area} and --max_area={max_area}: must be 0 <= min < max <= 1')
  found = _instances(annotations)
  settings = dict(
    count=count, seed=seed, size=size, exemplar_side=exemplar_side, exemplar_pad=exemplar_pad,
    min_area=min_area, max_area=max_area, annotations=os.path.basename(annotations),
  )  # fmt: skip
  fits = lambda a: _source_place(a, size, min_area, max_area)
  wanted = [(a, place) for a in found if (place := fits(a)) is not None]
  usable = [a for a in found if _shorter_side(a['box']) >= exemplar_side]
  pairs = _paired(wanted, usable, seed)
  plans = (_coco_plan(*pair, images, size, exemplar_pad) for pair in pairs)
  return build.write(output, plans, count, settings, lambda plan, why: None)


def _instances(path: str) -> list[dict]:
  """Returns COCO's instances by id: dicts of id, category, name, file, shape (w, h) and box."""
  try:
    table = json.loads(_read(path))
    images = {image['id']: image for image in table['images']}
    names = {c['id']: c['name'] for c in table.get('categories', ())}
    found = []
    for row in table['annotations']:
      image = images[row['image_id']]
      x, y, w, h = map(float, row['bbox'])
      shape = int(image['width']), int(image['height'])
      box = (max(0.0, x), max(0.0, y), min(x + w, shape[0]), min(y + h, shape[1]))
      if row.get('iscrowd') or not (box[0] < box[2] and box[1] < box[3]):
        continue
      found.append(
        dict(
          id=int(row['id']), category=row['category_id'], file=str(image['file_name']),
          name=names.get(row['category_id'], str(row['category_id'])), shape=shape, box=box,
        )
      )  # fmt: skip
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(
      f'{path} is not a COCO instances file ({error!r}); it needs images, annotations with bbox'
    ) from error
  if len({a['id'] for a in found}) != len(found) or any(a['id'] < 0 for a in found):
    raise DataError(f'{path}: annotation ids must be at least 0 and no two alike')
  return sorted(found, key=lambda a: a['id'])


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


def _coco_plan(
  source: dict, place: build.Place, exemplar: dict, folder: str, size: int, pad: int
) -> build.Plan:
  def pictures():
    image, other = (
      _stored(os.path.join(folder, a['file']), a['shape']) for a in (source, exemplar)
    )
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
  image = codec.load(_read(path), path).convert('RGB')
  if image.size != shape:
    raise DataError(f'{path} is {image.width}x{image.height}, its annotation says {shape}')
  return image


def _read(path: str) -> bytes:
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
