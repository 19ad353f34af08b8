"""Builds shards from a folder of pictures: looks at all of them, chooses, and writes what is kept.

Both passes go through the pictures in the order of their names and keep what they have finished, so
an interrupted build goes on. Memory holds a few numbers of each picture, never the pictures.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np

from exedit.runtime import files, lists, progress
from exedit.runtime.parallel import in_parallel

from .. import codec, reports, tf_example, tfrecord
from ..captioned import PHRASE
from ..errors import DataError
from ..few_pictures import ENDINGS
from ..open_images import MASKS, subject_of
from ..reports import Odd, Reasons, write_json
from . import alike, labels, names, sheet
from .examine import Found, Rules, examine
from .subjects import ALPHA, WHOLE, Subject

MADE_BY = 'input_pipeline.own'
SCHEMA = 'tf.train.Example, features of tensorflow-datasets open_images_v4 and bobjects/mask'
SETTINGS, MANIFEST, DROPPED, SHEET = (
  'own.settings.json',
  'manifest.json',
  'dropped.csv',
  'sheet.png',
)
SHARD_BYTES, MOST_SHARDS = 2**28, 1024
CHUNK = 500  # pictures whose examination is written down at a time
SHOWN = 60  # pictures on the sheet
FEW = 10  # pictures; with fewer, a line says what to expect
LEAST_HELD_OUT = 4  # pictures, if that is at most a quarter of them

read_own = functools.partial(reports.read_own, maker=MADE_BY)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be built: the subjects by picture, and what must be equal to go on with a build."""

  folder: str
  output: str
  table: dict[str, list[Subject]]
  classes: list[str]
  rules: Rules
  settings: dict
  threads: int

  def path(self, name: str) -> str:
    return os.path.join(self.output, 'reports', name)

  def found(self, wanted: Sequence[str]) -> Iterator[Found]:
    """Yields what becomes of each picture, in order."""
    look = lambda name: examine(self.folder, name, self.table[name], self.classes, self.rules)
    yield from in_parallel(look, wanted, self.threads)


def build(
  pictures: str,
  output: str,
  *,
  boxes: str = '',
  masks: str = '',
  whole: bool = False,
  units: str = '',
  held_out: float = 0.1,
  seed: int = 0,
  largest: int = Rules.largest,
  min_area: float = Rules.min_area,
  max_area: float = Rules.max_area,
  threads: int = 0,
) -> dict:
  """Writes the splits `train` and `validation`; returns the manifest. See `__main__` for people.

  Raises:
    DataError: for what the user can correct. If no picture is kept, nothing stays.
  """
  if not 0 <= held_out <= 0.5:
    raise DataError(f'--held_out={held_out}: it must be a share of the pictures from 0 to 0.5')
  if not 0 <= min_area < max_area <= 1:
    raise DataError(f'--min_area={min_area} and --max_area={max_area}: must be 0 <= min < max <= 1')
  require_ours(output)
  paths = names.pictures(pictures, '' if masks == ALPHA else masks)
  reasons = Reasons()
  table, sources = subjects(pictures, paths, reasons, boxes, masks, whole, units)
  if not table:
    raise DataError(f'no picture of {pictures} has a subject: {reasons}')
  rules = Rules(min_area, max_area, largest)
  settings = dict(
    pictures=digest(pictures, paths), labels=digest('', sources), held_out=held_out, seed=seed,
    **dataclasses.asdict(rules), kind='boxes' if boxes else 'masks' if masks else 'whole',
  )  # fmt: skip
  classes = sorted({subject.label for found in table.values() for subject in found} - {''})
  plan = Plan(pictures, output, table, classes, rules, settings, threads)
  finished = begin(plan)
  if finished is None:
    rows = look(plan)
    finished = write(plan, paths, rows, reasons)
  show(output, finished)
  return finished


