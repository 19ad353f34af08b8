"""Converts Open Images as published to TFRecord shards, with a Beam pipeline that can be resumed.

  python -m launch.prepare_open_images --input=dataset/open-images --output=data/open_images

Reads <input>/annotations/*<split>-annotations-bbox.csv (and class-descriptions-boxable.csv there,
for label numbers) and <input>/images/{train_0..train_f,validation,test}/<ImageID>.jpg (.JPG, .jpeg
and .png too). Drops boxes under 2 % or over 80 % of the image, as PbE scripts/read_bbox.py does.
Writes records with the feature names of tensorflow-datasets' open_images_v4 and the files' bytes
unchanged. Boxes are fractions of the stored picture, so EXIF rotation is ignored, here and by the
reader; the summary counts the photos that have one. A split that keeps no image is an error that
says why, and leaves nothing.

The hash of its id decides the shard of an image, so shards are made independently, in any order,
and equal inputs give equal bytes. Each finished shard has a report in <output>/reports; the same
command again makes only the other shards. At the end <output>/manifest.json holds settings, counts
and checksums, and <output>/dropped.csv every image that is missing or unreadable.

Beam has its own environment: pip install -r requirements-prepare.txt. It runs on this machine by
default. Flags of any Beam runner pass through, for example --direct_running_mode=multi_processing
--direct_num_workers=8, or --runner=FlinkRunner and its flags. The local runner keeps the rows of
unfinished shards in memory: 8 GB and about seven minutes for the 14.6 million rows of the training
set. Paths may be gs:// or s3:// if Beam's extra and fsspec's driver (gcsfs, s3fs) for them are
installed. Workers on other machines must be able to import exedit and launch.
"""

import argparse  # and not exedit.runtime.doors: unknown flags must pass through to Beam
import contextlib
import csv
import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from exedit.input_pipeline import codec, reports
from exedit.input_pipeline.errors import DataError
from exedit.input_pipeline.reports import names, told, write_json
from exedit.input_pipeline.tf_example import serialize_example
from exedit.input_pipeline.tfrecord import write_shard
from exedit.runtime import decode, files, lists, progress, remote
from exedit.runtime.parallel import in_parallel

# Shards and images of the published splits: half a gigabyte in each shard.
SPLITS = {'train': (1024, 1743042), 'validation': (32, 41620), 'test': (64, 125436)}
ENDINGS = ('.jpg', '.JPG', '.jpeg', '.JPEG', '.png', '.PNG')  # the published one first
ROUNDING = 1e-3  # a box that leaves the picture by less is cut: it was rounded
SHORTEST_ROW = 40  # bytes; to guess the number of images from the size of a table
EARLY = 2**20  # bytes of a table in which a fault of all rows is found before the pipeline starts
SCHEMA = 'tf.train.Example, features of tensorflow-datasets open_images_v4'
BOX = ('XMin', 'XMax', 'YMin', 'YMax')
COLUMNS = ('ImageID', *BOX)
# The class numbers of Source and the names of the flags are those of TFDS open_images_v4.
SOURCES = ('verification', 'crowdsource-verification', 'machine', 'freeform', 'xclick', 'activemil')
QUIET = ['--default_sdk_harness_log_level=CRITICAL']
FLAGS = {
  'IsOccluded': 'is_occluded',
  'IsTruncated': 'is_truncated',
  'IsGroupOf': 'is_group_of',
  'IsDepiction': 'is_depiction',
  'IsInside': 'is_inside',
}


