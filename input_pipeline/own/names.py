"""Finds pictures in a folder, and the picture that a label or a mask belongs to."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from exedit.runtime import files

from ..errors import DataError
from ..few_pictures import ENDINGS
from ..reports import Odd

MASK = re.compile(r'(?P<stem>.+)[._ -](mask|matte|alpha|seg)([._ -]?\d+)?', re.IGNORECASE)
NUMBER = re.compile(r'(?P<stem>.+)[._ -]\d+')


def below(folder: str, endings: Iterable[str]) -> list[str]:
  """Returns the paths of the files with these endings below a folder, relative to it, in order.

  Raises:
    DataError: if it is no folder.
  """
  if not os.path.isdir(folder):
    raise DataError(f'{folder} is not a folder: name one that exists')
  found = []
  for where, inner, names in os.walk(folder):
    inner[:] = [name for name in inner if not files.is_litter(name)]
    for name in names:
      if name.lower().endswith(tuple(endings)) and not files.is_litter(name):
        found.append(os.path.relpath(os.path.join(where, name), folder).replace(os.sep, '/'))
  return sorted(found)


def pictures(folder: str, masks: str = '') -> list[str]:
  """Returns the relative paths of the pictures below a folder; files of masks do not count.

  masks: the folder of the masks, which may be the same or lie inside.
  """
  found = below(folder, ENDINGS)
  if masks:
    inside = os.path.relpath(os.path.realpath(masks), os.path.realpath(folder)).replace(os.sep, '/')
    if inside == '.':
      found = [name for name in found if not MASK.fullmatch(PurePosixPath(name).stem)]
    else:
      found = [name for name in found if not name.startswith(inside + '/')]
  if not found:
    raise DataError(f'{folder} holds no pictures: name a folder with some as --pictures')
  return found


def plain(name: str) -> str:
  """Returns a name as it is compared: composed characters, no case, slashes."""
  return unicodedata.normalize('NFC', name.replace('\\', '/')).casefold()


def label_of(name: str) -> str:
  """Returns the folder that a picture lies in, as its label; '' at the top."""
  return os.path.basename(os.path.dirname(name))


class Names:
  """Finds pictures by the names that labels and masks have for them.

  A label may name a picture by a part of its path, a whole path of another machine, an address, or
  without the ending. A name that fits several pictures in different folders is refused.
  """

  def __init__(self, paths: Iterable[str]):
    self._by_name, self._by_stem = defaultdict(list), defaultdict(list)
    for path in paths:
      parts = PurePosixPath(plain(path))
      self._by_name[parts.name].append((parts.parts, path))
      self._by_stem[parts.stem].append(((*parts.parts[:-1], parts.stem), path))

  def find(self, name: str) -> str:
    """Returns the path of the picture; raises Odd if there is none, or several."""
    parts = [part for part in plain(name).split('/') if part not in ('', '.', '..')]
    if not parts:
      raise Odd('no_name', 'a label names no picture')
    stem = PurePosixPath(parts[-1]).stem
    for key, last, known in (
      (parts[-1], parts[-1], self._by_name),
      (parts[-1], parts[-1], self._by_stem),  # the name has no ending
      (stem, stem, self._by_stem),  # the picture was saved with another ending
    ):
      if found := _nearest((*parts[:-1], last), known.get(key, ())):
        break
    else:
      raise Odd('no_picture', f'{name} is not among the pictures')
    if len(found) > 1:
      both = f'{found[0]} and {found[1]}'
      raise Odd('ambiguous_name', f'{name} may be {both}: give its folder too')
    return found[0]

  def of_mask(self, name: str) -> str:
    """Returns the path of the picture that a mask belongs to, by the mask's relative path.

    It is called as the picture (`a.png` of a.jpg), with a word or a number behind (`a.mask.png`,
    `a_2.png`), or it lies in a folder of the picture's name (`a/1.png`).
    """
    path = PurePosixPath(name)
    stems = [path.stem]
    for pattern in (MASK, NUMBER):
      if match := pattern.fullmatch(path.stem):
        stems.append(match['stem'])
    for candidate in [*(str(path.with_name(stem)) for stem in stems), str(path.parent)]:
      try:
        return self.find(candidate)
      except Odd as odd:
        if odd.reason == 'ambiguous_name':
          raise
    raise Odd('mask_without_picture', f'{name} belongs to no picture')


def _nearest(parts: tuple[str, ...], candidates) -> list[str]:
  """The candidates of which one of both paths ends with the other: an equal one, or the longest."""
  shared = {}
  for other, path in candidates:
    if other == parts:
      return [path]
    count = min(len(parts), len(other))
    if parts[-count:] == other[-count:]:
      shared[path] = count
  most = max(shared.values(), default=0)
  return [path for path, count in shared.items() if count == most]
