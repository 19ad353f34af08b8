"""Splits a model into its graph and a flat dict of parameters, and joins them again."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key

Params = dict[str, Any]  # {'unet.conv_in.kernel': array, ...}, or shapes instead of arrays


class Keys(nnx.Rngs):
  """Gives the same keys as nnx.Rngs(key), but counts them in Python.

  NNX's counter is traced under jit and eval_shape, in time quadratic in the number of parameters:
  half a minute for the published model, which takes one second here.
  """

  def __init__(self, key: Key[Array, '']):
    numbers = itertools.count()
    self._next = lambda: jax.random.fold_in(key, next(numbers))

  def __getattr__(self, name: str):
    if name.startswith('_'):
      raise AttributeError(name)
    return self._next  # one stream for all names, like nnx.Rngs with only a default

  def __call__(self) -> Key[Array, '']:
    return self._next()


@dataclasses.dataclass(frozen=True)
class Graph:
  """A model without its parameters.

  definition: NNX's. variables: {name: (path in the module, empty nnx.Param)}. rest: the other
  leaves (random streams of layers), which are neither trained nor saved, because all random numbers
  of a step come from its key.
  """

  definition: nnx.GraphDef
  variables: dict[str, tuple[tuple, nnx.Param]]
  rest: Any


def flatten(model: nnx.Module) -> tuple[Graph, Params]:
  """Splits a model, which may be abstract, into its graph and a flat dict of its parameters."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  variables, flat = {}, {}
  for path, variable in nnx.to_flat_state(params):
    name = '.'.join(map(str, path))
    variables[name] = (path, variable.replace(None))
    flat[name] = variable.get_value()
  return Graph(definition, variables, rest), flat


def compute_dtypes(model: nnx.Module) -> dict[str, Any]:
  """The types that linear layers and convolutions compute in, by the name of the kernel.

  They cast their kernel on every call, so it may be cast before. The model may be abstract.
  """
  layers = (
    (path, layer)
    for path, layer in nnx.iter_modules(model)
    if isinstance(layer, nnx.Linear | nnx.Conv)
  )
  return {
    '.'.join(map(str, (*path, 'kernel'))): layer.dtype or layer.param_dtype
    for path, layer in layers
  }


def merge(graph: Graph, params: Mapping[str, Any]) -> nnx.Module:
  """The model with these parameters: the inverse of `flatten`. It works inside jit too.

  Raises:
    ValueError: for missing and unknown parameters.
  """
  missing = [name for name in graph.variables if name not in params]
  unknown = [name for name in params if name not in graph.variables]
  if missing or unknown:
    raise ValueError(
      f'these are not the parameters of the model: {len(missing)} missing {missing[:3]}, '
      f'{len(unknown)} unknown {unknown[:3]}'
    )
  leaves = [(path, v.replace(params[name])) for name, (path, v) in graph.variables.items()]
  return nnx.merge(graph.definition, nnx.from_flat_state(leaves), graph.rest)


def split_trainable(
  params: Mapping[str, Any], trainable: str, setting: str = 'trainable'
) -> tuple[dict, dict]:
  """Splits parameters by path into (trainable, frozen).

  trainable: a regular expression that must match whole parts of the path from its start:
  'unet|conditioner' matches 'unet.conv_in.kernel'. setting: the name of the pattern in the message.

  Raises:
    ValueError: if nothing matches.
  """
  pattern = re.compile(rf'(?:{trainable})(?:\.|$)')
  chosen = {name: value for name, value in params.items() if pattern.match(name)}
  if not chosen:
    tops = sorted({name.split('.')[0] for name in params})
    raise ValueError(
      f"{setting} is '{trainable}', which matches no parameter; the parts are {', '.join(tops)}"
    )
  return chosen, {name: value for name, value in params.items() if name not in chosen}
