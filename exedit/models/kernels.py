"""Attention and 3x3 convolution, each in the form that is fastest on the device it is traced for.

`attend` and `convolve` are the only functions that networks call. All forms of one operation give
the same numbers up to rounding; docs/performance.md says what each of them saves.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Implementation = Literal['xla', 'cudnn'] | None

FEW_LOGITS = 2**18  # per head; up to this number, one product computes all heads together
MAX_LOGITS = 2**26  # of all heads together: 256 MiB in float32; above it, queries go in blocks
MIN_QUERIES = 512  # per block; a smaller block would leave a fast device idle
# Most queries and keys in a block of the TPU kernel, halved for heads wider than 128 features.
# Larger blocks do not fit into the 16 MiB of on-chip memory that a kernel may use.
SPLASH_BLOCK = 1024
CPU_QUERIES = 128  # per block; with 4096 keys their logits are 2 MiB, about one core's L2 cache


class Device(NamedTuple):
  """A kind of device: its platform ('cpu', 'gpu', 'tpu') and NVIDIA's compute capability."""

  platform: str
  capability: tuple[int, ...] = ()


PLAIN = Device('none')  # no special kernels, so that a trace shows every product and can be counted
_traced_for: contextvars.ContextVar[Device | None] = contextvars.ContextVar('device', default=None)


@contextlib.contextmanager
def traced_for(device: Device) -> Iterator[None]:
  """Trace the code inside for this kind of device instead of the local one.

  JAX caches traces of jitted functions and does not know about this setting, so a function that was
  traced before keeps its earlier choice until `jax.clear_caches`.
  """
  token = _traced_for.set(device)
  try:
    yield
  finally:
    _traced_for.reset(token)


def current_device() -> Device:
  """The kind of device that is traced for: the one of `traced_for`, else the local one."""
  chosen = _traced_for.get()
  if chosen is not None:
    return chosen
  first = jax.local_devices()[0]
  if first.platform != 'gpu' or 'cuda' not in first.client.platform_version:
    return Device(first.platform)
  return Device('gpu', tuple(map(int, first.compute_capability.split('.'))))


# Attention.


