"""Whether a machine can hold a training, known from shapes alone."""

import math
from typing import Any

import jax

from exedit.runtime import memory as machine
from exedit.runtime.errors import UserError
from exedit.training.step import Program


def require(program: Program) -> None:
  """Checks that the arrays which a step needs in any case fit into the memory here.

  On a CPU all devices of this process share the machine's memory.

  Raises:
    UserError: if they do not.
  """
  device = program.mesh.local_devices[0]
  shared = len(program.mesh.local_devices) if device.platform == 'cpu' else 1
  needs, has = needed(program) * shared, available(device)
  if has is None or needs <= has:
    return
  arrays = jax.tree.leaves((program.state.params, program.frozen))
  count = sum(math.prod(array.shape) for array in arrays)
  where = 'this machine' if device.platform == 'cpu' else 'each device'
  raise UserError(
    f'{_short(count)} parameters need {needs / 1e9:.1f} GB (with gradients, optimizer and moving '
    f'average, without activations) and {where} has {has / 1e9:.1f} GB: use a larger machine, more '
    'devices with --config.mesh.sharding=fsdp, or a smaller model such as configs/pbe.py:tiny; '
    '--ignore_memory tries it anyway'
  )


def needed(program: Program) -> int:
  """Bytes that one device holds: state, frozen parameters and the gradient of its parameters."""
  held = jax.tree.leaves((program.state, program.frozen))
  return sum(map(_bytes_here, (*held, *program.state.params.values())))


def available(device: Any) -> int | None:
  """Bytes of memory of a device, or of this machine for a CPU; None if that is not known."""
  if device.platform != 'cpu':
    return (device.memory_stats() or {}).get('bytes_limit')
  return machine.of_machine()


def _bytes_here(array: Any) -> int:
  return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _short(count: int) -> str:
  """A number in words: '1.3 billion'."""
  size, word = next((s, w) for s, w in ((1e9, 'billion'), (1e6, 'million'), (1, '')) if count >= s)
  return f'{count / size:.1f} {word}' if word else str(count)
