"""Makes the files of a small CLIP tokenizer: letters, and every word as one token.

The layout is the published one: vocab.json has the number of each token, merges.txt the pairs that
become one token, the first line first.
"""

import json
import os
import string
from collections.abc import Iterable

from exedit.runtime import files

from . import tokenizer

END = '</w>'  # marks the last letter of a word


def write(folder: str | os.PathLike, words: Iterable[str]) -> int:
  """Writes a vocabulary of letters and these lower-case words; returns its number of tokens."""
  tokens, merges = make(words)
  os.makedirs(folder, exist_ok=True)
  texts = (json.dumps({token: i for i, token in enumerate(tokens)}), '\n'.join(merges) + '\n')
  paths = (os.path.join(folder, name) for name in tokenizer.FILES)
  files.write_all({path: text.encode() for path, text in zip(paths, texts)})
  return len(tokens)


def make(words: Iterable[str]) -> tuple[list[str], list[str]]:
  """Returns the tokens, start and end being the last two, and the lines of merges.txt.

  A new pair stands behind all others, so it changes no word that is one token already.
  """
  ranks: dict[tuple[str, str], int] = {}
  tokens = [*string.ascii_lowercase, *(letter + END for letter in string.ascii_lowercase)]
  for word in words:
    while len(pieces := split(word, ranks)) > 1:
      ranks[pieces[0], pieces[1]] = len(ranks)
      if pieces[0] + pieces[1] not in tokens:  # two pairs may give the same token
        tokens.append(pieces[0] + pieces[1])
  tokens += ['<|startoftext|>', '<|endoftext|>']
  return tokens, ['#version: 0.2', *(f'{a} {b}' for a, b in ranks)]


def split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
  """Returns the tokens of a word: the pair of the lowest rank is merged until none is left."""
  pieces = [*word[:-1], word[-1] + END]
  while known := [pair for pair in zip(pieces, pieces[1:]) if pair in ranks]:
    best, merged = min(known, key=ranks.__getitem__), []
    while pieces:
      found = tuple(pieces[:2]) == best
      merged.append(''.join(pieces[: 1 + found]))
      pieces = pieces[1 + found :]
    pieces = merged
  return pieces
