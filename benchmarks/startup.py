"""Seconds from the start of a process to its first training step, with an empty cache and again.

  python -m benchmarks.startup --output=startup.json              # configs/pbe.py:tiny
  python -m benchmarks.startup --config=configs/pbe.py --size=512 # a GPU: the published model

The same calls as in `exedit.train`, over synthetic data that exist already, run twice in a process
of their own: first with an empty cache of compiled programs, then with the cache of the first run.
"""

import contextlib
import importlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import harness
from exedit.runtime.doors import Flag

STAGES = {
  'python': 'the interpreter, up to the first line of the worker',
  'import': 'exedit.train and everything that it imports',
  'prepare': 'lay out the program as shapes, read one example, trace one step',
  'first weights': 'compile their initialisation, compute them, keep the frozen ones',
  'first batch': '',
  'trace': '',
  'compile': '',
  'first step': 'of the compiled program',
  'else': '',
}
FLAGS = (
  Flag('config', 'configs/pbe.py:tiny', 'the training'),
  Flag('size', 0, "of the images; 0: the config's", least=0),
  Flag('batch', 0, "images in a step; 0: the config's", least=0),
  Flag('rounds', 1, 'cold and warm starts; the fastest counts', least=1),
)


def start(spec: Mapping[str, Any]) -> dict[str, float]:
  """Seconds of each stage of one start."""
  laps = dict(python=time.time() - spec['started'])

  @contextlib.contextmanager
  def lap(name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    laps[name] = time.perf_counter() - begin

  with lap('import'):
    import jax

    from exedit import train  # noqa: F401
    from exedit.runtime import compilation
    from exedit.training import loop
    from exedit.training.config import read_config
  config = read_config(settings(spec))
  compilation.cache_compiled()
  with lap('prepare'):
    prepared = loop.prepare(spec['workdir'], config)
  program = prepared.program
  with loop.Workdir(spec['workdir']).open() as workdir:
    checkpoints = loop.Checkpoints(workdir.name, say=lambda line: None)
    with lap('first weights'):
      tensors = prepared.tensors
      given = program, config, workdir, checkpoints, tensors, lambda line: None
      state, frozen = jax.block_until_ready(loop.initial_state(*given))
    feed = loop.Prefetch(loop.batches(config, 0), loop.batch_sharding(program.mesh))
    with lap('first batch'):
      batch = next(feed)
    with lap('trace'):
      lowered = program.step.lower(state, frozen, batch)
    with lap('compile'):
      step = lowered.compile()
    with lap('first step'):
      jax.block_until_ready(step(state, frozen, batch))
    total = time.time() - spec['started']
    feed.close()
    checkpoints.close()
  return laps | {'else': total - sum(laps.values()), 'total': total}


def settings(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The config of the training, over the data of this benchmark."""
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


WORKERS = {'start': start}


def main(output: str, config: str, size: int, batch: int, rounds: int) -> None:
  """Measures cold and warm starts, prints the table and writes the JSON."""
  from exedit.input_pipeline import synthetic

  own = dict(config=config, size=size, batch=batch)
  found: dict[str, list[dict[str, float]]] = dict(cold=[], warm=[])
  with tempfile.TemporaryDirectory() as folder:
    data = os.path.join(folder, 'data')
    side = -(-(size or 64) // synthetic.GRID) * synthetic.GRID  # scenes have multiples of GRID
    synthetic.ensure(data, scenes=512, val_scenes=8, seed=0, size=side, shards=2)
    for turn in range(rounds):
      for name in found:
        spec = own | dict(system='start', data=data, started=time.time())
        spec |= dict(workdir=str(Path(folder, f'{name}{turn}')))
        cache = dict(JAX_COMPILATION_CACHE_DIR=str(Path(folder, f'cache{turn}')))
        found[name].append(harness.measured(spec, WORKERS, 'benchmarks.startup', **cache))
  starts = {name: min(runs, key=lambda run: run['total']) for name, runs in found.items()}
  rows = [
    (stage, [starts['cold'][stage], starts['warm'][stage], f'  {STAGES.get(stage, "")}'])
    for stage in (*STAGES, 'total')
  ]
  report = dict(settings=own | dict(rounds=rounds), starts=starts, machine=harness.machine())
  harness.finish(report, harness.table(('seconds', 'cold cache', 'warm cache', ''), rows), output)


if __name__ == '__main__':
  harness.door(main, FLAGS, __doc__, WORKERS)
