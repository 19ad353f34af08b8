"""A function of rows over the devices of this process, each with its share of them."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from exedit.runtime import compilation


def over_devices(
  function: Callable[..., Any], constants: Any, devices: Sequence[Any]
) -> Callable[..., Any]:
  """`function(constants, *arrays)` as a compiled function of arrays, of its results' rows.

  On several devices each runs the program that one device would run on its share of the rows, with
  its own copy of the constants and no word between them: the result does not depend on their
  number, only on the rows per device. They must share out the rows evenly.
  """
  options = compilation.compiler_options(devices[0].platform)
  if len(devices) == 1:
    return functools.partial(jax.jit(function, compiler_options=options), constants)
  mesh = _mesh(devices)
  constants = everywhere(constants, devices)
  split = NamedSharding(mesh, P('batch'))
  shared = jax.shard_map(
    lambda constants, arrays: function(constants, *arrays),
    mesh=mesh,
    in_specs=(P(), P('batch')),
    out_specs=P('batch'),
    check_vma=False,  # kernels (splash attention) do not say along which axes they vary
  )
  compiled = jax.jit(shared, compiler_options=options)
  return lambda *arrays: compiled(constants, jax.device_put(arrays, split))


def everywhere(constants: Any, devices: Sequence[Any]) -> Any:
  """A copy of the arrays on each of the devices; those that lie there already are not moved."""
  return jax.device_put(constants, NamedSharding(_mesh(devices), P()))


def _mesh(devices):
  return Mesh(np.array(devices), ('batch',), axis_types=(AxisType.Auto,))
