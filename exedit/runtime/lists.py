"""Reads lists of edits: the rows of a .jsonl or .csv file, or of a folder with a folder per column.

A row is its place, such as 'line 3', and its cells by column, or the UserError that says why the
row cannot be read. Relative paths in the cells start in the list's own folder.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from exedit.runtime import files
from exedit.runtime.errors import UserError

Row = tuple[str, dict[str, Any] | UserError]


def read(
  path: str,
  columns: Sequence[str],
  needed: Sequence[str],
  check: Callable[[list[str]], None] = lambda names: None,
) -> tuple[list[Row], str]:
  """Returns the rows of a list or folder, and the folder in which its relative paths start.

  Args:
    columns: the folders to look for in a folder; their files belong together by their names without
      the endings. needed: those that must be there.
    check: raises UserError for column names of a list that are not allowed.

  Raises:
    UserError: if the list cannot be read at all, or is empty.
  """
  ending = os.path.splitext(path)[1].lower()
  if os.path.isdir(path):
    rows, base = list(_folder(path, columns, needed)), path
  elif not os.path.exists(path):
    raise UserError(f'{path} does not exist: name a .jsonl or .csv file, or a folder')
  elif ending in ('.jsonl', '.csv'):
    reader = _jsonl if ending == '.jsonl' else _csv
    rows, base = list(reader(path, _text(path), check)), os.path.dirname(path)
  else:
    raise UserError(f'{path} is no list of edits: name a .jsonl or .csv file, or a folder')
  if not rows:
    raise UserError(f'{path} lists no edits')
  return rows, base


def _text(path: str) -> str:
  if not os.path.isfile(path):
    raise UserError(f'{path} is a pipe or device: save the list to a file first')
  try:
    return Path(path).read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is not UTF-8 text ({error.reason}): save it as UTF-8') from None


def _jsonl(path: str, text: str, check) -> Iterator[Row]:
  for number, line in enumerate(text.split('\n'), 1):  # names may contain other line breaks
    if not line.strip():
      continue
    where = f'line {number}'
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      yield where, UserError(f'is not JSON ({error}): one {{...}} per line')
      continue
    if not isinstance(row, dict):
      row = UserError(f'is {row!r:.40}: it must be an object such as {{"image": "a.png", ...}}')
    else:
      try:
        check(list(row))
      except UserError as error:
        row = error
    yield where, row


def _csv(path: str, text: str, check) -> Iterator[Row]:
  try:
    lines = csv.reader(io.StringIO(text), strict=True)
    names = [name.strip() for name in next(lines, [])]
    try:
      check(names)
    except UserError as error:
      raise UserError(f'{path} line 1: {error}') from None
    for cells in lines:
      where = f'line {lines.line_num}'
      if len(cells) > len(names):
        yield where, UserError(f'it has {len(cells)} cells and the first line {len(names)}')
      elif any(cell.strip() for cell in cells):
        yield where, {name: cell.strip() for name, cell in zip(names, cells)}
  except csv.Error as error:
    raise UserError(f'{path} is not CSV ({error}): save it again with quotes closed') from None


def _folder(path: str, columns: Sequence[str], needed: Sequence[str]) -> Iterator[Row]:
  stems_of = {name: found for name in columns if (found := _by_stem(path, name)) is not None}
  for name in needed:
    if name not in stems_of:
      raise UserError(f'{path} has no folder {name}/: it needs {", ".join(needed)}')
  for stem in sorted({stem for stems in stems_of.values() for stem in stems}):
    row = {name: stems[stem] for name, stems in stems_of.items() if stem in stems}
    missing = [name for name in needed if name not in row]
    several = [names for names in row.values() if len(names) > 1]
    if missing:
      have = os.path.join(path, next(iter(row.values()))[0])
      yield stem, UserError(f'{have} has no partner {missing[0]}/{stem}.*')
    elif several:
      both = ' and '.join(os.path.join(path, name) for name in several[0])
      yield stem, UserError(f'{both} have one name: keep one of them')
    else:
      yield stem, {name: names[0] for name, names in row.items()}


def _by_stem(path: str, folder: str) -> dict[str, list[str]] | None:
  """{'1': ['mask/1.png'], ...} of the files in a folder, or None if there is no such folder."""
  if not os.path.isdir(os.path.join(path, folder)):
    return None
  stems: dict[str, list[str]] = {}
  for name in files.listing(os.path.join(path, folder)):
    if os.path.isfile(os.path.join(path, folder, name)):
      stems.setdefault(os.path.splitext(name)[0], []).append(os.path.join(folder, name))
  return stems