def subjects(
  folder: str,
  paths: Sequence[str],
  reasons: Reasons,
  boxes: str,
  masks: str,
  whole: bool,
  units: str,
) -> tuple[labels.Table, list[str]]:
  """Returns the subjects by picture, and the files that say so; `reasons` gets what is left out."""
  if boxes:
    table, found = labels.read(boxes, names.Names(paths), units, reasons)
    return table, found
  if whole or masks == ALPHA:
    kind = Subject(WHOLE, shares=True) if whole else Subject(mask=ALPHA)
    said = lambda name: dataclasses.replace(kind, label=names.label_of(name), where=name)
    return {name: [said(name)] for name in paths}, []
  by_name, table = names.Names(paths), {}
  found = names.below(masks, ENDINGS)
  if os.path.realpath(masks) == os.path.realpath(folder):
    found = [name for name in found if name not in {*paths}]
  for name in found:
    try:
      picture = by_name.of_mask(name)
    except Odd as odd:
      reasons.add(odd)
      continue
    mask = os.path.join(masks, name)
    table.setdefault(picture, []).append(
      Subject(mask=mask, label=names.label_of(picture), where=name)
    )
  return table, [os.path.join(masks, name) for name in found]


def digest(folder: str, paths: Sequence[str]) -> str:
  """Returns a digest of the names, sizes and times of files."""
  sha = hashlib.sha256()
  for name in paths:
    state = os.stat(os.path.join(folder, name))
    sha.update(json.dumps([name, state.st_size, state.st_mtime_ns]).encode())
  return f'{len(paths)} files, {sha.hexdigest()[:16]}'


# What was done before.


def require_ours(output: str) -> None:
  """Raises DataError unless the folder is missing, empty, or was begun by this program."""
  files.check_folder(output)
  if SETTINGS not in reports.names(os.path.join(output, 'reports')):
    if there := reports.names(output):
      raise DataError(
        f'{output} holds {there[0]}, and no reports/{SETTINGS} says that this program made it: '
        'name an empty folder as --output'
      )


def begin(plan: Plan) -> dict | None:
  """Writes the settings of a new build; returns the manifest of a finished one.

  Raises:
    DataError: if the folder was begun with other pictures, labels or settings.
  """
  path = plan.path(SETTINGS)
  now = dict(made_by=MADE_BY, **plan.settings)
  try:
    before = read_own(path, 'made_by', 'pictures', 'labels')
  except FileNotFoundError:
    write_json(path, now)
    return None
  for name, value in now.items():
    if before.get(name) != value:
      raise DataError(
        f'{plan.output} was begun with {name} {before.get(name)}, now it is {value}: remove that '
        'folder, or name another --output'
      )
  files.sweep(plan.output, alone=True)
  try:
    return read_own(os.path.join(plan.output, MANIFEST), 'splits', schema=SCHEMA)
  except FileNotFoundError:
    return None


# The passes.


def look(plan: Plan) -> list[dict]:
  """Examines every picture that has a subject; returns a row of each, in the order of the names."""
  wanted = sorted(plan.table)
  chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
  rows = []
  with progress.bar(what='looking', total=len(wanted), unit='picture') as bar:
    for number, chunk in enumerate(chunks):
      path = plan.path(f'looked-{number:05d}-of-{len(chunks):05d}.json')
      try:
        found = read_own(path, 'rows')['rows']
      except FileNotFoundError:
        found = []
        for one in plan.found(chunk):
          found.append(row_of(one))
          bar.update()
        write_json(path, dict(rows=found))
      else:
        bar.update(len(chunk))
      rows += found
  return rows


def row_of(found: Found) -> dict:
  """Returns what is kept of an examination: everything but the record."""
  return dict(
    name=found.name, bytes=len(found.record), signature=found.signature.hex(), boxes=found.boxes,
    reason=found.reason, why=found.why, left_out=found.reasons.as_dict(),
  )  # fmt: skip


