"""Concepts in files: one safetensors file in exedit's own layout.

The tensors are the kernels by their paths, and `tokens.<word>` for each word. The metadata has one
text, `concept`: JSON with the version, the order of the words, the base's digest, and `about`.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from exedit.concepts.concept import Concept, applied
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.files import open_tensors, read_metadata
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import damaged
from exedit.weights.found import Weights

NAME = 'concept.safetensors'  # of the file in a folder, such as that of a run
NOTE = 'concept'  # the entry of the metadata
VERSION = 1
TOKENS = 'tokens.'


def weights(
  src: str | os.PathLike,
  concept: str | None = None,
  which: str = 'ema',
  revision: str | None = None,
  *,
  force: bool = False,
) -> Weights:
  """`find.weights` with concepts applied.

  concept: see `split`. force: apply concepts of other weights too.
  Raises:
    UserError: as `find.weights`, `read` and `applied`.
  """
  named = split(concept)
  for _, path in named:  # before weights are fetched
    _file(path)
  found = find.weights(src, which, revision)
  return applied(found, [renamed(read(path), word, path) for word, path in named], force)


def split(concept: str | None) -> list[tuple[str, str]]:
  """The words and paths in 'C', 'C,D' or '<mine>=C'; the word is '' for a concept as it is."""
  named = [part.strip().rpartition('=') for part in (concept or '').split(',') if part.strip()]
  if concept is not None and not named:
    raise UserError('--concept is empty: name the file of a concept, or leave it out')
  return [(word, path) for word, _, path in named]


def renamed(concept: Concept, word: str, path: str) -> Concept:
  """The concept with another name for its word; UserError if it does not have just one."""
  if not word:
    return concept
  if len(concept.tokens) != 1:
    raise UserError(
      f'{path} has {len(concept.tokens)} words ({", ".join(concept.tokens)}), so {word!r:.40} '
      'cannot stand for one of them: leave it out'
    )
  [row] = concept.tokens.values()
  return dataclasses.replace(concept, tokens={word: row})


def read(path: str | os.PathLike) -> Concept:
  """The concept in a file, or in NAME in a folder.

  Raises:
    UserError: if there is none, or it is damaged.
  """
  file = _file(path)
  tensors = open_tensors(file)
  note = _note(file)
  if note is None:
    raise UserError(f'{path} holds no concept of exedit: name the file that a customising wrote')
  arrays = {name: tensor.read() for name, tensor in tensors.items()}
  names = {word: TOKENS + word for word in note['words']}
  if missing := [name for name in names.values() if name not in arrays]:
    raise damaged(file, f'it has no {missing[0]}')
  rows = {word: arrays.pop(name) for word, name in names.items()}
  for name, array in [*rows.items(), *arrays.items()]:
    row = name in rows
    if array.dtype.kind not in 'fV' or (array.ndim != 1) == row or name.startswith(TOKENS):
      raise damaged(file, f'{name} is {array.dtype} {array.shape}')
  return Concept(arrays, rows, note['base'], note['about'])


def _file(path: str | os.PathLike) -> Path:
  """The file of a concept; UserError if there is none."""
  file = Path(path)
  if file.is_dir():
    if not (file / NAME).is_file():
      raise UserError(f'{path} holds no concept: it has no {NAME}')
    return file / NAME
  if not file.exists():
    raise UserError(f'{path} does not exist: name the file of a concept, or the folder of its run')
  return file


def _note(file: Path) -> dict[str, Any] | None:
  """What stands beside the tensors; None in a file of others."""
  text = read_metadata(file).get(NOTE)
  if text is None:
    return None
  try:
    note = json.loads(text)
    kinds = dict(version=int, words=list, base=str, about=dict)
    if not all(isinstance(note[name], kind) for name, kind in kinds.items()):
      raise ValueError('its note has values of other kinds')
    if not all(isinstance(word, str) for word in note['words']):
      raise ValueError('a word that is no text')
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise damaged(file, f'its note: {error}') from None
  if note['version'] > VERSION:
    raise UserError(
      f'{file} is of version {note["version"]}, and this exedit reads {VERSION}: update it'
    )
  return note


def write(path: str | os.PathLike, concept: Concept) -> None:
  """Writes a concept, whole or not at all.

  Raises:
    UserError: if the disk has not enough space, or the name has another ending.
  """
  if Path(path).suffix != '.safetensors':
    raise UserError(f'{path}: a concept is one file; end its name in .safetensors')
  rows = {TOKENS + word: row for word, row in concept.tokens.items()}
  note = dict(
    version=VERSION, words=[*concept.tokens], base=concept.base, about=dict(concept.about)
  )
  save_tensors(path, {**concept.kernels, **rows}, {NOTE: json.dumps(note)})
