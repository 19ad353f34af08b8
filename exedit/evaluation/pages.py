"""The shared parts of the pages of evaluations and comparisons: tables, figures, pictures."""

import dataclasses
import html
import importlib.resources
import os
import re
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from exedit import images
from exedit.runtime import files

PAGE, PICTURES = 'index.html', 'page'
SHOWN = 24  # edits in the first section
EXTREMES = 6  # edits at either end of a metric
ALIKE = 1e-9  # scores that differ by less differ by rounding only
CELL = 256  # pixels: the longer side of a picture's file
SHOWN_AT = 120  # pixels: the square that page.html shows it in
TINT = np.array([255, 0, 255])  # colour of the region to repaint


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading with a paragraph, perhaps a table, and figures under headings of their own."""

  title: str
  about: str
  figures: Mapping[str, Sequence[str]]
  columns: Sequence[str] = ()
  rows: Sequence[Sequence[str]] = ()


def write(
  output: str,
  title: str,
  head: Iterable[str],
  columns: Sequence[str],
  rows: Iterable[Sequence[str]],
  sections: Sequence[Section],
) -> str:
  """Write index.html into the folder; returns its path.

  head: the lines under the title. rows: the cells of the table; the first one links to the section
  of the same title.
  """
  titles = frozenset(section.title for section in sections)
  body = [f'<p class="head">{html.escape(line)}</p>' for line in head]
  body += _table(columns, rows, titles)
  for section in sections:
    name = html.escape(section.title)
    body.append(f'<h2 id="{name}">{name}</h2><p>{html.escape(section.about)}</p>')
    body += _table(section.columns, section.rows) if section.rows else []
    for heading, figures in section.figures.items():
      body.append(f'<h3>{html.escape(heading)}</h3>' if heading else '')
      body.append('<div class="edits">\n' + '\n'.join(figures) + '\n</div>')
  template = importlib.resources.files('exedit.evaluation').joinpath('page.html').read_text('utf-8')
  text = string.Template(template).substitute(title=html.escape(title), body='\n'.join(body))
  page = os.path.join(output, PAGE)
  files.write_text(page, text)
  return page


def _table(columns, rows, titles: Collection[str] = ()):
  cells = ''.join(f'<th>{html.escape(column)}</th>' for column in columns)
  return ['<table>', f'<tr>{cells}</tr>', *(_row(r, r[0] in titles) for r in rows), '</table>']


def _row(row, linked):
  first, *cells, note = (html.escape(cell).replace('\n', '<br>') for cell in row)
  middle = ''.join(f'<td class="n">{cell}</td>' for cell in cells)
  link = f'<a href="#{first}">{first}</a>' if linked else first
  kind = ' class="none"' if cells[0] == '-' else ''
  return f'<tr{kind}><td>{link}</td>{middle}<td class="why">{note}</td></tr>'


def figure(edit_id: int, kinds: Sequence[str], caption: str, links: Mapping[str, str] = {}) -> str:
  """An edit's pictures as written by `save_pictures`; `links` are the targets of some of them."""
  shown = []
  for kind in kinds:
    source = f'{PICTURES}/{_name(edit_id, kind)}'
    image = f'<img src="{source}" alt="{kind} of {edit_id}" loading="lazy">'
    target = html.escape(links.get(kind, ''))
    shown.append(f'<a href="{target}">{image}</a>' if target else image)
  return f'<figure>{"".join(shown)}<figcaption>{html.escape(caption)}</figcaption></figure>'


def save_pictures(
  output: str, edit_id: int, pictures: Mapping[str, UInt8[np.ndarray, '_ _ 3']]
) -> set[str]:
  """Write an edit's pictures for the page, small; return the names of their files."""
  folder = Path(output) / PICTURES
  folder.mkdir(parents=True, exist_ok=True)
  for kind, pixels in pictures.items():
    images.save(small(pixels), folder / _name(edit_id, kind))
  return {_name(edit_id, kind) for kind in pictures}


def _name(edit_id, kind):
  return f'{edit_id:012d}_{kind}.png'


def is_picture(name: str) -> bool:
  """Whether a file has the name of a picture of a page."""
  return re.fullmatch(r'\d{12}_[a-z_]+\.png', name) is not None


def tinted(edit: Mapping[str, Any]) -> UInt8[np.ndarray, 'h w 3']:
  """The source with the region to repaint in pink."""
  share = edit['mask'][..., None] / 255 / 2
  return np.round(edit['source'] * (1 - share) + TINT * share).astype(np.uint8)


def small(pixels: UInt8[np.ndarray, 'h w 3']) -> UInt8[np.ndarray, 'p q 3']:
  """Shrink a picture to at most CELL; enlarge the pixels of a tiny one, which browsers blur."""
  longest = max(pixels.shape[:2])
  if longest <= SHOWN_AT // 2:
    return pixels.repeat(SHOWN_AT // longest, 0).repeat(SHOWN_AT // longest, 1)
  if longest <= CELL:
    return pixels
  size = [max(1, round(side * CELL / longest)) for side in pixels.shape[1::-1]]
  return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def text_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  """The lines of a table for the shell."""
  rows = [columns, *rows]
  widths = [max(len(row[i]) for row in rows) for i in range(len(columns) - 1)]
  padded = [[cell.ljust(width) for cell, width in zip(row, widths)] + [row[-1]] for row in rows]
  return ['  '.join(row).rstrip() for row in padded]


def number(value: float) -> str:
  """Format a value with four digits; large numbers in full, and rounding errors of 0 as 0."""
  if abs(value) < 1e-12:
    return '0'
  return f'{value:.0f}' if abs(value) >= 10_000 else f'{value:.4g}'
