"""A benchmark in the COCOEE layout from COCO's boxes: each with another instance as exemplar."""

import json
import math
import os
from collections import defaultdict, deque
from collections.abc import Iterator

import numpy as np
import PIL.Image

from ..errors import DataError
from . import build, layout


def from_coco(
  annotations: str,
  images: str,
  output: str,
  *,
  count=3500,
  seed=0,
  size=512,
  crop='nearest',
  exemplar_annotations='',
  exemplar_images='',
  exemplar_side=64,
  exemplar_pad=10,
  min_area=0.02,
  max_area=0.5,
) -> dict:
  """A benchmark of `count` boxes, one per image, each with another picture of its category.

  The edit's id is its annotation's, as in COCOEE. The exemplar is the box, with `exemplar_pad`
  pixels around it, of an instance of the same category in another image, at least `exemplar_side`
  pixels on its shorter side; of a category, none serves twice before all have. Areas are shares of
  the square source. Crowds are left out. The choice is a function of the seed and the two
  annotation files; an edit whose pictures cannot be read gives way to the next. Returns the
  manifest.
  """
  build.check(size, crop)
  if not 0 <= min_area < max_area <= 1:
    raise DataError(f'--min_area={min_area} and --max_area={max_area}: must be 0 <= min < max <= 1')
  for name, value, least in (
    ('count', count, 1), ('seed', seed, 0), ('exemplar_side', exemplar_side, 1),
    ('exemplar_pad', exemplar_pad, 0),
  ):  # fmt: skip
    if value < least:
      raise DataError(f'--{name}={value}: must be at least {least}')
  if bool(exemplar_annotations) != bool(exemplar_images):
    raise DataError('--exemplar_annotations and --exemplar_images go together')
  sources = _instances(annotations)
  others = _instances(exemplar_annotations) if exemplar_annotations else sources
  settings = dict(
    count=count, seed=seed, size=size, crop=crop, exemplar_side=exemplar_side,
    exemplar_pad=exemplar_pad, min_area=min_area, max_area=max_area,
    annotations=os.path.basename(annotations),
    exemplar_annotations=os.path.basename(exemplar_annotations or annotations),
  )  # fmt: skip
  fits = lambda a: _source_place(a, size, crop, min_area, max_area)
  wanted = [(a, place) for a in sources if (place := fits(a)) is not None]
  usable = [a for a in others if _shorter_side(a['box']) >= exemplar_side]
  pairs = _paired(wanted, usable, seed)
  folders = images, exemplar_images or images
  plans = (_coco_plan(*pair, folders, size, exemplar_pad) for pair in pairs)
  return build.write(output, plans, count, settings, lambda plan, why: None)


def _instances(path: str) -> list[dict]:
  """COCO's instances, crowds left out, by id: dict(id, category, name, file, shape (w, h), box)."""
  try:
    table = json.loads(build.read(path))
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


def _source_place(
  a: dict, size: int, crop: str, min_area: float, max_area: float
) -> build.Place | None:
  """Where a box's source is cut, or None where the box does not fit in or by its area."""
  place = build.square(a['shape'], a['box'], size, crop)
  if place is None:
    return None
  x0, y0, x1, y1 = build.scaled(a['box'], a['shape'], place[:2])
  share = (x1 - x0) * (y1 - y0) / size**2
  return place if min_area <= share <= max_area else None


def _shorter_side(box: build.Box) -> float:
  x0, y0, x1, y1 = box
  return min(x1 - x0, y1 - y0)


def _paired(wanted: list, usable: list[dict], seed: int) -> Iterator[tuple[dict, tuple, dict]]:
  """(source, its place, exemplar) in a random order, each source's image once."""
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


def _coco_plan(source: dict, place, exemplar: dict, folders, size: int, pad: int) -> build.Plan:
  def pictures():
    image, other = (
      _stored(os.path.join(folder, a['file']), a['shape'])
      for folder, a in zip(folders, (source, exemplar))
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
  """COCO's photo as stored: its boxes know nothing of EXIF rotation."""
  image = layout.decode(build.read(path), path).convert('RGB')
  if image.size != shape:
    raise DataError(f'{path} is {image.width}x{image.height}, its annotation says {shape}')
  return image
