"""A small vocabulary for tests."""

from pathlib import Path

from exedit.input_pipeline import vocabulary

WORDS = ('red', 'blue', 'ball', 'star', 'photo', 'of')


def write(folder: Path, words=WORDS) -> int:
  """Writes the tokenizer of these words; returns its number of tokens."""
  return vocabulary.write(folder, words)
