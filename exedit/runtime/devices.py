"""Divides the rows of arrays over the devices of this process."""

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
  """Compiles `function(constants, *arrays)` so that each device computes a share of the rows.

  Each device runs the same program that one device would run on its rows, with its own copy of the
  constants and without communication: the result depends only on the number of rows per device.
  The number of devices must divide the number of rows.
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
    check_vma=False,  # kernels (splash attention) lack the information that it checks
  )
  compiled = jax.jit(shared, compiler_options=options)
  return lambda *arrays: compiled(constants, jax.device_put(arrays, split))


def everywhere(constants: Any, devices: Sequence[Any]) -> Any:
  """Copies the arrays to each of the devices; arrays that are there already are not moved."""
  return jax.device_put(constants, NamedSharding(_mesh(devices), P()))


def _mesh(devices):
  return Mesh(np.array(devices), ('batch',), axis_types=(AxisType.Auto,))
