"""AdamW with warm-up, decay and learning rates by parameter path (facts 5)."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

SCHEDULES = ('constant', 'cosine')


def make(
  name: str = 'adamw',
  lr: float = 1e-5,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 1e-2,
  decay_exclude: str = '',
  decay_vectors: bool = True,
  lr_multipliers: Mapping[str, float] = {},
  clip: float | None = None,
  warmup: int = 10_000,
  schedule: str = 'constant',
  lr_end: float = 0.0,
  steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
  """AdamW (or plain 'sgd') over a flat dict of parameters; the defaults are the original's.

  Weight decay falls on every parameter, as in the original, except on those whose path
  `decay_exclude` (a regular expression) finds, and with decay_vectors=False on those of one axis
  (norms and biases). `lr_multipliers` maps regular expressions to factors of the learning rate,
  decay included; the first that finds a path counts. `clip` bounds the global norm of the gradient.
  'cosine' ends at `lr_end` at step `steps`. `update` takes the gradient's global norm as
  `grad_norm` where the gradient that it is given is only one device's part.
  """
  if name not in ('adamw', 'sgd'):
    raise ValueError(f"optimizer.name is '{name}'; use 'adamw' or 'sgd'")
  rate = learning_rate_schedule(lr, warmup, schedule, lr_end, steps)
  chain: list[optax.GradientTransformation] = [] if clip is None else [_clip(clip)]
  if name == 'adamw':
    decays = _decays(decay_exclude, decay_vectors)
    chain.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
    chain.append(optax.add_decayed_weights(weight_decay, mask=decays))
  chain.append(_scale_by_path(lr_multipliers))
  chain.append(_scale_by_rate(rate))
  return optax.with_extra_args_support(optax.chain(*chain))


def learning_rate_schedule(
  lr: float, warmup: int, schedule: str = 'constant', lr_end: float = 0.0, steps: int | None = None
) -> Callable[[Any], jax.Array]:
  """Learning rate of update n: lr * (1e-6 + (1 - 1e-6) n / warmup), then constant or cosine.

  The warm-up is the original's LambdaLinearScheduler (ldm/lr_scheduler.py, facts 5).
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"optimizer.schedule is '{schedule}'; use one of {', '.join(SCHEDULES)}")
  length = (steps or 0) - warmup
  if schedule == 'cosine' and length <= 0:
    raise ValueError(f'a cosine schedule needs more steps ({steps}) than warm-up ({warmup})')

  def rate(n):
    n = jnp.asarray(n, jnp.float32)
    rising = lr * (1e-6 + (1 - 1e-6) * n / max(warmup, 1))
    after = jnp.float32(lr)
    if schedule == 'cosine':
      part = jnp.clip((n - warmup) / length, 0, 1)
      after = lr_end + (lr - lr_end) * (1 + jnp.cos(jnp.pi * part)) / 2
    return jnp.where(n < warmup, rising, after)

  return rate


def learning_rate(opt_state: Any) -> Float[Array, '']:
  """The rate that the last update used."""
  return opt_state[-1].rate


def _clip(bound: float) -> optax.GradientTransformationExtraArgs:
  """optax.clip_by_global_norm, for gradients of which one device sees a part."""

  def init(params):
    return optax.EmptyState()

  def update(updates, state, params=None, *, grad_norm=None):
    norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
    factor = jnp.where(norm < bound, 1.0, bound / norm)
    return jax.tree.map(lambda u: u * factor, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


class RateState(NamedTuple):
  """Updates done so far, and the learning rate that the last one used."""

  count: jax.Array
  rate: jax.Array


def _scale_by_rate(rate: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
  """Descend by the scheduled rate, and keep it in the state, where the log reads it."""

  def init(params):
    return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

  def update(updates, state, params=None):
    now = rate(state.count)
    return jax.tree.map(lambda u: -now * u, updates), RateState(state.count + 1, now)

  return optax.GradientTransformation(init, update)


def _decays(exclude: str, vectors: bool):
  pattern = re.compile(exclude) if exclude else None

  def mask(params):
    return {
      name: (vectors or value.ndim != 1) and not (pattern and pattern.search(name))
      for name, value in params.items()
    }

  return mask


def _scale_by_path(multipliers: Mapping[str, float]) -> optax.GradientTransformation:
  factors = [(re.compile(pattern), factor) for pattern, factor in multipliers.items()]

  def of(name):
    return next((factor for pattern, factor in factors if pattern.search(name)), 1.0)

  def init(params):
    unused = [p.pattern for p, _ in factors if not any(map(p.search, params))]
    if unused:
      raise ValueError(f'optimizer.lr_multipliers: {unused} match no trained parameter')
    return optax.EmptyState()

  def update(updates, state, params=None):
    return {name: value * of(name) for name, value in updates.items()}, state

  return optax.GradientTransformation(init, update)
