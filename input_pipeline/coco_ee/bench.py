"""The COCOEE benchmark of arXiv 2211.13227, or another in its layout: read it and pack it."""

import os
from collections.abc import Iterable, Iterator

import numpy as np

from exedit.runtime import files, progress

from .. import tf_example, tfrecord
from ..errors import DataError
from . import layout

SPLIT = 'test'
EXEMPLAR_SIZE = 224  # pixels: the input size of CLIP ViT-L/14


class Bench:
  """The edits of a benchmark by position, in its fixed order, from its folders or its shards.

  It has `ids` int64 [n] without duplicates and the methods of a grain source, and can be pickled.
  If `exemplar_size` is None, exemplars keep their own size.

  Raises:
    DataError: if the ids are invalid or a file is missing.
  """

  kinds = tuple(layout.KINDS)

  def __init__(self, root: str, exemplar_size: int | None = EXEMPLAR_SIZE):
    self.root, self.exemplar_size = os.fspath(root), exemplar_size
    self.ids = layout.read_ids(self.root)
    if doubled := layout.doubled(self.ids):
      raise DataError(
        f'{self.root}/{layout.IDS}: {len(doubled)} ids occur more than once, the first is '
        f'{doubled[0]}; results are named by id, so each must be there once'
      )
    self._files = open_files(self.root, self.ids)
    self._files.check()

  def __len__(self) -> int:
    return len(self.ids)

  def __repr__(self) -> str:
    return f'Bench({self.root!r}, {len(self)} edits)'

  def name(self, position: int) -> str:
    """Returns the name of the file of an edit's result, as in PbE's evaluation code."""
    return f'{self.ids[position]:012d}.png'

  def names(self, position: int) -> dict[str, str]:
    """Returns the names of an edit's files: dict(source=, mask=, exemplar=)."""
    return {kind: layout.file_name(kind, int(self.ids[position])) for kind in layout.KINDS}

  def encoded(self, position: int) -> dict[str, bytes]:
    """Returns the bytes of an edit's files: dict(source=, mask=, exemplar=)."""
    return self._files.read(position)

  def __getitem__(self, position: int) -> dict:
    """Returns one edit.

    It is dict(id, source uint8 [h w 3], mask uint8 [h w] (255 = repaint, 0 = keep, grey mixes),
    exemplar uint8 [s s 3], names dict(source, mask, exemplar)).

    Raises:
      DataError: if a file of it cannot be used; names the file.
    """
    names, data = self.names(position), self.encoded(position)
    source = layout.decode_source(data['source'], names['source'])
    mask = layout.decode_mask(data['mask'], names['mask'])
    for what, detail in layout.mask_faults(mask, source):
      raise DataError(f'{names["mask"]}: {what}: {detail}')
    exemplar = layout.decode_exemplar(data['exemplar'], names['exemplar'], self.exemplar_size)
    return dict(
      id=int(self.ids[position]), source=source, mask=mask, exemplar=exemplar, names=names
    )


class Folders:
  """The files of a benchmark in the published layout."""

  def __init__(self, root: str, ids: np.ndarray):
    self.root, self.ids, self.folders = root, ids.tolist(), layout.folders(root)

  def check(self) -> None:
    """Raises DataError if a file is missing."""
    for kind, folder in self.folders.items():
      there = set(files.listing(os.path.join(self.root, folder)))
      wanted = [layout.file_name(kind, edit_id) for edit_id in self.ids]
      missing = [name for name in wanted if name not in there]
      if missing:
        raise DataError(
          f'{os.path.join(self.root, folder)} lacks {len(missing)} of {len(self.ids)} files, the '
          f'first is {missing[0]}; `python -m input_pipeline.coco_ee validate` lists them'
        )

  def name(self, position: int, kind: str) -> str:
    """Returns the path of a file below the root."""
    return f'{self.folders[kind]}/{layout.file_name(kind, self.ids[position])}'

  def read(self, position: int, kinds: Iterable[str] = layout.KINDS) -> dict[str, bytes]:
    """Returns the bytes of an edit's files. Raises OSError."""
    data = {}
    for kind in kinds:
      with open(os.path.join(self.root, self.name(position, kind)), 'rb') as file:
        data[kind] = file.read()
    return data


class Shards:
  """The same files packed as TFRecord, in the same order."""

  def __init__(self, root: str, ids: np.ndarray):
    self.root, self.ids = root, ids.tolist()
    self.source = tfrecord.Source(tfrecord.shard_paths(root, SPLIT))

  def check(self) -> None:
    """Raises DataError if a record is missing."""
    if self.source.damaged:
      raise self.source.damaged[0]
    if len(self.source) != len(self.ids):
      raise DataError(
        f'{self.root}: {layout.IDS} has {len(self.ids)} ids, its shards {len(self.source)}'
      )

  def name(self, position: int, kind: str) -> str:
    """Returns the name of the file that was packed."""
    return layout.file_name(kind, self.ids[position])

  def read(self, position: int, kinds: Iterable[str] = layout.KINDS) -> dict[str, bytes]:
    """Returns the bytes of an edit's files. Raises DataError if the record is not of this edit."""
    features = tf_example.parse_example(self.source[position])
    wanted, where = self.ids[position], self.source.locate(position)[0]
    if 'id' not in features or any(len(features.get(kind, ())) != 1 for kind in kinds):
      raise DataError(f'{where} holds no edits; it has the features {", ".join(sorted(features))}')
    if int(features['id'][0]) != wanted:
      raise DataError(
        f'{where}: record {position} is of edit {int(features["id"][0])}, {layout.IDS} says '
        f'{wanted}; pack it again'
      )
    return {kind: features[kind][0] for kind in kinds}


def open_files(root: str, ids: np.ndarray) -> Folders | Shards:
  """Opens the files of a benchmark without checking that they are complete."""
  return (Folders if layout.is_layout(root) else Shards)(root, ids)


def pack(bench: str, output: str, shards: int = 1) -> dict:
  """Writes a benchmark's files into a new folder as shards, ids and manifest.json; returns it.

  Records hold the files' own bytes, so a `Bench` of the output gives the same edits.
  """
  files.check_new(output, '--output')
  edits = Bench(bench)
  if not 1 <= shards <= len(edits):
    raise DataError(f'--shards={shards}: must be between 1 and the {len(edits)} edits')
  with (
    files.new_folder(output) as stage,
    progress.bar(what='packing', total=len(edits), unit='edit') as bar,
  ):
    made = {}
    for shard in range(shards):
      name = f'coco_ee-{SPLIT}.tfrecord-{shard:05d}-of-{shards:05d}'
      part = range(shard * len(edits) // shards, (shard + 1) * len(edits) // shards)
      made[name] = tfrecord.write_shard(str(stage / name), _records(edits, part, bar))
    np.save(stage / layout.IDS, edits.ids)
    manifest = dict(made_by='input_pipeline.coco_ee', edits=len(edits), files=made)
    files.write_json(stage / layout.MANIFEST, manifest)
  return manifest


def _records(edits: Bench, part: range, bar) -> Iterator[bytes]:
  for position in part:
    number = edits.ids[position : position + 1]
    yield tf_example.serialize_example({'id': number, **edits.encoded(position)})
    bar.update()
