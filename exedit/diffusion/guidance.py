"""Classifier-free guidance in training and sampling (Ho & Salimans 2022, arXiv 2207.12598)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped


def doubled(
  context: Shaped[Array, 'b ...'], null: Shaped[Array, '_ ...']
) -> Shaped[Array, 'b2 ...']:
  """The batch for a guided prediction: all examples with `null`, then all with their context."""
  return jnp.concatenate([jnp.broadcast_to(null, context.shape).astype(context.dtype), context])


def combined(
  eps: Float[Array, 'b2 ...'], scale: float | int | Float[Array, '']
) -> Float[Array, 'b ...']:
  """eps_null + scale (eps - eps_null), from the predictions of both halves (their eq. 6)."""
  eps_null, eps = jnp.split(eps, 2)
  return eps_null + jnp.asarray(scale, eps.dtype) * (eps - eps_null)


def inside(
  t: Int[Array, '...'] | Int[np.ndarray, '...'], interval: tuple[float, float], num_steps: int
) -> Bool[Array, '...'] | Bool[np.ndarray, '...']:
  """Whether a timestep lies in a guidance interval (Kynkäänniemi et al. 2024, arXiv 2404.07724).

  interval: the shares of the noise schedule between which guidance is used, from 0 (no noise) to 1.
  The paper's is between two noise levels, which grow with the timestep.
  """
  low, high = (share * num_steps for share in interval)
  return (t >= math.ceil(low - 1e-9)) & (t <= math.floor(high + 1e-9))


def drop(
  context: Shaped[Array, 'b ...'],
  null: Shaped[Array, '1 ...'],
  key: Key[Array, ''] | Key[Array, ' b'],
  p: float | Float[Array, ''],
) -> Shaped[Array, 'b ...']:
  """Replace the context by the null with probability `p` (their algorithm 1).

  The context may also be the tokens that make it, and the null those of an empty text.
  With b keys each example has its own coin, as in the paper. With one key the whole batch has one
  coin, as in the released code of Paint by Example (PbE ldm/models/diffusion/ddpm.py).
  """
  toss = jax.vmap(lambda key: jax.random.bernoulli(key, p))
  coins = toss(key.reshape(-1)).reshape(-1, *[1] * (context.ndim - 1))  # [b 1 ...] or [1 1 ...]
  return jnp.where(coins, null.astype(context.dtype), context)
