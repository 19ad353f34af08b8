"""One attention; the one place where it may be edited."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks

SMALL = 2**18  # logits of one head; with no more, all heads are computed together
MANY = 2**26  # logits of all heads, 256 MiB in float32; with more, some queries after the others
CPU_QUERIES = 128  # at a time: with 4096 keys their logits are 2 MiB, about a core's L2 cache


class Attention(nnx.Module):
  """Multi-head attention over a context (or over x itself), softmax in float32.

  LDM attention.py CrossAttention: `to_q, to_k, to_v` without bias unless `qkv_bias`, `to_out` with.
  """

  def __init__(
    self,
    features: int,
    *,
    heads: int,
    context_features: int | None = None,
    qkv_bias: bool = False,
    implementation: Literal['xla', 'cudnn'] | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    context_features = context_features or features
    linear = functools.partial(nnx.Linear, use_bias=qkv_bias, dtype=dtype, rngs=rngs)
    self.heads = heads
    self.implementation: Literal['xla', 'cudnn'] | None = implementation
    self.to_q = linear(features, features)
    self.to_k = linear(context_features, features)
    self.to_v = linear(context_features, features)
    self.to_out = nnx.Linear(features, features, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: Float[Array, 'b n c'], context: Float[Array, 'b m d'] | None = None
  ) -> Float[Array, 'b n c']:
    context = x if context is None else context
    q, k, v = (self._split(a) for a in (self.to_q(x), self.to_k(context), self.to_v(context)))
    y = attend(q, k, v, self.implementation)
    return self.to_out(y.reshape(x.shape))

  def constant(self, context: Float[Array, 'b 1 d']) -> Float[Array, 'b 1 c']:
    """The output for a context of one token: softmax over one key is 1, so q and k drop out."""
    return self.to_out(self.to_v(context))

  def _split(self, a: Float[Array, 'b n c']) -> Float[Array, 'b n heads head']:
    return a.reshape(*a.shape[:2], self.heads, -1)


def attend(
  q: Float[Array, 'b n heads d'],
  k: Float[Array, 'b m heads d'],
  v: Float[Array, 'b m heads d'],
  implementation: Literal['xla', 'cudnn'] | None = None,
) -> Float[Array, 'b n heads d']:
  """softmax(q k^T / sqrt(d)) v, the softmax in float32 (arXiv 1706.03762, eq. 1).

  Where the logits are many they are never all there at once, neither here nor in the gradient,
  which computes them again. That is exact: each query sees all keys, only not at the same time.
  """
  (b, n, heads, _), m = q.shape, k.shape[1]
  whole = functools.partial(jax.nn.dot_product_attention, implementation=implementation)
  if implementation == 'cudnn' or n * m <= SMALL:
    return whole(q, k, v)
  some = max(512, MANY // (b * heads * m))  # fewer would leave a fast device idle
  rest = whole if n <= some else functools.partial(_by_queries, some, whole)
  return jax.lax.platform_dependent(q, k, v, cpu=_by_head, default=rest)


def _by_queries(some: int, whole, q, k, v):
  """Attention for `some` queries at a time, of all heads."""
  b, n, heads, d = q.shape
  q = jnp.pad(q, ((0, 0), (0, -n % some), (0, 0), (0, 0))).reshape(b, -1, some, heads, d)
  part = jax.checkpoint(lambda q: whole(q, k, v), prevent_cse=False)
  y = jax.lax.map(part, jnp.moveaxis(q, 1, 0))  # [n/some b some heads d]
  return jnp.moveaxis(y, 0, 1).reshape(b, -1, heads, d)[:, :n]


def _by_head(q, k, v):
  """Attention for one head and a few queries at a time, so that the logits stay in the cache.

  Keys are rows and queries columns: the maximum then runs along the processor's vectors. The sum
  comes out of the second product, as one more row of v that is all ones.
  """
  b, n, heads, d = q.shape
  some = CPU_QUERIES
  q = jnp.pad(q, ((0, 0), (0, -n % some), (0, 0), (0, 0)))
  q = q.reshape(b, -1, some, heads, d).transpose(0, 3, 1, 4, 2).reshape(b * heads, -1, d, some)
  k = k.transpose(0, 2, 1, 3).reshape(b * heads, -1, d)
  v = v.transpose(0, 2, 3, 1).reshape(b * heads, d, -1)
  v = jnp.concatenate([v, jnp.ones_like(v[:, :1])], 1)  # [b*heads d+1 m]
  dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)

  def head(qkv):
    q, k, v = qkv

    def part(q):
      logits = dot(k, q)  # [m some]
      p = jnp.exp((logits - logits.max(0, keepdims=True)) * d**-0.5)
      y = dot(v, p.astype(v.dtype))
      return y[:-1] / y[-1:]

    return jax.lax.map(jax.checkpoint(part, prevent_cse=False), q)

  y = jax.lax.map(head, (q, k, v)).astype(v.dtype)  # [b*heads n/some d some]
  y = y.transpose(0, 1, 3, 2).reshape(b, heads, -1, d)
  return y.transpose(0, 2, 1, 3)[:, :n]


class GEGLU(nnx.Module):
  """Gated feed-forward: value * GELU(gate), exact (erf) GELU (LDM attention.py FeedForward)."""

  def __init__(self, features: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.proj = nnx.Linear(features, 8 * features, dtype=dtype, rngs=rngs)
    self.out = nnx.Linear(4 * features, features, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    value, gate = jnp.split(self.proj(x), 2, -1)
    return self.out(value * jax.nn.gelu(gate, approximate=False))


class SpatialTransformer(nnx.Module):
  """Self-attention, cross-attention and feed-forward over the pixels (LDM SpatialTransformer).

  The context is `[bk n d]` tokens, or this layer's precomputed constant `[bk 1 c]` where there is
  only one token (design: exact shortcut 1); the caller says which by `constant`. With k > 1 the
  batch continues k times as large from where the context enters (exact shortcut 5).
  """

  def __init__(
    self,
    channels: int,
    *,
    heads: int,
    context_dim: int,
    groups: int = 32,
    implementation: Literal['xla', 'cudnn'] | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    attention = functools.partial(
      Attention, channels, heads=heads, implementation=implementation, dtype=dtype, rngs=rngs
    )
    self.norm = blocks.group_norm(channels, eps=1e-6, groups=groups, rngs=rngs)
    self.proj_in = nnx.Linear(channels, channels, dtype=dtype, rngs=rngs)
    self.norm1 = blocks.layer_norm(channels, rngs=rngs)
    self.attn1 = attention()
    self.norm2 = blocks.layer_norm(channels, rngs=rngs)
    self.attn2 = attention(context_features=context_dim)
    self.norm3 = blocks.layer_norm(channels, rngs=rngs)
    self.ff = GEGLU(channels, dtype=dtype, rngs=rngs)
    self.proj_out = nnx.Linear(channels, channels, kernel_init=blocks.zeros, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: Float[Array, 'b h w c'], context: Float[Array, 'bk n d'], *, constant: bool
  ) -> Float[Array, 'bk h w c']:
    b, h, w, c = x.shape
    y = self.proj_in(self.norm(x)).reshape(b, h * w, c)
    y = self.attn1(self.norm1(y)) + y
    x, y = blocks.tile(x, context), blocks.tile(y, context)
    y = (context if constant else self.attn2(self.norm2(y), context)) + y
    y = self.ff(self.norm3(y)) + y
    return self.proj_out(y).reshape(x.shape) + x
