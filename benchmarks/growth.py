"""How cost grows: with devices, with shards, with images in a shard, with edits of a benchmark.

  python -m benchmarks.growth --output=growth.json
  python -m benchmarks.growth --only=shards --shards=10,100,1000,10000 --records=100000

devices: one batch over 1, 2, 4 and 8 simulated devices of one CPU, parameters whole everywhere
('data') or split ('fsdp'): bytes per device as the compiler counts them, and seconds per step. The
devices share the processor, so the best that a step can do is to take as long as on one.
shards: the same records in ever more shards: listing and indexing them for the first time, again
from the indexes kept beside them, then until the first batch, as a training run does it.
images: ever more records in one shard: bytes of its index, the first walk, the kept index, reading.
edits: a benchmark of ever more edits, its files looked through and the results' too, as
exedit.evaluate does before it scores them; sampling and networks are benchmarks/sampling.py's.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEVICES = 8
if __name__ == '__main__':  # fixed once JAX has started
  known = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{known} --xla_force_host_platform_device_count={DEVICES}'
if not __package__:  # run by its path: its own folder would be the first to be searched
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import PIL.Image  # noqa: E402

from benchmarks import sampling, train_step, workers  # noqa: E402
from exedit import paint_by_example as pbe  # noqa: E402
from exedit.evaluation import benchmark as benches  # noqa: E402
from exedit.input_pipeline import loader, synthetic, tfrecord  # noqa: E402
from exedit.input_pipeline.coco_ee import bench as coco_ee  # noqa: E402
from exedit.input_pipeline.coco_ee import layout as coco_ee_layout  # noqa: E402
from exedit.input_pipeline.errors import DataError  # noqa: E402
from exedit.runtime import doors  # noqa: E402
from exedit.training.sharding import batch_sharding  # noqa: E402
from exedit.training.step import make_program  # noqa: E402

SPLIT = 'train'
Rows = list[dict[str, Any]]


def grow_devices(counts: list[int], width: str, size: int, batch: int, rounds: int) -> Rows:
  """Bytes per device and seconds per step over so many simulated devices."""
  if max(counts) > jax.device_count():
    raise DataError(f'there are {jax.device_count()} devices, not {max(counts)}')
  settings = pbe.complete(sampling.WIDTHS[width])
  rows = []
  for sharding in ('data', 'fsdp'):
    for count in counts:
      over = dict(sharding=sharding)
      program = make_program(
        pbe.SYSTEM,
        model=settings,
        optimizer=dict(lr=1e-5),
        ema=dict(decay=0.9999),
        mesh=over,
        trainable='unet|conditioner',
        batch_size=batch,
        accumulate=1,
        seed=0,
        steps=10**6,
        devices=jax.devices()[:count],
      )
      # Of zeros a step takes as long, and drawing weights would compile for half a minute.
      now, frozen = train_step.zeros((program.state, program.frozen))
      put = batch_sharding(program.mesh)
      given = train_step.arrays(width, size, batch)
      given = {name: jax.device_put(a, put) for name, a in given.items()}
      step = program.step.lower(now, frozen, given).compile()
      seconds = []
      for _ in range(rounds + 1):
        start = time.perf_counter()
        now, metrics = step(now, frozen, given)
        jax.block_until_ready((now, metrics))
        seconds.append(time.perf_counter() - start)
      memory = step.memory_analysis()
      rows.append(
        dict(
          sharding=sharding,
          devices=count,
          state_bytes=held_bytes(now),
          argument_bytes=memory.argument_size_in_bytes,
          temporary_bytes=memory.temp_size_in_bytes,
          step=min(seconds[1:]),
        )
      )
  return rows


def held_bytes(tree: Any) -> int:
  """Bytes of a tree's arrays on the first device."""
  first = jax.tree.leaves(tree)[0].sharding.mesh.devices.flat[0]
  shards = (s for a in jax.tree.leaves(tree) for s in a.addressable_shards)
  return sum(s.data.nbytes for s in shards if s.device == first)


def grow_shards(counts: list[int], records: int, rounds: int) -> Rows:
  """Seconds until a split of so many shards is listed, indexed and gives its first batch."""
  rows = []
  example = synthetic.record(0, SPLIT, 0)
  for count in counts:
    with tempfile.TemporaryDirectory() as folder:
      for i, part in enumerate(np.array_split(np.arange(records), count)):
        path = os.path.join(folder, f'{SPLIT}.tfrecord-{i:05d}-of-{count:05d}')
        with open(path, 'wb') as file:
          file.write(tfrecord.framed(example) * len(part))
      paths = tfrecord.shard_paths(folder, SPLIT)
      first = seconds(lambda paths=paths: tfrecord.Source(paths))

      def batch(folder=folder):
        stream = loader.batches(folder, SPLIT, 8, workers=0, size=32, exemplar_size=32)
        next(stream)
        stream.close()

      rows.append(
        dict(
          shards=count,
          records=records,
          list=best(lambda folder=folder: tfrecord.shard_paths(folder, SPLIT), rounds),
          first_index=first,
          kept_index=best(lambda paths=paths: tfrecord.Source(paths), rounds),
          survey=best(lambda folder=folder: loader.survey(folder, SPLIT), rounds),
          first_batch=best(batch, rounds),
        )
      )
  return rows


