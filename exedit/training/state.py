"""The train state, and the parts of a step that change it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from exedit.models.parameters import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that a checkpoint stores.

  step: the number of steps done, int32. params: the parameters that train. ema: their moving
  average, or empty. opt_state: optax's state. counts: int32 totals since the run began: `skipped`
  steps, the length of the present run of skipped steps `in_a_row`, and `corrupt` records.
  """

  step: Any  # arrays, or shapes or shardings in a tree that describes them
  params: Any
  ema: Any
  opt_state: Any
  counts: Any


def create(params: Params, tx: optax.GradientTransformation, *, ema: bool) -> TrainState:
  """The state before the first step."""

  def zero():  # a new buffer each time, because one buffer cannot be donated twice
    return jnp.zeros((), jnp.int32)

  return TrainState(
    step=zero(),
    params=params,
    ema=jax.tree.map(jnp.copy, params) if ema else {},
    opt_state=tx.init(params),
    counts=dict(skipped=zero(), in_a_row=zero(), corrupt=zero()),
  )


@dataclasses.dataclass(frozen=True)
class Ema:
  """Moving average of the parameters, with decay min(decay, (1 + n) / (10 + n)) in update n.

  The warm-up is LitEma's (Stable Diffusion ldm/modules/ema.py), which counts updates from 1.

  decay: decay of the average. 0 keeps no average, like the released run (docs/facts.md, Loss and
    training recipe). warmup: lower decays at the beginning.

  Raises:
    ValueError: for a decay that is not in [0, 1).
  """

  decay: float = 0.0
  warmup: bool = True

  def __post_init__(self):
    if not 0 <= self.decay < 1:
      raise ValueError(f'ema.decay is {self.decay}; it must be in [0, 1), 0 for none')

  @property
  def on(self) -> bool:
    """Whether an average is kept."""
    return self.decay > 0

  def update(self, ema: Params, params: Any, n: Int[Array, '']) -> Params:
    """The average after update number n, counted from 1; an empty one stays empty."""
    n = n.astype(jnp.float32)
    decay = jnp.minimum(self.decay, (1 + n) / (10 + n)) if self.warmup else self.decay
    return {name: old + (1 - decay) * (params[name] - old) for name, old in ema.items()}


def guarded(finite: Bool[Array, ''], update: Callable[[Any], Any], old: Any) -> Any:
  """update(old) if the step was finite, else `old`.

  XLA's CPU compiler would keep a second copy of every array for a choice array by array. There one
  of two branches runs instead, which updates everything in place.
  """

  def choose(old):
    return jax.tree.map(lambda o, n: jnp.where(finite, n, o), old, update(old))

  def branch(old):
    return jax.lax.cond(finite, update, lambda old: old, old)

  return jax.lax.platform_dependent(old, cpu=branch, default=choose)


def counted(new: TrainState, finite: Bool[Array, ''], corrupt: Int[Array, '']) -> TrainState:
  """Adds this step to the counts."""
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
  """The sum of the losses and the number of examples in equal parts of [0, num_timesteps)."""
  member = jax.nn.one_hot(t * buckets // num_timesteps, buckets)  # [b k]
  # A product with 0 would be NaN for a loss that is NaN, in every bucket.
  losses = jnp.where(member > 0, per_example[:, None], 0)
  return losses.sum(0), member.sum(0).astype(jnp.int32)
