"""The mesh of devices, the parts of each array that they hold, and the collectives between them.

A collective for each array, as the compiler would do it, means thousands of them for the UNet.
Here arrays are packed into a few buckets, sent, and unpacked. `gather`, `mean`, `own`, `norm` and
`total` run inside `jax.shard_map` with both axes of the mesh manual, on flat dicts of arrays.

A bucket is a matrix whose columns are the last axis of all its arrays; only small arrays share one
long row. An accelerator stores matrices in tiles, so a kernel cut out of a row must be laid out
again element by element, which makes the program many times as large.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Shaped

from exedit.models.parameters import Params
from exedit.training.state import TrainState

AXES = ('data', 'fsdp')
SHARDINGS = ('data', 'zero1', 'fsdp')
DEFAULT = 'data'
MIN_ELEMENTS = 2**14  # smaller arrays are replicated: gathering them costs more than storing them
COUNT = 8  # buckets of equal bytes in one exchange, and one more for every other width of arrays

Arrays = dict[str, Array]
Specs = Mapping[str, P]


def make_mesh(
  sharding: str = DEFAULT,
  data: int | None = None,
  fsdp: int | None = None,
  tensor: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A mesh (data, fsdp) over all devices of all processes, or over those given.

  Args:
    sharding: what the devices along fsdp divide among themselves. 'data': nothing, every device
      stores everything; 'zero1': optimizer state and EMA (arXiv 1910.02054); 'fsdp': parameters
      too.
    data: number of copies. fsdp: number of devices that share one copy. The examples of a batch
      are divided over both. One of them may be -1: all remaining devices. If only one is given, the
      other one is -1; if none is given, all devices go where `sharding` needs them.
    tensor: 1; a key of older configs, whose axis saved neither work nor time.
  Raises:
    ValueError: for an unknown `sharding`, and for sizes that do not fit it or the devices.
  """
  devices = jax.devices() if devices is None else devices
  if sharding not in SHARDINGS:
    raise ValueError(f"mesh.sharding is '{sharding}'; use one of {', '.join(SHARDINGS)}")
  if tensor != 1:
    raise ValueError(f'mesh.tensor is {tensor}; this axis no longer exists, leave it out')
  if fsdp is None:
    fsdp = 1 if sharding == 'data' or data == -1 else -1
  if data is None:
    data = 1 if fsdp == -1 else -1
  sizes, count = (data, fsdp), len(devices)
  if sizes == (-1, -1) or min(sizes) < -1 or 0 in sizes:
    raise ValueError(f'mesh {dict(zip(AXES, sizes))}: sizes are positive, and one may be -1')
  fixed = math.prod(size for size in sizes if size != -1)
  full = [count // fixed if size == -1 else size for size in sizes]
  if math.prod(full) != count:
    raise ValueError(
      f'mesh data={data} fsdp={fsdp} does not fit {count} devices: '
      f'the product must be {count}, and one size may be -1 to take what is left'
    )
  if sharding == 'data' and fsdp != 1:
    raise ValueError(
      f"mesh.fsdp is {fsdp}, but mesh.sharding 'data' shares nothing along it: use "
      "mesh.sharding 'fsdp' or 'zero1', or leave mesh.fsdp out"
    )
  placed = mesh_utils.create_device_mesh(full, devices, allow_split_physical_axes=True)
  # jax.make_mesh would give Explicit axes by default.
  return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(mesh: Mesh | AbstractMesh, batch_size: int, accumulate: int = 1) -> None:
  """Checks that a batch can be divided evenly over the devices and the accumulated parts.

  Raises:
    ValueError: if not; names the nearest sizes that can.
  """
  parts = mesh.size * accumulate
  if accumulate < 1 or batch_size < 1 or batch_size % parts:
    below = batch_size // max(parts, 1) * parts
    choices = ' or '.join(str(n) for n in (below, below + parts) if n)
    raise ValueError(
      f'batch_size {batch_size} cannot be divided over {mesh.size} devices (mesh data='
      f'{mesh.shape["data"]} x fsdp={mesh.shape["fsdp"]}) times accumulate {accumulate}: '
      f'use batch_size {choices}, or another mesh'
    )


# Layouts


def spec(shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> P:
  """How an array of this shape is split over fsdp.

  The first of these axes that is divisible: the last but one (a kernel's input channels), because
  then the rows keep their length in memory; the last; the others, the largest first, except of a
  convolution's kernel (HWIO). Small and indivisible arrays are replicated.
  """
  size, last = mesh.shape['fsdp'], len(shape) - 1
  others = [] if len(shape) == 4 else sorted(range(last - 1), key=lambda i: -shape[i])
  order = [i for i in (last - 1, last) if i >= 0] + others
  divisible = [i for i in order if shape[i] % size == 0]
  if size == 1 or math.prod(shape) < MIN_ELEMENTS or not divisible:
    return P()
  axes: list[str | None] = [None] * len(shape)
  axes[divisible[0]] = 'fsdp'
  return P(*axes)


def shardings(tree: Any, mesh: Mesh) -> Any:
  """A NamedSharding for every array of a tree of arrays or shapes, by the rule of `spec`."""
  return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(leaf.shape, mesh)), tree)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The first axis divided over all devices."""
  return NamedSharding(mesh, P(AXES))


def layouts(shapes: TrainState, mesh: Mesh, sharding: str) -> tuple[TrainState, Params]:
  """The shardings of the state between two steps, and of the parameters during the update.

  A parameter is updated where its moments are: with 'zero1' the parameters are whole between two
  steps and split during the update.
  """
  split = shardings(shapes, mesh)
  whole = jax.tree.map(lambda _: replicated(mesh), shapes)
  if sharding == 'data':
    return whole, whole.params
  held = dataclasses.replace(split, params=whole.params) if sharding == 'zero1' else split
  return held, split.params


def with_sharding(shapes: Any, layout: Any) -> Any:
  """The shapes of a tree with their shardings."""
  return jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, layout
  )


def split_axis(spec: P, mesh: Mesh | AbstractMesh) -> int | None:
  """The axis of an array that is split over several devices; None if each has the whole."""
  return spec.index('fsdp') if mesh.shape['fsdp'] > 1 and 'fsdp' in spec else None


def part_shape(shape: tuple[int, ...], spec: P, mesh: Mesh | AbstractMesh) -> tuple[int, ...]:
  """The shape of one device's part."""
  axis = split_axis(spec, mesh)
  return tuple(n // mesh.shape['fsdp'] if i == axis else n for i, n in enumerate(shape))


# Collectives, inside shard_map


def gather(
  parts: Mapping[str, Array], specs: Specs, mesh: Mesh, dtypes: Mapping[str, DTypeLike] = {}
) -> Arrays:
  """The whole of every array; each device passes its part.

  dtypes: cast split arrays to these types before they are sent.
  """
  result = dict(parts)
  split = {
    name: part.astype(dtypes.get(name, part.dtype))
    for name, part in parts.items()
    if split_axis(specs[name], mesh) is not None
  }
  widths = {name: part.shape[-1] for name, part in split.items()}
  for names, _ in _buckets(split, specs, widths, mesh):
    matrices = [split[name].reshape(-1, widths[name]) for name in names]
    rows = jax.lax.all_gather(jnp.concatenate(matrices), 'fsdp')  # [devices rows columns]
    for name, piece in zip(names, _cuts(rows, [len(matrix) for matrix in matrices])):
      shape, axis = split[name].shape, split_axis(specs[name], mesh) or 0
      pieces = jnp.moveaxis(piece.reshape(-1, *shape), 0, axis)
      result[name] = pieces.reshape(*shape[:axis], -1, *shape[axis + 1 :])
  return result


def mean(grads: Mapping[str, Array], specs: Specs, mesh: Mesh) -> Arrays:
  """The mean over all devices of gradients that each computed from its own examples, in float32.

  The result is split by `specs`: split arrays are summed and scattered over fsdp, and then only
  the parts are summed over data.
  """
  result = {name: grad.astype(jnp.float32) / mesh.size for name, grad in grads.items()}
  widths = {name: _width(grad, specs[name], mesh) for name, grad in grads.items()}
  for names, scattered in _buckets(result, specs, widths, mesh):
    if mesh.size == 1:
      continue
    rows = [_rows(result[name], specs[name], widths[name], mesh) for name in names]
    sizes = [row.shape[1] for row in rows]
    bucket = jnp.concatenate(rows, 1)  # [fsdp rows columns], or [1 rows columns] if whole
    if scattered:
      bucket = jax.lax.psum_scatter(bucket, 'fsdp', tiled=True)  # [1 rows columns]
    bucket = total(bucket, mesh, ('data',) if scattered else AXES)
    for name, part in zip(names, _cuts(bucket, sizes)):
      result[name] = part.reshape(part_shape(result[name].shape, specs[name], mesh))
  return result


def own(whole: Mapping[str, Array], specs: Specs, mesh: Mesh) -> Arrays:
  """This device's parts of whole arrays."""

  def cut(array, axis):
    if axis is None:
      return array
    size = array.shape[axis] // mesh.shape['fsdp']
    return jax.lax.dynamic_slice_in_dim(array, jax.lax.axis_index('fsdp') * size, size, axis)

  return {name: cut(array, split_axis(specs[name], mesh)) for name, array in whole.items()}


def norm(parts: Mapping[str, Array], specs: Specs, mesh: Mesh) -> Float[Array, '']:
  """The Euclidean norm of all arrays together; each device passes its parts."""
  squares: dict[bool, Array] = {}
  for name, part in parts.items():
    split = split_axis(specs[name], mesh) is not None
    squares[split] = squares.get(split, jnp.zeros(())) + jnp.sum(jnp.square(part))
  sums = (total(s, mesh, ('fsdp',)) if split else s for split, s in squares.items())
  return jnp.sqrt(sum(sums, jnp.zeros(())))


def total(x: Any, mesh: Mesh, axes: Sequence[str] = AXES) -> Any:
  """The sum over the devices along these axes of the mesh, for every array of a tree."""
  axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
  return jax.lax.psum(x, axes) if axes else x


def all_rows(rows: Shaped[Array, 'b ...']) -> Shaped[Array, 'n ...']:
  """The rows of all devices, inside a step that is mapped over them; elsewhere the rows given.

  The gradient of a mean over devices of losses that see all rows is the whole loss's.
  """
  axes = _mapped()
  return jax.lax.all_gather(rows, axes, tiled=True) if axes else rows


def first_row(count: int) -> Int[Array, ''] | int:
  """The place of this device's first row among those of `all_rows`, if each has `count`."""
  axes = _mapped()
  return jax.lax.axis_index(axes) * count if axes else 0


def _mapped() -> tuple[str, ...]:
  """The axes of the mesh over which the calling function is mapped."""
  return tuple(axis for axis in AXES if axis in jax.sharding.get_abstract_mesh().manual_axes)


def _buckets(
  arrays: Mapping[str, Array], specs: Specs, widths: Mapping[str, int | None], mesh: Mesh
) -> Iterator[tuple[list[str], bool]]:
  """(names, whether they are split): about COUNT buckets of equal bytes.

  All arrays of a bucket have one width, or all are too small for a matrix. They are ordered by
  name, which is nearly the order of their use.
  """
  whole = sum(array.nbytes for array in arrays.values())
  groups: dict[tuple, list[str]] = {}
  for name, array in arrays.items():
    split = split_axis(specs[name], mesh) is not None
    groups.setdefault((split, array.dtype, widths[name]), []).append(name)
  for (split, *_), names in groups.items():
    bucket: list[str] = []
    size = 0
    for name in names:
      bucket.append(name)
      size += arrays[name].nbytes
      if size * COUNT >= whole:
        yield bucket, split
        bucket, size = [], 0
    if bucket:
      yield bucket, split


def _cuts(
  bucket: Shaped[Array, 'n r *c'], sizes: Sequence[int]
) -> Iterator[Shaped[Array, 'n _ *c']]:
  """Cuts a bucket into parts of these numbers of rows."""
  start = 0
  for size in sizes:
    yield jax.lax.slice_in_dim(bucket, start, start + size, axis=1)
    start += size


def _width(whole: Shaped[Array, '...'], spec: P, mesh: Mesh) -> int | None:
  """The number of columns of an array's part in a bucket; None: small arrays share one row."""
  split = split_axis(spec, mesh) is not None
  if not split and (whole.ndim < 2 or whole.size < MIN_ELEMENTS):
    return None
  return part_shape(whole.shape, spec, mesh)[-1]


def _rows(
  whole: Shaped[Array, '...'], spec: P, width: int | None, mesh: Mesh
) -> Shaped[Array, 'n r *c']:
  """An array as one matrix for each device along fsdp; as one matrix if every device keeps all."""
  if width is None:
    return whole.reshape(1, -1)
  axis = split_axis(spec, mesh)
  if axis is None:
    return whole.reshape(1, -1, width)
  shape, n = whole.shape, mesh.shape['fsdp']
  pieces = whole.reshape(*shape[:axis], n, shape[axis] // n, *shape[axis + 1 :])
  return jnp.moveaxis(pieces, axis, 0).reshape(n, -1, width)
