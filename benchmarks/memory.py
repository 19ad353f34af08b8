"""Bytes that each device keeps between two steps, by the number of devices and the sharding.

  python -m benchmarks.memory
  python -m benchmarks.memory --config=configs/pbe.py:tiny

The table is computed from the layouts of the config's training step; nothing is allocated or
compiled. `python -m exedit.plan` gives the memory that a step needs on a TPU.
"""

import math
from typing import Any

import jax
from absl import flags

from benchmarks import harness
from exedit.planning import compile_step
from exedit.runtime import doors
from exedit.training.sharding import SHARDINGS

DEVICES = (1, 2, 4, 8)


def bytes_per_device(tree: Any) -> int:
  """Bytes of one device's parts of a tree of shapes with shardings."""
  return sum(
    math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree)
  )


def row(config: dict[str, Any], sharding: str, count: int) -> list[str]:
  """The sizes of state, frozen parameters and batch, and their sum."""
  config = {**config, 'mesh': {**config['mesh'], 'sharding': sharding}}
  program = compile_step.make_step(config, jax.devices()[:count])
  batch = compile_step.batch_shapes(config, program.mesh)
  parts = [bytes_per_device(part) for part in (program.state, program.frozen, batch)]
  return [f'{size / 2**20:,.1f} MiB' for size in (*parts, sum(parts))]


def main(_: list[str]) -> None:
  """Prints the table."""
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(DEVICES))
  config = flags.FLAGS.config.to_dict()
  rows = (
    (f'{count} {sharding}', row(config, sharding, count))
    for count in DEVICES
    for sharding in (SHARDINGS if count > 1 else ('data',))  # one device shares nothing
  )
  columns = ('devices, sharding', 'state', 'frozen', 'batch', 'together')
  print('\n'.join(harness.table(columns, rows)))


if __name__ == '__main__':
  doors.define_config('whose step is laid out', 'config', 'configs/pbe.py')
  doors.run(main)
