"""The cost of an evaluation: features, Fréchet distances and edits per second.

  python -m benchmarks.evaluate --output=evaluate.json
  python -m benchmarks.evaluate --packages=.venv-parity/torchvision      # where --parity put them

features: Inception's features of picture files, with the same random weights in the published
layout, by exedit and, if it can be imported, by pytorch-fid's own functions; then the Fréchet
distance of the same two sets of random vectors. edits: edits of drawn pictures, as exedit.evaluate
makes them. Each system runs in a process of its own; its first run, which compiles and
warms up, does not count.
"""

import importlib.util
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks import evaluate_pytorch_fid as peer
from benchmarks import harness
from exedit import images, systems
from exedit.evaluation import benchmark, make_edits, networks
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.metrics import frechet
from exedit.models import parameters
from exedit.models.inception import DIM, SIZE, Inception
from exedit.runtime import doors
from exedit.runtime.errors import UserError
from exedit.weights import find, translate
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.tables import inception

BATCH = 32  # pictures, exedit's own batch size
PICTURE, VECTORS = 512, 4096  # side of a picture in pixels; vectors in each set of the distance
SECONDS = ('features', 'network', 'distance')

# The same network, pictures and vectors for every system


def write_network(
  model: Callable[[], nnx.Module], table: Sequence, path: Path, **more: Any
) -> None:
  """Write random weights that keep activations near 1, in the published layout."""
  _, shapes = parameters.flatten(nnx.eval_shape(model))

  def draw(name, shape):
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) > 1:
      return values * np.float32((2 * shape[-1] / values.size) ** 0.5)
    if name.endswith('.var'):
      return np.abs(values) + np.float32(0.5)
    return np.float32(0.2) * values + np.float32(name.endswith('.scale'))

  arrays = {name: draw(name, a.shape) for name, a in shapes.items()}
  save_tensors(path, translate.to_theirs(table, arrays) | more)


def write_inception(path: Path) -> None:
  """Write Inception with a classifier, because pytorch-fid's loader expects one."""
  head = {'fc.weight': np.zeros((1008, DIM), np.float32), 'fc.bias': np.zeros(1008, np.float32)}
  build = lambda: Inception(rngs=parameters.Keys(jax.random.key(0)))
  write_network(build, inception.TABLE, path, **head)


def picture(seed: int, size: int) -> np.ndarray:
  """Draw uint8 [size size 3] with a photo's 1/f spectrum."""
  frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
  frequency[0, 0] = 1
  noise = np.random.default_rng([seed, size]).normal(size=(3, size, size))
  noise = np.fft.irfft2(np.fft.rfft2(noise) * frequency**-1.1, (size, size))
  noise = (noise / noise.std((1, 2), keepdims=True)).transpose(1, 2, 0)
  return (128 + 50 * noise).clip(0, 255).astype(np.uint8)


