"""How cost grows: with devices, with shards, with images in a shard, with edits of a benchmark.

  python -m benchmarks.growth --output=growth.json
  python -m benchmarks.growth --only=shards --shards=10,100,1000,10000 --records=100000

devices: one batch over 1, 2, 4 and 8 simulated devices of one CPU, with parameters replicated
('data') or split ('fsdp'): bytes per device from the compiler, and seconds per step. The devices
share the processor, so at best a step takes as long as on one device.
shards: the same records in more and more shards: listing them, indexing them for the first time and
from the kept index, and the time until the first batch.
images: more and more records in one shard: its index, and reading.
edits: a benchmark of more and more edits: opening it, checking its files, finding the results.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from benchmarks import harness, networks
from exedit.evaluation import benchmark as benches
from exedit.input_pipeline import loader, synthetic, tfrecord
from exedit.input_pipeline.coco_ee import bench, layout
from exedit.runtime.doors import Flag
from exedit.runtime.errors import DataError

SPLIT = 'train'
FLAGS = (
  Flag('only', 'devices,shards,images,edits', 'some of these'),
  Flag('rounds', 3, 'the fastest counts', least=1),
  Flag('devices', '1,2,4,8', 'numbers of devices'),
  Flag('width', 'tiny', 'of the networks', [*networks.WIDTHS]),
  Flag('size', 32, 'of the images for the devices', least=1),
  Flag('batch', 16, 'of all devices together', least=1),
  Flag('shards', '10,100,1000,10000', 'numbers of shards of one split'),
  Flag('records', 20_000, 'in all shards together', least=1),
  Flag('images', '100,1000,10000,100000', 'numbers of images in one shard'),
  Flag('edits', '10,100,1000,3500', 'numbers of edits of a benchmark'),
)


def devices(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Bytes per device and seconds per step, on simulated devices."""
  import jax

  from benchmarks import train_step
  from benchmarks.memory import bytes_per_device
  from exedit import paint_by_example as pbe
  from exedit.training.sharding import batch_sharding
  from exedit.training.step import make_program

  program = make_program(
    pbe.SYSTEM,
    model=pbe.complete(networks.WIDTHS[spec['width']]),
    optimizer=dict(lr=1e-5),
    ema=dict(decay=0.9999),
    mesh=dict(sharding=spec['sharding']),
    trainable='unet|conditioner',
    batch_size=spec['batch'],
    accumulate=1,
    seed=0,
    steps=10**6,
  )
  # A step with zeros takes as long, and the random initialisation would compile for half a minute.
  state, frozen = train_step.zeros((program.state, program.frozen))
  rows = networks.training_batch(spec['width'], spec['size'], spec['batch']).items()
  batch = {name: jax.device_put(a, batch_sharding(program.mesh)) for name, a in rows}
  step = program.step.lower(state, frozen, batch).compile()

  def run():
    nonlocal state
    state, metrics = step(state, frozen, batch)
    return state, metrics

  seconds = harness.best_in_turns(dict(step=run), spec['rounds'], jax.block_until_ready)
  memory = step.memory_analysis()
  return dict(
    sharding=spec['sharding'],
    devices=spec['devices'],
    state_bytes=bytes_per_device(program.state),
    argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes,
    **seconds,
  )


def grow_devices(counts: list[int], width: str, size: int, batch: int, rounds: int):
  """One row per sharding and number of devices, each from a process of its own."""
  for sharding in ('data', 'fsdp'):
    for count in counts:
      spec = dict(system='devices', width=width, size=size, batch=batch, rounds=rounds)
      spec |= dict(sharding=sharding, devices=count)
      xla = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={count}'
      own = dict(XLA_FLAGS=xla, JAX_PLATFORMS='cpu')
      yield harness.measured(spec, WORKERS, 'benchmarks.growth', **own)


def grow_shards(counts: list[int], records: int, rounds: int) -> Iterator[dict[str, Any]]:
  """Seconds until a split of this number of shards is listed, indexed and gives a batch."""
  example = synthetic.record(0, SPLIT, 0)
  for count in counts:
    with tempfile.TemporaryDirectory() as folder:
      for i, part in enumerate(np.array_split(np.arange(records), count)):
        path = Path(folder, f'{SPLIT}.tfrecord-{i:05d}-of-{count:05d}')
        path.write_bytes(tfrecord.framed(example) * len(part))
      paths = tfrecord.shard_paths(folder, SPLIT)

      def batch(folder=folder):
        stream = loader.batches(folder, SPLIT, 8, workers=0, size=32, exemplar_size=32)
        next(stream)
        stream.close()

      first = harness.seconds(lambda paths=paths: tfrecord.Source(paths))
      runs = dict(
        list=lambda folder=folder: tfrecord.shard_paths(folder, SPLIT),
        kept_index=lambda paths=paths: tfrecord.Source(paths),
        survey=lambda folder=folder: loader.survey(folder, SPLIT),
        first_batch=batch,
      )
      found = harness.best_in_turns(runs, rounds)
      yield dict(shards=count, records=records, first_index=first, **found)


