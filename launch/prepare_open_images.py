"""The published Open Images layout to TFRecord shards: a Beam pipeline that can stop and resume.

  python -m launch.prepare_open_images --input=dataset/open-images --output=data/open_images

Reads <input>/annotations/*<split>-annotations-bbox.csv (and class-descriptions-boxable.csv there,
for label numbers) and <input>/images/{train_0..train_f,validation,test}/<ImageID>.jpg. Drops boxes
under 2 % or over 80 % of the image, as Paint by Example's scripts/read_bbox.py does. Writes records
with the feature names of tensorflow-datasets' open_images_v4, the JPEG bytes as they are. Boxes are
fractions of the stored picture: EXIF rotation is ignored, here and by the reader (photos that carry
it are counted).

An image belongs to a shard by the hash of its id, so shards are made independently, in any order,
and equal inputs give equal bytes. A finished shard has its report in <output>/reports: the same
command again makes only the others. At the end <output>/manifest.json holds settings, counts and
checksums, and <output>/dropped.csv every image that is missing or unreadable.

Beam has an environment of its own: pip install -r requirements-prepare.txt. It runs on this machine
unless told otherwise; the flags of any Beam runner pass through, for example
--direct_running_mode=multi_processing --direct_num_workers=8, or --runner=FlinkRunner and its own.
The local runner holds the rows of unfinished shards in memory: 8 GB and about seven minutes for the
14.6 million of the training set. Paths may be gs:// or s3:// where Beam's extra for them is
installed; workers elsewhere must be able to import input_pipeline.
"""

import argparse
import csv
import dataclasses
import difflib
import hashlib
import io
import json
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image

from exedit.input_pipeline import codec
from exedit.input_pipeline.errors import DataError
from exedit.input_pipeline.tf_example import serialize_example
from exedit.input_pipeline.tfrecord import write_shard

SPLITS = {'train': 1024, 'validation': 32, 'test': 64}  # shards of half a gigabyte
COLUMNS = ('ImageID', 'XMin', 'XMax', 'YMin', 'YMax')
# The class numbers of tensorflow-datasets' open_images_v4 for Source, and its names for our flags.
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
  """What making the shards of one split takes; travels to the workers."""

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

  def shard_path(self, shard: int) -> str:
    name = f'open_images-{self.name}.tfrecord-{shard:05d}-of-{self.shards:05d}'
    return os.path.join(self.output, name)

  def report_path(self, shard: int) -> str:
    folder, name = os.path.split(self.shard_path(shard))
    return os.path.join(folder, 'reports', f'{name}.json')

  def image_path(self, image_id: str) -> str | None:
    """The published place of an image, or None if its folder is not there at all."""
    for folder in (f'{self.name}_{image_id[:1].lower()}', self.name):
      if folder in self.folders:
        return os.path.join(self.images, folder, f'{image_id}.jpg')
    return None


# Pure functions: rows in, records and a report out.


def shard_of(image_id: str, shards: int) -> int:
  """The shard of an image: the same for ever, whatever else is in the set."""
  return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8]) % shards


def parse_row(row: list[str], columns: tuple[str, ...]) -> dict | None:
  """One row of the box table, `box` as (ymin, xmin, ymax, xmax); None if it is malformed."""
  if len(row) != len(columns):
    return None
  fields = dict(zip(columns, row, strict=True))
  try:
    box = tuple(float(fields[name]) for name in ('YMin', 'XMin', 'YMax', 'XMax'))
    flags = {name: int(fields[column]) for column, name in FLAGS.items() if column in fields}
  except ValueError:
    return None
  y0, x0, y1, x1 = box
  if not (0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1):
    return None
  return dict(
    box=box, label=fields.get('LabelName', ''), source=fields.get('Source', ''), flags=flags
  )


