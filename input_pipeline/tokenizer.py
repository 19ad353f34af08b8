"""Texts as CLIP's tokens: transformers' CLIPTokenizer with the files of a folder.

The folder is `tokenizer/` of a diffusers pipeline. It has vocab.json and merges.txt, or the one
file tokenizer.json, which transformers 5 writes instead.
"""

import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from exedit.runtime import caches, files, remote
from exedit.runtime.errors import UserError

FOLDER = 'tokenizer'  # its name beside weights, in a run and in a folder of data
FILES = ('vocab.json', 'merges.txt')
WHOLE, CONFIG = 'tokenizer.json', 'tokenizer_config.json'
ALL = (*FILES, WHOLE, CONFIG, 'special_tokens_map.json', 'added_tokens.json')
BRACKETS = re.compile(r'<[^\s<>]+>')  # how new words are written
SHOWN = 60  # characters of a text in a message


class Tokenizer:
  """`tokenizer(text) -> int32 [length]`: the start token, the text's, and end tokens to the length.

  Args:
    folder: holds FILES, or WHOLE.
    vocabulary: the number of rows of the text tower's table. As in CLIP, the last two are the
      tokens of start and end.
    length: the number of tokens that the tower takes.
    words: new words, such as '<new1>'. Each is one token: the numbers behind the vocabulary. With
      X_1, X_2, ... behind it, X stands for all of them.
    strict: refuse a text with a word in angle brackets that is none of these.
  Raises:
    UserError: for a folder without these files, a damaged one, and one of another vocabulary; for
      words that cannot be added.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    vocabulary: int = 49408,
    length: int = 77,
    words: Sequence[str] = (),
    strict: bool = False,
  ):
    self.folder, self.length = os.fspath(folder), length
    self._words, self._strict = {word.lower() for word in words}, strict
    self._several = _several(words, vocabulary)
    self._clip = _opened(self.folder, tuple(words))
    found = len(self._clip) - len(words)
    ends = self._clip.bos_token_id, self._clip.eos_token_id
    if found != vocabulary or ends != (vocabulary - 2, vocabulary - 1):
      raise UserError(
        f'{self.folder} has {found} tokens, start and end being {ends[0]} and {ends[1]}; the text '
        f'tower has {vocabulary} rows, with {vocabulary - 2} and {vocabulary - 1}: use the '
        'tokenizer that belongs to these weights'
      )

  def __call__(self, text: str) -> np.ndarray:
    """The tokens of a text, cut where it is too long.

    Raises:
      UserError: for control characters, and for words that the vocabulary cannot spell.
    """
    start, end = self._clip.bos_token_id, self._clip.eos_token_id
    own = self.tokens(text)[: self.length - 2]
    return np.array([start, *own, *[end] * (self.length - 1 - len(own))], np.int32)

  def tokens(self, text: str) -> list[int]:
    """The tokens of a text alone, without start and end."""
    self._check(text)
    found = self._clip(text, add_special_tokens=False).input_ids
    return [token for i in found for token in self._several.get(i, [i])]

  def piece(self, piece: str) -> int | None:
    """The token of a piece inside words, such as 'ktn'; None if the vocabulary has none."""
    return self._clip.get_vocab().get(piece)

  def cut(self, text: str) -> str:
    """The end of a text that `__call__` leaves out because of the length; '' for most texts."""
    found = self._clip(text, add_special_tokens=False, return_offsets_mapping=True)
    places = zip(found['input_ids'], found['offset_mapping'])
    starts = [place[0] for i, place in places for _ in self._several.get(i, [i])]
    rest = starts[self.length - 2 :]
    return text[rest[0] :].strip() if rest else ''

  def _check(self, text: str) -> None:
    """Raises UserError for a text that the tokens cannot represent."""
    check_characters(text)
    for word in BRACKETS.findall(text) if self._strict else ():
      if word.lower() not in self._words:
        known = f'; known are {", ".join(sorted(self._words))}' if self._words else ''
        raise UserError(
          f'no concept teaches these weights {word:.{SHOWN}}: name it with --concept{known}'
        )
    unknown = [word for word in text.split() if not self._spells(word)]
    if unknown:
      words = ', '.join(repr(word[:SHOWN]) for word in unknown[:5])
      raise UserError(
        f'the vocabulary of these weights cannot spell {words}: use other words (the files in '
        f'{self.folder} list what it knows)'
      )

  def _spells(self, word: str) -> bool:
    end = self._clip.eos_token
    return end in word or end not in self._clip.tokenize(word)


def _several(words: Sequence[str], first: int) -> dict[int, list[int]]:
  """By the token of a word X that X_1, X_2, ... follow, the tokens of all of them."""
  found = {}
  for i, word in enumerate(words):
    named = [f'{word}_{k}' == other for k, other in enumerate(words[i + 1 :], 1)]
    if count := (*named, False).index(False):
      found[first + i] = [*range(first + i, first + i + 1 + count)]
  return found


def check_characters(text: str) -> None:
  """The check of a text that needs no vocabulary: raises UserError for control characters."""
  bad = next((c for c in text if unicodedata.category(c) in ('Cc', 'Cs') and c not in '\t\r\n'), '')
  if bad:
    raise UserError(
      f'the text {text!r:.{SHOWN}} has a control character (U+{ord(bad):04X}): delete it'
    )


def is_there(folder: str | os.PathLike) -> bool:
  """Whether a folder, which may be in a store, holds the files of a tokenizer."""
  known = remote.is_remote(folder) or os.path.isdir(folder)
  names = {*remote.listing(os.fspath(folder))} if known else set()
  return names.issuperset(FILES) or WHOLE in names


def contents(folder: str | os.PathLike) -> dict[str, bytes]:
  """The files of a tokenizer by their names; other files in the folder do not count."""
  names = sorted({*remote.listing(os.fspath(folder))}.intersection(ALL))
  return {name: remote.read(os.path.join(folder, name)) for name in names}


def copy(source: str | os.PathLike, weights: str | os.PathLike) -> None:
  """Copies the files of a tokenizer into the folder FOLDER beside weights, in place of others."""
  target, found = os.path.join(weights, FOLDER), contents(source)
  os.makedirs(target, exist_ok=True)
  for name in contents(target).keys() - found.keys():
    os.remove(os.path.join(target, name))
  files.write_all({os.path.join(target, name): data for name, data in found.items()})


def digest(folder: str | os.PathLike) -> str:
  """A SHA-256 in hexadecimal of the files of a tokenizer."""
  parts = (part for pair in contents(folder).items() for part in (pair[0].encode(), pair[1]))
  return hashlib.sha256(b'\0'.join(parts)).hexdigest()


def local(folder: str | os.PathLike) -> str:
  """The folder itself, or the copy in the user's cache of one in a store."""
  if not remote.is_remote(folder):
    return os.fspath(folder)
  kept = caches.folder_of('tokenizers', digest(folder))
  os.makedirs(kept, exist_ok=True)
  files.write_all({os.path.join(kept, name): data for name, data in contents(folder).items()})
  return os.fspath(kept)


