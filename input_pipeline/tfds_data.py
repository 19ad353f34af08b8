"""Data sets that tensorflow-datasets (TFDS) prepared, read without TensorFlow.

Whatever the file format, TFDS stores a record as a serialized tf.train.Example and joins the names
of nested features by `/`. It reads ArrayRecord itself; `tfrecord` reads its TFRecord shards.
"""

import bisect
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from exedit.runtime import files, remote

from .errors import DataError
from .tf_example import parse_example
from .tfrecord import SHARD, CorruptRecord, Source, shard_paths

INFO, FEATURES = 'dataset_info.json', 'features.json'
NAMES = {'captions/text': 'caption', 'objects/bbox': 'bobjects/bbox'}  # of coco_captions, and ours


class Prepared(NamedTuple):
  """A prepared version of a data set: where it is, and what its `dataset_info.json` says."""

  folder: str
  name: str
  file_format: str
  splits: tuple[str, ...]


def find(root: str) -> Prepared | None:
  """Returns the data set that a folder holds, or None if TFDS prepared none in it.

  root: the folder of a version (`coco_captions/2014/1.1.0`), or a folder one or two levels above it
  that holds no other version. A store is not searched: there it is the version's folder.

  Raises:
    DataError: if the folder holds several data sets, or one that cannot be used.
  """
  root = os.fspath(root)
  if remote.is_remote(root):
    found = [root] if INFO in remote.listing(root) else []
  elif not os.path.isdir(root) or any(map(SHARD.fullmatch, files.listing(root))):
    found = [root] if os.path.isfile(os.path.join(root, INFO)) else []
  else:
    below = (glob.glob(os.path.join(glob.escape(root), at, INFO)) for at in ('', '*', '*/*'))
    found = next((sorted(map(os.path.dirname, paths)) for paths in below if paths), [])
    # TFDS writes into such a folder first, and a killed one leaves it.
    found = [path for path in found if not os.path.basename(path).startswith('incomplete.')]
  if len(found) > 1:
    raise DataError(f'{root!r} holds several data sets: name one of {", ".join(found)}')
  return _read(found[0]) if found else None


def _read(folder: str) -> Prepared:
  path = os.path.join(folder, INFO)
  try:
    info = json.loads(remote.read(path))
    splits = tuple(split['name'] for split in info.get('splits', ()))
    found = Prepared(folder, info['name'], info.get('fileFormat', 'tfrecord'), splits)
    path = os.path.join(folder, FEATURES)
    features = json.loads(remote.read(path))['featuresDict']['features']
    images = [n for n, f in features.items() if f['pythonClassName'].endswith('.Image')]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f'{path} cannot be read ({error!r}): prepare the data set again') from error
  if 'image' not in images:
    raise DataError(
      f"{folder!r} is the data set {found.name}, which has no feature 'image' that is a picture; "
      f'features there: {", ".join(sorted(features))}'
    )
  if found.file_format not in ('array_record', 'tfrecord'):
    raise DataError(
      f'{folder!r} was prepared as {found.file_format}, and exedit reads array_record and '
      'tfrecord: prepare it with --file_format=array_record'
    )
  if found.file_format == 'array_record' and remote.is_remote(folder):
    raise DataError(
      f'{folder!r} was prepared as array_record, which is read from a disk only: copy or mount the '
      'folder, or prepare it as tfrecord'
    )
  return found


def source(root: str, split: str) -> 'Records':
  """Returns the records of a split: of a data set of TFDS, or of other TFRecord shards.

  Some data sets of TFDS call the split `validation` `val`; both names work.

  Raises:
    DataError: if they are missing, incomplete or of an unknown kind.
  """
  prepared = find(root)
  if prepared is None:
    return Source(shard_paths(root, split))
  if split == 'validation' and split not in prepared.splits and 'val' in prepared.splits:
    split = 'val'
  if prepared.file_format == 'tfrecord':
    return Source(shard_paths(prepared.folder, split))
  return ArrayRecords(prepared, split)


def features(record: bytes) -> dict[str, list[bytes] | np.ndarray]:
  """Returns the features of a record as `parse_example` does, by our names."""
  found = parse_example(record)
  return {ours: found[theirs] for theirs, ours in NAMES.items() if theirs in found} | found