@dataclasses.dataclass(frozen=True)
class Split:
  """The settings and inputs of one split; Beam sends it to its workers."""

  name: str
  annotations: str
  columns: tuple[str, ...]
  images: str
  folders: tuple[str, ...]
  labels: dict[str, int]
  output: str
  shards: int
  min_area: float = 0.02
  max_area: float = 0.8
  threads: int = 4
  separator: str = ','

  @property
  def id_column(self) -> int:
    return self.columns.index('ImageID')

  def shard_path(self, shard: int) -> str:
    name = f'open_images-{self.name}.tfrecord-{shard:05d}-of-{self.shards:05d}'
    return os.path.join(self.output, name)

  def report_path(self, shard: int) -> str:
    folder, name = os.path.split(self.shard_path(shard))
    return os.path.join(folder, 'reports', f'{name}.json')

  @property
  def settings_path(self) -> str:
    return os.path.join(self.output, 'reports', f'{self.name}.settings.json')

  def image_paths(self, image_id: str) -> list[str]:
    """Returns the paths that an image may have, the published one first; [] without its folder."""
    named = image_id.endswith(ENDINGS)
    for folder in (f'{self.name}_{image_id[:1].lower()}', self.name):
      if folder in self.folders:
        path = os.path.join(self.images, folder, image_id)
        return [path] if named else [path + ending for ending in ENDINGS]
    return []


# One shard: rows to records and a report.


def shard_of(image_id: str, shards: int) -> int:
  """Returns the shard of an image; it depends on nothing else in the data set."""
  return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) % shards


class Unreadable(Exception):
  """A row of the table that is no box: (reason, column and value)."""


def parse_row(row: list[str], columns: tuple[str, ...]) -> dict:
  """Returns a row of the box table, `box` as (ymin, xmin, ymax, xmax). Raises Unreadable."""
  if len(row) != len(columns):
    raise Unreadable('malformed', f'{len(row)} cells in {len(columns)} columns')
  fields = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
  x0, x1, y0, y1 = (_edge(name, fields[name]) for name in BOX)
  if not (x0 < x1 and y0 < y1):
    low, high = ('XMin', 'XMax') if x0 >= x1 else ('YMin', 'YMax')
    raise Unreadable('malformed', f'{low} is {fields[low]!r} and {high} is {fields[high]!r}')
  flags = {flag: _flag(name, fields[name]) for name, flag in FLAGS.items() if name in fields}
  label, source = fields.get('LabelName', ''), fields.get('Source', '')
  return dict(box=(y0, x0, y1, x1), label=label, source=source, flags=flags)


def _edge(column: str, text: str) -> float:
  """Returns one edge of a box, a fraction of the picture."""
  try:
    value = float(text)
  except ValueError:
    value = float('nan')
  if -ROUNDING <= value <= 1 + ROUNDING:
    return min(max(value, 0.0), 1.0)
  if 2 < value < float('inf'):
    what = f'{column} is {text!r}, which looks like pixels: boxes are fractions of the picture'
    raise Unreadable('in_pixels', what)
  comma = ', with a point for decimals' if ',' in text else ''
  raise Unreadable('malformed', f'{column} is {text!r}: it must be from 0 to 1{comma}')


def _flag(column: str, text: str) -> int:
  """Returns a flag; -1 means unknown, as in Open Images, and so does an empty cell."""
  if text.lower() in lists.UNSET:
    return -1
  word = text.lower().removesuffix('.0')
  try:
    return {'true': 1, 'yes': 1, 'false': 0, 'no': 0}[word] if word.isalpha() else int(word)
  except (KeyError, ValueError):
    raise Unreadable('malformed', f'{column} is {text!r}: it must be 1, 0 or -1') from None


def sort_boxes(
  rows: list[list[str]], split: Split, examples: dict[str, str] | None = None
) -> tuple[list[dict], Counter]:
  """Returns the boxes of one image that are kept, and the number of dropped ones by reason.

  examples: gets the first dropped row of each reason, with its column and value.
  """
  kept, dropped = [], Counter()
  for row in rows:
    try:
      box = parse_row(row, split.columns)
      y0, x0, y1, x1 = box['box']
      area = (y1 - y0) * (x1 - x0)
      if not split.min_area <= area <= split.max_area:
        reason = 'too_small' if area < split.min_area else 'too_large'
        raise Unreadable(reason, f'its box covers {area:.2g} of the picture')
      kept.append(box)
    except Unreadable as error:
      reason, why = error.args
      dropped[reason] += 1
      if examples is not None:
        examples.setdefault(reason, f'{id_of(row, split)}: {why}')
  return kept, dropped