def grow_images(counts: list[int], rounds: int) -> Rows:
  """Seconds to index and to read a shard of so many images."""
  rows = []
  whole = tfrecord.framed(synthetic.record(0, SPLIT, 0))
  for count in counts:
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, f'{SPLIT}.tfrecord-00000-of-00001')
      Path(path).write_bytes(whole * count)
      first = seconds(lambda path=path: tfrecord.Source([path]))
      source = tfrecord.Source([path])
      picks = np.random.default_rng(0).integers(0, count, 1000).tolist()

      def read(source=source, picks=picks):
        for i in picks:
          source[i]

      rows.append(
        dict(
          images=count,
          shard_bytes=os.path.getsize(path),
          index_bytes=os.path.getsize(path + '.idx.npy'),
          first_index=first,
          kept_index=best(lambda path=path: tfrecord.Source([path]), rounds),
          per_read=best(read, rounds) / len(picks),
        )
      )
  return rows


def grow_edits(counts: list[int], rounds: int) -> Rows:
  """Seconds to look through a benchmark of so many edits, and the results for it."""
  rows = []
  random = np.random.default_rng(0)
  picture = PIL.Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8))
  mask = PIL.Image.fromarray(np.uint8(255) * (np.arange(64) > 32)[:, None].repeat(64, 1))
  for count in counts:
    with tempfile.TemporaryDirectory() as folder:
      for kind, image in dict(source=picture, mask=mask, exemplar=picture).items():
        place = Path(folder, coco_ee_layout.folder_name(kind, count))
        place.mkdir()
        copies(image, [place / coco_ee_layout.file_name(kind, i) for i in range(count)])
      np.save(Path(folder, coco_ee_layout.IDS), np.arange(count))
      results = Path(folder, 'results')
      results.mkdir()
      copies(picture, [results / f'{i:012d}.png' for i in range(count)])
      opened = coco_ee.Bench(folder, exemplar_size=None)
      found = benches.survey(opened)
      rows.append(
        dict(
          edits=count,
          open=best(lambda folder=folder: coco_ee.Bench(folder, exemplar_size=None), rounds),
          survey=best(lambda opened=opened: benches.survey(opened), rounds),
          results=best(
            lambda found=found, results=results: benches.results(found, str(results)), rounds
          ),
        )
      )
  return rows


def copies(image: PIL.Image.Image, paths: list[Path]) -> None:
  """The same picture under many names."""
  image.save(paths[0])
  data = paths[0].read_bytes()
  for path in paths[1:]:
    path.write_bytes(data)


def seconds(function: Callable[[], Any]) -> float:
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def best(function: Callable[[], Any], rounds: int) -> float:
  """The fastest of some calls."""
  return min(seconds(function) for _ in range(rounds))


# The door.


def main(
  output: str, only: list[str], rounds: int, devices: list[str], width: str, size: int, batch: int,
  shards: list[str], records: int, images: list[str], edits: list[str],
) -> None:  # fmt: skip
  """Measure, print the tables, write the JSON."""
  if unknown := set(only) - set(TABLES):
    raise DataError(f'--only={",".join(sorted(unknown))}: some of {",".join(TABLES)}')
  if min(rounds, size, batch, records) < 1:
    raise DataError('rounds, size, batch and records must be at least 1')
  report: dict[str, Any] = dict(settings=dict(rounds=rounds, width=width, size=size, batch=batch))
  measured = dict(
    devices=lambda: grow_devices(numbers('devices', devices), width, size, batch, rounds),
    shards=lambda: grow_shards(numbers('shards', shards), records, rounds),
    images=lambda: grow_images(numbers('images', images), rounds),
    edits=lambda: grow_edits(numbers('edits', edits), rounds),
  )
  for name in only or TABLES:
    report[name] = measured[name]()
  report['machine'] = workers.machine()
  print(table(report))
  if output:
    Path(output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


def numbers(flag: str, values: list[str]) -> list[int]:
  try:
    found = [int(value) for value in values]
  except ValueError:
    found = []
  if not found or min(found) < 1:
    raise DataError(f'--{flag}={",".join(values)}: numbers such as 1,10')
  return found


TABLES = ('devices', 'shards', 'images', 'edits')


def table(report: dict[str, Any]) -> str:
  """The report as text."""
  lines = []
  for name in TABLES:
    rows = report.get(name, [])
    if rows:
      lines.append(''.join(f'{column.replace("_", " "):>16}' for column in rows[0]))
    for row in rows:
      lines.append(''.join(f'{text(key, value):>16}' for key, value in row.items()))
    lines += [''] * bool(rows)
  return '\n'.join(lines + workers.conditions(report))


def text(key: str, value: Any) -> str:
  if key.endswith('bytes'):
    return f'{value / 1e6:.2f} MB'
  if isinstance(value, float):
    return f'{1e6 * value:.1f} us' if value < 1e-3 else f'{1e3 * value:.1f} ms'
  return str(value)


def _flags():
  from absl import flags

  values = flags.FlagValues()
  for define, name, value, about in (
    (flags.DEFINE_string, 'output', '', 'the JSON to write'),
    (flags.DEFINE_list, 'only', '', f'some of {",".join(TABLES)}'),
    (flags.DEFINE_integer, 'rounds', 3, 'of which the fastest counts'),
    (flags.DEFINE_list, 'devices', '1,2,4,8', 'of devices'),
    (flags.DEFINE_integer, 'size', 32, 'of the images that the devices are given'),
    (flags.DEFINE_integer, 'batch', 16, 'of all devices together'),
    (flags.DEFINE_list, 'shards', '10,100,1000,10000', 'of one split'),
    (flags.DEFINE_integer, 'records', 20_000, 'in all shards together'),
    (flags.DEFINE_list, 'images', '100,1000,10000,100000', 'in one shard'),
    (flags.DEFINE_list, 'edits', '10,100,1000,3500', 'of a benchmark'),
  ):
    define(name, value, about, flag_values=values)
  flags.DEFINE_enum('width', 'tiny', list(sampling.WIDTHS), 'of the networks', flag_values=values)
  return values


if __name__ == '__main__':
  doors.call(main, _flags(), __doc__, sys.argv)