def write(plan: Plan, paths: Sequence[str], rows: list[dict], reasons: Reasons) -> dict:
  """Writes the shards that are missing, then the manifest, which it returns."""
  dropped = Reasons()
  lost = [(name, 'no_subject', 'nothing says where its subject is') for name in paths]
  lost = [row for row in lost if row[0] not in plan.table]
  lost += [(row['name'], row['reason'], row['why']) for row in rows if row['reason']]
  for name, reason, why in lost:
    dropped.add(Odd(reason, why if name in why else f'{name}: {why}'))
  for row in rows:
    reasons.merge(Reasons(**row['left_out']))
  kept = [row for row in rows if not row['reason']]
  if not kept:
    forget(plan, rows)
    said = f'pictures: {dropped}' + (f'; subjects: {reasons}' if reasons.counts else '')
    raise DataError(f'no picture of {plan.folder} can be used, and nothing was written: {said}')
  first = alike.groups([bytes.fromhex(row['signature']) for row in kept])
  chosen, apart = hold_out([row['name'] for row in kept], first, plan)
  splits = {}
  for split in ('train', 'validation'):
    part = [row for row in kept if (row['name'] in chosen) == (split == 'validation')]
    if part:
      splits[split] = write_split(plan, split, part)
  write_dropped(plan.output, lost)
  draw_sheet(plan.output)
  areas = [(b[2] - b[0]) * (b[3] - b[1]) for row in kept for b in row['boxes']]
  manifest = dict(
    schema=SCHEMA, made_by=MADE_BY, settings=plan.settings, classes=plan.classes, splits=splits,
    pictures=dict(kept=len(kept), **dropped.as_dict()),
    subjects=dict(kept=len(areas), **reasons.as_dict()),
    areas=np.quantile(areas, (0, 0.05, 0.5, 0.95, 1)).round(4).tolist(),
    alike=sum(i != f for i, f in enumerate(first)), apart=apart,
  )  # fmt: skip
  write_json(os.path.join(plan.output, MANIFEST), manifest)
  return manifest


