"""Devices as one mesh (data, fsdp, tensor), and which axis of which array lies along it."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')
SHARDINGS = ('data', 'zero1', 'fsdp')
DEFAULT = 'data'
MIN_ELEMENTS = 2**14  # smaller arrays are replicated: gathering them costs more than keeping them


def make(
  sharding: str = DEFAULT,
  data: int | None = None,
  fsdp: int | None = None,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh over all devices of all processes, or over those given.

  Args:
    sharding: what the devices along fsdp share, each holding a part: 'data' nothing, every device
      has it all; 'zero1' optimizer state and EMA (arXiv 1910.02054); 'fsdp' parameters as well.
    data: copies of what is shared. fsdp: devices that share one copy. tensor: a further axis over
      which the large kernels are spread. Examples are split over data x fsdp. One size may be -1,
      whatever is left; of data and fsdp the one that is not given is that, and if neither is, all
      devices go where `sharding` wants them.
  Raises:
    ValueError: for an unknown word, and for sizes that do not fit it or the devices.
  """
  devices = jax.devices() if devices is None else devices
  if sharding not in SHARDINGS:
    raise ValueError(f"mesh.sharding is '{sharding}'; use one of {', '.join(SHARDINGS)}")
  if fsdp is None:
    fsdp = 1 if sharding == 'data' or data == -1 else -1
  if data is None:
    data = 1 if fsdp == -1 else -1
  sizes, count = [data, fsdp, tensor], len(devices)
  fixed = 1
  for size in sizes:
    fixed *= 1 if size == -1 else size
  if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
    raise ValueError(f'mesh {dict(zip(AXES, sizes))}: sizes are positive, and one may be -1')
  full = [count // fixed if size == -1 else size for size in sizes]
  if full[0] * full[1] * full[2] != count:
    raise ValueError(
      f'mesh data={data} fsdp={fsdp} tensor={tensor} does not fit {count} devices: '
      f'the product must be {count}, and one size may be -1 to take what is left'
    )
  if sharding == 'data' and fsdp != 1:
    raise ValueError(
      f"mesh.fsdp is {fsdp}, but mesh.sharding 'data' shares nothing along it: use "
      "mesh.sharding 'fsdp' or 'zero1', or leave mesh.fsdp out"
    )
  placed = mesh_utils.create_device_mesh(full, devices, allow_split_physical_axes=True)
  # Auto axes, said aloud: jax.make_mesh alone would give Explicit ones (engineering facts 0.3).
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 3)


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

  The last axis but one (a kernel's input channels) goes along fsdp if it is divisible, which leaves
  the rows in memory as long as they are; else the last, which shortens them. The first of these
  that is left goes along tensor. Then the largest of all others, except of a convolution's kernel
  (four axes, HWIO). Small and indivisible: replicated.
  """
  axes: list[str | None] = [None] * len(shape)
  elements = 1
  for n in shape:
    elements *= n
  last = len(shape) - 1
  others = [] if len(shape) == 4 else sorted(range(last - 1), key=lambda i: -shape[i])
  order = [i for i in (last - 1, last) if i >= 0] + others
  if elements >= MIN_ELEMENTS:
    for name in ('fsdp', 'tensor'):
      size = mesh.shape[name]
      free = [i for i in order if axes[i] is None and shape[i] % size == 0]
      if size > 1 and free:
        axes[free[0]] = name
  return P(*axes) if any(axes) else P()


def shardings(tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for every array of a tree of arrays or shapes."""
  return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf.shape, mesh)), tree)


def split(spec: P, mesh: Mesh | AbstractMesh) -> dict[str, int]:
  """{axis of the mesh: axis of the array that is split over it}, where that makes parts at all."""
  where = {name: axis for axis, name in enumerate(spec) if name is not None}
  return {name: where[name] for name in AXES if name in where and mesh.shape[name] > 1}


def part_shape(shape: tuple[int, ...], spec: P, mesh: Mesh | AbstractMesh) -> tuple[int, ...]:
  """The shape of one device's part."""
  part = list(shape)
  for name, axis in split(spec, mesh).items():
    part[axis] //= mesh.shape[name]
  return tuple(part)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis over all devices that hold different examples."""
  return NamedSharding(mesh, P(('data', 'fsdp')))
