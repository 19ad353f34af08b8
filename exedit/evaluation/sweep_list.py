"""The list of edits that Custom-Edit's comparison scores."""

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Sequence

from exedit.evaluation import resources
from exedit.runtime import lists
from exedit.runtime.errors import UserError

NEEDED = ('method', 'strength', 'image', 'references', 'output')  # columns of the list
WORD = re.compile(r'<[^<>\s]+>')  # a learned word, which CLIP does not know


@dataclasses.dataclass(frozen=True)
class Edit:
  """One edit of the list; `references` are the paths of the pictures of the concept."""

  method: str
  strength: float
  id: str
  image: str
  output: str
  references: tuple[str, ...]
  target: str


def read(path: str) -> list[Edit]:
  """The edits of a list, in its order.

  Raises:
    UserError: for a list that cannot be read, a row that cannot be used, and methods whose
      strengths do not have the same edits, and if only some rows have a target.
  """
  rows, base = lists.read(path, NEEDED, NEEDED)
  found = []
  for where, row in rows:
    if isinstance(row, UserError):
      raise UserError(f'{path} {where}: {row}')
    try:
      found.append(_edit(row, base))
    except ValueError as error:
      raise UserError(f'{path} {where}: {error}') from None
  bare = [where for (where, _), edit in zip(rows, found) if not edit.target]
  if 0 < len(bare) < len(found):
    raise UserError(
      f'{path} {bare[0]}: it has no target, or one of learned words alone, and other rows have '
      'one: give it to every row, or to none'
    )
  for (method, strength), own in groups(found).items():
    ids = [found[i].id for i in own]
    if len({*ids}) < len(ids):
      raise UserError(
        f'{path}: {method} at strength {strength:g} has two edits of one source, references and'
        ' prompt: tell them apart by a column id'
      )
  for method, own in itertools.groupby(groups(found).items(), key=lambda group: group[0][0]):
    ids = {strength: {found[i].id for i in rows} for (_, strength), rows in own}
    first, *rest = ids
    for other in rest:
      if lost := ids[first] ^ ids[other]:
        raise UserError(
          f'{path}: {method} has {len(ids[first])} edits at strength {first:g} and'
          f' {len(ids[other])} at {other:g}, {len(lost)} of them without a partner: each strength'
          ' needs the same edits'
        )
  return found


def _edit(row, base):
  cells = {name: str(row.get(name, '') or '').strip() for name in (*NEEDED, 'target', 'id')}
  cells['strength'] = str(row.get('strength', '')).strip()  # 0 is a strength
  if missing := [name for name in NEEDED if not cells[name]]:
    raise ValueError(f'it has no {missing[0]}: a row needs {", ".join(NEEDED)}')
  try:
    strength = float(cells['strength'])
    if not math.isfinite(strength):
      raise ValueError
  except ValueError:
    raise ValueError(f'strength is {cells["strength"]!r:.40}: it must be a number') from None
  image, output, folder = (
    os.path.join(base, cells[name]) for name in ('image', 'output', 'references')
  )
  for file in (image, output):
    if not os.path.isfile(file):
      raise ValueError(f'{file} does not exist')
  target = ' '.join(WORD.sub(' ', cells['target']).split())
  own = cells['id'] or ' | '.join((cells['image'], cells['references'], cells['target']))
  pictures = tuple(resources.image_files(folder, 'its references'))
  return Edit(cells['method'], strength, own, image, output, pictures, target)


def groups(edits: Sequence[Edit]) -> dict[tuple[str, float], list[int]]:
  """The positions of the edits of each method and strength, ordered by their ids."""
  found: dict[tuple[str, float], list[int]] = {}
  for i in sorted(range(len(edits)), key=lambda i: edits[i].id):
    found.setdefault((edits[i].method, edits[i].strength), []).append(i)
  first = {edit.method: i for i, edit in reversed([*enumerate(edits)])}
  return dict(sorted(found.items(), key=lambda pair: (first[pair[0][0]], pair[0][1])))