def sort_boxes(rows: list[list[str]], split: Split) -> tuple[list[dict], Counter]:
  """The boxes of one image that are kept, and how many were dropped for which reason."""
  kept, dropped = [], Counter()
  for row in rows:
    box = parse_row(row, split.columns)
    if box is None:
      dropped['malformed'] += 1
      continue
    y0, x0, y1, x1 = box['box']
    area = (y1 - y0) * (x1 - x0)
    if area < split.min_area:
      dropped['too_small'] += 1
    elif area > split.max_area:
      dropped['too_large'] += 1
    else:
      kept.append(box)
  return kept, dropped


def features(image_id: str, image: bytes, boxes: list[dict], labels: dict[str, int]) -> dict:
  """The features of one record, named and typed as tensorflow-datasets' open_images_v4 does."""
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
  return {'image': image, 'image/filename': f'{image_id}.jpg'.encode()} | named


def records(lines: Iterable[str], split: Split, report: dict) -> Iterator[bytes]:
  """The records of one shard from its lines of the box table, by image id; fills in `report`."""
  rows = {}
  for row in csv.reader(line for line in lines if line):
    rows.setdefault(row[0], []).append(row)
  report.update(images=Counter(), boxes=Counter(), exif_rotated=0, missing=[], unreadable=[])
  wanted = []
  for image_id in sorted(rows):
    boxes, dropped = sort_boxes(sorted(rows[image_id]), split)
    report['boxes'].update(dropped)
    if not boxes:
      report['images']['no_fitting_box'] += 1
    elif split.image_path(image_id) is None:
      report['images']['folder_absent'] += 1
      report['boxes']['of_lost_images'] += len(boxes)
    else:
      wanted.append((image_id, boxes))
  with ThreadPoolExecutor(split.threads) as pool:
    for at in range(0, len(wanted), 8 * split.threads):  # a few at a time: photos are large
      group = wanted[at : at + 8 * split.threads]
      photos = pool.map(lambda item: load_photo(split.image_path(item[0])), group)
      for (image_id, boxes), (image, rotated, loss, why) in zip(group, photos, strict=True):
        if loss:
          report['images'][loss] += 1
          report['boxes']['of_lost_images'] += len(boxes)
          report[loss].append([image_id, why])
          continue
        report['images']['kept'] += 1
        report['boxes']['kept'] += len(boxes)
        report['exif_rotated'] += rotated
        yield serialize_example(features(image_id, image, boxes, split.labels))


def load_photo(path: str) -> tuple[bytes, bool, str, str]:
  """(bytes, has an EXIF rotation, '' or 'missing' or 'unreadable', why) of a decoded photo."""
  try:
    image = read(path)
  except FileNotFoundError:
    return b'', False, 'missing', path
  except OSError as error:
    return b'', False, 'unreadable', f'{path}: {error.strerror or error}'
  try:
    codec.decode(image, path)
    rotated = PIL.Image.open(io.BytesIO(image)).getexif().get(0x0112, 1) != 1
  except DataError as error:
    return b'', False, 'unreadable', str(error)
  except Exception:  # decoded, but Pillow cannot make sense of its EXIF: then nobody rotates it
    rotated = False
  return image, rotated, '', ''


# Files: the local disk directly, anything else (gs://, s3://) through Beam.


def _elsewhere(path: str) -> bool:
  return '://' in path


def read(path: str) -> bytes:
  if not _elsewhere(path):
    with open(path, 'rb') as file:
      return file.read()
  from apache_beam.io.filesystems import CompressionTypes, FileSystems

  if not FileSystems.exists(path):
    raise FileNotFoundError(path)
  with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
    return file.read()


