"""Seconds from the start of a process to its first training step, with nothing cached and again.

  python -m benchmarks.startup --output=startup.json              # configs/pbe.py:tiny
  python -m benchmarks.startup --config=configs/pbe.py --size=512 # a GPU: the published model

`exedit.train` runs as its door runs it, over synthetic data that was drawn before, twice in a
process of its own: with an empty cache of compiled programs, then with what the first run left
there. Clocks around the functions that `train` calls say where the time went; `else` is what lies
between them (the workdir, the survey of the shards, the record of the run). Then the imports alone:
what `import exedit.train` takes in a process that has imported nothing, and in one that has
imported jax, flax, optax, orbax, grain, OpenCV and Pillow, that is, the packages' own files.
"""

import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: its own folder would be the first to be searched
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import workers  # noqa: E402
from exedit.input_pipeline import synthetic
from exedit.input_pipeline.errors import DataError
from exedit.runtime import doors

STAGES = (
  'python', 'import', 'build', 'try', 'init', 'first batch', 'trace', 'compile', 'step', 'else',
)  # fmt: skip
ABOUT = dict(
  python='the interpreter, until the first line of the worker',
  build='the program: model and layouts as shapes',
  init='first weights: compile, draw, keep the frozen ones',
  step='the first one, of the compiled program',
  **{'import': 'exedit.train and all that it needs', 'try': 'one example read, one step traced'},
)
FOREIGN = 'jax, flax.nnx, optax, orbax.checkpoint, grain, cv2, PIL.Image, absl.app, jaxtyping'
ROOT = Path(__file__).parent.parent


def worker(spec: Mapping[str, Any]) -> dict[str, float]:
  """Run `train` up to the end of its first step, each stage on the clock."""
  laps = dict(python=time.time() - spec['started'])
  start = time.perf_counter()
  from exedit import train  # noqa: F401
  from exedit.training import loop
  from exedit.training.config import read_config

  laps['import'] = time.perf_counter() - start

  def clocked(name, function):
    @functools.wraps(function)
    def call(*args, **kwargs):
      begin = time.perf_counter()
      try:
        return function(*args, **kwargs)
      finally:
        laps[name] = laps.get(name, 0.0) + time.perf_counter() - begin

    return call

  def make_program(*args, **kwargs):
    program = clocked('build', original)(*args, **kwargs)

    def step(now, frozen, batch):
      lowered = clocked('trace', program.step.lower)(now, frozen, batch)
      compiled = clocked('compile', lowered.compile)()
      clocked('step', lambda: jax.block_until_ready(compiled(now, frozen, batch)))()
      raise FirstStep

    return dataclasses.replace(program, step=Step(step, program.step))

  import jax

  original, loop.make_program = loop.make_program, make_program
  loop.trace_step = clocked('try', loop.trace_step)
  loop.initial_state = clocked('init', loop.initial_state)
  loop.Prefetch.__next__ = clocked('first batch', loop.Prefetch.__next__)
  try:
    loop.train(spec['workdir'], read_config(settings(spec)))
  except FirstStep:
    pass
  total = time.time() - spec['started']
  return dict(laps, **{'else': total - sum(laps.values())}, total=total)


class FirstStep(BaseException):
  """The first step is done: what would come after it is not measured."""


class Step:
  """The step on the clock when it is called; for its shapes, the program's own."""

  def __init__(self, call, own):
    self._call, self.eval_shape = call, own.eval_shape

  def __call__(self, now, frozen, batch):
    self._call(now, frozen, batch)


def settings(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The config's arguments of `train`, over the data that were drawn here."""
  path, _, variant = spec['config'].partition(':')
  module = importlib.import_module(path.removesuffix('.py').replace('/', '.'))
  config = module.get_config(*([variant] if variant else [])).to_dict()
  config['data'] |= dict(root=spec['data'], workers=0)
  config |= dict(synthetic=None, edit_every=0)
  if spec['size']:
    config['data']['size'] = spec['size']
  if spec['batch']:
    config['batch_size'] = spec['batch']
  return config


def imports() -> dict[str, Any]:
  """Seconds of `import exedit.train`, and of the part that is the packages' own files."""
  both = (
    'import time; a = time.perf_counter()\n{}\nb = time.perf_counter()\nimport exedit.train\n'
    'print(time.perf_counter() - b, b - a)'
  )
  run = lambda code: python('-c', code).stdout.split()
  whole = min(float(run(both.format(''))[0]) for _ in range(3))
  own, foreign = min(
    (tuple(map(float, run(both.format(f'import {FOREIGN}')))) for _ in range(3)), key=sum
  )
  lines = python('-X', 'importtime', '-c', 'import exedit.train').stderr.splitlines()
  rows = [line.removeprefix('import time:').split('|') for line in lines if '|' in line][1:]
  files = {n.strip(): int(s) / 1e6 for s, _, n in rows if n.strip().startswith(OWN)}
  slowest = dict(sorted(files.items(), key=lambda item: -item[1])[:5])
  return dict(whole=whole, own=own, foreign=foreign, slowest=slowest)


OWN = ('exedit', 'input_pipeline')


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
  """Python in a process of its own, at the root of the checkout."""
  done = subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | environment,
  )
  if done.returncode:
    raise DataError(f'{" ".join(arguments)[:80]} failed: {done.stderr.strip()[-2000:]}')
  return done


