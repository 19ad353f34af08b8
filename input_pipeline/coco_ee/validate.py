"""What is missing, doubled or odd in a benchmark of the COCOEE layout.

A fault makes scores wrong or impossible: a file that is missing or unreadable, an id that occurs
twice, a source of another size, a mask that is empty or of another size than its source. An oddity
is unlike the published benchmark, and yet can be scored.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .. import tf_example, tfrecord
from ..errors import DataError
from . import layout

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
  'more than half of the source is repainted',
  'file belongs to no id',
  "folder's name gives another count",
)
_SHOWN = 3  # examples of each kind in the table
_AHEAD = 64  # edits read at once


def validate(root: str, size: int = 512) -> dict:
  """Looks at every file of a benchmark; nothing is changed.

  Returns dict(bench, edits, size, faults, oddities, counts {what: n}, findings [dict(what, id,
  file, detail)], repainted (least, median and greatest share), exemplar_sides (shortest, longest)).
  DataError if the root is no folder at all.
  """
  if size < 1:
    raise DataError(f'--size={size}: must be at least 1')
  packed = not layout.is_layout(root)
  findings, shares, sides = [], [], []
  try:
    ids = layout.read_ids(root)
    files, odd = (_packed if packed else _folders)(root, ids)
    findings += odd
    sums = _checksums(root) if not packed else {}
  except DataError as error:
    ids, files, sums = np.zeros(0, np.int64), None, {}
    findings.append(_finding(FAULTS[0], detail=str(error)))
  for edit_id in layout.doubled(ids):
    findings.append(_finding('id occurs more than once', edit_id))
  if files:
    look = lambda at: _look(at, int(ids[at]), *files, sums, size)
    for found, share, exemplar in _in_parallel(look, len(ids)):
      findings += found
      shares += share
      sides += exemplar
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
  """The report for a person."""
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


# Where the files come from: name(id, kind) and read(position, name, kind); and what is odd there.


def _folders(root: str, ids: np.ndarray) -> tuple[tuple[Callable, Callable], list[dict]]:
  odd, folders = [], layout.folders(root)
  allowed = {layout.IDS, layout.MANIFEST, *folders.values()}
  extra = [name for name in sorted(os.listdir(root)) if name not in allowed]
  for kind, folder in folders.items():
    if int(folder.rsplit('_', 1)[1]) != len(ids):
      what = "folder's name gives another count"
      odd.append(_finding(what, file=folder, detail=f'{layout.IDS} has {len(ids)} ids'))
    wanted = {layout.file_name(kind, edit_id) for edit_id in ids.tolist()}
    names = sorted(os.listdir(os.path.join(root, folder)))
    extra += [f'{folder}/{name}' for name in names if name not in wanted]
  odd += [_finding('file belongs to no id', file=name) for name in extra]

  def read(position: int, name: str, kind: str) -> bytes:
    with open(os.path.join(root, name), 'rb') as file:
      return file.read()

  name = lambda edit_id, kind: f'{folders[kind]}/{layout.file_name(kind, edit_id)}'
  return (name, read), odd


def _packed(root: str, ids: np.ndarray) -> tuple[tuple[Callable, Callable], list[dict]]:
  source = tfrecord.Source(tfrecord.shard_paths(root, 'test'))
  if source.damaged:
    raise source.damaged[0]
  if len(source) != len(ids):
    raise DataError(f'{layout.IDS} has {len(ids)} ids, the shards hold {len(source)} edits')

  def read(position: int, name: str, kind: str) -> bytes:
    features = tf_example.parse_example(source[position])
    found = features.get('id', [None])[0]
    if found != ids[position]:
      raise DataError(f'record {position} is of edit {found}, {layout.IDS} says {ids[position]}')
    if len(features.get(kind, ())) != 1:
      raise FileNotFoundError(name)
    return features[kind][0]

  return (lambda edit_id, kind: layout.file_name(kind, edit_id), read), []


def _checksums(root: str) -> dict[str, str]:
  """The SHA-256 of each file that the builder noted; {} where another hand made the benchmark."""
  try:
    with open(os.path.join(root, layout.MANIFEST)) as file:
      sums = json.load(file)['sha256']
      return {str(name): str(value) for name, value in sums.items()}
  except FileNotFoundError:
    return {}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f'{layout.MANIFEST} holds no checksums ({error!r}); remove it') from error


def _in_parallel(look: Callable, count: int) -> Iterator:
  """look(0), look(1), ... in order, a few at a time: pictures are large."""
  import tqdm

  every = 0.1 if sys.stderr.isatty() else 10
  with (
    tqdm.tqdm(total=count, unit='edit', desc='looking', mininterval=every) as bar,
    ThreadPoolExecutor() as pool,
  ):
    for start in range(0, count, _AHEAD):
      for result in pool.map(look, range(start, min(start + _AHEAD, count))):
        yield result
        bar.update()


# One edit.


def _look(
  position: int, edit_id: int, name_of: Callable, read: Callable, sums: dict, size: int
) -> tuple[list, list, list]:
  """(findings, [repainted share], [sides of the exemplar]) of one edit; the lists may be empty."""
  found, pictures = [], {}
  decoders = dict(
    source=layout.decode_source,
    mask=layout.decode_mask,
    exemplar=lambda data, name: layout.decode_exemplar(data, name, None),
  )
  for kind, decode in decoders.items():
    name = name_of(edit_id, kind)
    try:
      data = read(position, name, kind)
      if name in sums and hashlib.sha256(data).hexdigest() != sums[name]:
        found.append(_finding('file is not the one in the manifest', edit_id, name))
      pictures[kind] = name, decode(data, name)
    except FileNotFoundError:
      found.append(_finding('file is missing', edit_id, name))
    except (OSError, DataError) as error:
      why = str(error).removeprefix(f'{name}: ')
      found.append(_finding('file is unreadable', edit_id, name, why))
  if 'source' in pictures:
    name, source = pictures['source']
    if source.shape[:2] != (size, size):
      detail = f'{_size(source)}, not {size}x{size}'
      found.append(_finding('source is of another size', edit_id, name, detail))
  share = []
  if 'mask' in pictures:
    name, mask = pictures['mask']
    found += [_finding(what, edit_id, name, detail) for what, detail in _mask(mask)]
    share = [float(mask.mean(dtype=np.float64) / 255)]
    if 'source' in pictures and pictures['source'][1].shape[:2] != mask.shape:
      detail = f'{_size(mask)}, the source {_size(pictures["source"][1])}'
      found.append(_finding('mask is of another size than its source', edit_id, name, detail))
  sides = list(pictures['exemplar'][1].shape[:2]) if 'exemplar' in pictures else []
  return found, share, sides


def _mask(mask: np.ndarray) -> Iterator[tuple[str, str]]:
  """(what, detail) of what is wrong with a mask by itself."""
  if mask.max() < 128:
    yield 'mask is empty', f'its brightest pixel is {mask.max()} of 255'
    return
  other = int(((mask > 0) & (mask < 255)).sum())
  if other:
    yield 'mask has values other than 0 and 255', f'{other} pixels'
  x0, y0, x1, y1 = layout.bounding_box(mask)
  holes = int((mask[y0:y1, x0:x1] < 128).sum())
  if holes:
    yield 'mask is not a rectangle', f'{holes} pixels of its {x1 - x0}x{y1 - y0} box are kept'
  share = mask.mean(dtype=np.float64) / 255
  if share > 0.5:
    yield 'more than half of the source is repainted', f'{share:.1%}'


def _size(image: np.ndarray) -> str:
  return f'{image.shape[1]}x{image.shape[0]}'
