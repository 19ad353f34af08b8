"""Reads lists of edits: the rows of a .jsonl or .csv file, or of a folder with a folder per column.

A row is its place, such as 'line 3', and its cells by column, or the UserError that says why the
row cannot be read. An empty cell is '', and so are null and NaN. Relative paths in the cells start
in the list's own folder. Tables may be as spreadsheets and pandas write them: with semicolons or
tabs, in UTF-16, with an index column that has no name, with empty rows and columns at the end.
"""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from exedit.runtime import files
from exedit.runtime.errors import UserError

TABLES = ('.csv', '.tsv')
BLANK = ('', 'nan', '<na>', '#n/a')  # cells of a table that hold nothing: programs write them
UNSET = (*BLANK, 'n/a', 'null', 'none')  # people's words too: a text or a file may be called so
NAMELESS = re.compile(r'(Unnamed: \d+\S*)?')  # the name that a nameless column has, also in pandas

Row = tuple[str, dict[str, Any] | UserError]


def read(
  path: str,
  columns: Sequence[str],
  needed: Sequence[str],
  check: Callable[[list[str]], None] = lambda names: None,
  settings: Sequence[str] = (),
) -> tuple[list[Row], str]:
  """Returns the rows of a list or folder, and the folder in which its relative paths start.

  Args:
    columns: the folders to look for in a folder; their files belong together by their names without
      the endings. needed: those that must be there.
    check: raises UserError for column names of a list that are not allowed.
    settings: the columns of a table in which all words of UNSET hold nothing.

  Raises:
    UserError: if the list cannot be read at all, or is empty.
  """
  ending = os.path.splitext(path)[1].lower()
  if os.path.isdir(path):
    rows, base = list(_folder(path, columns, needed)), path
  elif not os.path.exists(path):
    raise UserError(f'{path} does not exist: name a .jsonl or .csv file, or a folder')
  elif ending in ('.jsonl', *TABLES):
    text, jsonl = _text(path), ending == '.jsonl'
    found = _jsonl(path, text, check) if jsonl else _csv(path, text, check, settings)
    rows, base = list(found), os.path.dirname(path)
  else:
    raise UserError(f'{path} is no list of edits: name a .jsonl or .csv file, or a folder')
  if not rows:
    raise UserError(f'{path} lists no edits')
  return rows, base


def as_csv(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
  """Returns a table as the text of a .csv file."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([heads, *rows])
  return text.getvalue()


def _text(path: str) -> str:
  if not os.path.isfile(path):
    raise UserError(f'{path} is a pipe or device: save the list to a file first')
  data = Path(path).read_bytes()
  utf16 = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # Excel's "Unicode text"
  try:
    text = data.decode('utf-16' if utf16 else 'utf-8-sig')
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is not UTF-8 text ({error.reason}): save it as UTF-8') from None
  if '\0' in text:
    raise UserError(f'{path} is not UTF-8 text (it has zero bytes): save it as UTF-8')
  return text.replace('\r\n', '\n').replace('\r', '\n')


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
      row = {n: '' if cell is None or cell != cell else cell for n, cell in row.items()}  # NaN
      row = {n: cell for n, cell in row.items() if not NAMELESS.fullmatch(n)}
      try:
        check(list(row))
      except UserError as error:
        row = error
    yield where, row


def _csv(path: str, text: str, check, settings: Sequence[str]) -> Iterator[Row]:
  lines = _cells(path, text)
  _, names = next(lines, (1, []))
  named = [name for name in names if not NAMELESS.fullmatch(name)]
  first = names.index(named[0]) if named else 0
  try:
    check(named)
    for name in named:
      if named.count(name) > 1:
        raise UserError(f'the column {name} appears twice')
  except UserError as error:
    raise UserError(f'{path} line 1: {error}') from None
  for number, cells in lines:
    where = f'line {number}'
    while len(cells) > len(names) and not cells[-1]:
      cells.pop()
    strays = [
      (at, cell)
      for at, (name, cell) in enumerate(zip(names, cells))
      if cell and name not in named and not (_is_index(cell) and (name or at < first))
    ]
    if len(cells) > len(names):
      what = f'it has {len(cells)} cells and the first line {len(names)}'
      yield where, UserError(f'{what}: quote a cell with a comma in it; a decimal takes a point')
    elif strays:
      at, cell = strays[0]
      yield where, UserError(f'its column {at + 1} has no name and holds {cell!r:.40}: name it')
    elif any(cells):
      blank = lambda name, cell: name in settings and cell.lower() in UNSET
      row = {name: cell for name, cell in zip(names, cells) if name in named}
      yield where, {name: '' if blank(name, cell) else cell for name, cell in row.items()}


def _is_index(cell: str) -> bool:
  return cell.removesuffix('.0').isdigit()  # pandas writes 3.0 where a number is missing


def _cells(path: str, text: str) -> Iterator[tuple[int, list[str]]]:
  """(number of the line, its cells without the spaces around them); blank lines are left out."""
  told = re.match(r'sep=(.)\n', text)  # Excel's own way to say it
  by = told[1] if told else separator(next((t for t in text.split('\n') if t.strip()), ''))
  skipped = 1 if told else 0
  text = text[told.end() :] if told else text

  def rows(text):
    lines = csv.reader(io.StringIO(text), delimiter=by, skipinitialspace=True, strict=True)
    return [(lines.line_num + skipped, cells) for cells in lines if any(c.strip() for c in cells)]

  try:
    try:
      found = rows(text)
    except csv.Error:  # perhaps spaces behind quotes
      found = rows(re.sub(rf'(?<=") +(?={re.escape(by)}|$)', '', text, flags=re.MULTILINE))
  except csv.Error as error:
    raise UserError(f'{path} is not CSV ({error}): save it again with quotes closed') from None
  for number, cells in found:
    stripped = (cell.strip() for cell in cells)
    yield number, ['' if cell.lower() in BLANK else cell for cell in stripped]


def separator(header: str) -> str:
  """Of comma, semicolon and tab the one that cuts a table's first line into the most columns."""
  columns = lambda by: next(csv.reader([header], delimiter=by, skipinitialspace=True), [])
  return max(',;\t', key=lambda by: len(columns(by)))


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
