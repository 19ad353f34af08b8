"""AdamW with warm-up, weight decay and learning rates by parameter path.

The defaults are those of the released run (docs/facts.md, Loss and training recipe).
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

SCHEDULES = ('constant', 'cosine')
LIMITS = dict(
  lr=(1e-12, None),
  b1=(0, 0.999999),
  b2=(0, 0.99999999),
  eps=(1e-20, None),
  weight_decay=(0, None),
  clip=(1e-12, None),
  warmup=(0, None),
  lr_end=(0, None),
)


def make_optimizer(
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
  """AdamW (or plain 'sgd') for a flat dict of parameters.

  Its `update` takes the global norm of the gradient as `grad_norm`, because each device passes only
  its part of the gradient.

  Args:
    lr: learning rate after the warm-up. lr_end: at the end of a cosine schedule.
    b1, b2: decays of AdamW's two moments. eps: added to the root of the second moment.
    weight_decay: share of a parameter, times the learning rate, that each update takes away.
    decay_exclude: a regular expression; parameters whose path it finds get no weight decay.
    decay_vectors: False: parameters of at most one axis (norms, biases) get none either.
    lr_multipliers: {regular expression: factor of the learning rate and the decay}; the first one
      that finds a path counts.
    clip: bound of the global norm of the gradient; None: no bound.
    warmup: number of updates. schedule: 'constant' or 'cosine', which ends at `lr_end` at update
      `steps`.
  Raises:
    ValueError: for an unknown name or schedule; from `init`, for a multiplier that finds nothing.
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


def fitted(optimizer: Mapping[str, Any], steps: int) -> tuple[dict[str, Any], str]:
  """(arguments of `make_optimizer` whose cosine has steps after the warm-up, a line about that).

  The line is empty if the run is longer than its warm-up.
  """
  warmup = optimizer.get('warmup', 10_000)
  if steps > warmup:
    return dict(optimizer), ''
  words = f'config.steps is {steps} and config.optimizer.warmup {warmup}: '
  if optimizer.get('schedule') != 'cosine':
    return dict(optimizer), f'{words}the run ends before its learning rate is reached'
  short = steps // 10
  return {**optimizer, 'warmup': short}, f'{words}the warm-up takes {short} steps, a tenth'


def learning_rate_schedule(
  lr: float, warmup: int, schedule: str = 'constant', lr_end: float = 0.0, steps: int | None = None
) -> Callable[[Any], jax.Array]:
  """The learning rate of update n: lr * (1e-6 + (1 - 1e-6) n / warmup), then constant or cosine.

  The warm-up is LambdaLinearScheduler (PbE ldm/lr_scheduler.py).

  Raises:
    ValueError: for an unknown schedule, or a cosine without steps after the warm-up.
  """
  if schedule not in SCHEDULES:
    raise ValueError(f"optimizer.schedule is '{schedule}'; use one of {', '.join(SCHEDULES)}")
  length = (steps or 0) - warmup
  if schedule == 'cosine' and length <= 0:
    raise ValueError(
      f'a cosine schedule needs more steps ({steps}) than warm-up ({warmup}): set '
      '--config.optimizer.warmup or --config.steps'
    )

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
  """The learning rate that the last update used."""
  return opt_state[-1].rate


def _clip(bound: float) -> optax.GradientTransformationExtraArgs:
  """optax.clip_by_global_norm for gradients that are split over devices."""

  def init(params):
    return optax.EmptyState()

  def update(updates, state, params=None, *, grad_norm=None):
    norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
    factor = jnp.where(norm < bound, 1.0, bound / norm)
    return jax.tree.map(lambda u: u * factor, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


class RateState(NamedTuple):
  """The number of updates, and the learning rate that the last one used."""

  count: jax.Array
  rate: jax.Array


def _scale_by_rate(rate: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
  """Multiplies by minus the scheduled rate, and stores the rate in the state for the log."""

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
      name: (vectors or value.ndim > 1) and not (pattern and pattern.search(name))
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
