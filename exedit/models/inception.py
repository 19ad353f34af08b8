"""Inception v3 up to pool3 as the FID uses it: the network that TensorFlow published in 2015."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

SIZE = 299  # pixels per side of an input image
DIM = 2048  # features of pool3


class ConvNorm(nnx.Module):
  """Convolution without bias, batch norm with fixed statistics, ReLU."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int | tuple[int, int] = 1,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    rngs: nnx.Rngs,
  ):
    height, width = size if isinstance(size, tuple) else (size, size)
    top, left = padding if isinstance(padding, tuple) else (padding, padding)
    self.conv = nnx.Conv(
      inputs,
      outputs,
      (height, width),
      strides=stride,
      padding=((top, top), (left, left)),
      use_bias=False,
      rngs=rngs,
    )
    self.scale = nnx.Param(jnp.ones(outputs))
    self.bias = nnx.Param(jnp.zeros(outputs))
    self.mean = nnx.Param(jnp.zeros(outputs))
    self.var = nnx.Param(jnp.ones(outputs))

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-3)
    shift = self.bias[...] - self.mean[...] * scale
    return jax.nn.relu(self.conv(x) * scale[None, None, None] + shift[None, None, None])


class BlockA(nnx.Module):
  """35x35 pixels: parallel branches of 1x1, 5x5, two 3x3 and a pool."""

  def __init__(self, inputs: int, pool: int, *, rngs: nnx.Rngs):
    self.branch1x1 = ConvNorm(inputs, 64, rngs=rngs)
    self.branch5x5_1 = ConvNorm(inputs, 48, rngs=rngs)
    self.branch5x5_2 = ConvNorm(48, 64, 5, padding=2, rngs=rngs)
    self.branch3x3dbl_1 = ConvNorm(inputs, 64, rngs=rngs)
    self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1, rngs=rngs)
    self.branch3x3dbl_3 = ConvNorm(96, 96, 3, padding=1, rngs=rngs)
    self.branch_pool = ConvNorm(inputs, pool, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w d']:
    return _beside(
      self.branch1x1(x),
      self.branch5x5_2(self.branch5x5_1(x)),
      self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
      self.branch_pool(_mean3x3(x)),
    )


class BlockB(nnx.Module):
  """From 35x35 to 17x17 pixels."""

  def __init__(self, inputs: int, *, rngs: nnx.Rngs):
    self.branch3x3 = ConvNorm(inputs, 384, 3, stride=2, rngs=rngs)
    self.branch3x3dbl_1 = ConvNorm(inputs, 64, rngs=rngs)
    self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1, rngs=rngs)
    self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    return _beside(
      self.branch3x3(x),
      self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
      _halved(x),
    )


class BlockC(nnx.Module):
  """17x17 pixels: 7x7 convolutions, factored into rows and columns."""

  def __init__(self, inputs: int, inner: int, *, rngs: nnx.Rngs):
    row = functools.partial(ConvNorm, size=(1, 7), padding=(0, 3), rngs=rngs)
    column = functools.partial(ConvNorm, size=(7, 1), padding=(3, 0), rngs=rngs)
    self.branch1x1 = ConvNorm(inputs, 192, rngs=rngs)
    self.branch7x7_1 = ConvNorm(inputs, inner, rngs=rngs)
    self.branch7x7_2 = row(inner, inner)
    self.branch7x7_3 = column(inner, 192)
    self.branch7x7dbl_1 = ConvNorm(inputs, inner, rngs=rngs)
    self.branch7x7dbl_2 = column(inner, inner)
    self.branch7x7dbl_3 = row(inner, inner)
    self.branch7x7dbl_4 = column(inner, inner)
    self.branch7x7dbl_5 = row(inner, 192)
    self.branch_pool = ConvNorm(inputs, 192, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w d']:
    double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
    return _beside(
      self.branch1x1(x),
      self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
      self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
      self.branch_pool(_mean3x3(x)),
    )


class BlockD(nnx.Module):
  """From 17x17 to 8x8 pixels."""

  def __init__(self, inputs: int, *, rngs: nnx.Rngs):
    self.branch3x3_1 = ConvNorm(inputs, 192, rngs=rngs)
    self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2, rngs=rngs)
    self.branch7x7x3_1 = ConvNorm(inputs, 192, rngs=rngs)
    self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), padding=(0, 3), rngs=rngs)
    self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), padding=(3, 0), rngs=rngs)
    self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    y = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
    return _beside(self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(y), _halved(x))


