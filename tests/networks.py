"""Helpers of the tests of networks: random weights without compiling, jitted calls, jaxprs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from exedit.models import parameters


def keys() -> parameters.Keys:
  """Those of nnx.Rngs(0), which takes many times longer to trace."""
  return parameters.Keys(jax.random.key(0))


def count(model: nnx.Module) -> int:
  """The number of parameters of a network, abstract ones too."""
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def with_random_weights(build, seed: int = 0, scale: float = 0.2) -> nnx.Module:
  """The network with every parameter drawn, so that nothing hides behind a 0 or a 1."""
  random = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(scale * random.normal(size=x.shape), x.dtype)
  graphdef, params = nnx.split(nnx.eval_shape(build))
  return nnx.merge(graphdef, jax.tree.map(draw, params))


def fresh(build) -> nnx.Module:
  """The network as it is initialised, compiled in one piece."""
  graphdef, _ = nnx.split(nnx.eval_shape(build))
  return nnx.merge(graphdef, jax.jit(lambda: nnx.state(build()))())


def jitted(model: nnx.Module, method: str = '__call__'):
  """One method of a network as a compiled function of arrays."""
  graphdef, params = nnx.split(model)
  call = jax.jit(lambda params, *args: getattr(nnx.merge(graphdef, params), method)(*args))
  return lambda *args: call(params, *args)


def types_of(operation: str, jaxpr) -> set[str]:
  """The types of array that an operation gives anywhere in a jaxpr."""
  return set(re.findall(rf':(\w+)\[[^\]]*\] = {operation}\b', str(jaxpr)))
