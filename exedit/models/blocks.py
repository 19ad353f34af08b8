"""The pieces that the UNet and the autoencoder share: norms, convolutions, ResBlock, up, down."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from exedit.models import target

zeros = nnx.initializers.zeros_init()


class GroupNorm(nnx.GroupNorm):
  """nnx.GroupNorm, two-pass, its means taken over the pixels first and over the channels then.

  The same numbers up to rounding. Taken over both at once, as nnx does, the axis of channels has to
  be cut in two: on a CPU such a norm costs up to five times as much (docs/performance.md).
  """

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    assert self.scale is not None and self.bias is not None  # nnx could have made it without
    x = x.astype(jnp.float32)

    def mean(x):
      means = x.mean((1, 2)).reshape(len(x), self.num_groups, -1).mean(-1, keepdims=True)
      means = jnp.broadcast_to(means, (*means.shape[:2], x.shape[-1] // self.num_groups))
      return means.reshape(len(x), 1, 1, -1)

    centred = x - mean(x)
    scale = jax.lax.rsqrt(mean(centred**2) + self.epsilon) * self.scale[...][None, None, None]
    return centred * scale + self.bias[...][None, None, None]


def group_norm(channels: int, *, eps: float, groups: int = 32, rngs: nnx.Rngs) -> GroupNorm:
  """GroupNorm in float32, whatever comes in; two-pass variance, as PyTorch's (facts 8.1)."""
  return GroupNorm(
    channels,
    num_groups=groups,
    epsilon=eps,
    dtype=jnp.float32,
    use_fast_variance=False,
    rngs=rngs,
  )


def layer_norm(features: int, *, eps: float = 1e-5, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """LayerNorm in float32 with PyTorch's eps and two-pass variance."""
  return nnx.LayerNorm(features, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)


def conv(inputs: int, outputs: int, size: int = 3, *, zero: bool = False, **kwargs) -> nnx.Conv:
  """A convolution with explicit symmetric padding (`SAME` pads stride 2 on one side only)."""
  kwargs.setdefault('padding', size // 2)
  if zero:
    kwargs['kernel_init'] = zeros
  if size == 3 and kwargs['padding'] == kwargs.get('strides', 1) == 1:
    kwargs['conv_general_dilated'] = _convolve
  return nnx.Conv(inputs, outputs, (size, size), **kwargs)


def _convolve(x, kernel, *args, **kwargs):
  """jax.lax.conv_general_dilated for 3x3 kernels, padded by 1, at every pixel."""
  few = math.prod(x.shape[:-1]) < kernel.shape[-1]
  if few and target.device().platform == 'cpu':
    return _of_few_pixels(x, kernel)
  return jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)


@jax.custom_vjp
def _of_few_pixels(x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']):
  """A convolution whose gradient is two matrix products, all nine taps in each.

  On a CPU the gradient of XLA's writes the kernel down mirrored and transposed first, and that of
  the kernel comes out transposed. With fewer pixels than channels this costs as much as the rest.
  """
  same = ((1, 1), (1, 1))
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), same, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def _of_few_pixels_backward(kept, dy):
  x, kernel = kept
  b, h, w, c = x.shape
  dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
  rows = dy.reshape(b * h * w, -1)
  taps = [(i, j) for i in range(3) for j in range(3)]

  products = dot(rows, kernel.reshape(9 * c, -1), (((1,), (1,)), ((), ())))
  products = jnp.split(products.reshape(b, h, w, 9 * c), 9, -1)
  moved = (  # as far as the tap lies off the middle; what leaves the picture is lost
    jax.lax.pad(y, jnp.float32(0), ((0, 0, 0), (i - 1, 1 - i, 0), (j - 1, 1 - j, 0), (0, 0, 0)))
    for (i, j), y in zip(taps, products)
  )
  dx = functools.reduce(jnp.add, moved)

  wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  views = jnp.concatenate([wide[:, i : i + h, j : j + w] for i, j in taps], -1)
  dkernel = dot(views.reshape(b * h * w, 9 * c), rows, (((0,), (0,)), ((), ())))
  return dx.astype(x.dtype), dkernel.reshape(kernel.shape).astype(kernel.dtype)


_of_few_pixels.defvjp(
  lambda x, kernel: (_of_few_pixels(x, kernel), (x, kernel)), _of_few_pixels_backward
)


def timestep_embedding(t: Int[Array, ' b'], dim: int) -> Float[Array, 'b dim']:
  """Sinusoids of the timestep, cosines first (LDM util.py; diffusers flip_sin_to_cos, shift 0)."""
  half = dim // 2
  frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = t[:, None].astype(jnp.float32) * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def tile(x: Float[Array, 'b ...'], like: Float[Array, 'bk ...']) -> Float[Array, 'bk ...']:
  """The whole batch once more after itself, until it is as large as that of `like`."""
  times = like.shape[0] // x.shape[0]
  return x if times == 1 else jnp.concatenate([x] * times)


class ResBlock(nnx.Module):
  """GN-SiLU-conv twice around a skip; the timestep enters between (LDM openaimodel.py ResBlock).

  Without `temb` it is the autoencoder's block. Norms and SiLU in float32, convolutions in `dtype`.
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    temb: int | None = None,
    eps: float = 1e-5,
    groups: int = 32,
    zero: bool = True,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.norm1 = group_norm(inputs, eps=eps, groups=groups, rngs=rngs)
    self.conv1 = conv(inputs, outputs, dtype=dtype, rngs=rngs)
    if temb is not None:
      self.time_proj = nnx.Linear(temb, outputs, dtype=dtype, rngs=rngs)
    self.norm2 = group_norm(outputs, eps=eps, groups=groups, rngs=rngs)
    self.conv2 = conv(outputs, outputs, zero=zero, dtype=dtype, rngs=rngs)
    widen = inputs != outputs
    self.shortcut = conv(inputs, outputs, 1, dtype=dtype, rngs=rngs) if widen else None

  def __call__(
    self, x: Float[Array, 'b h w c'], temb: Float[Array, 'b e'] | None = None
  ) -> Float[Array, 'b h w d']:
    h = self.conv1(jax.nn.silu(self.norm1(x)))
    if temb is not None:
      h = h + self.time_proj(jax.nn.silu(temb))[:, None, None, :]
    h = checkpoint_name(h, 'conv1')
    h = self.conv2(jax.nn.silu(self.norm2(h)))
    return (x if self.shortcut is None else self.shortcut(x)) + h


class Down(nnx.Module):
  """Halve height and width by a strided convolution, padded by 1 on every side (the UNet's)."""

  def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.conv = conv(channels, channels, strides=2, padding=1, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    return self.conv(x)


class Up(nnx.Module):
  """Double height and width: nearest neighbour, then a convolution."""

  def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.conv = conv(channels, channels, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))
