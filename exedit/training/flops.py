"""Count the FLOPs of a function from its jaxpr, and know the peak of common devices."""

import math
from collections.abc import Callable

import jax
from jax.extend import core

# Peak bf16 FLOP/s of one device, by the start of jax's device_kind; the first match counts.
PEAK = {
  'TPU v4': 2.75e14,
  'TPU v5 lite': 1.97e14,
  'TPU v5e': 1.97e14,
  'TPU v5': 4.59e14,  # v5p
  'TPU v6 lite': 9.18e14,
  'TPU v6e': 9.18e14,
  'NVIDIA H100': 9.89e14,
  'NVIDIA H200': 9.89e14,
  'NVIDIA A100': 3.12e14,
}


def peak(device_kind: str) -> float | None:
  """Peak bf16 FLOP/s of one device; None for unknown devices."""
  return next((p for kind, p in PEAK.items() if device_kind.startswith(kind)), None)


def training(loss: Callable, params, *args) -> float:
  """Model FLOPs of the forward and backward pass of `loss(params, *args)`; shapes are enough.

  This counts the forward-mode derivative along `params`. There, each product has one tangent
  product per operand that depends on `params`, which is the number of products in the backward
  pass. So frozen networks count once, and recomputation (remat) does not count.
  """

  def both(params, *args):
    return jax.jvp(lambda p: loss(p, *args), (params,), (params,))

  return count(jax.make_jaxpr(both)(params, *args).jaxpr)


def count(jaxpr: core.Jaxpr) -> float:
  """2 x the multiply-accumulates of all products and convolutions, with every run of a loop."""
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      total += _dot(eqn)
    elif eqn.primitive.name == 'conv_general_dilated':
      total += _conv(eqn)
    times = _times(eqn)
    branches = [count(inner) for inner in _inner(eqn)]
    total += times * (max(branches) if eqn.primitive.name == 'cond' else sum(branches))
  return total


def _times(eqn) -> int:
  """How often the jaxprs inside an equation run."""
  if eqn.primitive.name == 'scan':
    return eqn.params['length']
  if eqn.primitive.name == 'pallas_call':
    return math.prod(eqn.params['grid_mapping'].grid)
  return 1


def _inner(eqn) -> list[core.Jaxpr]:
  """The jaxprs inside an equation (jit, scan, remat, custom derivatives, branches)."""
  found = []
  for value in eqn.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        found.append(item.jaxpr)
      elif isinstance(item, core.Jaxpr):
        found.append(item)
  return found


def _dot(eqn) -> float:
  (contract, _), _ = eqn.params['dimension_numbers']
  left = eqn.invars[0].aval.shape
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contract)


def _conv(eqn) -> float:
  numbers = eqn.params['dimension_numbers']
  kernel = eqn.invars[1].aval.shape
  output = eqn.outvars[0].aval.shape
  taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]  # inputs per group x window
  return 2.0 * math.prod(output) * taps
