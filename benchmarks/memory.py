"""Bytes of each device, by the number of devices and by what they share, as a table in Markdown.

  python -m benchmarks.memory
  python -m benchmarks.memory --config.ema.decay=0.9999 --nocompile

Arguments are those of the published recipe's step: counted from the layouts, not allocated. What
the step needs beside them is asked of XLA's CPU compiler, for the tiny recipe at its global batch;
a TPU's figures are those of `python -m exedit.plan`.
"""

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

if not __package__:  # run by its path
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from exedit import systems
from exedit.runtime import doors
from exedit.training.sharding import SHARDINGS, batch_sharding
from exedit.training.step import Program, make_program

DEVICES = (1, 2, 4, 8)
Config = Mapping[str, Any]


def made(config: Config, sharding: str, count: int) -> Program:
  """The step of a config over so many simulated devices."""
  return make_program(
    systems.get(config['system']),
    model=config['model'],
    optimizer=config['optimizer'],
    ema=config['ema'],
    mesh={**config['mesh'], 'sharding': sharding},
    trainable=config['trainable'],
    batch_size=config['batch_size'],
    accumulate=config['accumulate'],
    seed=config['seed'],
    steps=config['steps'],
    devices=jax.devices()[:count],
  )


def batch(config: Config, program: Program) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a batch, laid out."""
  side, small = config['data']['size'], config['data']['exemplar_size']
  shapes = dict(image=(side, side, 3), mask=(side, side), exemplar=(small, small, 3))
  return {
    name: jax.ShapeDtypeStruct(
      (config['batch_size'], *shapes.get(name, ())),
      jnp.uint8 if name in shapes else jnp.int32,
      sharding=batch_sharding(program.mesh),
    )
    for name in (*shapes, 'id', 'corrupt')
  }


def held(tree: Any) -> int:
  """Bytes that one device holds of arrays laid out as their shapes say."""
  return sum(
    math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)
  )


def arguments(config: Config, sharding: str, count: int) -> list[int]:
  """Bytes of a device: state, frozen parameters, batch, and all of them."""
  program = made(config, sharding, count)
  parts = [held(part) for part in (program.state, program.frozen, batch(config, program))]
  return [*parts, sum(parts)]


def compiled(config: Config, sharding: str, count: int) -> list[int]:
  """Bytes of a device as the compiler says: arguments, and what the step needs beside them."""
  program = made(config, sharding, count)
  lowered = program.step.lower(program.state, program.frozen, batch(config, program))
  # The machine code's quality has no part in it.
  memory = lowered.compile({'xla_backend_optimization_level': 0}).memory_analysis()
  return [memory.argument_size_in_bytes, memory.temp_size_in_bytes]


def table(columns: Sequence[str], sizes: Callable[[str, int], list[int]]) -> Iterator[str]:
  """The lines of a table; on one device there is nothing to share."""
  yield f'| devices | sharding | {" | ".join(columns)} |'
  yield '|---' * (2 + len(columns)) + '|'
  for count in DEVICES:
    for sharding in SHARDINGS if count > 1 else ('data',):
      cells = [f'{size / 2**20:,.1f} MiB' for size in sizes(sharding, count)]
      yield f'| {count} | {sharding if count > 1 else "any"} | {" | ".join(cells)} |'


def main(_: list[str]) -> None:
  values = flags.FLAGS
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(DEVICES))
  config, tiny = values.config.to_dict(), values.compiled.to_dict()
  columns = ('state', 'frozen', 'batch', 'all arguments')
  for line in table(columns, functools.partial(arguments, config)):
    print(line, flush=True)
  if values.compile:
    print()
    for line in table(('arguments', 'temporaries'), functools.partial(compiled, tiny)):
      print(line, flush=True)


if __name__ == '__main__':
  doors.define_config('whose arguments are counted', 'config', 'configs/pbe.py')
  doors.define_config('what is compiled', 'compiled', 'configs/pbe.py:tiny')
  flags.DEFINE_bool('compile', True, 'the second table too')
  doors.run(main)
