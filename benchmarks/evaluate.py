"""What an evaluation costs: edits, features and Fréchet distances per second, and memory.

  python -m benchmarks.evaluate --output=evaluate.json
  python -m benchmarks.evaluate --packages=.venv-test/torchvision      # where --parity put them

Features are Inception's of picture files, with the same random weights in the published layout on
both sides: exedit's and, where it can be imported, pytorch-fid's own functions, each in a process
of its own, in turns. The Fréchet distance is of the same two sets of random vectors. The edits are
those of `python -m exedit.evaluate` with `--weights` on drawn pictures. Memory is the peak of a
whole evaluation (`--images`) of so many pictures with a small CLIP, after the same of a few.
What runs once before, to compile and to warm up, does not count, and nothing is extrapolated.
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

if not __package__:  # run by its path: its own folder would be the first to be searched
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import evaluate_pytorch_fid as peer  # noqa: E402
from benchmarks import workers  # noqa: E402
from benchmarks.sampling_diffusers import peak_bytes  # noqa: E402
from exedit import (
  images,
  systems,  # noqa: E402
)
from exedit.evaluation import benchmark, coco_ee, make_edits, networks
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.input_pipeline.errors import DataError
from exedit.metrics import frechet
from exedit.models import parameters
from exedit.models.clip import CLIPImageEncoder
from exedit.models.inception import DIM, SIZE, Inception
from exedit.runtime import doors
from exedit.weights import find, translate
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.tables import clip_image, inception

BATCH = 32  # rows: exedit's own
SMALL = dict(width=64, layers=2, heads=1, mlp=128, patch=8, image_size=32)  # a CLIP


# The same network, pictures and vectors for every system.


def write_network(
  model: Callable[[], nnx.Module], table: Sequence, path: Path, **more: Any
) -> None:
  """Weights of a size that keeps activations near 1, each a function of its name, as published."""
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
  """Inception and the classifier behind it, which pytorch-fid's loader wants too."""
  head = {'fc.weight': np.zeros((1008, DIM), np.float32), 'fc.bias': np.zeros(1008, np.float32)}
  write_network(lambda: Inception(rngs=keys()), inception.TABLE, path, **head)


def write_clip(path: Path) -> None:
  """A small CLIP image tower."""
  build = lambda: CLIPImageEncoder(vision=SMALL, dim=12, rngs=keys())
  write_network(build, clip_image.OPENAI, path)


def keys() -> parameters.Keys:
  return parameters.Keys(jax.random.key(0))


def write_pictures(folder: Path, count: int, size: int) -> None:
  """PNGs whose spectrum falls off as a photo's does."""
  folder.mkdir(parents=True)
  for i in range(count):
    images.save(picture(i, size), folder / f'{i:05d}.png')


def picture(seed: int, size: int) -> np.ndarray:
  """uint8 [size size 3]."""
  frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
  frequency[0, 0] = 1
  noise = np.random.default_rng([seed, size]).normal(size=(3, size, size))
  noise = np.fft.irfft2(np.fft.rfft2(noise) * frequency**-1.1, (size, size))
  noise = (noise / noise.std((1, 2), keepdims=True)).transpose(1, 2, 0)
  return (128 + 50 * noise).clip(0, 255).astype(np.uint8)