def id_of(row: list[str], split: Split) -> str:
  """Returns the image id of a row, '' if the row is too short."""
  return row[split.id_column].strip(' "') if len(row) > split.id_column else ''


def rows_of(lines: Iterable[str], split: Split) -> Iterator[list[str]]:
  """Yields the cells of each line of the table."""
  filled = (line for line in lines if line)
  return csv.reader(filled, delimiter=split.separator, skipinitialspace=True)


def features(image_id: str, image: bytes, boxes: list[dict], labels: dict[str, int]) -> dict:
  """Returns the features of one record, named and typed as in TFDS open_images_v4."""
  bobjects = dict(
    bbox=np.array([box['box'] for box in boxes], np.float32),
    label=np.array([labels.get(box['label'], -1) for box in boxes], np.int64),
    source=np.array(
      [SOURCES.index(b['source']) if b['source'] in SOURCES else -1 for b in boxes], np.int64
    ),
  )
  for name in boxes[0]['flags']:
    bobjects[name] = np.array([box['flags'][name] for box in boxes], np.int64)
  named = {f'bobjects/{name}': values for name, values in bobjects.items()}
  stem = os.path.splitext(image_id)[0] if image_id.endswith(ENDINGS) else image_id
  return {'image': image, 'image/filename': f'{stem}.jpg'.encode()} | named


def records(lines: Iterable[str], split: Split, report: dict) -> Iterator[bytes]:
  """Yields the records of one shard, by image id, from lines of the table; fills in `report`."""
  rows = {}
  for row in rows_of(lines, split):
    rows.setdefault(id_of(row, split), []).append(row)
  report.update(images=Counter(), boxes=Counter(), exif_rotated=0, missing=[], unreadable=[])
  examples = report.setdefault('examples', {})
  wanted = []
  for image_id in sorted(rows):
    boxes, dropped = sort_boxes(sorted(rows[image_id]), split, examples)
    report['boxes'].update(dropped)
    if not boxes:
      report['images']['no_fitting_box'] += 1
    elif not split.image_paths(image_id):
      report['images']['folder_absent'] += 1
      what = f'its folder {split.name}_{image_id[:1].lower()} is not there'
      examples.setdefault('folder_absent', f'{image_id}: {what}{odd_id(image_id)}')
      report['boxes']['of_lost_images'] += len(boxes)
    else:
      wanted.append((image_id, boxes))
  photos = in_parallel(lambda item: load_photo(split.image_paths(item[0])), wanted, split.threads)
  for (image_id, boxes), (image, rotated, loss, why) in zip(wanted, photos, strict=True):
    if loss:
      report['images'][loss] += 1
      report['boxes']['of_lost_images'] += len(boxes)
      report[loss].append([image_id, why])
      hint = odd_id(image_id) if loss == 'missing' else ''
      examples.setdefault(loss, f'{image_id}: {why}{hint}')
      continue
    report['images']['kept'] += 1
    report['boxes']['kept'] += len(boxes)
    report['exif_rotated'] += rotated
    yield serialize_example(features(image_id, image, boxes, split.labels))


def odd_id(image_id: str) -> str:
  """Returns a hint if an id is not one of Open Images, else ''."""
  if re.fullmatch('[0-9a-f]{16}', image_id):
    return ''
  return ' (the id has not the 16 hexadecimal digits of Open Images: a spreadsheet may cut zeros)'


def load_photo(paths: list[str]) -> tuple[bytes, bool, str, str]:
  """Returns (bytes, has an EXIF rotation, '' or 'missing' or 'unreadable', why) of a photo.

  paths: where it may be; the first that exists counts.
  """
  for path in paths:
    try:
      image = remote.read(path)
      break
    except FileNotFoundError:
      continue
    except OSError as error:
      return b'', False, 'unreadable', f'{path}: {error.strerror or error}'
  else:
    return b'', False, 'missing', paths[0]
  try:
    codec.decode(image, path)
    with decode.opened(image, path) as file:
      rotated = decode.orientation(file) != 1
  except DataError as error:
    return b'', False, 'unreadable', str(error)
  return image, rotated, '', ''


