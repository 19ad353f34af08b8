"""What the builders of shards write down: counts by reason with examples, and their own JSON."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Mapping

from exedit.runtime import files, remote

from .errors import DataError


class Odd(DataError):
  """Something that a builder leaves out: the reason, in one word, and what was found."""

  def __init__(self, reason: str, why: str):
    super().__init__(why)
    self.reason = reason


class Reasons:
  """The number of things that were left out by reason, and the first example of each."""

  def __init__(self, counts: Mapping[str, int] = {}, examples: Mapping[str, str] = {}):
    self.counts, self.examples = Counter(counts), dict(examples)

  def add(self, odd: Odd) -> None:
    self.counts[odd.reason] += 1
    self.examples.setdefault(odd.reason, str(odd))

  def merge(self, other: 'Reasons') -> None:
    """Adds what another one holds; the examples that were first stay."""
    self.counts.update(other.counts)
    self.examples = {**other.examples, **self.examples}

  def __str__(self) -> str:
    return told(self.counts, self.examples)

  def as_dict(self) -> dict:
    return dict(counts=dict(self.counts), examples=self.examples)


def told(counts: Mapping[str, int], examples: Mapping[str, str]) -> str:
  """Returns the counts by reason, the largest first, each with its first example."""
  found = [(reason, count) for reason, count in Counter(counts).most_common() if count]
  first = lambda reason: f' (the first is {examples[reason]})' if reason in examples else ''
  return '; '.join(f'{n:,} {reason}{first(reason)}' for reason, n in found) or 'there are none'


def names(folder: str) -> list[str]:
  """Returns the sorted names in a folder, or [] if it does not exist."""
  try:
    return sorted(remote.listing(folder))
  except (FileNotFoundError, NotADirectoryError):
    return []


def write_json(path: str, value: dict) -> None:
  """Writes a JSON file, here or in a store; it appears whole or not at all."""
  with remote.writing(path) as file:
    file.write(files.json_text(value).encode())


def read_own(path: str, *keys: str, maker: str, schema: str | None = None) -> dict:
  """Returns a JSON object that `maker` wrote, with these keys and this schema.

  Raises:
    DataError: if it is damaged or somebody else's. FileNotFoundError: if it is missing.
  """
  with contextlib.suppress(ValueError, AttributeError, TypeError):
    found = json.loads(remote.read(os.fspath(path)))
    if found.get('schema') == schema and all(key in found for key in keys):
      return found
  raise DataError(f'{path!r} is damaged or was not made by {maker}: name another --output')
