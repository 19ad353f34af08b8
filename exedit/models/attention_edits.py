"""Edits of attention maps as edits of queries, keys and values, so that no map is ever written.

A map acts on values linearly, `(A_source mix + A_target diag(own)) v = A_source (mix v) + A_target
(own v)`. So an edited cross-attention is one more row of ordinary attention, and a map of words is
attention whose values are words. Every form of `kernels.attend` serves.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Attend = Callable[[Array, Array, Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Edit:
  """What the attention of b targets takes from that of their sources, at one step.

  The last 2b rows of the batch are the sources and then the targets. Other rows are left alone.

  mix, own: the map of the target's cross-attention becomes `A_source mix + A_target diag(own)`.
  hold: the target takes the source's map of self-attention, in layers of at most `most` tokens.
  """

  mix: Float[Array, 'b m m']
  own: Float[Array, 'b m']
  hold: Bool[Array, ' b']
  most: int = dataclasses.field(metadata=dict(static=True))


def held(
  edit: Edit, q: Float[Array, 'r n heads d'], k: Float[Array, 'r n heads d']
) -> tuple[Float[Array, 'r n heads d'], Float[Array, 'r n heads d']]:
  """Queries and keys of a self-attention; equal ones make equal maps."""
  if q.shape[1] > edit.most:
    return q, k
  b, hold = len(edit.hold), edit.hold[:, None, None, None]
  take = lambda a: a.at[-b:].set(jnp.where(hold, a[-2 * b : -b], a[-b:]))
  return take(q), take(k)


def crossed(
  attend: Attend,
  edit: Edit,
  q: Float[Array, 'r n heads d'],
  k: Float[Array, 'r m heads d'],
  v: Float[Array, 'r m heads d'],
) -> Float[Array, 'r n heads d']:
  """A cross-attention with the target's maps edited: b more rows, added to those of the targets."""
  b = len(edit.own)
  source, target = slice(-2 * b, -b), v[-b:]
  mixed = jnp.einsum('bjw,bwhd->bjhd', edit.mix.astype(v.dtype), target)
  own = edit.own.astype(v.dtype)[:, :, None, None] * target
  rows = lambda a: jnp.concatenate([a, a[source]])
  y = attend(rows(q), rows(k), jnp.concatenate([v[:-b], own, mixed]))
  return y[:-b].at[-b:].add(y[-b:])


def maps(
  attend: Attend,
  edit: Edit | None,
  q: Float[Array, 'r n heads d'],
  k: Float[Array, 'r m heads d'],
) -> Float[Array, 's n m']:
  """The maps of all tokens, averaged over the heads: of every row, or of an edit's targets only."""
  words = jnp.eye(k.shape[1], dtype=jnp.float32)[None]
  if edit is None:
    return _values(attend, q, k, jnp.broadcast_to(words, (len(k), *words.shape[1:])))
  b = len(edit.own)
  both = jnp.concatenate([edit.mix, edit.own[:, :, None] * words])
  source, target = jnp.split(_values(attend, q[-2 * b :], k[-2 * b :], both), 2)
  return source + target


def _values(attend, q, k, values):
  """Attention whose values [r m w] are the same for all heads; their mean, in float32."""
  d, width = q.shape[-1], values.shape[-1]
  values = jnp.pad(values, ((0, 0), (0, 0), (0, -width % d))).astype(q.dtype)
  parts = [
    attend(q, k, jnp.broadcast_to(part[:, :, None], k.shape)).astype(jnp.float32).mean(2)
    for part in jnp.split(values, values.shape[-1] // d, -1)
  ]
  return jnp.concatenate(parts, -1)[..., :width]