def make_shard(keyed: tuple[int, Iterable[str]], split: Split) -> dict:
  """Writes the shard of (shard, lines), then its report, which marks the shard as finished."""
  shard, lines = keyed
  report = dict(split=split.name, shard=os.path.basename(split.shard_path(shard)))
  report.update(write_shard(split.shard_path(shard), records(lines, split, report)))
  write_json(split.report_path(shard), report)
  return report


# The inputs.


def find_split(args: argparse.Namespace, name: str) -> Split:
  """Finds the inputs of one split.

  Raises:
    DataError: if the table or the folders of images are missing or not as published.
  """
  annotations = os.path.join(args.input, 'annotations')
  tables = names(annotations)
  if not tables:
    raise DataError(f'no folder {annotations!r} with the box tables of Open Images')
  found = [n for n in tables if re.fullmatch(rf'(.*-)?{name}-annotations-bbox\.csv', n)]
  if len(found) != 1:
    raise DataError(
      f'{annotations!r} must hold one *{name}-annotations-bbox.csv; found {found or "none"}'
    )
  path = os.path.join(annotations, found[0])
  head = remote.read(path, 0, 4096)
  if b'\0' in head:
    raise DataError(f'{path!r} is not UTF-8 text (it has zero bytes): save it as UTF-8')
  first_line = head.decode('utf-8-sig', 'replace').partition('\n')[0].strip('\r')
  separator = lists.separator(first_line)
  header = next(csv.reader([first_line], delimiter=separator, skipinitialspace=True), [])
  columns = tuple(name.strip() for name in header)
  if not {*COLUMNS} <= {*columns}:
    raise DataError(f'{path!r} needs the columns {", ".join(COLUMNS)}; it has {", ".join(columns)}')
  images = os.path.join(args.input, 'images')
  wanted = [name] + [f'{name}_{digit}' for digit in '0123456789abcdef']
  folders = tuple(folder for folder in names(images) if folder in wanted)
  if not folders:
    raise DataError(f'no image folder {name} or {name}_0 ... {name}_f in {images!r}')
  split = Split(
    name, path, columns, images, folders, class_numbers(annotations, tables), args.output,
    args.shards, args.min_area, args.max_area, args.threads, separator
  )  # fmt: skip
  return split if args.shards else dataclasses.replace(split, shards=default_shards(split))


