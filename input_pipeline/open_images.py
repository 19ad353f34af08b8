"""Makes a training example (image, mask, exemplar) from an Open Images record.

It agrees in distribution with PbE ldm/data/open-images.py (arXiv 2211.13227, section 3.1): choose a
box, cut its exemplar, extend the box, draw the mask, cut a square, resize. One decode without EXIF
rotation serves image and exemplar.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from exedit.runtime.settings import check_limits

from . import augment as augmentation
from . import codec, crops, latent_shards, masks
from .errors import DataError, Unusable

NON_SQUARE = ('squash', 'pad', 'skip')
EXEMPLARS = ('box', 'cut_out')
MASKS = 'bobjects/mask'  # feature: of each box its subject's mask as PNG; empty bytes: it has none
LIMITS = dict(  # the least and the greatest value; None: no bound
  size=(1, None),
  exemplar_size=(1, None),
  arbitrary_mask=(0, 1),
  own_mask=(0, 1),
  exemplar_pad=(0, None),
  extend=(0, 1),
  zoom=(0, 1),
  mask_jitter=(0, None),
  affine_jitter=(0, None),
  min_area=(0, 1),
  max_area=(0, 1),
  workers=(0, None),
  threads=(1, None),
  prefetch=(1, None),
)
AREAS = dict(min_area=0.02, max_area=0.8)  # shares of the image


def check_settings(**settings) -> None:
  """Raises DataError for a value that `make_example` cannot work with."""
  check_limits(settings, LIMITS, 'data')
  kernels = settings.get('blur_kernels', (1,))
  if not kernels or not all(isinstance(size, int) and size > 0 for size in kernels):
    raise DataError(f'data.blur_kernels is {kernels}: it must hold numbers of at least 1')
  least, most = (settings.get(name, default) for name, default in AREAS.items())
  if least > most:
    raise DataError(f'data.min_area is {least}: it must be at most data.max_area, {most}')
  non_square = settings.get('non_square', 'squash')
  if non_square not in NON_SQUARE:
    raise DataError(f'data.non_square is {non_square!r}: use one of {", ".join(NON_SQUARE)}')
  exemplar = settings.get('exemplar', 'box')
  if exemplar not in EXEMPLARS:
    raise DataError(f'data.exemplar is {exemplar!r}: use one of {", ".join(EXEMPLARS)}')


def make_example(
  features: dict,
  rng: np.random.Generator,
  *,
  size=512,
  exemplar_size=224,
  augment=True,
  arbitrary_mask=0.5,
  own_mask=0.0,
  exemplar='box',
  exemplar_pad=10,
  extend=0.4,
  zoom=0.6,
  mask_jitter=5,
  mask_dedupe=False,
  affine_jitter=50,
  blur_kernels=(3, 5, 7),
  min_area=AREAS['min_area'],
  max_area=AREAS['max_area'],
  non_square='squash',
) -> dict[str, np.ndarray]:
  """Makes one training example from the features of a record (names of TFDS open_images_v4).

  Returns image uint8 [size size 3], mask uint8 [size size] (255 = repaint, soft edges) and exemplar
  uint8 [s s 3]; if the record stores latents, moments instead of the image.

  Args:
    size: side of the image in pixels. exemplar_size: side of the exemplar in pixels.
    augment: flip, turn, blur and bend the exemplar. arbitrary_mask: share of the masks of arbitrary
      shape; the others are rectangles. own_mask: share of the holes that are the subject's own
      mask, where the record has it.
    exemplar: 'cut_out' makes what surrounds the subject grey, where the record has its mask.
    exemplar_pad, mask_jitter: in pixels of the stored image.
    affine_jitter: in pixels of a 224-pixel exemplar. blur_kernels: in pixels of the exemplar.
    non_square: if no square cut contains the box: 'squash' the whole image (as released), 'pad' it
      by mirroring, or 'skip' to another random box.

  Raises:
    DataError: if the image cannot be decoded.
    Unusable: if no box can be used.
  """
  if latent_shards.MOMENTS in features:
    return latent_shards.make_example(
      features, rng, augment=augment, affine_jitter=affine_jitter, blur_kernels=blur_kernels
    )
  check_settings(non_square=non_square, exemplar=exemplar)
  name = name_of(features)
  if not features.get('image'):
    raise DataError(f'{name}: the record has no image')
  image = codec.decode(features['image'][0], name)
  shape = image.shape[:2]
  boxes = [*usable(features.get('bobjects/bbox', ()), shape, min_area, max_area).items()]
  if not boxes:
    raise Unusable(f'{name}: no box covers between {min_area:g} and {max_area:g} of the image')
  for _ in range(10 if non_square == 'skip' else 1):
    number, box = boxes[rng.integers(len(boxes))]
    extended = masks.extend_box(box, shape, rng, extend)
    window = crops.square_window(shape, extended, rng, zoom)
    if window:
      break
  if window is None and non_square == 'skip':
    raise Unusable(f'{name}: no square cut of the {shape[1]}x{shape[0]} image holds a box')
  subject = subject_of(features, number, shape) if own_mask or exemplar == 'cut_out' else None
  seen = subject if exemplar == 'cut_out' else None
  reference = crops.exemplar(image, box, exemplar_size, exemplar_pad, seen)
  if augment:
    reference = augmentation.exemplar(
      reference, rng, affine_jitter=affine_jitter, blur_kernels=blur_kernels
    )
  if subject is not None and own_mask and rng.random() < own_mask:
    mask = masks.grown(subject, mask_jitter)
  else:
    mask = masks.sample(
      shape, box, extended, rng, arbitrary=arbitrary_mask, jitter=mask_jitter, dedupe=mask_dedupe
    )
  if window:
    image, mask = crops.cut(image, window), crops.cut(mask, window)
  elif non_square == 'pad':
    image, mask = crops.pad_square(image), crops.pad_square(mask)
  return dict(image=crops.resize(image, size), mask=crops.resize(mask, size), exemplar=reference)


def shapes(*, size: int, exemplar_size: int, **others) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Returns {name: (shape, dtype)} of what `make_example` returns for records with images."""
  return dict(
    image=((size, size, 3), np.uint8),
    mask=((size, size), np.uint8),
    exemplar=((exemplar_size, exemplar_size, 3), np.uint8),
  )


