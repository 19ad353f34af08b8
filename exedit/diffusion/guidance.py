"""Classifier-free guidance in training and sampling (Ho & Salimans 2022, arXiv 2207.12598)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped


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