@functools.cache
def _opened(folder: str, words: tuple[str, ...] = ()) -> Any:
  there = set(os.listdir(folder)) if os.path.isdir(folder) else set()
  missing = [name for name in FILES if name not in there]
  if missing and WHOLE not in there:
    raise UserError(f'{folder} is no tokenizer: it lacks {" and ".join(missing)}')
  try:
    from transformers import CLIPTokenizer
  except ImportError:
    raise UserError(
      'texts need the package transformers, which is not installed: pip install transformers'
    ) from None
  try:
    clip = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
  except Exception as error:  # the library raises errors of any kind
    raise UserError(
      f'{folder} is damaged ({type(error).__name__}: {str(error)[:100]}): restore it from a copy'
    ) from error
  for word in words:
    _add(clip, word)
  return clip


def _add(clip: Any, word: str) -> None:
  """Makes a word one token, in capitals too; inside other letters only if it has brackets."""
  from transformers import AddedToken

  if not word.isprintable() or not word or any(c.isspace() for c in word):
    raise UserError(f'{word!r:.{SHOWN}} cannot be a word of its own: name it such as <new1>')
  if len(clip.tokenize(word)) == 1:
    raise UserError(
      f'{word!r:.{SHOWN}} is one token already, of the vocabulary or of another concept: give it '
      'another name, such as <new2>'
    )
  clip.add_tokens([AddedToken(word.lower(), single_word=word.isalnum(), normalized=True)])
