"""Devices as one mesh (data, fsdp, tensor), and which axis of which array lies along it."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')
MIN_ELEMENTS = 2**14  # smaller arrays are replicated: gathering them costs more than keeping them


def make(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh over all devices of all processes; one of the sizes may be -1: whatever is left.

  data: copies of the model. fsdp: devices that share one copy of parameters, optimizer state and
  EMA. tensor: a second axis of the large kernels. The batch is split over data x fsdp.
  """
  sizes, count = [data, fsdp, tensor], jax.device_count()
  fixed = 1
  for size in sizes:
    fixed *= 1 if size == -1 else size
  if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
    raise ValueError(f'mesh {dict(zip(AXES, sizes))}: sizes are positive, and one may be -1')
  sizes = [count // fixed if size == -1 else size for size in sizes]
  if sizes[0] * sizes[1] * sizes[2] != count:
    raise ValueError(
      f'mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {count} devices: '
      f'the product must be {count}, and one size may be -1 to take what is left'
    )
  # Auto axes, said aloud: jax.make_mesh alone would give Explicit ones (engineering facts 0.3).
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int = 1) -> None:
  """Refuse a batch that cannot be split evenly, naming the next that can."""
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  parts = devices * accumulate
  if accumulate < 1 or batch_size < 1 or batch_size % parts:
    below = batch_size // max(parts, 1) * parts
    choices = ' or '.join(str(n) for n in (below, below + parts) if n)
    raise ValueError(
      f'batch_size {batch_size} cannot be divided over {devices} devices (mesh data='
      f'{mesh.shape["data"]} x fsdp={mesh.shape["fsdp"]}) times accumulate {accumulate}: '
      f'use batch_size {choices}, or another mesh'
    )


def spec(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """How an array of this shape lies on the mesh.

  The largest divisible axis goes along fsdp, the largest of the others along tensor; of a
  convolution's kernel (four axes, HWIO) only the channels. Small and indivisible: replicated.
  """
  axes: list[str | None] = [None] * len(shape)
  elements = 1
  for n in shape:
    elements *= n
  if elements >= MIN_ELEMENTS:
    for name in ('fsdp', 'tensor'):
      size = mesh.shape[name]
      first = 2 if len(shape) == 4 else 0
      free = [i for i in range(first, len(shape)) if axes[i] is None and shape[i] % size == 0]
      if size > 1 and free:
        axes[max(free, key=lambda i: (shape[i], i))] = name
  return P(*axes) if any(axes) else P()


def shardings(tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for every array of a tree of arrays or shapes."""
  return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf.shape, mesh)), tree)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis over all devices that hold different examples."""
  return NamedSharding(mesh, P(('data', 'fsdp')))


def micro_batch_sharding(mesh: Mesh) -> NamedSharding:
  """[micro_batches, examples, ...]: each micro-batch spread as the whole batch was."""
  return NamedSharding(mesh, P(None, ('data', 'fsdp')))