def write(path: str, data: bytes):
  """Writes a small file; it appears whole or not at all."""
  if not _elsewhere(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f'{path}.{os.getpid()}.{threading.get_ident()}.tmp'
    try:
      with open(temporary, 'wb') as file:
        file.write(data)
      os.replace(temporary, path)
    finally:
      if os.path.exists(temporary):
        os.unlink(temporary)
    return
  from apache_beam.io.filesystems import CompressionTypes, FileSystems

  with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
    file.write(data)


def names(folder: str, limit: int | None = None) -> dict[str, int]:
  """The files directly in a folder and their sizes; {} if it is not there."""
  if not _elsewhere(folder):
    if not os.path.isdir(folder):
      return {}
    with os.scandir(folder) as entries:
      return {entry.name: entry.stat().st_size for entry in entries}
  from apache_beam.io.filesystems import FileSystems

  found = FileSystems.match([os.path.join(folder, '*')], [limit])[0].metadata_list
  return {os.path.basename(entry.path): entry.size_in_bytes for entry in found}


def write_elsewhere(path: str, made: Iterable[bytes]) -> dict:
  """`write_shard` by way of the local disk to a store whose objects appear only when whole."""
  from apache_beam.io.filesystems import CompressionTypes, FileSystems

  with tempfile.TemporaryDirectory() as folder:
    local = os.path.join(folder, 'shard')
    info = write_shard(local, made)
    out = FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED)
    with open(local, 'rb') as source, out as file:
      while data := source.read(1 << 24):
        file.write(data)
  return info


def make_shard(shard: int, lines: Iterable[str], split: Split) -> dict:
  """Writes one shard, then its report, whose presence says that the shard is finished."""
  report = dict(split=split.name, shard=os.path.basename(split.shard_path(shard)))
  put = write_elsewhere if _elsewhere(split.output) else write_shard
  report.update(put(split.shard_path(shard), records(lines, split, report)))
  write(split.report_path(shard), json.dumps(report, indent=1).encode())
  return report


# What is there, what is to do, what was done.


def find_split(args: argparse.Namespace, name: str) -> Split:
  """The inputs of one split, checked before anything is written."""
  annotations = os.path.join(args.input, 'annotations')
  tables = names(annotations)
  if not tables:
    raise DataError(f'no folder {annotations!r} with the box tables of Open Images')
  found = [n for n in sorted(tables) if re.fullmatch(rf'(.*-)?{name}-annotations-bbox\.csv', n)]
  if len(found) != 1:
    raise DataError(
      f'{annotations!r} must hold one *{name}-annotations-bbox.csv; found {found or "none"}'
    )
  path = os.path.join(annotations, found[0])
  columns = tuple(next(csv.reader([first_line(path)]), []))
  absent = [column for column in COLUMNS if column not in columns]
  if absent or columns[0] != 'ImageID':
    raise DataError(f'{path!r} needs the columns {", ".join(COLUMNS)}; it has {", ".join(columns)}')
  images = os.path.join(args.input, 'images')
  wanted = [name] + [f'{name}_{digit}' for digit in '0123456789abcdef']
  folders = tuple(folder for folder in wanted if is_folder(os.path.join(images, folder)))
  if not folders:
    raise DataError(f'no image folder {name} or {name}_0 ... {name}_f in {images!r}')
  return Split(
    name, path, columns, images, folders, class_numbers(annotations, tables), args.output,
    args.shards or SPLITS[name], args.min_area, args.max_area, args.threads
  )  # fmt: skip


def first_line(path: str) -> str:
  if not _elsewhere(path):
    with open(path, encoding='utf-8-sig', errors='replace') as file:
      return file.readline().strip()
  from apache_beam.io.filesystems import FileSystems

  with FileSystems.open(path) as file:
    return file.read(4096).decode('utf-8-sig', 'replace').splitlines()[0]


def is_folder(path: str) -> bool:
  return bool(names(path, limit=1)) if _elsewhere(path) else os.path.isdir(path)


def class_numbers(annotations: str, tables: Iterable[str]) -> dict[str, int]:
  """{'/m/011k07': 0, ...}: the order of the table, which is tensorflow-datasets' own."""
  found = [name for name in sorted(tables) if name.endswith('class-descriptions-boxable.csv')]
  if not found:
    return {}
  table = read(os.path.join(annotations, found[-1])).decode('utf-8-sig').splitlines()
  classes = [row[0] for row in csv.reader(table) if row and row[0].startswith('/')]
  return {name: number for number, name in enumerate(classes)}


