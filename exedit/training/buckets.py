"""Many arrays through few collectives: packed into buckets, sent, and unpacked again.

Array by array, as the compiler would do it, the UNet takes thousands. All of this runs inside
`jax.shard_map` with every axis of the mesh manual, on flat dicts of arrays; `specs` says of each
which of its axes are split over which axes of the mesh.

A bucket is a matrix whose columns are the last axis of all its arrays, and one long row only of
small ones: an accelerator keeps matrices in tiles, and a kernel that is cut out of a row has to be
laid out anew, element by element, which takes a program many times as large.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from exedit.training import mesh as meshes

COUNT = 8  # buckets of equal bytes in one exchange, and one more for every other width of arrays
EXAMPLES = ('data', 'fsdp')  # axes of the mesh whose devices hold different examples

Arrays = dict[str, Array]
Specs = Mapping[str, P]


def gather(
  parts: Mapping[str, Array], specs: Specs, mesh: Mesh, dtypes: Mapping[str, DTypeLike] = {}
) -> Arrays:
  """The whole of every array of which each device holds a part; what is not split is left as is.

  dtypes: what a split array is cast to before it is sent, where that is not its own type.
  """
  result = dict(parts)
  split = {
    name: part.astype(dtypes.get(name, part.dtype))
    for name, part in parts.items()
    if meshes.split(specs[name], mesh)
  }
  widths = {name: part.shape[-1] for name, part in split.items()}
  for names, axes in _buckets(split, specs, widths, mesh):
    matrices = [split[name].reshape(-1, split[name].shape[-1]) for name in names]
    rows = jax.lax.all_gather(jnp.concatenate(matrices), axes)  # [devices rows columns]
    sizes = [mesh.shape[axis] for axis in axes]
    for name, part in zip(names, _cuts(rows, [len(matrix) for matrix in matrices])):
      pieces = part.reshape(*sizes, *split[name].shape)
      result[name] = _join(pieces, list(meshes.split(specs[name], mesh).values()))
  return result


def mean(grads: Mapping[str, Array], specs: Specs, mesh: Mesh) -> Arrays:
  """The mean over all devices of what each computed from its own examples, in float32.

  A device gets its part as `specs` splits the arrays: buckets are summed and scattered over fsdp,
  and the sum over data is that of the parts alone.
  """
  count = math.prod(mesh.shape[axis] for axis in EXAMPLES)
  result = {name: grad.astype(jnp.float32) / count for name, grad in grads.items()}
  widths = {name: _width(grad, specs[name], mesh) for name, grad in grads.items()}
  for names, axes in _buckets(result, specs, widths, mesh):
    if count == 1 and not axes:
      continue  # one device: nothing to exchange
    rows = [
      _rows(result[name], meshes.split(specs[name], mesh), widths[name], mesh) for name in names
    ]
    sizes = [row.shape[1] for row in rows]
    bucket = jnp.concatenate(rows, 1)  # [fsdp rows columns], where all keep all [1 rows columns]
    if 'fsdp' in axes:
      bucket = jax.lax.psum_scatter(bucket, 'fsdp', tiled=True)  # [1 rows columns]
    bucket = total(bucket, [axis for axis in EXAMPLES if axis not in axes], mesh)
    for name, part in zip(names, _cuts(bucket, sizes)):
      result[name] = part.reshape(meshes.part_shape(result[name].shape, specs[name], mesh))
  return result


def own(whole: Mapping[str, Array], specs: Specs, mesh: Mesh) -> Arrays:
  """This device's parts of arrays of which it has the whole."""
  return {name: _cut(array, meshes.split(specs[name], mesh), mesh) for name, array in whole.items()}


def norm(parts: Mapping[str, Array], specs: Specs, mesh: Mesh) -> Float[Array, '']:
  """The Euclidean norm of all arrays together, each device holding its parts."""
  squares: dict[tuple[str, ...], Array] = {}
  for name, part in parts.items():
    axes = tuple(meshes.split(specs[name], mesh))
    squares[axes] = squares.get(axes, jnp.zeros(())) + jnp.sum(jnp.square(part))
  return jnp.sqrt(sum((total(s, axes, mesh) for axes, s in squares.items()), jnp.zeros(())))


