"""One attention; the one place where it may be edited."""

import functools
from collections.abc import Callable
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks, target

Implementation = Literal['xla', 'cudnn'] | None

SMALL = 2**18  # logits of one head; with no more, all heads are computed together
MANY = 2**26  # logits of all heads, 256 MiB in float32; with more, some queries after the others
# Queries and keys of one block of a TPU's kernel at most, half of it for wide heads: what the
# 16 MiB that a kernel has on the chip hold.
SPLASH = 1024
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
    implementation: Implementation = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    context_features = context_features or features
    linear = functools.partial(nnx.Linear, use_bias=qkv_bias, dtype=dtype, rngs=rngs)
    self.heads = heads
    self.implementation: Implementation = implementation
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
  implementation: Implementation = None,
) -> Float[Array, 'b n heads d']:
  """softmax(q k^T / sqrt(d)) v, the softmax in float32 (arXiv 1706.03762, eq. 1).

  Where the logits are many they are never all there at once, neither here nor in the gradient,
  which computes them again. That is exact: each query sees all keys, only not at the same time.
  (A TPU's kernel rounds once more, q to its own type after the scale.) `implementation` is what
  `choose` takes for `target.device()` unless it is said.

  Raises:
    ValueError: for 'cudnn' where it cannot be.
  """
  (b, n, heads, d), m = q.shape, k.shape[1]
  chosen = choose(q.dtype, (n, m), d, target.device(), implementation)
  if chosen == 'cudnn':
    return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')
  if chosen == 'splash':
    return _splash(q, k, v)
  whole = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  if n * m <= SMALL:
    return whole(q, k, v)
  some = max(512, MANY // (b * heads * m))  # fewer would leave a fast device idle
  rest = whole if n <= some else functools.partial(_by_queries, some, whole)
  return jax.lax.platform_dependent(q, k, v, cpu=_by_head, default=rest)


def choose(
  dtype: DTypeLike,
  tokens: tuple[int, int],
  d: int,
  on: target.Device,
  implementation: Implementation = None,
) -> Literal['xla', 'cudnn', 'splash']:
  """What computes attention of so many queries and keys, in heads of d features, on a device.

  'cudnn', flash attention, where NVIDIA's library has it: 16-bit numbers and a d that is a multiple
  of 8, at most 128 before Hopper and 256 from there on (jax fused_attention_stablehlo.py): Stable
  Diffusion's 40 and 80 always, its 160 on Hopper. 'splash', JAX's flash attention for TPUs, where
  there are many logits of bfloat16 numbers, and tokens in 128s. Else 'xla', as for
  target.PLAIN. What was asked for by name is not replaced by something else.

  Raises:
    ValueError: for 'cudnn' where it cannot be.
  """
  if implementation == 'xla' or on == target.PLAIN:
    return 'xla'
  if on.platform == 'tpu' and implementation is None:
    n, m = tokens
    fits = n * m > SMALL and n % 128 == m % 128 == 0
    return 'splash' if fits and jnp.dtype(dtype) == jnp.bfloat16 else 'xla'
  most = 256 if on.capability >= (9, 0) else 128
  lacks = [
    what
    for what, there in (
      (f'an NVIDIA GPU from 8.0 on (here: {on.platform}{_dotted(on)})', on.capability >= (8, 0)),
      (f'bfloat16 or float16 (not {jnp.dtype(dtype)})', jnp.dtype(dtype).itemsize == 2),
      (f'heads of at most {most} features, in eights (not {d})', d % 8 == 0 and d <= most),
    )
    if not there
  ]
  if implementation == 'cudnn' and lacks:
    raise ValueError(f"attention is 'cudnn', which needs {' and '.join(lacks)}; use None or 'xla'")
  return 'xla' if lacks else 'cudnn'


def _dotted(on: target.Device) -> str:
  return ' ' + '.'.join(map(str, on.capability)) if on.capability else ''


def _splash(q, k, v, interpret: bool = False):
  """Attention by JAX's kernel for TPUs: the logits stay on the chip, here and in the gradient.

  interpret: by a program for any device that does the same.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  (_, n, heads, d), m = q.shape, k.shape[1]
  most = SPLASH if d <= 128 else SPLASH // 2
  rows, columns = (next(b for b in range(most, 0, -128) if size % b == 0) for size in (n, m))
  blocks = splash.BlockSizes(
    block_q=rows,
    block_kv=columns,
    block_q_dkv=rows,
    block_kv_dkv=columns,
    use_fused_bwd_kernel=True,
  )
  with jax.ensure_compile_time_eval():
    kernel = splash.make_splash_mha(
      splash.MultiHeadMask([splash.FullMask((n, m))] * heads),
      head_shards=1,
      q_seq_shards=1,
      block_sizes=blocks,
      interpret=interpret,
    )
  scaled = (q * d**-0.5).astype(q.dtype)
  heads_first = (a.transpose(0, 2, 1, 3) for a in (scaled, k, v))
  y = jax.vmap(cast(Callable[..., Array], kernel))(*heads_first)
  return y.transpose(0, 2, 1, 3).astype(v.dtype)


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
  some = max(CPU_QUERIES, SMALL // k.shape[1])
  q = jnp.pad(q, ((0, 0), (0, -n % some), (0, 0), (0, 0)))
  q = q.reshape(b, -1, some, heads, d).transpose(0, 3, 1, 4, 2).reshape(b * heads, -1, d, some)
  k = k.transpose(0, 2, 1, 3).reshape(b * heads, -1, d)
  v = v.transpose(0, 2, 3, 1).reshape(b * heads, d, -1)
  y = _heads(q, k, v).astype(v.dtype)  # [b*heads n/some d some]
  y = y.transpose(0, 1, 3, 2).reshape(b, heads, -1, d)
  return y.transpose(0, 2, 1, 3)[:, :n]


_dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _heads(q, k, v):
  """q [heads parts d some], k [heads m d], v [heads d m] to float32 [heads parts d some]."""
  return _each(lambda *qkv: _part(*qkv)[0], q, k, v)


def _heads_forward(q, k, v):
  y, norm = _each(_part, q, k, v)
  return y, (q, k, v, y, norm)


def _each(part, q, k, v):
  v = jnp.concatenate([v, jnp.ones_like(v[:, :1])], 1)  # [heads d+1 m]
  head = lambda qkv: jax.lax.map(lambda q: part(q, *qkv[1:]), qkv[0])
  return jax.lax.map(head, (q, k, v))


def _part(q, k, v):
  """Attention of some queries [d some], and the logarithm of what their softmax divides by."""
  logits, scale = _dot(k, q), q.shape[0] ** -0.5  # [m some]
  top = logits.max(0, keepdims=True)
  p = jnp.exp((logits - top) * scale)
  y = _dot(v, p.astype(v.dtype))
  return y[:-1] / y[-1:], top * scale + jnp.log(y[-1:])


def _heads_backward(kept, dy):
  """The gradient, from the softmax computed again with its known sums (arXiv 2205.14135, B.2)."""
  q, k, v, y, norm = kept
  along = (y * dy).sum(2, keepdims=True)  # [heads parts 1 some]
  scale = q.shape[2] ** -0.5

  def head(args):
    q, k, v, dy, norm, along = args

    def part(sums, args):
      dk, dv = sums  # both [m d]: what is large stays as it is, what is small is transposed
      q, dy, norm, along = args
      p = jnp.exp(_dot(k, q) * scale - norm)  # [m some]
      dlogits = (p * (_dot(v.T, dy) - along) * scale).astype(k.dtype)
      sums = dk + _dot(dlogits, q.T), dv + _dot(p.astype(v.dtype), dy.T)
      return sums, _dot(k.T, dlogits)

    zeros = jnp.zeros(k.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(part, (zeros, zeros), (q, dy.astype(v.dtype), norm, along))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.T.astype(v.dtype)

  return jax.lax.map(head, (q, k, v, dy, norm, along))


_heads.defvjp(_heads_forward, _heads_backward)


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
    implementation: Implementation = None,
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
