"""Makes a training example (image, tokens of its caption) from a record with captions."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from exedit.runtime.settings import check_limits

from . import crops, pictures
from . import tokenizer as texts
from .errors import DataError, Uncaptioned, UserError
from .open_images import AREAS, name_of, usable_boxes

CAPTION, PHRASE = 'caption', 'bobjects/caption'  # features: of the picture, and of each box
MISSING = ('drop', 'empty')
LONGEST = 400  # bytes of a caption that previews show

_tokenizer = functools.cache(texts.Tokenizer)


def check_settings(**settings) -> None:
  """Raises UserError for a value that `make_example` cannot work with."""
  pictures.check_settings(**settings)
  check_limits(settings, {'boxes': (0, 1), 'length': (3, None)}, 'data')
  if (value := settings.get('missing_captions', MISSING[0])) not in MISSING:
    raise DataError(f'data.missing_captions is {value!r}: use one of {", ".join(MISSING)}')
  if folder := settings.get('tokenizer'):
    _tokenizer(folder, settings.get('vocabulary', 49408), settings.get('length', 77))


def shapes(*, size: int, length: int, **others) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Returns {name: (shape, dtype)} of what `make_example` returns for the networks."""
  return dict(image=((size, size, 3), np.uint8), tokens=((length,), np.int32))


def make_example(
  features: Mapping[str, Any],
  rng: np.random.Generator,
  *,
  size=512,
  tokenizer='',
  length=77,
  vocabulary=49408,
  augment=True,
  flip=0.0,
  boxes=0.0,
  exemplar_pad=10,
  min_area=AREAS['min_area'],
  max_area=AREAS['max_area'],
  non_square='crop',
  missing_captions='drop',
) -> dict[str, Any]:
  """Makes one training example from the features of a record.

  The record has `image` and `caption` (bytes; of several one is drawn at random), and for `boxes`
  also `bobjects/bbox` and `bobjects/caption`, a phrase for each box.

  Returns image uint8 [size size 3], tokens int32 [length], and for people `caption`, bytes.

  Args:
    size: side of the image in pixels. tokenizer: its folder; '': that of the run, of init_from or
      init_clip, or of data.root.
    length: number of tokens of a text; as model.text.length says. vocabulary: number of tokens that
      the tokenizer knows; as model.text.vocabulary says.
    augment: cut squares and draw captions at random; False: the middle square, the first caption,
      no flip and no box.
    flip: share of the pictures that are mirrored; captions may say left and right. boxes: share of
      the examples that are one box of the picture, as an exemplar is cut, with its phrase as text.
    exemplar_pad: border around such a box, in pixels of the stored image. min_area, max_area: of
      such a box, as shares of the image.
    non_square: what becomes of an image that is not square: 'crop' a square from it, 'pad' it by
      mirroring, or 'squash' it.
    missing_captions: 'drop' takes another record in place of one without caption, 'empty' trains it
      with the empty text; both are counted and logged.

  Raises:
    DataError: if the image cannot be decoded, or the caption cannot be spelt.
    Unusable: if there is no caption.
  """
  name, image = name_of(features), pictures.read(features)
  found = [text for text in map(_text, features.get(CAPTION, ())) if text]
  caption = (found[rng.integers(len(found))] if augment else found[0]) if found else ''
  if augment and boxes and rng.random() < boxes:
    pairs = _phrased(features, image.shape[:2], min_area, max_area)
    if pairs:
      box, caption = pairs[rng.integers(len(pairs))]
      image, non_square = crops.exemplar(image, box, size, exemplar_pad), 'squash'
  if not caption and missing_captions == 'drop':
    raise Uncaptioned(
      f'{name} has no caption (data.missing_captions=empty trains it with the empty text)'
    )
  image = pictures.square(image, rng, size, augment, flip, non_square)
  try:
    tokens = _tokenizer(tokenizer, vocabulary, length)(caption)
  except DataError:
    raise
  except UserError as error:
    raise DataError(f'{name}: {error}') from error
  shown = np.array(caption.encode()[:LONGEST], f'S{LONGEST}')
  return dict(image=image, tokens=tokens, caption=shown, uncaptioned=np.int32(not caption))


def decoded(captions: Iterable[bytes]) -> list[str]:
  """Returns the texts of the `caption` of examples; a character that LONGEST cuts is left out."""
  return [bytes(caption).decode('utf-8', 'ignore') for caption in captions]


def _text(value: bytes) -> str:
  """A stored caption as one line; characters that cannot be printed become spaces."""
  text = value.decode('utf-8', 'replace')
  return ' '.join(''.join(c if c.isprintable() else ' ' for c in text).split())


def _phrased(features, shape, min_area, max_area) -> list[tuple[tuple[int, int, int, int], str]]:
  """The boxes of a fitting area that have a phrase, each with it."""
  boxes = np.asarray(features.get('bobjects/bbox', ()), np.float32).reshape(-1, 4)
  return [
    (box, text)
    for row, text in zip(boxes, map(_text, features.get(PHRASE, ())))
    for box in usable_boxes(row, shape, min_area, max_area)
    if text
  ]
