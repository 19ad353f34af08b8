"""Concepts in files: one safetensors file in exedit's own layout, and those of others.

The tensors are the kernels by their paths, and `tokens.<word>` for each word. The metadata has one
text, `concept`: JSON with the version, the order of the words, the base's digest, and `about`.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exedit.concepts import foreign, merge
from exedit.concepts.concept import Concept, applied, base_digest
from exedit.runtime import files
from exedit.runtime.errors import UserError, one_line
from exedit.weights import find
from exedit.weights.formats.files import open_tensors, read_metadata
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import damaged, read_small
from exedit.weights.found import Weights

NAME = 'concept.safetensors'  # of the file in a folder, such as that of a run
NOTE = 'concept'  # the entry of the metadata
VERSION = 1
LONGEST_TEXTS = 2**22  # bytes of a file of captions
TOKENS = 'tokens.'


def weights(
  src: str | os.PathLike,
  concept: str | Sequence[tuple[str, str]] | None = None,
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
    _files(path)
  found = find.weights(src, which, revision)
  return applied(found, [renamed(read(path, found), word, path) for word, path in named], force)


def convert(
  src: str,
  to: str,
  concept: str,
  *,
  layout: str = 'exedit',
  captions: str | None = None,
  rank: int | None = None,
  force: bool | None = None,
  which: str = 'ema',
  revision: str | None = None,
  say: Callable[[str], None] = print,
) -> None:
  """Writes concepts, several of them merged into one, to the new file or folder `to`.

  src: the weights that they belong to. concept: see `split`. layout, rank: see `write`.
  captions: a file with one text a line, see `merge.merged`. force: as in `weights`.
  Raises:
    UserError: if the concepts cannot be used, the layout cannot hold them, or `to` exists.
  """
  files.check_new(to)
  named = split(concept)
  texts = _lines(captions) if captions else []
  for _, path in named:
    _files(path)
  base = find.weights(src, which, revision)
  found = [renamed(read(path, base), word, path) for word, path in named]
  notes = [n for one in found for n in applied(base, [one], bool(force)).notes]
  made, off = found[0], 0.0
  if len(found) > 1:
    made, off = merge.merged(base, found, texts)
  made = dataclasses.replace(made, base=made.base if layout != 'exedit' else base_digest(base))
  told = write(to, made, layout, base, rank or foreign.RANK)
  for note in dict.fromkeys(notes):
    say(note)
  size = sum(array.nbytes for array in (*made.kernels.values(), *made.tokens.values()))
  words = ', '.join(made.tokens) or 'no words'
  say(f'{to}: {layout} layout, {words}, {len(made.kernels)} kernels, {size / 1e6:.1f} MB')
  if off:
    say(f"the merged outputs for the concepts' own texts are {off:.2%} off theirs")
  if told:
    say(told)


def _lines(path: str) -> list[str]:
  """The texts of a file, one a line."""
  try:
    data = read_small(path, LONGEST_TEXTS).decode()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path} cannot be read as text ({one_line(error)})') from None
  return [line.strip() for line in data.splitlines() if line.strip()]


def split(concept: str | Sequence[tuple[str, str]] | None) -> list[tuple[str, str]]:
  """The words and paths in 'C', 'C,D' or '<mine>=C'; the word is '' for a concept as it is.

  A concept that is given as such pairs stays as it is.
  """
  if concept is not None and not isinstance(concept, str):
    return list(concept)
  parts = [part.strip() for part in (concept or '').split(',') if part.strip()]
  if concept is not None and not parts:
    raise UserError('--concept is empty: name the file of a concept, or leave it out')
  named = []
  for part in parts:  # a path may have a = of its own
    word, equals, path = part.partition('=')
    named.append((word, path) if equals and not os.path.exists(part) else ('', part))
  return named


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


def read(path: str | os.PathLike, base: Weights | None = None) -> Concept:
  """The concept in a file or folder, of exedit's layout or another (see `foreign`).

  A folder holds NAME, as that of a run, or files of one concept in another layout.

  base: the weights that it belongs to, which some other layouts need.
  Raises:
    UserError: if there is none, or it is damaged.
  """
  found = [_read(file, base) for file in _files(path)]
  kernels, tokens = {}, {}
  for concept in found:
    for whole, part in ((kernels, concept.kernels), (tokens, concept.tokens)):
      if twice := whole.keys() & part.keys():
        raise UserError(f'two files in {path} hold {sorted(twice)[0]}: name one of them')
      whole |= part
  return dataclasses.replace(found[0], kernels=kernels, tokens=tokens)


def _read(file: Path, base: Weights | None) -> Concept:
  note = _note(file)
  if note is None:
    return foreign.read(file, base)
  arrays = {name: tensor.read() for name, tensor in open_tensors(file).items()}
  names = {word: TOKENS + word for word in note['words']}
  if missing := [name for name in names.values() if name not in arrays]:
    raise damaged(file, f'it has no {missing[0]}')
  rows = {word: arrays.pop(name) for word, name in names.items()}
  for name, array in [*rows.items(), *arrays.items()]:
    unfit = array.ndim != 1 if name in rows else name.startswith(TOKENS)
    if array.dtype.kind not in 'fV' or unfit:
      raise damaged(file, f'{name} is {array.dtype} {array.shape}')
  return Concept(arrays, rows, note['base'], note['about'])


def _files(path: str | os.PathLike) -> list[Path]:
  """The files of a concept; UserError if there is none."""
  file = Path(path)
  if not file.is_dir():
    if not file.exists():
      raise UserError(
        f'{path} does not exist: name the file of a concept, or the folder of its run'
      )
    return [file]
  if (file / NAME).is_file():
    return [file / NAME]
  found = [p for p in sorted(file.iterdir()) if p.suffix in foreign.ENDINGS and p.is_file()]
  if not found:
    raise UserError(
      f'{path} holds no concept: it has neither {NAME} nor a {", ".join(foreign.ENDINGS)}'
    )
  return found


def _note(file: Path) -> dict[str, Any] | None:
  """What stands beside the tensors; None in a file of others."""
  text = read_metadata(file).get(NOTE)
  if text is None:
    return None
  try:
    note = json.loads(text)
    kinds: dict[str, type] = dict(version=int, words=list, base=str, about=dict)
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


def write(
  path: str | os.PathLike,
  concept: Concept,
  layout: str = 'exedit',
  base: Weights | None = None,
  rank: int = foreign.RANK,
) -> str:
  """Writes a concept, whole or not at all; returns what to tell about it, or ''.

  layout: 'exedit', or one of `foreign.WRITERS`, which need the base. rank: of a LoRA.
  Raises:
    UserError: if the disk has not enough space, the name has another ending, or the layout cannot
      hold the concept.
  """
  if layout != 'exedit':
    assert base is not None
    return foreign.write(Path(path), concept, layout, base, rank)
  if Path(path).suffix != '.safetensors':
    raise UserError(f'{path}: a concept is one file; end its name in .safetensors')
  rows = {TOKENS + word: row for word, row in concept.tokens.items()}
  note = dict(
    version=VERSION, words=[*concept.tokens], base=concept.base, about=dict(concept.about)
  )
  save_tensors(path, {**concept.kernels, **rows}, {NOTE: json.dumps(note)})
  return ''
