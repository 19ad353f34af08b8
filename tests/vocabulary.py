"""Writes the files of a small CLIP tokenizer, in the published layout."""

import json
import string
from pathlib import Path

WORDS = ('red', 'blue', 'ball', 'star', 'photo', 'of')


def write(folder: Path, words=WORDS) -> int:
  """A vocabulary of letters and these words, in a new folder; returns its number of tokens."""
  tokens = [*string.ascii_lowercase, *(f'{letter}</w>' for letter in string.ascii_lowercase)]
  merges = []
  for word in words:
    pieces = [*word[:-1], f'{word[-1]}</w>']
    while len(pieces) > 1:
      pair = f'{pieces[0]} {pieces[1]}'
      pieces = [pieces[0] + pieces[1], *pieces[2:]]
      if pair not in merges:
        merges.append(pair)
        tokens.append(pieces[0])
  tokens += ['<|startoftext|>', '<|endoftext|>']
  folder.mkdir(parents=True)
  (folder / 'vocab.json').write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
  (folder / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges, '']))
  return len(tokens)