def settings(split: Split) -> dict:
  """What must not change between two runs into the same folder."""
  labels = hashlib.sha256(json.dumps(split.labels).encode()).hexdigest()[:16]
  sizes = names(os.path.dirname(split.annotations))
  table = os.path.basename(split.annotations)
  return dict(
    shards=split.shards,
    min_area=split.min_area,
    max_area=split.max_area,
    annotations=table,
    annotations_bytes=sizes[table],
    classes=len(split.labels),
    classes_sha256=labels,
    folders=list(split.folders),
  )


def check_settings(split: Split):
  """Writes the settings of a first run; a later run with other ones would mix two data sets."""
  path = os.path.join(split.output, 'reports', f'{split.name}.settings.json')
  now = settings(split)
  try:
    before = json.loads(read(path))
  except FileNotFoundError:
    write(path, json.dumps(now, indent=1).encode())
    return
  for name in now:
    if before.get(name) != now[name]:
      raise DataError(
        f'{split.output!r} was begun with {name} {before.get(name)!r}, now it is {now[name]!r}; '
        'use the same, or another --output'
      )


def remove_leftovers(output: str):
  """The unfinished files, half a gigabyte each, of a run that was killed."""
  if not _elsewhere(output):
    for name in names(output):
      if name.startswith('.open_images-'):
        os.unlink(os.path.join(output, name))


def finished(split: Split) -> list[int]:
  """The shards that are in place with their reports."""
  files = names(split.output)
  reports = names(os.path.join(split.output, 'reports'))
  return [
    shard
    for shard in range(split.shards)
    if os.path.basename(split.shard_path(shard)) in files
    and os.path.basename(split.report_path(shard)) in reports
  ]


def summary(split: Split) -> dict:
  """The reports of a split added up."""
  total = dict(images=Counter(), boxes=Counter(), exif_rotated=0, shards=[])
  for shard in range(split.shards):
    report = json.loads(read(split.report_path(shard)))
    total['images'].update(report['images'])
    total['boxes'].update(report['boxes'])
    total['exif_rotated'] += report['exif_rotated']
    total['shards'].append({key: report[key] for key in ('shard', 'records', 'bytes', 'sha256')})
  return total


def write_manifest(splits: list[Split]):
  """manifest.json (earlier splits stay in it) and dropped.csv."""
  output = splits[0].output
  path = os.path.join(output, 'manifest.json')
  manifest = json.loads(read(path)) if 'manifest.json' in names(output) else {}
  manifest['schema'] = 'tf.train.Example, features of tensorflow-datasets open_images_v4'
  for split in splits:
    manifest[split.name] = dict(settings=settings(split), **summary(split))
  rows = io.StringIO()
  table = csv.writer(rows, lineterminator='\n')
  table.writerow(['split', 'image', 'reason', 'detail'])
  for name in sorted(names(os.path.join(output, 'reports'))):
    if '.tfrecord-' in name:
      report = json.loads(read(os.path.join(output, 'reports', name)))
      for reason in ('missing', 'unreadable'):
        table.writerows([report['split'], image, reason, why] for image, why in report[reason])
  write(os.path.join(output, 'dropped.csv'), rows.getvalue().encode())
  write(path, json.dumps(manifest, indent=1).encode())


def show(split: Split, total: dict):
  """The report people read."""
  size = sum(shard['bytes'] for shard in total['shards'])
  print(f'{split.name}: {split.shards} shards, {size / 1e9:.3g} GB')
  for what in ('images', 'boxes'):
    counts = sorted(total[what].items(), key=lambda item: (item[0] != 'kept', item[0]))
    print(f'  {what}: ' + (', '.join(f'{name} {count:,}' for name, count in counts) or 'none'))
  if total['exif_rotated']:
    print(f'  {total["exif_rotated"]:,} kept images carry an EXIF rotation, which is ignored')
  if not split.labels:
    print('  no class-descriptions-boxable.csv: every label is -1')