def write_bench(root: Path, count: int, size: int) -> None:
  """Write a benchmark in COCOEE's layout, with a square hole in the middle of each picture."""
  hole = np.zeros((size, size, 3), np.uint8)
  hole[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 255
  for name in ('GT', 'Mask_bbox', 'Ref'):
    (root / f'{name}_{count}').mkdir(parents=True)
  for i in range(count):
    images.save(picture(i, size), root / f'GT_{count}' / f'{i:012d}_GT.png')
    images.save(hole, root / f'Mask_bbox_{count}' / f'{i:012d}_mask.png')
    images.save(picture(count + i, size), root / f'Ref_{count}' / f'{i:012d}_ref.png')
  np.save(root / 'id_list.npy', np.arange(count))


# The workers: one process each


def exedit(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Time the features, the network alone and the distance; the features go to a file."""
  network = networks.load('inception', spec['weights'])
  paths = sorted(Path(spec['pictures']).iterdir())
  vectors = lambda: network(images.read(path) for path in paths)
  np.save(spec['output'], vectors())
  memory = harness.peak_bytes()
  batch = np.random.default_rng(0).uniform(-1, 1, (spec['batch'], SIZE, SIZE, 3)).astype(np.float32)
  alone = lambda: np.asarray(network.batch(batch))
  alone()
  found = dict(features=peer.best(vectors, 1)[0], network=peer.best(alone, 3)[0])
  first, second = np.load(spec['vectors'])
  found['distance'], value = peer.best(lambda: frechet.frechet_distance(first, second), 1)
  return dict(found, value=value, peak_bytes=memory)


def edits(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Time the edits of a benchmark as the evaluation makes them, from files to files."""
  found = find.weights(spec['weights'])
  bench = Bench(spec['bench'], systems.of(found).picture_size(found.config['model']))
  listed = benchmark.survey(bench)
  settings = make_edits.edit_settings(found)
  options: dict[str, Any] = dict(seed=0, batch_size=None, precision=None, paste=True)

  def make():
    with tempfile.TemporaryDirectory() as output:
      make_edits.claim(output, {})
      make_edits.make_missing(found, bench, listed, output, settings=settings, **options)

  first, _ = peer.best(make, 1)
  seconds, _ = peer.best(make, spec['rounds'])
  return dict(seconds=seconds, first=first, peak_bytes=harness.peak_bytes(), settings=settings)


WORKERS = {'exedit': exedit, 'edits': edits}


def measured(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Run the worker of spec['system'] in a process of its own."""
  return harness.measured(spec, WORKERS, 'benchmarks.evaluate', peer.__name__)


# The parts of the report


def compare(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
  """The fastest of `rounds` turns of each system, and the difference between their vectors."""
  write_inception(folder / 'inception.safetensors')
  (folder / 'pictures').mkdir()
  for i in range(given['pictures']):
    images.save(picture(i, PICTURE), folder / 'pictures' / f'{i:05d}.png')
  rng = np.random.default_rng(0)
  sets = rng.normal(size=(2, VECTORS, DIM)) * rng.uniform(0.1, 1, DIM)
  np.save(folder / 'vectors.npy', sets.astype(np.float32))
  paths = dict(weights='inception.safetensors', pictures='pictures', vectors='vectors.npy')
  spec = {name: str(folder / path) for name, path in paths.items()}
  spec |= dict(packages=given['packages'], batch=BATCH)
  names = ['exedit', *peers(given['packages'])]
  rows = []
  for name in names:
    own = dict(spec, system=name, output=str(folder / f'{name}.npy'))
    turns = [measured(own) for _ in range(given['rounds'])]
    fastest = {key: min(turn[key] for turn in turns) for key in SECONDS}
    rows.append(dict(turns[0], **fastest, system=name))
  ours, *others = (np.load(folder / f'{name}.npy') for name in names)
  apart = max([float(np.abs(o - ours).max() / np.abs(o).max()) for o in others], default=None)
  return dict(rows=rows, apart=apart, pictures=given['pictures'])


def peers(packages: str) -> list[str]:
  """pytorch-fid if it is installed, here or in the folder of packages."""
  here = all(importlib.util.find_spec(name) for name in ('torch', 'pytorch_fid'))
  return ['pytorch-fid'] if here or (Path(packages or '-') / 'pytorch_fid').is_dir() else []


def measured_edits(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
  """Edits of a drawn benchmark of the size of the weights' training pictures."""
  found = find.weights(given['weights'])
  size = systems.trained_on(systems.of(found), found.config, 'size')
  write_bench(folder / 'bench', given['edits'], size)
  spec = dict(system='edits', weights=given['weights'], bench=str(folder / 'bench'))
  return dict(measured(spec | dict(rounds=given['rounds'])), size=size, count=given['edits'])


def features_table(found: Mapping[str, Any]) -> Iterator[str]:
  columns = ('images/s', 'network/s', 's distance', 'peak MB')
  yield f'{"Inception":14}' + ''.join(f'{c:>12}' for c in columns)
  for row in found['rows']:
    values = [found['pictures'] / row['features'], BATCH / row['network']]
    values += [row['distance'], row['peak_bytes'] / 1e6]
    versions = ', '.join(f'{name} {value}' for name, value in row.get('versions', {}).items())
    yield f'{row["system"]:14}' + ''.join(f'{v:12.2f}' for v in values) + f'  {versions}'.rstrip()
  if found['apart'] is not None:
    yield f'vectors: largest difference over largest value {found["apart"]:.1e}'
    yield 'distances: ' + ', '.join(f'{row["value"]:.8g}' for row in found['rows'])


def edits_table(found: Mapping[str, Any]) -> Iterator[str]:
  settings = ', '.join(f'{name} {value}' for name, value in found['settings'].items())
  yield f'{found["count"] / found["seconds"]:.2f} edits/s: {found["count"]} of {found["size"]} px'
  yield f'{found["first"]:.1f} s the first time, {found["seconds"]:.1f} s once compiled; {settings}'


PARTS = dict(
  features=(compare, features_table),
  edits=(measured_edits, edits_table),
)


def table(report: Mapping[str, Any]) -> str:
  """Return the report as text."""
  lines = []
  for name, (_, lines_of) in PARTS.items():
    if name in report:
      lines += [*lines_of(report[name]), '']
  return '\n'.join(lines + harness.conditions(report))


FLAGS = (
  ('output', '', 'JSON file to write'),
  ('parts', ','.join(PARTS), 'parts of the report'),
  ('pictures', 128, 'picture files whose features are computed', int, 1),
  ('edits', 64, 'number of edits', int, 1),
  ('weights', 'weights/tiny', 'weights that make the edits'),
  ('rounds', 2, 'turns of each system; the fastest counts', int, 1),
  ('packages', '', 'folder that has pytorch-fid and torchvision'),
  ('worker', '', 'used by the benchmark itself'),
)


def main(output: str, parts: str, worker: str, **given: Any) -> None:
  """Measure every system, print the tables, write the JSON."""
  if worker:
    spec = json.loads(worker)
    print(json.dumps(WORKERS[spec['system']](spec)))
    return
  names = parts.split(',')
  if wrong := set(names) - set(PARTS):
    raise UserError(f'--parts={parts}: {min(wrong)!r} is none of {", ".join(PARTS)}')
  given['packages'] = given['packages'] or os.environ.get('EXEDIT_TORCHVISION', '')
  report: dict[str, Any] = dict(settings=dict(given, batch=BATCH), machine=harness.machine())
  for name in names:
    with tempfile.TemporaryDirectory() as folder:
      report[name] = PARTS[name][0](Path(folder), given)
  print(table(report))
  if output:
    Path(output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
  doors.call(main, FLAGS, __doc__, sys.argv)
