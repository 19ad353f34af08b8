"""Layers that the networks share: norms, convolutions, ResBlock, downsampling and upsampling."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from exedit.models import kernels

zeros = nnx.initializers.zeros_init()


def require_sizes(network: str, **sizes: int | Sequence[int]) -> None:
  """Raises ValueError unless these sizes of a network, or lists of sizes, are at least 1."""
  for name, size in sizes.items():
    listed = [size] if isinstance(size, int) else size
    if not listed or min(listed) < 1:
      raise ValueError(f'{network}.{name} is {size!r:.60}: it must be at least 1')


class GroupNorm(nnx.GroupNorm):
  """nnx.GroupNorm with two-pass variance that averages over pixels first, then over channels.

  It gives the same numbers up to rounding. nnx averages over both at once and splits the channel
  axis for that, which costs up to five times as much on a CPU (docs/performance.md).
  """

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    assert self.scale is not None and self.bias is not None  # the constructor sets both
    x = x.astype(jnp.float32)

    def mean(x):
      means = x.mean((1, 2)).reshape(len(x), self.num_groups, -1).mean(-1, keepdims=True)
      means = jnp.broadcast_to(means, (*means.shape[:2], x.shape[-1] // self.num_groups))
      return means.reshape(len(x), 1, 1, -1)

    centred = x - mean(x)
    scale = jax.lax.rsqrt(mean(centred**2) + self.epsilon) * self.scale[...][None, None, None]
    return centred * scale + self.bias[...][None, None, None]


def group_norm(channels: int, *, eps: float, groups: int = 32, rngs: nnx.Rngs) -> GroupNorm:
  """GroupNorm in float32 with two-pass variance, as in PyTorch (docs/facts.md, "JAX and XLA")."""
  if channels % groups:
    raise ValueError(
      f'groups is {groups}: it must divide the channels of every norm, {channels} here'
    )
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


def starting(fan_in: int) -> nnx.Initializer:
  """PyTorch's default initialisation of kernel and bias: uniform in +-1/sqrt(fan_in).

  fan_in is the number of values that one output sums (torch.nn.Linear.reset_parameters).
  """
  bound = fan_in**-0.5
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def linear(inputs: int, outputs: int, *, zero: bool = False, **kwargs) -> nnx.Linear:
  """A linear layer that starts as PyTorch's does, or at 0 with `zero` (LDM's zero_module)."""
  init = zeros if zero else starting(inputs)
  return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=init, **kwargs)


def conv(inputs: int, outputs: int, size: int = 3, *, zero: bool = False, **kwargs) -> nnx.Conv:
  """A convolution with symmetric padding; JAX's `SAME` would pad stride 2 on one side only.

  It starts as PyTorch's does, or at 0 with `zero` (LDM's zero_module).
  """
  init = zeros if zero else starting(inputs * size**2)
  kwargs.setdefault('padding', size // 2)
  if size == 3 and kwargs['padding'] == kwargs.get('strides', 1) == 1:
    kwargs['conv_general_dilated'] = kernels.convolve
  return nnx.Conv(inputs, outputs, (size, size), kernel_init=init, bias_init=init, **kwargs)


def timestep_embedding(t: Int[Array, ' b'], dim: int) -> Float[Array, 'b dim']:
  """Cosines, then sines of the timestep (LDM util.py; diffusers flip_sin_to_cos, shift 0)."""
  half = dim // 2
  frequencies = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
  angles = t[:, None].astype(jnp.float32) * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def tile(x: Float[Array, 'b ...'], like: Float[Array, 'bk ...']) -> Float[Array, 'bk ...']:
  """Repeat the whole batch of x until it is as large as the batch of `like`."""
  times = like.shape[0] // x.shape[0]
  return x if times == 1 else jnp.concatenate([x] * times)


class ResBlock(nnx.Module):
  """Twice GroupNorm, SiLU, convolution, beside a skip connection (LDM openaimodel.py ResBlock).

  The timestep embedding is added after the first convolution; without `temb` this is the
  autoencoder's block. Norms and SiLU compute in float32, convolutions in `dtype`.
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
      self.time_proj = linear(temb, outputs, dtype=dtype, rngs=rngs)
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
  """Halve height and width by a strided convolution padded by 1 on every side, as in the UNet."""

  def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.conv = conv(channels, channels, strides=2, padding=1, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    return self.conv(x)


class Up(nnx.Module):
  """Double height and width by nearest-neighbour upsampling and a convolution."""

  def __init__(self, channels: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
    self.conv = conv(channels, channels, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
    return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))
