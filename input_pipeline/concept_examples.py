"""Makes the training examples of concepts: a few pictures of something, each with a prompt.

A concept is a new word, such as '<new1>', and its class, such as 'patterned teapot'. An example is
one picture of a concept with a prompt that names both, and with it what keeps the class as it was:
the same prompt without the new word, and perhaps a picture of the class. Custom Diffusion (arXiv
2212.04488, section 3) has the prompts and the augmentation.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from exedit.runtime import settings

from . import captioned, crops, few_pictures
from . import tokenizer as texts
from .errors import DataError, UserError
from .few_pictures import Picture

PRIORS = ('prediction', 'pictures', 'none')
KEEP = ('best', 'last')
GREY = 128  # of the canvas around a picture that was made small
FAR, NEAR = 0.6, 1.0  # shares of the size below and above which a prompt says so

_tokenizer = functools.cache(texts.Tokenizer)


@dataclasses.dataclass(frozen=True)
class Word:
  """A new word: its name, the class that it belongs to, and the text whose row it starts from."""

  name: str
  noun: str
  init: str


def concept(
  *, name: str = '<new1>', class_: str = '', init: str = '', keep: str = 'best'
) -> tuple[Word, ...]:
  """The new words of a training.

  name: of each concept, such as '<new1>' or '<new1>,<new2>'. With several, data.root has a folder
    of pictures for each, called by its name without brackets.
  class_: a noun for each concept, as exact as prompts will be: 'patterned teapot', not 'teapot'.
  init: the text whose mean row the new row starts from; '{class}' is the class; '': a rare piece of
    a word if the vocabulary has one (ktn, pll, ucd), else the class.
  keep: 'best', the step with the least fixed_loss, or 'last'.

  Raises:
    DataError: for names, classes or texts that are not as many, and for a class that is missing.
  """
  if keep not in KEEP:
    raise DataError(f"concept.keep is '{keep}': use {' or '.join(KEEP)}")
  split = lambda text: [part.strip() for part in text.split(',')]
  names, nouns, inits = split(name), split(class_), split(init)
  inits = inits * len(names) if len(inits) == 1 else inits
  for what, found in (('class', nouns), ('init', inits)):
    if len(found) != len(names):
      raise DataError(
        f'concept.name has {len(names)} names ({name}) and concept.{what} {len(found)} '
        f'({", ".join(found)}): give each concept its own, separated by commas'
      )
  if not all(nouns) or not all(names) or len({*names}) < len(names):
    raise DataError(
      f"concept.name is '{name}' and concept.class '{class_}': give each concept another name and "
      "a noun, as --config.concept.class='patterned teapot'"
    )
  return tuple(
    Word(n, noun, text.replace('{class}', noun)) for n, noun, text in zip(names, nouns, inits)
  )


def check_settings(**given) -> None:
  """Raises UserError for values that no training can have."""
  limits = dict(flip=(0, 1), held_out=(0, 0.9), size=(8, 8192), length=(3, None), factor=(1, None))
  settings.check_limits(given, limits, 'data')
  known = {**defaults(), **given}
  if known['size'] % known['factor']:
    raise DataError(
      f'data.size is {known["size"]}: it must be a multiple of {known["factor"]} for this model'
    )
  for name in ('templates', 'prompts'):
    for text in known[name]:
      if '{}' not in text:
        raise DataError(f"data.{name} has '{text}': write {{}} where the concept is named")
  if not known['templates'] or '{name}' not in known['phrase']:
    raise DataError(
      f"data.templates has {len(known['templates'])} texts and data.phrase is '{known['phrase']}': "
      'give one template at least, and {name} in the phrase'
    )
  if known['prior'] == 'pictures' and not known['prior_root']:
    raise DataError(
      "model.prior is 'pictures': name their folder as --config.data.prior_root=DIR, or take "
      '--config.model.prior=prediction, which needs none'
    )


def defaults() -> dict[str, Any]:
  """The settings of `Examples` with their default values."""
  found = settings.arguments(Examples)
  return {p.name: p.default for p in found if p.kind == p.KEYWORD_ONLY}


class Examples:
  """The examples of a folder; example i of the stream depends only on (seed, i).

  root: a folder of pictures (see `few_pictures`), or with several concepts one in it for each.
  split: 'train', or 'validation': the pictures that are held out, or all if none is.
  size: side of the image in pixels.
  words: names and classes, as the config's group `concept` says.
  templates: texts with {} for the concept, of which one is drawn for a picture without a caption. A
    caption names the concept itself, as {} or by its name.
  phrase: how a concept is named: '{name} {class}'. Without the new word it is '{class}'.
  prompts: texts with {} for the concept, of which previews are made.
  augment: make pictures smaller and larger, and say so in the prompt. flip: share of the pictures
    that are mirrored.
  small, large: beginnings of the prompt of a smaller or larger picture; none: it is not said.
  held_out: share of the pictures of a concept that do not train; rounded down.
  prior: as model.prior says. prior_root: a folder of pictures of the class for 'pictures', with
    captions or without.
  tokenizer: its folder; '': that of the weights. length, vocabulary: of the text tower. factor:
    side of a latent in pixels.
  """

  def __init__(
    self,
    root: str,
    split: str = 'train',
    *,
    size=512,
    words=(('<new1>', ''),),
    templates=('photo of a {}',),
    phrase='{name} {class}',
    prompts=('photo of a {}',),
    augment=True,
    flip=0.5,
    small=('a far away ', 'very small '),
    large=('zoomed in ', 'close up '),
    held_out=0.2,
    prior='prediction',
    prior_root='',
    tokenizer='',
    length=77,
    vocabulary=49408,
    factor=8,
  ):
    self.words = [Word(name, noun, '') for name, noun in words]
    self.size, self.factor, self.flip, self.augment = size, factor, flip, augment
    self.templates, self.phrase, self.begins = templates, phrase, (small, large)
    self.prompts = prompts or templates
    self.train = split == 'train'
    names = tuple(word.name for word in self.words)
    self.tokens = functools.cache(_tokenizer(tokenizer, vocabulary, length, names))
    found = [few_pictures.read(folder) for folder in few_pictures.folders(root, names)]
    self.pictures = [_part(pictures, held_out, self.train) for pictures in found]
    self.prior = prior
    self.others = few_pictures.read(prior_root, size) if prior == 'pictures' else ()
    self._check_prompts()

  def _check_prompts(self) -> None:
    """Makes the tokens of all prompts, so that what cannot be spelt is said before the training."""
    begins = ('', *self.begins[0], *self.begins[1]) if self.augment and self.train else ('',)
    for word, pictures in zip(self.words, self.pictures):
      for picture in pictures:
        for text in (text for pair in self._prompts(word, picture) for text in pair):
          for begin in begins:
            self._tokens(picture.name, begin + text)

  def example(self, seed: int, index: int) -> dict[str, Any]:
    """Example `index` of the stream."""
    rng = np.random.default_rng([seed, index])
    which, place = index % len(self.words), index // len(self.words)
    pictures = self.pictures[which]
    if self.train:
      order = np.random.default_rng([seed, place // len(pictures), which, 1]).permutation(
        len(pictures)
      )
      picture = pictures[order[place % len(pictures)]]
    else:
      picture = pictures[place % len(pictures)]
    prompts = self._prompts(self.words[which], picture)
    prompt, prior = prompts[int(rng.integers(len(prompts)))] if self.train else prompts[0]
    image, mask, begin = self._image(picture, rng)
    found = dict(
      image=image, mask=mask, tokens=self._tokens(picture.name, begin + prompt),
      id=np.int32(index % 2**31), corrupt=np.int32(0),
    )  # fmt: skip
    if self.prior == 'prediction':
      found |= dict(prior_tokens=self._tokens(picture.name, begin + prior))
    elif self.prior == 'pictures':
      other = self.others[int(rng.integers(len(self.others)))]
      pixels = crops.resize(other.pixels, self.size, smooth=True)
      found |= dict(prior_image=self._flipped(pixels, rng))
      found |= dict(prior_tokens=self._tokens(other.name, other.caption or prior))
    return found

  def _image(
    self, picture: Picture, rng: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray, str]:
    """(pixels, where the loss counts by latents, the beginning of the prompt) of one example."""
    side, draw = self.size, lambda low, high: int(rng.integers(low, high + 1))
    scaled, begin = side, ''
    if self.train and self.augment:
      smaller = rng.random() < 2 / 3
      scaled = draw(side // 3, side) if smaller else draw(int(1.2 * side), int(1.4 * side))
      scaled -= scaled % 2
    near = scaled > NEAR * side
    if not near and scaled >= FAR * side:
      scaled = side
    pixels = crops.resize(picture.pixels, scaled, smooth=True)
    levels = np.full((scaled, scaled), 255, np.uint8) if picture.mask is None else picture.mask
    levels = crops.resize(levels, scaled, smooth=True)
    if scaled != side:
      begins = self.begins[near]
      begin = begins[int(rng.integers(len(begins)))] if begins else ''
    at = [draw(0, abs(side - scaled)) for _ in range(2)] if scaled != side else [0, 0]
    if near:
      place = tuple(slice(start, start + side) for start in at)
      pixels, levels = pixels[place], levels[place]
    latents = side // self.factor
    counts = np.ones((latents, latents), bool)
    if scaled < side:
      pixels, levels, counts = self._on_canvas(pixels, levels, at)
    mask = cv2.resize(levels, (latents, latents), interpolation=cv2.INTER_AREA) * counts
    if self.train and rng.random() < self.flip:
      pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(pixels), np.ascontiguousarray(mask), begin

  def _on_canvas(
    self, pixels: np.ndarray, levels: np.ndarray, at: Sequence[int]
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A small picture and its mask on grey, and the latents that lie wholly in it.

    The outermost latents of the picture do not count, because the autoencoder mixes neighbours.
    """
    latents, scaled = self.size // self.factor, len(pixels)
    place = tuple(slice(start, start + scaled) for start in at)
    canvas = np.full((self.size, self.size, 3), GREY, np.uint8)
    wide = np.zeros((self.size, self.size), np.uint8)
    canvas[place], wide[place] = pixels, levels
    counts = np.zeros((latents, latents), bool)
    edge = int(scaled >= 4 * self.factor)  # less would leave nothing
    first = [-(-start // self.factor) + edge for start in at]
    last = [(start + scaled) // self.factor - edge for start in at]
    counts[first[0] : last[0], first[1] : last[1]] = True
    return canvas, wide, counts

  def _flipped(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turned = self.train and rng.random() < self.flip
    return np.ascontiguousarray(pixels[:, ::-1]) if turned else pixels

  def _prompts(self, word: Word, picture: Picture) -> list[tuple[str, str]]:
    """The prompts that a picture may have, each with the same one without the new word."""
    named, bare = self._phrase(word), self._phrase(word, '')
    if not picture.caption:
      return [(text.replace('{}', named), text.replace('{}', bare)) for text in self.templates]
    text = picture.caption
    if '{}' in text:
      return [(text.replace('{}', named), text.replace('{}', bare))]
    if word.name.lower() not in text.lower():
      raise DataError(
        f"the caption of {picture.name}, '{text:.80}', does not name the concept: write {{}} or "
        f'{word.name} where it stands'
      )
    at = text.lower().index(word.name.lower())
    return [(text, ' '.join(f'{text[:at]} {text[at + len(word.name) :]}'.split()))]

  def _phrase(self, word: Word, name: str | None = None) -> str:
    name = word.name if name is None else name
    if not name and '{class}' not in self.phrase:
      return word.noun
    return ' '.join(self.phrase.format(**{'name': name, 'class': word.noun}).split())

  def _tokens(self, name: str, prompt: str) -> np.ndarray:
    try:
      return self.tokens(prompt)
    except DataError:
      raise
    except UserError as error:
      raise DataError(f"{name}, prompt '{prompt:.80}': {error}") from error

  def shown(self, count: int) -> dict[str, np.ndarray]:
    """`count` prompts for previews, those of all concepts in turn, each beside a picture."""
    rows = []
    for i in range(count):
      which, place = i % len(self.words), i // len(self.words)
      word, pictures = self.words[which], self.pictures[which]
      text = self.prompts[place % len(self.prompts)].replace('{}', self._phrase(word))
      image = crops.resize(pictures[place % len(pictures)].pixels, self.size, smooth=True)
      caption = np.array(text.encode()[: captioned.LONGEST], f'S{captioned.LONGEST}')
      rows.append(dict(image=image, tokens=self._tokens('data.prompts', text), caption=caption))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _part(pictures: Sequence[Picture], held_out: float | int, train: bool) -> list[Picture]:
  """The pictures that train, or those that are held out (all, if none is)."""
  count = int(held_out * len(pictures) + 1e-9)
  held = {(k + 1) * len(pictures) // count - 1 for k in range(count)}
  chosen = [p for i, p in enumerate(pictures) if (i in held) != train]
  return chosen or list(pictures)


# The functions of `systems.Data`


def batches(
  root: str,
  split: str = 'train',
  batch_size: int = 1,
  *,
  seed: int = 0,
  start: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
  workers: int = 0,
  threads: int | None = None,
  prefetch: int | None = None,
  **data,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields endless batches; batch k depends only on (seed, k). See `loader.batches`.

  workers, threads, prefetch: are not used; a few pictures lie in memory, and the training reads one
  batch ahead.

  Raises:
    DataError: at the call, for settings or data that cannot be used.
  """
  check_settings(**data)
  if batch_size % shard_count:
    raise DataError(
      f'batch_size {batch_size} cannot be divided among {shard_count} processes; '
      f'take a multiple of {shard_count}'
    )
  examples = Examples(root, split, **data)

  def endless():
    index = start + shard_index
    while True:
      rows = []
      for _ in range(batch_size // shard_count):
        rows.append(examples.example(seed, index))
        index += shard_count
      yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  return endless()


def held_out(count: int, root: str, split: str = 'train', **data) -> dict[str, np.ndarray]:
  """Returns the prompts of the previews, each with a picture of its concept."""
  known = {name: data[name] for name in data if name in defaults()}
  return Examples(root, split, **known).shown(count)


def shapes(**data) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Returns {name: (shape, dtype)} of one example; reads no data.

  Raises:
    DataError: for settings that cannot be.
  """
  known = defaults()
  reading = [p.name for p in settings.arguments(batches)]
  settings.check_names(data, [*known, *reading], 'data')
  settings.check({n: data[n] for n in data if n in known}, Examples, 'data')
  settings.check({n: data[n] for n in data if n not in known}, batches, 'data')
  mine = {n: data[n] for n in data if n in known}
  check_settings(**mine)
  known |= mine
  size, latents = known['size'], known['size'] // known['factor']
  found: dict[str, tuple[tuple[int, ...], Any]] = dict(
    image=((size, size, 3), np.uint8),
    mask=((latents, latents), np.uint8),
    tokens=((known['length'],), np.int32),
    id=((), np.int32),
    corrupt=((), np.int32),
  )
  if known['prior'] != 'none':
    found['prior_tokens'] = ((known['length'],), np.int32)
  if known['prior'] == 'pictures':
    found['prior_image'] = ((size, size, 3), np.uint8)
  return found


def words_of(group: Mapping[str, Any]) -> tuple[Word, ...]:
  """The new words of the config's group `concept`."""
  return concept(**group)