class ArrayRecords:
  """All records of a split that was prepared as ArrayRecord, with the interface of `Source`.

  TFDS finds and reads them. The index of such a file is at its end, so nothing of a file that is
  cut short can be read; `damaged` lists these files.
  """

  def __init__(self, prepared: Prepared, split: str):
    import tensorflow_datasets as tfds  # takes a second

    try:
      builder: Any = tfds.builder_from_directory(prepared.folder)
      raw = tfds.decode.DeserializeMethod.RAW_BYTES
      self._records = builder.as_data_source(split, deserialize_method=raw)
      parts = builder.info.splits[split].file_instructions
    except Exception as error:  # of TFDS or of protobuf
      raise DataError(
        f'{prepared.folder!r}: TFDS cannot open split {split!r} '
        f'({_line(error)}); splits there: {", ".join(prepared.splits)}'
      ) from error
    self.paths = list(dict.fromkeys(os.fspath(part.filename) for part in parts))
    _require(prepared.folder, split, self.paths)
    expected = {os.fspath(part.filename): part.examples_in_shard for part in parts}
    self.damaged = _damaged(expected)
    lost = {error.shard for error in self.damaged}
    # Of each part: its file, the number of its first record there, and the first of all there.
    self._parts: list[tuple[str, int, int]] = []
    self._ends: list[int] = []
    at = 0
    for part in parts:
      if (path := os.fspath(part.filename)) not in lost:
        self._parts.append((path, part.skip, at))
        self._ends.append(len(self) + part.take)
      at += part.take

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, position: int) -> bytes:
    """Returns the data of one record.

    Raises:
      CorruptRecord: if it cannot be read or its hash does not match.
    """
    k, offset = self._locate(position)
    try:
      return self._records[self._parts[k][2] + offset]
    except (RuntimeError, ValueError, IndexError, OSError) as error:
      raise self.corrupt(position, _line(error)) from error

  def __repr__(self) -> str:
    return f'ArrayRecords({len(self.paths)} shards, {len(self)} records, {self.digest()})'

  def corrupt(self, position: int, why: str) -> CorruptRecord:
    """Returns the error that names a record's shard, and its number there."""
    k, offset = self._locate(position)
    path, skip, _ = self._parts[k]
    return CorruptRecord(path, skip + offset, why, 'record')

  def digest(self) -> str:
    """Returns a digest of the shards' names and sizes, and of the places of the records."""
    sizes = [(os.path.basename(path), os.path.getsize(path)) for path in self.paths]
    parts = [(os.path.basename(path), *place) for path, *place in self._parts]
    return hashlib.sha256(repr((sizes, parts, self._ends)).encode()).hexdigest()[:16]

  def _locate(self, position: int) -> tuple[int, int]:
    """Returns the number of the part with a record, and the record's number in that part."""
    k = bisect.bisect_right(self._ends, position)
    return k, int(position) - (self._ends[k - 1] if k else 0)


Records = Source | ArrayRecords


def _line(error: Exception) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def _require(folder: str, split: str, paths: Sequence[str]) -> None:
  """Raises DataError if a shard is missing."""
  missing = [path for path in paths if not os.path.isfile(path)]
  if missing:
    raise DataError(
      f'{folder!r} holds {len(paths) - len(missing)} of the {len(paths)} shards of split '
      f'{split!r}; the first one missing is {os.path.basename(missing[0])}'
    )


def _damaged(expected: dict[str, int]) -> list[CorruptRecord]:
  """Returns an error for each file in which ArrayRecord does not find the records expected.

  Without this a file cut at a multiple of 64 KiB would be read as empty records.
  """
  from array_record.python.array_record_module import ArrayRecordReader

  def damage(path: str) -> CorruptRecord | None:
    try:
      count = ArrayRecordReader(path).num_records()
    except (RuntimeError, ValueError, OSError) as error:
      return CorruptRecord(path, 0, f'{_line(error)}; none of its records is read', 'record')
    if count == expected[path]:
      return None
    why = f'{count} of {expected[path]} records are there; none of them is read'
    return CorruptRecord(path, 0, why, 'record')

  with ThreadPoolExecutor(max_workers=32) as pool:
    return [error for error in pool.map(damage, expected) if error is not None]