class Progress:
  """One line on stderr every few seconds, from the reports of the shards that are finished."""

  def __init__(self, splits: list[Split], every: float = 10.0):
    self.splits, self.every = splits, every
    self.start, self.images, self.seen = time.monotonic(), 0, set()
    self.before = sum(len(finished(split)) for split in splits)
    self.stop = threading.Event()
    self.thread = threading.Thread(target=self._run, daemon=True)

  def __enter__(self):
    for split in self.splits:
      self.seen |= {split.report_path(shard) for shard in finished(split)}
    self.thread.start()
    return self

  def __exit__(self, *error):
    self.stop.set()
    self.thread.join()
    self._print()

  def _run(self):
    while not self.stop.wait(self.every):
      self._print()

  def _print(self):
    for split in self.splits:
      for shard in finished(split):
        path = split.report_path(shard)
        if path not in self.seen:
          self.seen.add(path)
          self.images += json.loads(read(path))['images'].get('kept', 0)
    total, done = sum(split.shards for split in self.splits), len(self.seen)
    passed, made = time.monotonic() - self.start, done - self.before
    left = f', {passed / made * (total - done) / 60:.0f} min left' if made else ''
    print(
      f'{done}/{total} shards, {self.images:,} images in {passed / 60:.1f} min '
      f'({self.images / passed:.0f}/s){left}',
      file=sys.stderr,
      flush=True,
    )


# The pipeline.


def run(splits: list[Split], beam_flags: list[str]):
  """Box table -> lines by shard -> shards; Beam decides where each step happens."""
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
        | f'assign {split.name}' >> beam.FlatMap(by_shard, split.shards, missing)
      )
      # A shard that no image falls to is written too, empty: a set is whole or it is damaged.
      empty = pipeline | f'all {split.name}' >> beam.Create([(shard, '') for shard in missing])
      (
        (lines, empty)
        | f'join {split.name}' >> beam.Flatten()
        | f'gather {split.name}' >> beam.GroupByKey()
        | f'write {split.name}' >> beam.Map(make_keyed_shard, split)
      )


def by_shard(line: str, shards: int, missing: frozenset[int]) -> list[tuple[int, str]]:
  """(shard, line) if that shard is still to be made."""
  shard = shard_of(line.split(',', 1)[0], shards)
  return [(shard, line.rstrip())] if shard in missing and line.strip() else []


def make_keyed_shard(keyed: tuple[int, Iterable[str]], split: Split) -> dict:
  return make_shard(*keyed, split)


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """Our flags, and those that are left for Beam."""
  parser = argparse.ArgumentParser(
    prog='prepare_open_images',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--input', required=True, help='folder with annotations/ and images/')
  parser.add_argument('--output', required=True, help='folder for the shards')
  parser.add_argument('--splits', default='train,validation', help='train,validation,test')
  parser.add_argument('--shards', type=int, default=0, help=f'per split; default {SPLITS}')
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


def prepare(argv: list[str]):
  """The whole command; DataError is what the person can put right."""
  args, beam_flags = arguments(argv)
  if not _elsewhere(args.input) and not os.path.isdir(args.input):
    raise DataError(f'--input {args.input!r} is not a folder')
  if not args.verbose:
    logging.getLogger().setLevel(logging.CRITICAL)  # Beam's own trace of what is said in one line
  try:
    import apache_beam  # noqa: F401
  except ImportError as error:
    raise DataError(
      'Apache Beam is not installed here; make an environment for it: python3 -m venv beam && '
      'beam/bin/pip install -r requirements-prepare.txt'
    ) from error
  splits = [find_split(args, name) for name in dict.fromkeys(args.splits.split(','))]
  for split in splits:
    check_settings(split)
  remove_leftovers(args.output)
  with Progress(splits):
    try:
      run(splits, beam_flags + ([] if args.verbose else QUIET))
    except RuntimeError as error:  # Beam wraps whatever a worker raised, by name
      known = re.match(r'(?:\w+\.)*(OSError|PermissionError|DataError): (.*?) \[while', str(error))
      if known:
        raise DataError(f'{known[2]}; the shards so far are kept, run again') from error
      raise
  write_manifest(splits)
  for split in splits:
    show(split, summary(split))


def main():
  try:
    prepare(sys.argv[1:])
  except (DataError, OSError) as error:
    print(f'prepare_open_images: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  main()