def default_shards(split: Split) -> int:
  """Returns the shards of an earlier run, else as many as fit the photos that are there.

  Photos in a store are not counted; the size of the table limits their number.
  """
  with contextlib.suppress(FileNotFoundError):
    return read_own(split.settings_path, 'shards')['shards']
  most, published = SPLITS[split.name]
  count = remote.info(split.annotations)[0] // SHORTEST_ROW
  if not remote.is_remote(split.images):
    listings = (os.scandir(os.path.join(split.images, folder)) for folder in split.folders)
    count = min(count, sum(f.name.endswith(ENDINGS) for found in listings for f in found))
  return max(1, min(most, -(-most * count // published)))


def check_table(split: Split) -> None:
  """Raises DataError if none of the table's first rows is a box: nothing was written then."""
  data = remote.read(split.annotations, 0, EARLY)
  _, *lines = data.decode('utf-8-sig', 'replace').split('\n')
  if len(data) == EARLY:
    lines = lines[:-1]
  rows = list(rows_of((line.rstrip('\r\n ') for line in lines), split))
  examples = {}
  _, dropped = sort_boxes(rows, split, examples)
  if dropped['malformed'] + dropped['in_pixels'] == len(rows):
    raise DataError(f'{split.annotations!r}: no row is a box: {told(dropped, examples)}')


def class_numbers(annotations: str, tables: Iterable[str]) -> dict[str, int]:
  """Returns {'/m/011k07': 0, ...} in the order of the table, which is that of TFDS."""
  found = [name for name in tables if name.endswith('class-descriptions-boxable.csv')]
  if not found:
    return {}
  table = remote.read(os.path.join(annotations, found[-1])).decode('utf-8-sig').splitlines()
  classes = [row[0] for row in csv.reader(table) if row and row[0].startswith('/')]
  return {name: number for number, name in enumerate(classes)}


# What was done before.


def require_ours(output: str) -> None:
  """Raises DataError unless the folder is empty or missing, or was begun by this program.

  A split was begun if its settings are there. Its shards, manifest.json and dropped.csv may be
  replaced then; other files stay.
  """
  if not remote.is_remote(output):
    files.check_folder(output)
  reports = names(os.path.join(output, 'reports'))
  there = [name for name in names(output) if name != 'reports' or reports]
  begun = [split for split in SPLITS if f'{split}.settings.json' in reports]
  shard = re.compile(rf'open_images-({"|".join({*SPLITS} - {*begun})})\.tfrecord-.*')
  if strange := [name for name in there if not begun or shard.fullmatch(name)]:
    raise DataError(
      f'{output!r} holds {strange[0]!r}, and no reports/*.settings.json says that this program '
      'made it: name an empty folder as --output'
    )
  if 'manifest.json' in there:
    read_own(os.path.join(output, 'manifest.json'), schema=SCHEMA)
  for split in begun:
    read_own(os.path.join(output, 'reports', f'{split}.settings.json'), 'shards', 'annotations')
  paths = [os.path.join(output, 'reports', name) for name in reports if '.tfrecord-' in name]
  for _ in in_parallel(lambda path: read_own(path, 'split', 'images', 'boxes', 'sha256'), paths):
    pass


read_own = functools.partial(reports.read_own, maker='prepare_open_images')


def settings(split: Split) -> dict:
  """Returns what must be equal in all runs into the same folder."""
  return dict(
    shards=split.shards,
    min_area=split.min_area,
    max_area=split.max_area,
    annotations=os.path.basename(split.annotations),
    annotations_bytes=remote.info(split.annotations)[0],
    classes=len(split.labels),
    classes_sha256=hashlib.sha256(json.dumps(split.labels).encode()).hexdigest()[:16],
    folders=list(split.folders),
  )


def check_settings(split: Split) -> None:
  """Writes the settings of a first run; raises DataError if they differ from an earlier run's."""
  path = split.settings_path
  now = settings(split)
  try:
    before = read_own(path)
  except FileNotFoundError:
    write_json(path, now)
    return
  for name in now:
    if before.get(name) != now[name]:
      raise DataError(
        f'{split.output!r} was begun with {name} {before.get(name)!r}, now it is {now[name]!r}; '
        'use the same, or another --output'
      )


def finished(split: Split) -> list[int]:
  """Returns the shards that exist together with their reports."""
  there = {*names(split.output)}
  reports = {*names(os.path.join(split.output, 'reports'))}
  return [
    shard
    for shard in range(split.shards)
    if os.path.basename(split.shard_path(shard)) in there
    and os.path.basename(split.report_path(shard)) in reports
  ]


# The results.


def summary(split: Split) -> dict:
  """Returns the sums of the reports of a split."""
  total = dict(images=Counter(), boxes=Counter(), exif_rotated=0, examples={}, shards=[])
  for shard in range(split.shards):
    report = read_own(split.report_path(shard))
    total['images'].update(report['images'])
    total['boxes'].update(report['boxes'])
    total['exif_rotated'] += report['exif_rotated']
    total['examples'] = report.get('examples', {}) | total['examples']
    total['shards'].append({key: report[key] for key in ('shard', 'records', 'bytes', 'sha256')})
  return total


def write_manifest(splits: list[Split]) -> None:
  """Writes manifest.json, in which earlier splits stay, and dropped.csv."""
  output = splits[0].output
  path = os.path.join(output, 'manifest.json')
  manifest = dict(schema=SCHEMA)
  if 'manifest.json' in names(output):
    manifest = read_own(path, schema=SCHEMA)
  for split in splits:
    manifest[split.name] = dict(settings=settings(split), **summary(split))
  rows = []
  for name in names(os.path.join(output, 'reports')):
    if '.tfrecord-' in name:
      report = read_own(os.path.join(output, 'reports', name))
      for reason in ('missing', 'unreadable'):
        rows.extend([report['split'], image, reason, why] for image, why in report[reason])
  with remote.writing(os.path.join(output, 'dropped.csv')) as file:
    file.write(lists.as_csv(('split', 'image', 'reason', 'detail'), rows).encode())
  write_json(path, manifest)


def show(split: Split, total: dict) -> None:
  """Prints the summary of a split."""
  size = sum(shard['bytes'] for shard in total['shards'])
  print(f'{split.name}: {split.shards} shards, {size / 1e9:.3g} GB')
  for what in ('images', 'boxes'):
    counts = sorted(total[what].items(), key=lambda item: (item[0] != 'kept', item[0]))
    print(f'  {what}: ' + (', '.join(f'{name} {count:,}' for name, count in counts) or 'none'))
  for reason in ('malformed', 'in_pixels', 'folder_absent', 'missing', 'unreadable'):
    if reason in total['examples']:
      print(f'  the first {reason}: {total["examples"][reason]}')
  if total['exif_rotated']:
    print(f'  {total["exif_rotated"]:,} kept images carry an EXIF rotation, which is ignored')
  if not split.labels:
    print('  no class-descriptions-boxable.csv: every label is -1')


def refuse_empty(empty: list[tuple[Split, dict]]) -> None:
  """Removes what was made of splits without images; raises DataError with the reasons.

  empty: the splits with their summaries.
  """
  for split, _ in empty:
    for shard in finished(split):
      remote.remove(split.shard_path(shard))
      remote.remove(split.report_path(shard))
    remote.remove(split.settings_path)
    if not remote.is_remote(split.output):
      for folder in (os.path.join(split.output, 'reports'), split.output):
        with contextlib.suppress(OSError):  # other splits are in it
          os.rmdir(folder)
  reasons = [
    f'{split.name} keeps no image, and nothing of it was written: '
    f'images: {told(total["images"], total["examples"])}; '
    f'boxes: {told(total["boxes"], total["examples"])}'
    for split, total in empty
  ]
  if reasons:
    raise DataError('; '.join(reasons))


@contextlib.contextmanager
def progress_bar(splits: list[Split], every: float = 10.0) -> Iterator[None]:
  """Shows the number of finished shards, which only the output tells: Beam's workers make them."""
  count = lambda: sum(len(finished(split)) for split in splits)
  stop = threading.Event()
  total = sum(split.shards for split in splits)
  with progress.bar(what='making', total=total, initial=count(), unit='shard') as bar:

    def watch() -> None:
      while not stop.wait(every):
        bar.update(count() - bar.n)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
      yield
    finally:
      stop.set()
      thread.join()
      bar.update(count() - bar.n)


# The pipeline.


def run(splits: list[Split], beam_flags: list[str]) -> None:
  """Box table -> lines by shard -> shards; Beam decides where each step runs."""
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions

  with beam.Pipeline(options=PipelineOptions(beam_flags)) as pipeline:
    for split in splits:
      missing = frozenset(range(split.shards)) - frozenset(finished(split))
      if not missing:
        continue
      lines = (
        pipeline
        | f'read {split.name}' >> beam.io.ReadFromText(split.annotations, skip_header_lines=1)
        | f'assign {split.name}' >> beam.FlatMap(by_shard, split, missing)
      )
      # Shards without images are written too, because readers want all shards of a set.
      empty = pipeline | f'all {split.name}' >> beam.Create([(shard, '') for shard in missing])
      (
        (lines, empty)
        | f'join {split.name}' >> beam.Flatten()
        | f'gather {split.name}' >> beam.GroupByKey()
        | f'write {split.name}' >> beam.Map(make_shard, split)
      )


def by_shard(line: str, split: Split, missing: frozenset[int]) -> list[tuple[int, str]]:
  """Returns [(shard, line)] if that shard is still missing, else []."""
  cells = line.split(split.separator, split.id_column + 1)
  shard = shard_of(id_of([cell.strip() for cell in cells], split), split.shards)
  return [(shard, line.rstrip('\r\n '))] if shard in missing and line.strip() else []


# The command.


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns our flags, and those for Beam."""
  parser = argparse.ArgumentParser(
    prog='prepare_open_images',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--input', required=True, help='folder with annotations/ and images/')
  parser.add_argument('--output', required=True, help='folder for the shards')
  parser.add_argument('--splits', default='train,validation', help='train,validation,test')
  parser.add_argument(
    '--shards',
    type=int,
    default=0,
    help='per split; default: one for half a gigabyte of photos',
  )
  parser.add_argument('--min_area', type=float, default=0.02, help='least share of the image')
  parser.add_argument('--max_area', type=float, default=0.8, help='greatest share of the image')
  parser.add_argument('--threads', type=int, default=4, help='photos decoded at once per worker')
  parser.add_argument('--verbose', action='store_true', help="keep Beam's log and traces")
  args, rest = parser.parse_known_args(argv)
  ours = [option for action in parser._actions for option in action.option_strings]
  for flag in rest:
    near = difflib.get_close_matches(flag.split('=')[0], ours, 1, 0.85)
    if flag.startswith('--') and near:
      raise DataError(f'unknown flag {flag.split("=")[0]}; did you mean {near[0]}?')
  if not 0 <= args.min_area < args.max_area <= 1:
    raise DataError(
      f'--min_area {args.min_area} and --max_area {args.max_area} must be 0 <= min < max <= 1'
    )
  if args.shards < 0 or args.threads < 1:
    raise DataError(f'--shards {args.shards} and --threads {args.threads} must be at least 1')
  unknown = [name for name in args.splits.split(',') if name not in SPLITS]
  if unknown:
    raise DataError(f'unknown split {unknown[0]!r} in --splits; there are: {", ".join(SPLITS)}')
  return args, rest


def prepare(argv: list[str]) -> None:
  """Runs the whole command.

  Raises:
    DataError: for what the user can correct.
  """
  args, beam_flags = arguments(argv)
  if not remote.is_remote(args.input) and not os.path.isdir(args.input):
    raise DataError(f'--input {args.input!r} is not a folder')
  require_ours(args.output)
  if not args.verbose:
    logging.getLogger().setLevel(logging.CRITICAL)  # Beam logs traces of errors that we print
  try:
    import apache_beam  # noqa: F401
  except ImportError as error:
    raise DataError(
      'Apache Beam is not installed here; make an environment for it: python3 -m venv beam && '
      'beam/bin/pip install -r requirements-prepare.txt'
    ) from error
  splits = [find_split(args, name) for name in dict.fromkeys(args.splits.split(','))]
  for split in splits:
    check_table(split)
  for split in splits:
    check_settings(split)
  if not remote.is_remote(args.output):
    files.sweep(args.output, lambda name: name.startswith('open_images-'), alone=True)
  with progress_bar(splits):
    try:
      run(splits, beam_flags + ([] if args.verbose else QUIET))
    except RuntimeError as error:  # Beam wraps an error of a worker, and puts its name in the text
      known = re.match(r'(?:\w+\.)*(OSError|PermissionError|DataError): (.*?) \[while', str(error))
      if known:
        raise DataError(f'{known[2]}; the shards so far are kept, run again') from error
      raise
  totals = [(split, summary(split)) for split in splits]
  kept = [(split, total) for split, total in totals if total['images']['kept']]
  if kept:
    write_manifest([split for split, _ in kept])
  for split, total in kept:
    show(split, total)
  refuse_empty([(split, total) for split, total in totals if not total['images']['kept']])


def main() -> None:
  try:
    prepare(sys.argv[1:])
  except (DataError, OSError) as error:
    print(f'prepare_open_images: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