def write_bench(root: Path, count: int, size: int) -> None:
  """A benchmark in COCOEE's layout: a square hole in the middle of each picture."""
  hole = np.zeros((size, size, 3), np.uint8)
  hole[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 255
  folders = dict(GT='GT', Mask_bbox='mask', Ref='ref')
  for name in folders:
    (root / f'{name}_{count}').mkdir(parents=True)
  for i in range(count):
    made = dict(GT=picture(i, size), Mask_bbox=hole, Ref=picture(count + i, size))
    for name, kind in folders.items():
      images.save(made[name], root / f'{name}_{count}' / f'{i:012d}_{kind}.png')
  np.save(root / 'id_list.npy', np.arange(count))


# exedit.


def exedit(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Seconds of features, of the network alone and of the distance; the features go to a file."""
  network = networks.load('inception', spec['weights'])
  paths = sorted(Path(spec['pictures']).iterdir())
  vectors = lambda: network(images.read(path) for path in paths)
  np.save(spec['output'], vectors())  # the first, which compiles, does not count
  memory = peak_bytes()
  batch = np.random.default_rng(0).uniform(-1, 1, (spec['batch'], SIZE, SIZE, 3)).astype(np.float32)
  alone = lambda: np.asarray(network.batch(batch))
  alone()
  found = dict(features=peer.best(vectors, spec['rounds'])[0], network=peer.best(alone, 3)[0])
  first, second = np.load(spec['vectors'])
  found['distance'], value = peer.best(lambda: frechet.frechet_distance(first, second), 1)
  return dict(found, value=value, peak_bytes=memory)


def edits(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Edits per second as the evaluation makes them, from files to files."""
  found = find.weights(spec['weights'])
  given = Bench(spec['bench'], systems.of(found).picture_size(found.config['model']))
  listed = benchmark.survey(given)
  settings = systems.edit_settings(systems.of(found), found.config)
  asked: dict[str, Any] = dict(settings=settings, seed=0, paste=True)
  asked |= dict(precision=None, batch_size=None)

  def make():
    with tempfile.TemporaryDirectory() as output:
      make_edits.claim(output, {})
      make_edits.make_missing(found, given, listed, output, say=lambda line: None, **asked)

  first, _ = peer.best(make, 1)
  seconds, _ = peer.best(make, spec['rounds'])
  return dict(seconds=seconds, first=first, peak_bytes=peak_bytes(), **settings)


def memory(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Peak bytes of a process that has evaluated a few pictures, and after evaluating all."""
  peaks = []
  for name in ('few', 'all'):
    with tempfile.TemporaryDirectory() as output:
      coco_ee.evaluate(
        output,
        pictures=str(Path(spec[name]) / 'pictures'),
        data=dict(root=spec[name]),
        features=dict(clip=spec['weights']),
        reference=dict(root=str(Path(spec[name]) / 'pictures')),
        cache=output,
        say=lambda line: None,
      )
    peaks.append(peak_bytes())
  return dict(few=peaks[0], all=peaks[1])


WORKERS = {'exedit': exedit, 'edits': edits, 'memory': memory}


# The door.


def main(
  output: str, pictures: int, size: int, edits: int, weights: str, rounds: int, vectors: int,
  memory: list[str], parts: list[str], packages: str, worker: str,
) -> None:  # fmt: skip
  """Measure every system, print the tables, write the JSON."""
  if worker:
    spec = json.loads(worker)
    print(json.dumps(WORKERS[spec['system']](spec)))
    return
  try:
    sizes = [int(n) for n in memory]
  except ValueError:
    raise DataError(f'--memory={",".join(memory)}: numbers such as 250,1000,4000') from None
  if min(pictures, size, edits, rounds, vectors, *sizes) < 1 or vectors < 2:
    raise DataError('every number must be at least 1, and vectors 2')
  if wrong := set(parts) - set(PARTS):
    raise DataError(f'--parts={",".join(parts)}: {min(wrong)!r} is none of {", ".join(PARTS)}')
  packages = packages or os.environ.get('EXEDIT_TORCHVISION', '')
  given = dict(pictures=pictures, size=size, edits=edits, rounds=rounds, vectors=vectors)
  report: dict[str, Any] = dict(settings=given | dict(batch=BATCH, weights=weights))
  report['machine'] = workers.machine()
  with tempfile.TemporaryDirectory() as folder:
    spec = dict(given, packages=packages, weights=weights)
    if 'features' in parts:
      report['features'] = compare(Path(folder), spec, ['exedit', *peers(packages)])
    if 'edits' in parts:
      report['edits'] = measured_edits(Path(folder), spec)
    if 'memory' in parts:
      report['memory'] = measured_memory(Path(folder), sizes)
  print(table(report))
  if output:
    Path(output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


def peers(packages: str) -> list[str]:
  """pytorch-fid where it is installed, here or in that folder."""
  here = all(importlib.util.find_spec(name) for name in ('torch', 'pytorch_fid'))
  return ['pytorch-fid'] if here or (Path(packages or '-') / 'pytorch_fid').is_dir() else []


def compare(folder: Path, spec: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
  """One row per system: of `rounds` turns the fastest; how far apart their vectors are."""
  write_inception(folder / 'inception.safetensors')
  write_pictures(folder / 'pictures', spec['pictures'], spec['size'])
  draws = np.random.default_rng(0)
  sets = draws.normal(size=(2, spec['vectors'], DIM)) * draws.uniform(0.1, 1, DIM)
  np.save(folder / 'vectors.npy', sets.astype(np.float32))
  paths = dict(weights='inception.safetensors', pictures='pictures', vectors='vectors.npy')
  own = {name: str(folder / path) for name, path in paths.items()}
  own |= dict(packages=spec['packages'], batch=BATCH, rounds=1)
  found = {
    name: [
      in_own_process(dict(own, system=name, output=str(folder / f'{name}.npy')))
      for _ in range(spec['rounds'])
    ]
    for name in names
  }
  rows = []
  for name in names:
    fastest = {key: min(turn[key] for turn in found[name]) for key in SECONDS}
    rows.append(dict(system=name, **fastest, value=found[name][0]['value']))
    rows[-1]['peak_bytes'] = max(turn['peak_bytes'] for turn in found[name])
    rows[-1]['versions'] = found[name][0].get('versions', {})
  ours, *others = (np.load(folder / f'{name}.npy') for name in names)
  apart = max([float(np.abs(o - ours).max() / np.abs(o).max()) for o in others], default=None)
  return dict(rows=rows, apart=apart)


SECONDS = ('features', 'network', 'distance')


def measured_edits(folder: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
  """Edits of a drawn benchmark, as large as the weights' training pictures."""
  config = find.weights(spec['weights']).config
  size = systems.trained_on(systems.get('paint_by_example'), config, 'size')
  write_bench(folder / 'bench', spec['edits'], size)
  own = dict(system='edits', weights=spec['weights'], bench=str(folder / 'bench'))
  return dict(in_own_process(own | dict(rounds=spec['rounds'])), size=size, count=spec['edits'])


def measured_memory(folder: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
  """One row per number of pictures, each in a process of its own."""
  write_clip(folder / 'clip.safetensors')
  rows = []
  for name in dict.fromkeys([FEW, *sizes]):
    root = folder / f'bench {name}'
    write_bench(root, name, SMALL['image_size'])
    (root / 'pictures').mkdir()
    for i in range(name):
      os.symlink(root / f'GT_{name}' / f'{i:012d}_GT.png', root / 'pictures' / f'{i:012d}.png')
  for count in sizes:
    spec = dict(
      system='memory', few=str(folder / f'bench {FEW}'), all=str(folder / f'bench {count}')
    )
    spec |= dict(weights=str(folder / 'clip.safetensors'))
    rows.append(dict(count=count, **in_own_process(spec)))
  return rows


FEW = 64  # pictures after which everything is compiled and allocated that does not grow


def in_own_process(spec: Mapping[str, Any]) -> dict[str, Any]:
  """What a worker measured."""
  return workers.measured(spec, WORKERS, 'benchmarks.evaluate', peer.__name__)


def table(report: Mapping[str, Any]) -> str:
  """The report as text."""
  lines = []
  for part in PARTS:
    if part in report:
      lines += [*PARTS[part](report[part], report['settings']), '']
  return '\n'.join(lines + workers.conditions(report))


def features_table(found: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
  columns = ('images/s', 'network/s', 's distance', 'peak MB')
  yield f'{"Inception":14}' + ''.join(f'{c:>12}' for c in columns)
  for row in found['rows']:
    values = [settings['pictures'] / row['features'], settings['batch'] / row['network']]
    values += [row['distance'], row['peak_bytes'] / 1e6]
    versions = ', '.join(f'{name} {value}' for name, value in row['versions'].items())
    yield f'{row["system"]:14}' + ''.join(f'{v:12.2f}' for v in values) + f'  {versions}'.rstrip()
  if found['apart'] is not None:
    yield f'vectors: largest difference over largest value {found["apart"]:.1e}'
    values = ', '.join(f'{row["value"]:.8g}' for row in found['rows'])
    yield f'distances: {values}'


def edits_table(found: Mapping[str, Any], _: Mapping[str, Any]) -> Iterator[str]:
  n, seconds = found['count'], found['seconds']
  yield (
    f'{n / seconds:.2f} edits/s: {n} of {found["size"]} px, {found["sampler"]}, {found["steps"]}'
    f' steps; {found["first"]:.1f} s the first time, {seconds:.1f} s once compiled'
  )


def memory_table(rows: Sequence[Mapping[str, Any]], _: Mapping[str, Any]) -> Iterator[str]:
  yield f'{"pictures":>8}{f"peak MB after {FEW}":>20}{"after all":>12}'
  for row in rows:
    yield f'{row["count"]:8}{row["few"] / 1e6:20.1f}{row["all"] / 1e6:12.1f}'


PARTS = dict(features=features_table, edits=edits_table, memory=memory_table)


def _flags():
  from absl import flags

  values = flags.FlagValues()
  rows: Any = (
    (flags.DEFINE_string, 'output', '', 'the JSON to write'),
    (flags.DEFINE_integer, 'pictures', 128, 'files whose features are computed'),
    (flags.DEFINE_integer, 'size', 512, 'height and width of these pictures'),
    (flags.DEFINE_integer, 'edits', 64, 'made with the weights'),
    (flags.DEFINE_string, 'weights', 'weights/tiny', 'that edit'),
    (flags.DEFINE_integer, 'rounds', 2, 'turns of each system; the fastest counts'),
    (flags.DEFINE_integer, 'vectors', 4096, f'of width {DIM} in each set of the distance'),
    (flags.DEFINE_list, 'memory', '250,1000,4000', 'pictures of an evaluation'),
    (flags.DEFINE_list, 'parts', ','.join(PARTS), 'of the report'),
    (flags.DEFINE_string, 'packages', '', 'folder that has pytorch-fid and torchvision'),
    (flags.DEFINE_string, 'worker', '', 'used inside'),
  )
  for define, name, value, about in rows:
    define(name, value, about, flag_values=values)
  return values


if __name__ == '__main__':
  doors.call(main, _flags(), __doc__, sys.argv)
