"""The transformer layers of latent diffusion: attention, gated feed-forward, SpatialTransformer."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import attention_edits, blocks, kernels
from exedit.models.attention_edits import Edit
from exedit.models.kernels import Implementation


class Attention(nnx.Module):
  """Multi-head attention over a context, or over x itself, with the softmax in float32.

  `to_q`, `to_k` and `to_v` have a bias only with `qkv_bias`; `to_out` always has one (LDM
  ldm/modules/attention.py CrossAttention). With `causal` a token sees itself and earlier ones.
  `linear` makes the layers and decides how they start.
  """

  def __init__(
    self,
    features: int,
    *,
    heads: int,
    context_features: int | None = None,
    qkv_bias: bool = False,
    causal: bool = False,
    implementation: Implementation = None,
    linear: Callable[..., nnx.Linear] = blocks.linear,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    context_features = context_features or features
    qkv = functools.partial(linear, use_bias=qkv_bias, dtype=dtype, rngs=rngs)
    self.heads, self.causal = heads, causal
    self.implementation: Implementation = implementation
    self.to_q = qkv(features, features)
    self.to_k = qkv(context_features, features)
    self.to_v = qkv(context_features, features)
    self.to_out = linear(features, features, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, 'b n c'],
    context: Float[Array, 'b m d'] | None = None,
    edit: Edit | None = None,
  ) -> Float[Array, 'b n c']:
    own, context = context is None, x if context is None else context
    q, k, v = (self._split(a) for a in (self.to_q(x), self.to_k(context), self.to_v(context)))
    if edit is not None and own:
      q, k = attention_edits.held(edit, q, k)
    if edit is None or own:
      y = self._attend(q, k, v)
    else:
      y = attention_edits.crossed(self._attend, edit, q, k, v)
    return self.to_out(y.reshape(x.shape))

  def maps(
    self, x: Float[Array, 'b n c'], context: Float[Array, 'b m d'], edit: Edit | None = None
  ) -> Float[Array, 's n m']:
    """The maps of the context's tokens; see `attention_edits.maps`."""
    q, k = self._split(self.to_q(x)), self._split(self.to_k(context))
    return attention_edits.maps(self._attend, edit, q, k)

  def _attend(self, q, k, v):
    return kernels.attend(q, k, v, self.implementation, causal=self.causal)

  def constant(self, context: Float[Array, 'b 1 d']) -> Float[Array, 'b 1 c']:
    """The output for a context of one token, which depends on neither q nor k.

    The softmax over one key is 1 (docs/design.md, "Exact shortcuts").
    """
    return self.to_out(self.to_v(context))

  def _split(self, a: Float[Array, 'b n c']) -> Float[Array, 'b n heads head']:
    return a.reshape(*a.shape[:2], self.heads, -1)


class GEGLU(nnx.Module):
  """Gated feed-forward, value * GELU(gate) with exact (erf) GELU (LDM attention.py FeedForward)."""

  def __init__(self, features: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.proj = blocks.linear(features, 8 * features, dtype=dtype, rngs=rngs)
    self.out = blocks.linear(4 * features, features, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    value, gate = jnp.split(self.proj(x), 2, -1)
    return self.out(value * jax.nn.gelu(gate, approximate=False))


class SpatialTransformer(nnx.Module):
  """Self-attention, cross-attention and feed-forward over pixels (LDM SpatialTransformer).

  With `constant=False` the context is tokens `[bk n d]`. With `constant=True` it is this layer's
  precomputed output of a one-token context, `[bk 1 c]`. If k > 1, the batch becomes k times as
  large where the context enters. Both shortcuts are exact (docs/design.md, "Exact shortcuts").
  An edit (`attention_edits.Edit`) has all its rows in x. With `watch` the maps of the tokens come
  with the result.
  """

  def __init__(
    self,
    channels: int,
    *,
    heads: int,
    context_dim: int,
    groups: int = 32,
    implementation: Implementation = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    attention = functools.partial(
      Attention, channels, heads=heads, implementation=implementation, dtype=dtype, rngs=rngs
    )
    self.norm = blocks.group_norm(channels, eps=1e-6, groups=groups, rngs=rngs)
    self.proj_in = blocks.linear(channels, channels, dtype=dtype, rngs=rngs)
    self.norm1 = blocks.layer_norm(channels, rngs=rngs)
    self.attn1 = attention()
    self.norm2 = blocks.layer_norm(channels, rngs=rngs)
    self.attn2 = attention(context_features=context_dim)
    self.norm3 = blocks.layer_norm(channels, rngs=rngs)
    self.ff = GEGLU(channels, dtype=dtype, rngs=rngs)
    self.proj_out = blocks.linear(channels, channels, zero=True, dtype=dtype, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    context: Float[Array, 'bk n d'],
    edit: Edit | None = None,
    *,
    constant: bool,
    watch: bool = False,
  ) -> Float[Array, 'bk h w c'] | tuple[Float[Array, 'bk h w c'], Float[Array, 's h w n']]:
    b, h, w, c = x.shape
    y = self.proj_in(self.norm(x)).reshape(b, h * w, c)
    y = self.attn1(self.norm1(y), edit=edit) + y
    x, y = blocks.tile(x, context), blocks.tile(y, context)
    if watch:
      maps = self.attn2.maps(self.norm2(y), context, edit)
    y = (context if constant else self.attn2(self.norm2(y), context, edit)) + y
    y = self.ff(self.norm3(y)) + y
    y = self.proj_out(y).reshape(x.shape) + x
    return (y, maps.reshape(len(maps), h, w, -1)) if watch else y
