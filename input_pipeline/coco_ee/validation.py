"""Reports what is missing, doubled or odd in a benchmark of the COCOEE layout.

A fault makes scores wrong or impossible: a file that is missing or unreadable, an id that occurs
twice, a source of another size, a mask that is empty or of another size than its source. An oddity
differs from the published benchmark, but the edit can be scored.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from exedit.runtime import progress
from exedit.runtime.parallel import in_parallel

from ..errors import DataError
from . import layout
from .bench import Folders, Shards, open_files

FAULTS = (
  'the benchmark cannot be read',
  'id occurs more than once',
  'file is missing',
  'file is unreadable',
  'file is not the one in the manifest',
  'source is of another size',
  'mask is of another size than its source',
  'mask is empty',
)
ODDITIES = (
  'mask is not a rectangle',
  'mask has values other than 0 and 255',
  'mask is not plain black and white',
  'more than half of the source is repainted',
  'file belongs to no id',
  "folder's name gives another count",
)
_SHOWN = 3  # examples of each kind in the table


def validate(root: str, size: int = 512) -> dict:
  """Reads every file of a benchmark and changes none.

  Returns dict(bench, edits, size, faults, oddities, counts {what: n}, findings [dict(what, id,
  file, detail)], repainted (least, median and greatest share), exemplar_sides (shortest, longest)).

  Raises:
    DataError: if the root is not a folder.
  """
  layout.listed(root)
  shares, sides = [], []
  try:
    ids = layout.read_ids(root)
    files, sums, findings = _opened(root, ids)
  except DataError as error:
    ids, files, sums = np.zeros(0, np.int64), None, {}
    findings = [_finding(FAULTS[0], detail=str(error))]
  findings += [_finding('id occurs more than once', edit_id) for edit_id in layout.doubled(ids)]
  if files:
    examine = lambda position: _examine(files, position, sums, size)
    with progress.bar(what='reading', total=len(ids), unit='edit') as bar:
      for found, share, exemplar in in_parallel(examine, range(len(ids))):
        findings += found
        shares += share
        sides += exemplar
        bar.update()
  counts = {w: sum(f['what'] == w for f in findings) for w in FAULTS + ODDITIES}
  return dict(
    bench=root,
    edits=len(ids),
    size=size,
    faults=sum(counts[what] for what in FAULTS),
    oddities=sum(counts[what] for what in ODDITIES),
    counts={what: count for what, count in counts.items() if count},
    findings=findings,
    repainted=np.quantile(shares, (0, 0.5, 1)).tolist() if shares else None,
    exemplar_sides=[min(sides), max(sides)] if sides else None,
  )


def table(found: dict) -> str:
  """Returns the report of `validate` as text."""
  lines = [f'{found["bench"]}: {found["edits"]} edits']
  if found['repainted']:
    least, middle, most = (f'{share:.1%}' for share in found['repainted'])
    lines.append(f'repainted: {least} to {most} of the source, half of the edits below {middle}')
    lines.append('exemplars: sides of {} to {} pixels'.format(*found['exemplar_sides']))
  lines.append('')
  for grade, kinds in (('fault', FAULTS), ('odd', ODDITIES)):
    for what in kinds:
      if what in found['counts']:
        some = [f for f in found['findings'] if f['what'] == what]
        lines.append(f'{grade:<6}{len(some):>6}  {what}')
        lines += [f'{"":<14}{_described(f)}' for f in some[:_SHOWN]]
        if len(some) > _SHOWN:
          lines.append(f'{"":<14}and {len(some) - _SHOWN} more')
  if not found['counts']:
    lines.append('nothing is missing or odd')
  return '\n'.join(lines)


def _described(finding: dict) -> str:
  where = finding['file'] or finding['id']
  return ': '.join(str(part) for part in (where, finding['detail']) if part not in (None, ''))


def _finding(what: str, edit_id: int | None = None, file: str = '', detail: str = '') -> dict:
  return dict(what=what, id=edit_id, file=file, detail=detail)


# All files.


def _opened(root: str, ids: np.ndarray) -> tuple[Folders | Shards, dict[str, str], list[dict]]:
  """Returns the files, their checksums from the manifest, and the findings about their names."""
  files = open_files(root, ids)
  if isinstance(files, Folders):
    return files, _checksums(root), list(_odd_names(files))
  files.check()
  return files, {}, []


def _odd_names(files: Folders) -> Iterator[dict]:
  """Yields findings about folders and files that do not belong to the ids."""
  allowed = {layout.IDS, layout.MANIFEST, *files.folders.values()}
  extra = [name for name in layout.listed(files.root) if name not in allowed]
  for kind, folder in files.folders.items():
    if int(folder.rsplit('_', 1)[1]) != len(files.ids):
      detail = f'{layout.IDS} has {len(files.ids)} ids'
      yield _finding("folder's name gives another count", file=folder, detail=detail)
    wanted = {layout.file_name(kind, edit_id) for edit_id in files.ids}
    names = layout.listed(os.path.join(files.root, folder))
    extra += [f'{folder}/{name}' for name in names if name not in wanted]
  for name in extra:
    yield _finding('file belongs to no id', file=name)


def _checksums(root: str) -> dict[str, str]:
  """Returns the SHA-256 of each file that `build` wrote, or {} if there is no manifest."""
  try:
    with open(os.path.join(root, layout.MANIFEST)) as file:
      sums = json.load(file)['sha256']
      return {str(name): str(value) for name, value in sums.items()}
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f'{layout.MANIFEST} holds no checksums ({error!r}); remove it') from error


# One edit.


def _examine(
  files: Folders | Shards, position: int, sums: dict, size: int
) -> tuple[list[dict], list[float], list[int]]:
  """Returns (findings, [repainted share], [sides of the exemplar]); the lists may be empty."""
  edit_id = files.ids[position]
  pictures, found = _decoded(files, position, sums)
  if 'source' in pictures:
    name, source = pictures['source']
    if source.shape[:2] != (size, size):
      detail = f'{layout.size(source)}, not {size}x{size}'
      found.append(_finding('source is of another size', edit_id, name, detail))
  share = []
  if 'mask' in pictures:
    name, mask = pictures['mask']
    source = pictures.get('source', ('', None))[1]
    judged = [*layout.mask_faults(mask.levels, source), *_odd_mask(mask.levels, mask.said)]
    found += [_finding(what, edit_id, name, detail) for what, detail in judged]
    share = [float(mask.levels.mean(dtype=np.float64) / 255)]
  sides = list(pictures['exemplar'][1].shape[:2]) if 'exemplar' in pictures else []
  return found, share, sides


def _decoded(
  files: Folders | Shards, position: int, sums: dict
) -> tuple[dict[str, tuple[str, Any]], list[dict]]:
  """Returns {kind: (file name, pixels or a Mask)} of the readable files, and the findings."""
  decoders = dict(
    source=layout.decode_source,
    mask=layout.read_mask,
    exemplar=lambda data, name: layout.decode_exemplar(data, name, None),
  )
  pictures, found, edit_id = {}, [], files.ids[position]
  for kind, decode in decoders.items():
    name = files.name(position, kind)
    try:
      data = files.read(position, [kind])[kind]
      if name in sums and hashlib.sha256(data).hexdigest() != sums[name]:
        found.append(_finding('file is not the one in the manifest', edit_id, name))
      pictures[kind] = name, decode(data, name)
    except FileNotFoundError:
      found.append(_finding('file is missing', edit_id, name))
    except (OSError, DataError) as error:
      why = str(error).removeprefix(f'{name} ')
      found.append(_finding('file is unreadable', edit_id, name, why))
  return pictures, found


def _odd_mask(mask: np.ndarray, said: str) -> Iterator[tuple[str, str]]:
  """Yields (what, detail) of what the published masks do not have; nothing for an empty mask."""
  if mask.max() < 128:
    return
  other = int(((mask > 0) & (mask < 255)).sum())
  if other:
    yield 'mask has values other than 0 and 255', f'{other} pixels'
  elif said:
    yield 'mask is not plain black and white', f'it {said}'
  x0, y0, x1, y1 = layout.bounding_box(mask)
  holes = int((mask[y0:y1, x0:x1] < 128).sum())
  if holes:
    yield 'mask is not a rectangle', f'{holes} pixels of its {x1 - x0}x{y1 - y0} box are kept'
  share = mask.mean(dtype=np.float64) / 255
  if share > 0.5:
    yield 'more than half of the source is repainted', f'{share:.1%}'
