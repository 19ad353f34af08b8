"""The COCOEE benchmark of arXiv 2211.13227, and one's own in its layout: read, validate, make.

  python -m input_pipeline.coco_ee validate --bench=test_bench --report=report.json
  python -m input_pipeline.coco_ee pack --bench=test_bench --output=packed --shards=4
  python -m input_pipeline.coco_ee build --pictures=my_edits --output=my_bench
  python -m input_pipeline.coco_ee build_coco --annotations=instances_val2017.json \
      --images=val2017 --output=coco_bench --count=500

`validate` prints what is missing or odd; its exit status is 0 if nothing is wrong, else 2. `pack`
writes the same files as TFRecord. `build` takes a folder with image/, mask/ and exemplar/, or a
list (.csv, .jsonl) with those columns; `build_coco` takes COCO's boxes.
"""

import json
import os
import sys
from collections.abc import Iterator

import numpy as np

from .. import doors, tf_example, tfrecord
from .. import files as whole
from ..errors import DataError
from . import instances as coco_ee_instances
from . import layout
from . import pictures as coco_ee_pictures
from . import validate as coco_ee_validate

SPLIT = 'test'
EXEMPLAR_SIZE = 224  # pixels: what CLIP ViT-L/14 sees


class Bench:
  """The edits of a benchmark by position, in its fixed order, from its folders or its shards.

  Has `ids` int64 [n], no two alike, and what grain asks of a source; pickles. DataError where the
  ids or the files are not whole. The exemplar keeps its own size where `exemplar_size` is None.
  """

  def __init__(self, root: str, exemplar_size: int | None = EXEMPLAR_SIZE):
    self.root, self.exemplar_size = os.fspath(root), exemplar_size
    files = _Folders if layout.is_layout(self.root) else _Shards
    self.ids = layout.read_ids(self.root)
    if doubled := layout.doubled(self.ids):
      raise DataError(
        f'{self.root}/{layout.IDS}: {len(doubled)} ids occur more than once, the first is '
        f'{doubled[0]}; results are named by id, so each must be there once'
      )
    self._files = files(self.root, self.ids)

  def __len__(self) -> int:
    return len(self.ids)

  def __repr__(self) -> str:
    return f'Bench({self.root!r}, {len(self)} edits)'

  def names(self, position: int) -> dict[str, str]:
    """The names of an edit's files: dict(source=, mask=, exemplar=)."""
    return {kind: layout.file_name(kind, int(self.ids[position])) for kind in layout.KINDS}

  def encoded(self, position: int) -> dict[str, bytes]:
    """An edit's files as they are: dict(source=, mask=, exemplar=)."""
    return self._files.read(position, self.names(position))

  def __getitem__(self, position: int) -> dict:
    """One edit; DataError, naming the file, where one cannot be used.

    Returns dict(id, source uint8 [h w 3], mask uint8 [h w] (255 = repaint, grey between counts in
    part), exemplar uint8 [s s 3], names dict(source, mask, exemplar)).
    """
    names, data = self.names(position), self.encoded(position)
    source = layout.decode_source(data['source'], names['source'])
    mask = layout.decode_mask(data['mask'], names['mask'])
    if mask.shape != source.shape[:2]:
      raise DataError(
        f'{names["mask"]} is {mask.shape[1]}x{mask.shape[0]} (width x height), '
        f'{names["source"]} {source.shape[1]}x{source.shape[0]}; they must be alike'
      )
    if mask.max() < 128:
      raise DataError(
        f'{names["mask"]} is empty: its brightest pixel is {mask.max()} of 255, and 128 or more '
        'is repainted'
      )
    exemplar = layout.decode_exemplar(data['exemplar'], names['exemplar'], self.exemplar_size)
    return dict(
      id=int(self.ids[position]), source=source, mask=mask, exemplar=exemplar, names=names
    )


class _Folders:
  """The published layout on a disk."""

  def __init__(self, root: str, ids: np.ndarray):
    self.folders = {kind: os.path.join(root, n) for kind, n in layout.folders(root).items()}
    for kind, folder in self.folders.items():
      there = set(os.listdir(folder))
      wanted = [layout.file_name(kind, edit_id) for edit_id in ids.tolist()]
      missing = [name for name in wanted if name not in there]
      if missing:
        raise DataError(
          f'{folder} lacks {len(missing)} of {len(ids)} files, the first is {missing[0]}; '
          '`python -m input_pipeline.coco_ee validate` lists them'
        )

  def read(self, position: int, names: dict[str, str]) -> dict[str, bytes]:
    data = {}
    for kind, name in names.items():
      with open(os.path.join(self.folders[kind], name), 'rb') as file:
        data[kind] = file.read()
    return data


class _Shards:
  """The same files as TFRecord, in the same order."""

  def __init__(self, root: str, ids: np.ndarray):
    self.ids, self.source = ids, tfrecord.Source(tfrecord.shard_paths(root, SPLIT))
    if self.source.damaged:
      raise self.source.damaged[0]
    if len(self.source) != len(ids):
      raise DataError(f'{root}: {layout.IDS} has {len(ids)} ids, its shards {len(self.source)}')

  def read(self, position: int, names: dict[str, str]) -> dict[str, bytes]:
    features = tf_example.parse_example(self.source[position])
    wanted, where = int(self.ids[position]), self.source.locate(position)[0]
    if 'id' not in features or any(len(features.get(kind, ())) != 1 for kind in names):
      raise DataError(f'{where} holds no edits; it has the features {", ".join(sorted(features))}')
    if int(features['id'][0]) != wanted:
      raise DataError(
        f'{where}: record {position} is of edit {int(features["id"][0])}, {layout.IDS} says '
        f'{wanted}; pack it again'
      )
    return {kind: features[kind][0] for kind in names}