def hold_out(kept: list[str], first: list[int], plan: Plan) -> tuple[set[str], bool]:
  """Returns the pictures that are held out, and whether these are unlike those that train.

  Near-duplicates stay on one side, unless all pictures are alike. The choice depends on the names
  and the seed, so most pictures keep their side if others are added.
  """
  share, seed = plan.settings['held_out'], plan.settings['seed']
  count = max(round(share * len(kept)), min(LEAST_HELD_OUT, len(kept) // 4), 1)
  if not share or len(kept) < 2:
    return set(), True
  count = min(count, len(kept) // 2)
  groups = {}
  for name, leader in zip(kept, first):
    groups.setdefault(leader, []).append(name)
  by_hash = lambda name: hashlib.sha256(f'{seed} {name}'.encode()).digest()
  chosen = []
  for group in sorted(groups.values(), key=lambda group: by_hash(group[0])):
    if len(chosen) + len(group) <= count:
      chosen += group
  return ({*chosen}, True) if chosen else ({*sorted(kept, key=by_hash)[:count]}, False)


def write_split(plan: Plan, split: str, rows: list[dict]) -> dict:
  """Writes the missing shards of a split, each followed by its report; returns its summary."""
  size = sum(row['bytes'] for row in rows)
  shards = min(MOST_SHARDS, len(rows), math.ceil(size / SHARD_BYTES))
  wanted, made = [row['name'] for row in rows], []
  with progress.bar(what=f'writing {split}', total=len(wanted), unit='picture') as bar:
    for shard in range(shards):
      name = f'own-{split}.tfrecord-{shard:05d}-of-{shards:05d}'
      part = wanted[shard * len(wanted) // shards : (shard + 1) * len(wanted) // shards]
      path = os.path.join(plan.output, name)
      report = plan.path(f'{name}.json')
      if os.path.exists(path) and os.path.exists(report):
        made.append(read_own(report, 'shard', 'sha256'))
      else:
        written = tfrecord.write_shard(path, records(plan, part))
        made.append(dict(shard=name, **written))
        write_json(report, made[-1])
      bar.update(len(part))
  return dict(pictures=len(rows), bytes=sum(one['bytes'] for one in made), shards=made)


def records(plan: Plan, part: Sequence[str]) -> Iterator[bytes]:
  """Yields the records of pictures that were kept when they were looked at."""
  for found in plan.found(part):
    if not found.record:
      raise DataError(f'{found.name} changed while it was read ({found.why}): start again')
    yield found.record


def forget(plan: Plan, rows: list[dict]) -> None:
  """Removes what a build without pictures has written."""
  for name in reports.names(os.path.join(plan.output, 'reports')):
    if name == SETTINGS or name.startswith('looked-'):
      os.remove(plan.path(name))
  for folder in (os.path.join(plan.output, 'reports'), plan.output):
    if not os.listdir(folder):
      os.rmdir(folder)


# What people see.


def write_dropped(output: str, lost: Sequence[tuple[str, str, str]]) -> None:
  """Writes the pictures that are not in the shards as a table."""
  table = lists.as_csv(('picture', 'reason', 'detail'), sorted(lost))
  files.write_text(os.path.join(output, DROPPED), table)


def draw_sheet(output: str) -> None:
  """Draws the first records of both splits, a few of the held-out ones first."""
  cells = []
  for split, most in (('validation', SHOWN // 5), ('train', SHOWN)):
    try:
      source = tfrecord.Source(tfrecord.shard_paths(output, split))
    except DataError:  # nothing is held out
      continue
    for i in range(min(most, len(source), SHOWN - len(cells))):
      found = tf_example.parse_example(source[i])
      pixels = codec.decode(found['image'][0])
      boxes = np.reshape(found['bobjects/bbox'], (-1, 4))[:, [1, 0, 3, 2]].tolist()
      shape = pixels.shape[:2]
      masks = [subject_of(found, k, shape) for k in range(len(found.get(MASKS, ())))]
      said = ', '.join(dict.fromkeys(text.decode() for text in found.get(PHRASE, ()) if text))
      name = found['image/filename'][0].decode()
      title = ': '.join(filter(None, ('held out' * (split == 'validation'), name, said)))
      cells.append((title, sheet.cell(pixels, boxes, [m for m in masks if m is not None])))
  encoded = codec.png(np.asarray(sheet.draw(cells)))
  files.write_bytes(os.path.join(output, SHEET), encoded)


def show(output: str, made: dict) -> None:
  """Prints the report."""
  count = lambda split: made['splits'].get(split, {}).get('pictures', 0)
  train, held = count('train'), count('validation')
  shards = sum(len(split['shards']) for split in made['splits'].values())
  size = sum(split['bytes'] for split in made['splits'].values())
  kinds = f' of {len(made["classes"])} labels' if made['classes'] else ''
  print(
    f'{output}: {train:,} pictures to train on, {held:,} held out, with '
    f'{made["subjects"]["kept"]:,} subjects{kinds}, in {shards} shards of {size / 1e6:.3g} MB'
  )
  for what in ('pictures', 'subjects'):
    if made[what]['counts']:
      print(f'  {what} left out: {reports.told(made[what]["counts"], made[what]["examples"])}')
  least, low, middle, high, most = made['areas']
  print(
    f'  boxes cover {least:.2g} to {most:.2g} of their pictures, most of them {low:.2g} to '
    f'{high:.2g}, half of them more than {middle:.2g}'
  )
  if made['alike']:
    print(f'  {made["alike"]} pictures are near-duplicates of others')
  if held and not made['apart']:
    print('  all pictures are alike, so the held-out ones tell little about others')
  if not held:
    print('  nothing is held out, so no loss says which step is best: --held_out=0.1 does')
  if train < FEW:
    print(
      f'  {train} pictures are few: a training soon knows them by heart. Let the held-out loss '
      'choose the step, and expect edits in which the subject looks as in these pictures'
    )
  print(f'  {os.path.join(output, SHEET)} shows the first ones; {DROPPED} lists what is left out')
