"""Reads shards as batches, in one global order that all processes share, from any step on."""

import contextlib
import dataclasses
import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from exedit.runtime import files, parallel, remote, settings

from . import captioned, latent_shards, open_images, tfds_data
from .errors import DataError, Uncaptioned, Unusable
from .tfrecord import INDEX, CorruptRecord

_SUBSTITUTES = 256  # records that are tried in place of one that cannot be used
_LOOKED_AT = 32  # records in which phrases of boxes are looked for
_GRACE = 30.0  # seconds that a worker continues after SIGTERM
_WHY = 'S200'  # a reason as bytes of a fixed size, so that a batch can contain it


def batches(
  root: str,
  split: str,
  batch_size: int,
  *,
  seed: int = 0,
  start: int = 0,
  shard_index: int = 0,
  shard_count: int = 1,
  on_corrupt: str = 'skip',
  workers: int = 0,
  threads: int | None = None,
  prefetch: int | None = None,
  shuffle: bool = True,
  texts: bool = False,
  make_example: Callable[..., dict] = open_images.make_example,
  **example_settings,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields endless batches from the shards of one split; batch k depends only on (seed, k).

  Example i of the stream, including its random numbers, depends only on (seed, i). Batch k holds
  the examples from start + k * batch_size on, and this process gets every `shard_count`-th of them.
  So the numbers of hosts, workers and threads and the batch size may change between runs, and a
  resumed run repeats nothing.

  A batch is a dict of `batch_size / shard_count` rows: what `make_example` returns, id int32 [b] (i
  modulo 2^31), corrupt int32 [b] (1 if another record replaces the one that was due).

  Args:
    root: the folder of the shards, or of a data set that tensorflow-datasets prepared. split:
      'train', or another one in it.
    on_corrupt: 'skip' logs each bad record or shard once and continues; 'fatal' raises the error.
    workers: number of processes, 0 for none. threads: of each (default: one per core in total); a
      thread makes a whole batch. prefetch: batches that are ready or being made (default: one more
      than threads).
    texts: keep texts for people, such as captions, which devices cannot hold.
    make_example: of its module the function `check_settings(**example_settings)` is called first,
      if there is one. example_settings: passed on as `make_example(features, rng,
      **example_settings)`.

  Raises:
    DataError: at the call, for settings or data that cannot be used.
  """
  _check(batch_size, start, shard_index, shard_count, on_corrupt)
  settings.check(example_settings, make_example, 'data')
  if check := getattr(inspect.getmodule(make_example), 'check_settings', None):
    check(**example_settings)
  latent_shards.check(root, split, {**defaults(make_example), **example_settings})
  source = tfds_data.source(root, split)
  if not len(source):
    raise DataError(f'split {split!r} in {root!r} holds no complete record')
  for error in source.damaged:
    _corrupt(error, on_corrupt)
  if make_example is captioned.make_example and example_settings.get('boxes'):
    _look_for_phrases(source, example_settings['boxes'])

  order = grain.MapDataset.range(len(source)).seed(seed % 2**32)
  order = (order.shuffle() if shuffle else order).repeat().map_with_index(_numbered)
  examples = order.random_map(_MakeExample(source, make_example, example_settings))
  local = examples[start + shard_index :: shard_count]

  threads = threads or max(1, (os.cpu_count() or 1) // max(1, workers))
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch or threads + 1)
  stream = local.batch(batch_size // shard_count, drop_remainder=True).to_iter_dataset(ahead)
  if workers:
    if not flags.FLAGS.is_parsed():  # in notebooks and tests; grain's workers require parsed flags
      flags.FLAGS.mark_as_parsed()
    # Start it here, because it unblocks signals that the reading thread must keep blocked.
    resource_tracker.ensure_running()
    stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _start_worker)
  cv2.setNumThreads(0)  # the threads work on different batches
  return _reported(stream, source, on_corrupt, workers, texts)


def held_out(count: int, **data) -> dict[str, np.ndarray]:
  """Returns the first `count` validation examples, without augmentation: the same in every run.

  `data` are the arguments of `batches` (`config.data`); the split and the threads are replaced.

  Raises:
    DataError: if the validation split is missing, or holds latents instead of images.
  """
  fixed = dict(split='validation', augment=False, workers=0, threads=1, prefetch=1, texts=True)
  found = next(batches(batch_size=count, seed=0, shuffle=False, **{**data, **fixed}))
  if 'image' not in found:
    raise DataError(f'the validation split in {data["root"]} holds latents and no images')
  return found


def shapes(
  make_example: Callable[..., dict] = open_images.make_example, **data
) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Returns {name: (shape, dtype)} of one example that `batches(**data)` yields; reads no data.

  Raises:
    DataError: for settings that cannot be.
  """
  known, module = defaults(make_example), inspect.getmodule(make_example)
  if (shapes_of := getattr(module, 'shapes', None)) is None:
    raise DataError(
      f'the module of {make_example!r:.80} has no function shapes(**settings), which says the '
      'shapes of its examples: add one beside it'
    )
  settings.check_names(data, [*known, *(p.name for p in settings.arguments(batches))], 'data')
  settings.check({n: data[n] for n in data if n in known}, make_example, 'data')
  settings.check({n: data[n] for n in data if n not in known}, batches, 'data')
  if check := getattr(module, 'check_settings', None):
    check(**data)
  _check(1, 0, 0, 1, data.get('on_corrupt', 'skip'))
  return shapes_of(**{**known, **data}) | dict(id=((), np.int32), corrupt=((), np.int32))


def defaults(make_example: Callable[..., dict] = open_images.make_example) -> dict[str, Any]:
  """Returns the settings of `make_example` with their default values."""
  parameters = inspect.signature(make_example).parameters.values()
  return {p.name: p.default for p in parameters if p.kind == p.KEYWORD_ONLY}


@dataclasses.dataclass(frozen=True)
class Shards:
  """A description of a split's shards: equal if all file names and places of records are equal.

  truncated: number of shards that end inside a record; their complete records are read.
  """

  shards: int
  records: int
  truncated: int
  digest: str


def survey(root: str, split: str) -> Shards:
  """Returns what this process finds; all processes of a training must find the same."""
  if not remote.is_remote(root):
    files.sweep(root, lambda name: name.endswith(INDEX))
  source = tfds_data.source(root, split)
  return Shards(len(source.paths), len(source), len(source.damaged), source.digest())


def _check(batch_size, start, shard_index, shard_count, on_corrupt):
  if batch_size < 1 or start < 0:
    raise DataError(f'batch_size {batch_size} must be at least 1, start {start} at least 0')
  if not 0 <= shard_index < shard_count:
    raise DataError(f'shard_index {shard_index} must be in 0..{shard_count - 1} (shard_count - 1)')
  if batch_size % shard_count:
    raise DataError(
      f'batch_size {batch_size} cannot be divided among {shard_count} processes; '
      f'take a multiple of {shard_count}'
    )
  if on_corrupt not in ('skip', 'fatal'):
    raise DataError(f"on_corrupt is {on_corrupt!r}; choose 'skip' or 'fatal'")


def _look_for_phrases(source: tfds_data.Records, share: float) -> None:
  """Logs it if none of a few records has phrases of boxes, which `captioned` needs."""
  places = {*np.linspace(0, len(source) - 1, _LOOKED_AT, dtype=int).tolist()}
  for place in places:
    with contextlib.suppress(DataError):  # of a damaged record, which is told when it is due
      if any(tfds_data.features(source[place]).get(captioned.PHRASE, ())):
        return
  words = 'none of %d records has phrases of boxes (%s), so data.boxes=%g may change nothing'
  logging.getLogger(__name__).warning(words, len(places), captioned.PHRASE, share)


def _numbered(index: int, position: int) -> tuple[int, int]:
  return index, position


def _start_worker(index: int, count: int):
  """Prepares a worker process: no threads but grain's, and its end follows the trainer's."""
  cv2.setNumThreads(0)
  # The trainer handles both signals and may still need a batch. SIGTERM is delayed and not ignored,
  # because multiprocessing sends it at the exit and waits.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, _leave_later)
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
  parallel.end_with_parent()


def _leave_later(number, frame):
  timer = threading.Timer(_GRACE, os._exit, (128 + number,))
  timer.daemon = True
  timer.start()


class _MakeExample(grain.transforms.RandomMap):
  """Makes the example of a record, or of the next record that can be used."""

  def __init__(self, source: tfds_data.Records, make_example: Callable, settings: dict):
    self.source, self.make_example, self.settings = source, make_example, settings

  def random_map(self, numbered: tuple[int, int], rng: np.random.Generator) -> dict:
    index, position = numbered
    count, why, bad, bare = len(self.source), '', position, 0
    for step in range(min(count, _SUBSTITUTES)):
      try:
        features = tfds_data.features(self.source[(position + step) % count])
        example = self.make_example(features, rng, **self.settings)
        break
      except Unusable as error:
        last = error
        bare += isinstance(error, Uncaptioned)
      except DataError as error:
        last = error
        if not why:
          why = error.why if isinstance(error, CorruptRecord) else str(error)
          bad = (position + step) % count
    else:
      raise DataError(f'no usable record among {step + 1} from number {position} on; last: {last}')
    return example | dict(
      id=np.int32(index % 2**31),
      corrupt=np.int32(bool(why)),
      uncaptioned=np.int32(bare + example.pop('uncaptioned', 0)),
      position=np.int64(bad),
      why=np.array(why.encode()[:200], _WHY),
    )


def _reported(
  stream: grain.IterDataset,
  source: tfds_data.Records,
  on_corrupt: str,
  workers: int,
  texts: bool,
) -> Iterator[dict]:
  """Yields the batches; logs each corrupt record once, and how many have no caption.

  The columns `position`, `why` and `uncaptioned` are for this alone.
  """
  named, seen, bare, due = set(), 0, 0, 1
  batches = iter(stream)
  try:
    for batch in batches:
      positions, reasons = batch.pop('position'), batch.pop('why')
      for row in np.flatnonzero(batch['corrupt']):
        position = int(positions[row])
        if position not in named:
          named.add(position)
          _corrupt(source.corrupt(position, reasons[row].decode(errors='replace')), on_corrupt)
      seen, bare = seen + len(positions), bare + int(batch.pop('uncaptioned').sum())
      if bare >= due:  # at the first, and whenever the number has doubled
        due = 2 * bare
        words = '%s records without a caption among %s examples of this process so far'
        logging.getLogger(__name__).warning(words, f'{bare:,}', f'{seen:,}')
      if not texts:
        batch = {name: rows for name, rows in batch.items() if rows.dtype.kind != 'S'}
      # Copy out of the workers' shared memory, which a JAX array would keep until the exit.
      yield {name: np.array(rows) for name, rows in batch.items()} if workers else batch
  finally:
    batches.close()


def _corrupt(error: CorruptRecord, on_corrupt: str):
  if on_corrupt == 'fatal':
    raise error
  logging.getLogger(__name__).warning('%s; skipped', error)