def total(x, axes: Sequence[str], mesh: Mesh):
  """The sum over the devices along these axes of the mesh, of every array of a tree."""
  axes = tuple(axis for axis in axes if mesh.shape[axis] > 1)
  return jax.lax.psum(x, axes) if axes else x


def _buckets(
  arrays: Mapping[str, Array], specs: Specs, widths: Mapping[str, int | None], mesh: Mesh
) -> Iterator[tuple[list[str], tuple[str, ...]]]:
  """(names, mesh axes that split them): about COUNT buckets of equal bytes.

  All arrays of a bucket have one width, or are all too small for one. The order is that of the
  names, which is nearly that of use: what is needed first comes first.
  """
  whole = sum(array.nbytes for array in arrays.values())
  groups: dict[tuple, list[str]] = {}
  for name, array in arrays.items():
    axes = tuple(meshes.split(specs[name], mesh))
    groups.setdefault((axes, array.dtype, widths[name]), []).append(name)
  for (axes, *_), names in groups.items():
    bucket: list[str] = []
    size = 0
    for name in names:
      bucket.append(name)
      size += arrays[name].nbytes
      if size * COUNT >= whole:
        yield bucket, axes
        bucket, size = [], 0
    if bucket:
      yield bucket, axes


def _cuts(
  bucket: Shaped[Array, 'n r *c'], sizes: Sequence[int]
) -> Iterator[Shaped[Array, 'n _ *c']]:
  """Consecutive rows, so many each time."""
  start = 0
  for size in sizes:
    yield jax.lax.slice_in_dim(bucket, start, start + size, axis=1)
    start += size


def _width(whole: Shaped[Array, '...'], spec: P, mesh: Mesh) -> int | None:
  """Columns of an array's part in a bucket; None: small, and sent in a row with others."""
  if not meshes.split(spec, mesh) and (whole.ndim < 2 or whole.size < meshes.MIN_ELEMENTS):
    return None
  return meshes.part_shape(whole.shape, spec, mesh)[-1]


def _rows(
  whole: Shaped[Array, '...'], where: Mapping[str, int], width: int | None, mesh: Mesh
) -> Shaped[Array, 'n r *c']:
  """A matrix for each device along fsdp, what it keeps of an array; one where all keep all."""
  if width is None:
    return whole.reshape(1, -1)
  array = _cut(whole, {name: axis for name, axis in where.items() if name != 'fsdp'}, mesh)
  if 'fsdp' not in where:
    return array.reshape(1, -1, array.shape[-1])
  axis, n = where['fsdp'], mesh.shape['fsdp']
  shape = array.shape
  pieces = array.reshape(*shape[:axis], n, shape[axis] // n, *shape[axis + 1 :])
  pieces = jnp.moveaxis(pieces, axis, 0)
  return pieces.reshape(n, -1, pieces.shape[-1])


def _cut(array: Shaped[Array, '...'], where: Mapping[str, int], mesh: Mesh) -> Shaped[Array, '...']:
  """This device's part along these axes of the mesh."""
  for name, axis in where.items():
    size = array.shape[axis] // mesh.shape[name]
    start = jax.lax.axis_index(name) * size
    array = jax.lax.dynamic_slice_in_dim(array, start, size, axis)
  return array


def _join(pieces: Shaped[Array, '...'], axes: Sequence[int]) -> Shaped[Array, '...']:
  """The whole from its pieces: leading axis i of theirs belongs before axis axes[i] of a piece."""
  for lead, axis in reversed(list(enumerate(axes))):
    at = lead + axis
    pieces = jnp.moveaxis(pieces, lead, at)
    shape = pieces.shape
    pieces = pieces.reshape(*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :])
  return pieces