def grow_images(counts: list[int], rounds: int) -> Iterator[dict[str, Any]]:
  """Seconds to index and to read a shard of this number of images."""
  record = tfrecord.framed(synthetic.record(0, SPLIT, 0))
  for count in counts:
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, f'{SPLIT}.tfrecord-00000-of-00001')
      Path(path).write_bytes(record * count)
      first = harness.seconds(lambda path=path: tfrecord.Source([path]))
      source = tfrecord.Source([path])
      picks = np.random.default_rng(0).integers(0, count, 1000).tolist()
      runs = dict(
        kept_index=lambda path=path: tfrecord.Source([path]),
        reads=lambda source=source, picks=picks: [source[i] for i in picks],
      )
      found = harness.best_in_turns(runs, rounds)
      yield dict(
        images=count,
        shard_bytes=os.path.getsize(path),
        index_bytes=os.path.getsize(path + '.idx.npy'),
        first_index=first,
        kept_index=found['kept_index'],
        per_read=found['reads'] / len(picks),
      )


def grow_edits(counts: list[int], rounds: int) -> Iterator[dict[str, Any]]:
  """Seconds to open a benchmark of this number of edits, to check it, and to find its results."""
  random = np.random.default_rng(0)
  picture = PIL.Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8))
  mask = PIL.Image.fromarray(np.uint8(255) * (np.arange(64) > 32)[:, None].repeat(64, 1))
  for count in counts:
    with tempfile.TemporaryDirectory() as folder:
      for kind, image in dict(source=picture, mask=mask, exemplar=picture).items():
        place = Path(folder, layout.folder_name(kind, count))
        copies(image, [place / layout.file_name(kind, i) for i in range(count)])
      np.save(Path(folder, layout.IDS), np.arange(count))
      results = Path(folder, 'results')
      copies(picture, [results / f'{i:012d}.png' for i in range(count)])
      opened = bench.Bench(folder, exemplar_size=None)
      found = benches.survey(opened)
      runs = dict(
        open=lambda folder=folder: bench.Bench(folder, exemplar_size=None),
        survey=lambda opened=opened: benches.survey(opened),
        results=lambda found=found, results=results: benches.results(found, str(results)),
      )
      yield dict(edits=count, **harness.best_in_turns(runs, rounds))


def copies(image: PIL.Image.Image, paths: list[Path]) -> None:
  """Writes the same picture to all paths, in a new folder."""
  paths[0].parent.mkdir()
  image.save(paths[0])
  for path in paths[1:]:
    path.write_bytes(paths[0].read_bytes())


WORKERS = {'devices': devices}


def main(
  output: str, only: str, rounds: int, devices: str, width: str, size: int, batch: int,
  shards: str, records: int, images: str, edits: str,
) -> None:  # fmt: skip
  """Measures, prints the tables and writes the JSON."""
  numbers = harness.numbers
  tables = dict(
    devices=lambda: grow_devices(numbers('devices', devices), width, size, batch, rounds),
    shards=lambda: grow_shards(numbers('shards', shards), records, rounds),
    images=lambda: grow_images(numbers('images', images), rounds),
    edits=lambda: grow_edits(numbers('edits', edits), rounds),
  )
  if unknown := set(only.split(',')) - set(tables):
    raise DataError(f'--only={",".join(sorted(unknown))}: give some of {",".join(tables)}')
  report: dict[str, Any] = dict(settings=dict(rounds=rounds, width=width, size=size, batch=batch))
  lines = []
  for name in only.split(','):
    rows = report[name] = list(tables[name]())
    columns = [column.replace('_', ' ') for column in rows[0]]
    cells = [[text(key, value) for key, value in row.items()] for row in rows]
    lines += [*harness.table(columns, ((cell, rest) for cell, *rest in cells)), '']
  report['machine'] = harness.machine()
  harness.finish(report, lines, output)


def text(key: str, value: Any) -> str:
  """A cell of a table, with its unit."""
  if key.endswith('bytes'):
    return f'{value / 1e6:.2f} MB'
  if isinstance(value, float):
    return f'{1e6 * value:.1f} us' if value < 1e-3 else f'{1e3 * value:.1f} ms'
  return str(value)


if __name__ == '__main__':
  harness.door(main, FLAGS, __doc__, WORKERS)