class BlockE(nnx.Module):
  """8x8 pixels: 3x3 convolutions, as a row and a column in parallel.

  FID's last block pools by the maximum (pytorch_fid/inception.py FIDInceptionE_2), while other
  Inceptions pool by the mean.
  """

  def __init__(self, inputs: int, *, pool_by_maximum: bool, rngs: nnx.Rngs):
    row = functools.partial(ConvNorm, size=(1, 3), padding=(0, 1), rngs=rngs)
    column = functools.partial(ConvNorm, size=(3, 1), padding=(1, 0), rngs=rngs)
    self.pool_by_maximum = pool_by_maximum
    self.branch1x1 = ConvNorm(inputs, 320, rngs=rngs)
    self.branch3x3_1 = ConvNorm(inputs, 384, rngs=rngs)
    self.branch3x3_2a = row(384, 384)
    self.branch3x3_2b = column(384, 384)
    self.branch3x3dbl_1 = ConvNorm(inputs, 448, rngs=rngs)
    self.branch3x3dbl_2 = ConvNorm(448, 384, 3, padding=1, rngs=rngs)
    self.branch3x3dbl_3a = row(384, 384)
    self.branch3x3dbl_3b = column(384, 384)
    self.branch_pool = ConvNorm(inputs, 192, rngs=rngs)

  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w d']:
    single = self.branch3x3_1(x)
    double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    return _beside(
      self.branch1x1(x),
      self.branch3x3_2a(single),
      self.branch3x3_2b(single),
      self.branch3x3dbl_3a(double),
      self.branch3x3dbl_3b(double),
      self.branch_pool(_max3x3(x) if self.pool_by_maximum else _mean3x3(x)),
    )


class Inception(nnx.Module):
  """Inception v3 (arXiv 1512.00567) with the weights of FID (arXiv 1706.08500; pytorch-fid).

  `inception(image [b 299 299 3] in [-1, 1]) -> [b 2048]` is the last block's mean over the image
  (pool3). FID is defined for 299 pixels; the network computes any size from 75 pixels on.
  """

  def __init__(self, *, rngs: nnx.Rngs):
    self.conv1a = ConvNorm(3, 32, 3, stride=2, rngs=rngs)
    self.conv2a = ConvNorm(32, 32, 3, rngs=rngs)
    self.conv2b = ConvNorm(32, 64, 3, padding=1, rngs=rngs)
    self.conv3b = ConvNorm(64, 80, rngs=rngs)
    self.conv4a = ConvNorm(80, 192, 3, rngs=rngs)
    self.mixed5b = BlockA(192, 32, rngs=rngs)
    self.mixed5c = BlockA(256, 64, rngs=rngs)
    self.mixed5d = BlockA(288, 64, rngs=rngs)
    self.mixed6a = BlockB(288, rngs=rngs)
    self.mixed6b = BlockC(768, 128, rngs=rngs)
    self.mixed6c = BlockC(768, 160, rngs=rngs)
    self.mixed6d = BlockC(768, 160, rngs=rngs)
    self.mixed6e = BlockC(768, 192, rngs=rngs)
    self.mixed7a = BlockD(768, rngs=rngs)
    self.mixed7b = BlockE(1280, pool_by_maximum=False, rngs=rngs)
    self.mixed7c = BlockE(2048, pool_by_maximum=True, rngs=rngs)

  def __call__(self, image: Float[Array, 'b h w 3']) -> Float[Array, 'b 2048']:
    x = self.conv2b(self.conv2a(self.conv1a(image)))  # [b 147 147 64]
    x = self.conv4a(self.conv3b(_halved(x)))  #         [b 71 71 192]
    x = self.mixed5d(self.mixed5c(self.mixed5b(_halved(x))))  # [b 35 35 288]
    x = self.mixed6e(self.mixed6d(self.mixed6c(self.mixed6b(self.mixed6a(x)))))  # [b 17 17 768]
    x = self.mixed7c(self.mixed7b(self.mixed7a(x)))  #  [b 8 8 2048]
    return x.mean((1, 2))


def _beside(*branches: Array) -> Array:
  return jnp.concatenate(branches, -1)


def _halved(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _max3x3(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  return nnx.max_pool(x, (3, 3), strides=(1, 1), padding='SAME')


def _mean3x3(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
  """Mean of the 3x3 neighbours inside the image; TensorFlow does not count the padding."""
  return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding='SAME', count_include_pad=False)