def attend(
  q: Float[Array, 'b n heads d'],
  k: Float[Array, 'b m heads d'],
  v: Float[Array, 'b m heads d'],
  implementation: Implementation = None,
  *,
  causal: bool = False,
) -> Float[Array, 'b n heads d']:
  """softmax(q k^T / sqrt(d)) v with the softmax in float32 (arXiv 1706.03762, eq. 1).

  causal: token i sees only the tokens 0 to i. This form is for short sequences, such as texts.

  If there are many logits, they never exist all at once: the forward pass computes them in blocks
  of queries, and the backward pass computes them again. This is exact, because each query still
  sees all keys. `implementation=None` uses what `choose` gives for the current device.

  Raises:
    ValueError: for 'cudnn' if it cannot compute this attention here.
  """
  if causal:
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation='xla')
  (b, n, heads, d), m = q.shape, k.shape[1]
  chosen = choose(q.dtype, (n, m), d, current_device(), implementation)
  if chosen == 'cudnn':
    return jax.nn.dot_product_attention(q, k, v, implementation='cudnn')
  if chosen == 'splash':
    return splash(q, k, v)
  whole = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  if n * m <= FEW_LOGITS:
    return whole(q, k, v)
  block = max(MIN_QUERIES, MAX_LOGITS // (b * heads * m))
  default = whole if n <= block else functools.partial(in_blocks, block, whole)
  return jax.lax.platform_dependent(q, k, v, cpu=on_cpu, default=default)


def choose(
  dtype: DTypeLike,
  tokens: tuple[int, int],
  d: int,
  device: Device,
  implementation: Implementation = None,
) -> Literal['xla', 'cudnn', 'splash']:
  """Choose what computes the attention of `tokens` (queries, keys) in heads of d features.

  'cudnn' is NVIDIA's flash attention. It needs 16-bit numbers and a d that is a multiple of 8, at
  most 128, or 256 from Hopper on (jax fused_attention_stablehlo.py). 'splash' is JAX's flash
  attention for TPUs; it is used for bfloat16 if there are many logits and both numbers of tokens
  are multiples of 128. 'xla' is everything else. An implementation that was asked for by name is
  never replaced by another one, except that `PLAIN` always gets 'xla'.

  Raises:
    ValueError: for 'cudnn' if it cannot compute this attention on the device.
  """
  if implementation == 'xla' or device == PLAIN:
    return 'xla'
  if device.platform == 'tpu' and implementation is None:
    n, m = tokens
    fits = n * m > FEW_LOGITS and n % 128 == m % 128 == 0
    return 'splash' if fits and jnp.dtype(dtype) == jnp.bfloat16 else 'xla'
  missing = _missing_for_cudnn(dtype, d, device)
  if implementation == 'cudnn' and missing:
    needs = ' and '.join(missing)
    raise ValueError(f"attention is 'cudnn', which needs {needs}; use None or 'xla'")
  return 'xla' if missing else 'cudnn'


def _missing_for_cudnn(dtype: DTypeLike, d: int, device: Device) -> list[str]:
  """The unmet requirements of cuDNN's attention, in words."""
  missing = []
  if device.capability < (8, 0):
    here = ' '.join([device.platform, '.'.join(map(str, device.capability))]).strip()
    missing.append(f'an NVIDIA GPU of compute capability 8.0 or higher (here: {here})')
  if jnp.dtype(dtype).itemsize != 2:
    missing.append(f'bfloat16 or float16 (not {jnp.dtype(dtype)})')
  most = 256 if device.capability >= (9, 0) else 128
  if d % 8 or d > most:
    missing.append(f'heads with a multiple of 8 and at most {most} features (not {d})')
  return missing


def splash(q, k, v, interpret: bool = False):
  """Attention by JAX's TPU kernel; logits stay on the chip, also in the backward pass.

  The kernel rounds q to its own type once more after the scale. `interpret` runs the same program
  on any device, for tests.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  (_, n, heads, d), m = q.shape, k.shape[1]
  most = SPLASH_BLOCK if d <= 128 else SPLASH_BLOCK // 2
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


def in_blocks(block: int, whole: Callable, q, k, v):
  """Attention of all heads, `block` queries after the other."""
  b, n, heads, d = q.shape
  q = jnp.pad(q, ((0, 0), (0, -n % block), (0, 0), (0, 0))).reshape(b, -1, block, heads, d)
  part = jax.checkpoint(lambda q: whole(q, k, v), prevent_cse=False)
  y = jax.lax.map(part, jnp.moveaxis(q, 1, 0))  # [n/block b block heads d]
  return jnp.moveaxis(y, 0, 1).reshape(b, -1, heads, d)[:, :n]


def on_cpu(q, k, v):
  """Attention of one head and one block of queries after the other; logits stay in the cache.

  Rows are keys and columns are queries, so that the maximum runs along the processor's vectors. The
  softmax's sum is a further row of the second product, because v gets a row of ones.
  """
  b, n, heads, d = q.shape
  block = max(CPU_QUERIES, FEW_LOGITS // k.shape[1])
  q = jnp.pad(q, ((0, 0), (0, -n % block), (0, 0), (0, 0)))
  q = q.reshape(b, -1, block, heads, d).transpose(0, 3, 1, 4, 2).reshape(b * heads, -1, d, block)
  k = k.transpose(0, 2, 1, 3).reshape(b * heads, -1, d)
  v = v.transpose(0, 2, 3, 1).reshape(b * heads, d, -1)
  y = _heads(q, k, v).astype(v.dtype)  # [b*heads n/block d block]
  y = y.transpose(0, 1, 3, 2).reshape(b, heads, -1, d)
  return y.transpose(0, 2, 1, 3)[:, :n]


_dot = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _heads(q, k, v):
  """q [heads parts d block], k [heads m d], v [heads d m] to float32 [heads parts d block]."""
  return _each(lambda *qkv: _block(*qkv)[0], q, k, v)


def _heads_forward(q, k, v):
  y, norm = _each(_block, q, k, v)
  return y, (q, k, v, y, norm)


def _each(function, q, k, v):
  """`function` of every head and block of queries, in turn."""
  v = jnp.concatenate([v, jnp.ones_like(v[:, :1])], 1)  # [heads d+1 m]
  head = lambda qkv: jax.lax.map(lambda q: function(q, *qkv[1:]), qkv[0])
  return jax.lax.map(head, (q, k, v))


def _block(q, k, v):
  """Attention of a block of queries [d block], and the logarithm of its softmax's divisor."""
  logits, scale = _dot(k, q), q.shape[0] ** -0.5  # [m block]
  top = logits.max(0, keepdims=True)
  p = jnp.exp((logits - top) * scale)
  y = _dot(v, p.astype(v.dtype))
  return y[:-1] / y[-1:], top * scale + jnp.log(y[-1:])


def _heads_backward(saved, dy):
  """The gradient; it computes the softmax again from the saved divisors (arXiv 2205.14135, B.2)."""
  q, k, v, y, norm = saved
  along = (y * dy).sum(2, keepdims=True)  # [heads parts 1 block]
  scale = q.shape[2] ** -0.5

  def head(args):
    q, k, v, dy, norm, along = args

    def block(sums, args):
      dk, dv = sums  # both [m d], because transposing the small operands is cheaper
      q, dy, norm, along = args
      p = jnp.exp(_dot(k, q) * scale - norm)  # [m block]
      dlogits = (p * (_dot(v.T, dy) - along) * scale).astype(k.dtype)
      sums = dk + _dot(dlogits, q.T), dv + _dot(p.astype(v.dtype), dy.T)
      return sums, _dot(k.T, dlogits)

    zeros = jnp.zeros(k.shape, jnp.float32)
    (dk, dv), dq = jax.lax.scan(block, (zeros, zeros), (q, dy.astype(v.dtype), norm, along))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.T.astype(v.dtype)

  return jax.lax.map(head, (q, k, v, dy, norm, along))


_heads.defvjp(_heads_forward, _heads_backward)


# Convolution.


def convolve(x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d'], *args, **kwargs):
  """`jax.lax.conv_general_dilated` for 3x3 kernels with stride 1 and padding 1."""
  few_pixels = math.prod(x.shape[:-1]) < kernel.shape[-1]
  if few_pixels and current_device().platform == 'cpu':
    return _convolve_few_pixels(x, kernel)
  return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)


@jax.custom_vjp
def _convolve_few_pixels(x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']):
  """A convolution whose gradient is two matrix products, each over all nine taps.

  XLA's gradient on a CPU writes a mirrored, transposed copy of the kernel, and transposes the
  kernel's gradient. With fewer pixels than channels these copies cost as much as the products.
  """
  same = ((1, 1), (1, 1))
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), same, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _convolve_few_pixels_backward(saved, dy):
  x, kernel = saved
  b, h, w, c = x.shape
  dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
  rows = dy.reshape(b * h * w, -1)
  taps = [(i, j) for i in range(3) for j in range(3)]

  products = dot(rows, kernel.reshape(9 * c, -1), (((1,), (1,)), ((), ())))
  products = jnp.split(products.reshape(b, h, w, 9 * c), 9, -1)
  shifted = (  # by the tap's distance from the centre; pixels that leave the image are dropped
    jax.lax.pad(y, jnp.float32(0), ((0, 0, 0), (i - 1, 1 - i, 0), (j - 1, 1 - j, 0), (0, 0, 0)))
    for (i, j), y in zip(taps, products)
  )
  dx = functools.reduce(jnp.add, shifted)

  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  views = jnp.concatenate([padded[:, i : i + h, j : j + w] for i, j in taps], -1)
  dkernel = dot(views.reshape(b * h * w, 9 * c), rows, (((0,), (0,)), ((), ())))
  return dx.astype(x.dtype), dkernel.reshape(kernel.shape).astype(kernel.dtype)


_convolve_few_pixels.defvjp(
  lambda x, kernel: (_convolve_few_pixels(x, kernel), (x, kernel)), _convolve_few_pixels_backward
)
