"""What a run carries from step to step: flat dicts of arrays, and their way to a model and back."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

Params = dict[str, Any]  # {'unet.conv_in.kernel': array, ...}, or shapes in place of arrays


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a checkpoint holds.

  step: how many steps are done, int32. params: the trainable ones, Params. ema: their moving
  average, Params or empty. opt_state: optax's. counts: int32 totals since the run began: `skipped`
  steps, how many of them come `in_a_row` just now, and `corrupt` records met.
  """

  step: Any  # arrays; where the tree describes them, shapes or shardings
  params: Any
  ema: Any
  opt_state: Any
  counts: Any


def create(params: Params, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
  """The state before the first step."""

  def zero():  # each its own buffer: one buffer cannot be donated twice
    return jnp.zeros((), jnp.int32)

  return TrainState(
    step=zero(),
    params=params,
    ema=jax.tree.map(jnp.copy, params) if ema else {},
    opt_state=tx.init(params),
    counts=dict(skipped=zero(), in_a_row=zero(), corrupt=zero()),
  )


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


@dataclasses.dataclass(frozen=True)
class Ema:
  """Moving average of the parameters with warm-up: min(decay, (1 + n) / (10 + n)) after n updates.

  The warm-up is that of Stable Diffusion's LitEma (CompVis ldm/modules/ema.py). A decay of 0 keeps
  no average, as the released run of Paint by Example (facts 5).
  """

  decay: float = 0.0
  warmup: bool = True

  def __post_init__(self):
    if not 0 <= self.decay < 1:
      raise ValueError(f'ema.decay is {self.decay}; it must be in [0, 1), 0 for none')

  @property
  def on(self) -> bool:
    return self.decay > 0

  def update(self, ema: Params, params: Any, n: Int[Array, '']) -> Params:
    """The average after update number n (from 0); empty stays empty."""
    n = n.astype(jnp.float32)
    decay = jnp.minimum(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
    return {name: old + (1 - decay) * (params[name] - old) for name, old in ema.items()}


def guarded(finite: Bool[Array, ''], update: Callable[[Any], Any], old: Any) -> Any:
  """update(old), or `old` where the step was not finite.

  Chosen array by array, XLA's CPU compiler would keep a second copy of all of them: there one of
  two branches runs, and everything is updated in place.
  """

  def choose(old):
    return jax.tree.map(lambda o, n: jnp.where(finite, n, o), old, update(old))

  def branch(old):
    return jax.lax.cond(finite, update, lambda old: old, old)

  return jax.lax.platform_dependent(old, cpu=branch, default=choose)


def counted(new: TrainState, finite: Bool[Array, ''], corrupt: Int[Array, '']) -> TrainState:
  """The state with this step in its counts."""
  bad = 1 - finite.astype(jnp.int32)
  counts = dict(
    skipped=new.counts['skipped'] + bad,
    in_a_row=(new.counts['in_a_row'] + bad) * bad,
    corrupt=new.counts['corrupt'] + corrupt,
  )
  return dataclasses.replace(new, step=new.step + 1, counts=counts)


def timestep_buckets(
  per_example: Float[Array, ' b'], t: Int[Array, ' b'], num_timesteps: int, buckets: int = 4
) -> tuple[Float[Array, ' k'], Int[Array, ' k']]:
  """Sum of the losses and number of examples in equal parts of [0, num_timesteps)."""
  member = jax.nn.one_hot(t * buckets // num_timesteps, buckets)  # [b k]
  # A product with a zero would let one bad example into every bucket.
  losses = jnp.where(member > 0, per_example[:, None], 0)
  return losses.sum(0), member.sum(0).astype(jnp.int32)
