"""A model as a graph and a flat dict of parameters, and back."""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key

Params = dict[str, Any]  # {'unet.conv_in.kernel': array, ...}, or shapes in place of arrays


class Keys(nnx.Rngs):
  """The keys that nnx.Rngs(key) would give, but counted by Python.

  Under jit or eval_shape NNX's own counter is traced, which costs time quadratic in the number of
  parameters: half a minute for the published model, where this takes one second.
  """

  def __init__(self, key: Key[Array, '']):
    numbers = itertools.count()
    self._next = lambda: jax.random.fold_in(key, next(numbers))

  def __getattr__(self, name: str):
    if name.startswith('_'):
      raise AttributeError(name)
    return self._next  # one stream for all uses, as nnx.Rngs has with a default only

  def __call__(self) -> Key[Array, '']:
    return self._next()


@dataclasses.dataclass(frozen=True)
class Graph:
  """A model without its parameters.

  definition: NNX's. variables: each parameter's path in the module and its empty nnx.Param, by
  name. rest: leaves that are no parameters (random streams of layers); they are neither trained
  nor saved, for all randomness of a step comes from its key.
  """

  definition: nnx.GraphDef
  variables: dict[str, tuple[tuple, nnx.Param]]
  rest: Any


def flatten(model: nnx.Module) -> tuple[Graph, Params]:
  """Split a model (abstract ones too) into its graph and a flat dict of all its parameters."""
  definition, params, rest = nnx.split(model, nnx.Param, ...)
  variables, flat = {}, {}
  for path, variable in nnx.to_flat_state(params):
    name = '.'.join(map(str, path))
    variables[name] = (path, variable.replace(None))
    flat[name] = variable.get_value()
  return Graph(definition, variables, rest), flat


def compute_dtypes(model: nnx.Module) -> dict[str, Any]:
  """In what the kernels of a model (abstract ones too) are used, by name: linear layers and

  convolutions cast them on every call, so a kernel that was cast before is as good.
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
  """The model with these parameters; the inverse of `flatten`, also inside jit."""
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
  """Two dicts, (trainable, frozen): a parameter trains where `trainable`, a regular expression,

  matches whole parts of its path from the start: 'unet|conditioner' takes 'unet.conv_in.kernel'.
  `setting` is what the pattern is called where it matches nothing (ValueError).
  """
  pattern = re.compile(rf'(?:{trainable})(?:\.|$)')
  chosen = {name: value for name, value in params.items() if pattern.match(name)}
  if not chosen:
    tops = sorted({name.split('.')[0] for name in params})
    raise ValueError(
      f"{setting} is '{trainable}', which matches no parameter; the parts are {', '.join(tops)}"
    )
  return chosen, {name: value for name, value in params.items() if name not in chosen}
