"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): training and sampling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree, Shaped


def classifier_free(
  denoise: Callable,
  context: PyTree[Shaped[Array, 'b ...']],
  null: PyTree[Shaped[Array, '_ ...']],
  scale: float | int | Float[Array, ''],
) -> Callable:
  """A denoiser `(x, t) -> eps_null + scale (eps - eps_null)` (their eq. 6, where scale is 1 + w).

  `denoise(x, t, context)` is called once with the batch doubled, the half with `null` first.
  `context` and `null` are pytrees of one structure with a leading batch axis (null's may be 1).
  Guidance is off, and nothing doubled, only where scale is the Python number 1.0: the original's
  rule (diffusers' is scale <= 1). The two eps are combined in x's dtype.
  """
  if isinstance(scale, float | int) and scale == 1.0:
    return lambda x, t: denoise(x, t, context)

  contexts = jax.tree.map(doubled, context, null)

  def guided(x, t):
    eps = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), contexts)
    return combined(eps.astype(x.dtype), scale)

  return guided


def doubled(
  context: Shaped[Array, 'b ...'], null: Shaped[Array, '_ ...']
) -> Shaped[Array, 'b2 ...']:
  """Both halves of guidance as one batch, the half with `null` first."""
  return jnp.concatenate([jnp.broadcast_to(null, context.shape).astype(context.dtype), context])


def combined(
  eps: Float[Array, 'b2 ...'], scale: float | int | Float[Array, '']
) -> Float[Array, 'b ...']:
  """The guided prediction from those of both halves, null's first (their eq. 6)."""
  eps_null, eps = jnp.split(eps, 2)
  return eps_null + jnp.asarray(scale, eps.dtype) * (eps - eps_null)


def drop(
  context: Float[Array, 'b n d'],
  null: Float[Array, '1 #n d'],
  key: Key[Array, ''] | Key[Array, ' b'],
  p: float | Float[Array, ''],
) -> Float[Array, 'b n d']:
  """Replace the condition by the null with probability `p` (their algorithm 1).

  An array of b keys tosses one coin per example, as the paper reads; a single key tosses one
  for the whole batch, as the released Paint by Example code did (ddpm.py).
  """
  toss = jax.vmap(lambda key: jax.random.bernoulli(key, p))
  coins = toss(key.reshape(-1))[:, None, None]  # [b 1 1] or [1 1 1]
  return jnp.where(coins, null.astype(context.dtype), context)