def subject_of(
  features: Mapping[str, Any], number: int, shape: tuple[int, int]
) -> np.ndarray | None:
  """Returns the mask of the subject of box `number`, uint8 [h w] (255 = subject); None if none.

  Raises:
    DataError: for a mask that is damaged or of another size than the picture.
  """
  stored = features.get(MASKS, ())
  if number >= len(stored) or not stored[number]:
    return None
  found = cv2.imdecode(np.frombuffer(stored[number], np.uint8), cv2.IMREAD_GRAYSCALE)
  if found is None or found.shape != shape:
    size = 'no picture' if found is None else f'{found.shape[1]}x{found.shape[0]}'
    raise DataError(
      f'{name_of(features)}: the mask of box {number} is {size}, the picture {shape[1]}x{shape[0]}'
    )
  return found


def usable_boxes(
  bbox: np.ndarray, shape: tuple[int, int], min_area=0.02, max_area=0.8
) -> list[tuple[int, int, int, int]]:
  """Returns the boxes of `usable`."""
  return [*usable(bbox, shape, min_area, max_area).values()]


def usable(
  bbox: np.ndarray, shape: tuple[int, int], min_area=0.02, max_area=0.8
) -> dict[int, tuple[int, int, int, int]]:
  """Converts boxes (ymin, xmin, ymax, xmax) in 0..1 [n*4] to pixels, those of a fitting area only.

  Pixel boxes are (x0, y0, x1, y1), truncated as in the released code, by their numbers.
  """
  height, width = shape
  boxes = np.asarray(bbox, np.float32).reshape(-1, 4)
  area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  numbers = np.flatnonzero((area >= min_area) & (area <= max_area))
  # A side of whole pixels may be slightly too small as a float32; 0.001 keeps it from truncation.
  sides = np.array([height, width, height, width], np.float32)
  pixels = np.clip((boxes[numbers] * sides + np.float32(1e-3)).astype(int), 0, sides.astype(int))
  return {
    number: (x0, y0, x1, y1)
    for number, (y0, x0, y1, x1) in zip(numbers.tolist(), pixels.tolist())
    if x1 > x0 and y1 > y0
  }


def name_of(features: Mapping[str, Any]) -> str:
  """Returns the file name that a record stores, for messages."""
  filename = features.get('image/filename')
  return filename[0].decode('utf-8', 'replace') if filename else 'record without a filename'