def pack(bench: str, output: str, shards: int = 1) -> dict:
  """Writes a benchmark's files into a new folder as shards, ids and manifest.json; returns it.

  Records are the files' own bytes, so a `Bench` of the output gives the same edits.
  """
  import tqdm

  whole.refuse_existing(output)
  edits = Bench(bench)
  if not 1 <= shards <= len(edits):
    raise DataError(f'--shards={shards}: must be between 1 and the {len(edits)} edits')
  every = 0.1 if sys.stderr.isatty() else 10
  with (
    whole.folder(output) as stage,
    tqdm.tqdm(total=len(edits), unit='edit', desc='packing', mininterval=every) as bar,
  ):
    files = {}
    for shard in range(shards):
      name = f'coco_ee-{SPLIT}.tfrecord-{shard:05d}-of-{shards:05d}'
      part = range(shard * len(edits) // shards, (shard + 1) * len(edits) // shards)
      files[name] = tfrecord.write_shard(os.path.join(stage, name), _records(edits, part, bar))
    np.save(os.path.join(stage, layout.IDS), edits.ids)
    manifest = dict(made_by='input_pipeline.coco_ee', edits=len(edits), files=files)
    whole.write(os.path.join(stage, layout.MANIFEST), json.dumps(manifest, indent=1).encode())
  return manifest


def _records(edits: Bench, part: range, bar) -> Iterator[bytes]:
  for position in part:
    number = edits.ids[position : position + 1]
    yield tf_example.serialize_example({'id': number, **edits.encoded(position)})
    bar.update()


# The door.


def _validate(bench: str, size: int, report: str) -> None:
  _required(bench=bench)
  found = coco_ee_validate.validate(bench, size)
  if report:
    whole.write(report, json.dumps(found, indent=1).encode())
  print(coco_ee_validate.table(found))
  if found['faults']:
    raise DataError(f'{bench}: {found["faults"]} faults in {found["edits"]} edits')


def _pack(bench: str, output: str, shards: int) -> None:
  _required(bench=bench, output=output)
  manifest = pack(bench, output, shards)
  print(f'{output}: {manifest["edits"]} edits in {len(manifest["files"])} shards')


def _build(pictures: str, output: str, **settings) -> None:
  _required(pictures=pictures, output=output)
  manifest = coco_ee_pictures.from_pictures(pictures, output, **settings)
  print(f'{output}: {len(manifest["edits"])} edits')


def _build_coco(annotations: str, images: str, output: str, **settings) -> None:
  _required(annotations=annotations, images=images, output=output)
  manifest = coco_ee_instances.from_coco(annotations, images, output, **settings)
  print(f'{output}: {len(manifest["edits"])} edits; passed over: {manifest["passed_over"] or 0}')


def _required(**flags: str) -> None:
  for name, value in flags.items():
    if not value:
      raise DataError(f'--{name}=... is missing')


_SIZE = ('size', 512, 'side of the sources in pixels')
_CROP = ('crop', 'nearest', 'square cut: nearest to the centre that holds the region, or centre')
_OUTPUT = ('output', '', 'new folder to write')
_BENCH = ('bench', '', 'the benchmark: a folder in the published layout, or packed')
COMMANDS = dict(
  validate=(_validate, _BENCH, _SIZE, ('report', '', 'JSON file to write as well')),
  pack=(_pack, _BENCH, _OUTPUT, ('shards', 1, 'files to write')),
  build=(
    _build,
    ('pictures', '', 'folder with image/, mask/, exemplar/; or a .csv or .jsonl list'),
    *(_OUTPUT, _SIZE, _CROP),
    ('rectangles', False, 'repaint the whole bounding box of each mask, as COCOEE does'),
  ),
  build_coco=(
    _build_coco,
    ('annotations', '', "COCO's instances_*.json of the sources"),
    ('images', '', 'folder of their images'),
    *(_OUTPUT, ('count', 3500, 'edits'), ('seed', 0, 'of the choice'), _SIZE, _CROP),
    ('exemplar_annotations', '', "instances_*.json of the exemplars (default: the sources')"),
    ('exemplar_images', '', "folder of their images (default: the sources')"),
    ('exemplar_side', 64, 'shortest side of an exemplar in pixels'),
    ('exemplar_pad', 10, 'pixels around its box, as in training'),
    ('min_area', 0.02, 'least share of the source that is repainted'),
    ('max_area', 0.5, 'greatest share of the source that is repainted'),
  ),
)


def _flags(rows):
  from absl import flags

  values = flags.FlagValues()
  define = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_bool,
  }
  for name, default, about in rows:
    define[type(default)](name, default, about, flag_values=values)
  return values


def _no_command() -> None:
  raise DataError(f'say which command: {", ".join(COMMANDS)}; --help tells more')


def main(argv: list[str]) -> None:
  """The door: one command and its flags."""
  command = argv[1] if len(argv) > 1 else ''
  if command in COMMANDS:
    call, *rows = COMMANDS[command]
    doors.run(call, _flags(rows), __doc__, [f'{argv[0]} {command}', *argv[2:]])
  else:
    asks = [flag for flag in argv if flag.lstrip('-') == 'help']
    doors.run(_no_command, _flags(()), __doc__, [argv[0], *asks])