def main(
  output: str, config: str, size: int, batch: int, rounds: int, only_imports: bool, worker: str
) -> None:
  """Measure, print the tables, write the JSON."""
  if worker:
    print(json.dumps(WORKER(json.loads(worker))))
    return
  if rounds < 1 or size < 0 or batch < 0:
    raise DataError('rounds must be at least 1, size and batch at least 0 (0: as in the config)')
  report: dict[str, Any] = dict(settings=dict(config=config, size=size, batch=batch, rounds=rounds))
  report['imports'] = imports()
  if not only_imports:
    report['starts'] = starts(config, size, batch, rounds)
  report['machine'] = json.loads(
    python('-c', 'import json, benchmarks.workers as w; print(json.dumps(w.machine()))').stdout
  )
  print(table(report))
  if output:
    Path(output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


WORKER = worker


def starts(config: str, size: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
  """Seconds by stage of a cold and of a warm start, the faster of `rounds` of each."""
  found: dict[str, list[dict[str, float]]] = dict(cold=[], warm=[])
  with tempfile.TemporaryDirectory() as folder:
    data = os.path.join(folder, 'data')
    side = -(-(size or 64) // synthetic.GRID) * synthetic.GRID  # scenes come in multiples
    synthetic.ensure(data, scenes=512, val_scenes=8, seed=0, size=side, shards=2)
    for turn in range(rounds):
      cache = os.path.join(folder, f'cache{turn}')
      for name in found:
        spec = dict(config=config, size=size, batch=batch, data=data)
        spec |= dict(workdir=os.path.join(folder, f'{name}{turn}'), started=time.time())
        arguments = ('-m', 'benchmarks.startup', f'--worker={json.dumps(spec)}')
        done = python(*arguments, JAX_COMPILATION_CACHE_DIR=cache)
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
  return {name: min(runs, key=lambda run: run['total']) for name, runs in found.items()}


def table(report: Mapping[str, Any]) -> str:
  """The report as text."""
  lines = []
  if 'starts' in report:
    cold, warm = (report['starts'][name] for name in ('cold', 'warm'))
    lines.append(f'{"seconds":14}{"cold cache":>12}{"warm cache":>12}')
    for stage in (*STAGES, 'total'):
      about = f'  {ABOUT[stage]}' if stage in ABOUT else ''
      lines.append(f'{stage:14}{cold.get(stage, 0):12.2f}{warm.get(stage, 0):12.2f}{about}')
  found = report['imports']
  slowest = ', '.join(f'{name} {1e3 * value:.0f} ms' for name, value in found['slowest'].items())
  lines += [
    f'import exedit.train: {found["whole"]:.2f} s; {found["own"]:.2f} s of it are its own, after '
    f'{found["foreign"]:.2f} s for {FOREIGN}',
    f'slowest of its own files: {slowest}',
  ]
  return '\n'.join(lines + workers.conditions(report))


def _flags():
  from absl import flags

  values = flags.FlagValues()
  for define, name, value, about in (
    (flags.DEFINE_string, 'output', '', 'the JSON to write'),
    (flags.DEFINE_string, 'config', 'configs/pbe.py:tiny', 'what is trained'),
    (flags.DEFINE_integer, 'size', 0, "of the images; 0: the config's"),
    (flags.DEFINE_integer, 'batch', 0, "images in a step; 0: the config's"),
    (flags.DEFINE_integer, 'rounds', 1, 'cold and warm starts, of which the fastest counts'),
    (flags.DEFINE_bool, 'only_imports', False, 'no starts'),
    (flags.DEFINE_string, 'worker', '', 'used inside'),
  ):
    define(name, value, about, flag_values=values)
  return values


if __name__ == '__main__':
  doors.call(main, _flags(), __doc__, sys.argv)
