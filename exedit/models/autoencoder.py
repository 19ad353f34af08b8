"""Between images and latents; encode and decode own the latents' scale."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks
from exedit.models.attention import Attention

EPS = 1e-6  # of every GroupNorm in here; the UNet's ResBlocks have 1e-5


class AutoencoderKL(nnx.Module):
  """The autoencoder of Stable Diffusion 1.x, kl-f8 (LDM autoencoder.py AutoencoderKL, facts 1.2).

  Images [b h w 3] in [-1, 1] to latents [b h/factor w/factor z_channels] of about unit variance and
  back; `factor` is 8. Norms and softmax in float32, convolutions in `dtype`.
  """

  def __init__(
    self,
    *,
    channels: int = 128,
    mult: Sequence[int] = (1, 2, 4, 4),
    layers: int = 2,
    z_channels: int = 4,
    groups: int = 32,
    scale: float = 0.18215,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.factor = 2 ** (len(mult) - 1)
    self.z_channels = z_channels
    self.scale = scale
    widths = [channels * m for m in mult]
    self.encoder = Encoder(
      widths, 2 * z_channels, layers=layers, groups=groups, dtype=dtype, rngs=rngs
    )
    self.quant_conv = blocks.conv(2 * z_channels, 2 * z_channels, 1, dtype=dtype, rngs=rngs)
    self.post_quant_conv = blocks.conv(z_channels, z_channels, 1, dtype=dtype, rngs=rngs)
    self.decoder = Decoder(
      widths[::-1], z_channels, layers=layers + 1, groups=groups, dtype=dtype, rngs=rngs
    )

  def encode(
    self, image: Float[Array, 'b h w 3'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """A draw from the posterior with the given standard normal noise; its mean without."""
    return self.draw(self.moments(image), noise)

  def moments(self, image: Float[Array, 'b h w 3']) -> Float[Array, 'b lh lw m']:
    """Of the posterior: mean and log-variance, one after the other, unscaled.

    The latter within [-30, 20] (LDM distributions.py).
    """
    _check(image, self.factor)
    mean, logvar = jnp.split(self.quant_conv(self.encoder(image)).astype(jnp.float32), 2, -1)
    return jnp.concatenate([mean, jnp.clip(logvar, -30, 20)], -1)

  def draw(
    self, moments: Float[Array, 'b lh lw m'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """Latents of these moments, with the given standard normal noise; their mean without."""
    mean, logvar = jnp.split(moments, 2, -1)
    z = mean if noise is None else mean + jnp.exp(0.5 * logvar) * noise
    return z * self.scale

  def decode(self, z: Float[Array, 'b lh lw z']) -> Float[Array, 'b h w 3']:
    """Latents to images, about [-1, 1] but not clipped, float32."""
    return self.decoder(self.post_quant_conv(z / self.scale)).astype(jnp.float32)


class SpaceToDepth(nnx.Module):
  """An autoencoder without parameters: squares of `patch` pixels become channels, and back.

  The same interface as AutoencoderKL, for training a small model with nothing pretrained behind it.
  Latents are `(pixel - mean) * scale`. Photographs have a deviation of about one half, so the
  defaults give about unit variance, and being a power of two they lose not one bit; other settings
  return every byte all the same.
  """

  def __init__(
    self,
    *,
    patch: int = 4,
    scale: float = 2.0,
    mean: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | None = None,
  ):
    del dtype, rngs  # nothing to compute, nothing to draw: in float32 it is exact
    self.factor = patch
    self.z_channels = 3 * patch**2
    self.scale = scale
    self.mean = mean

  def encode(
    self, image: Float[Array, 'b h w 3'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """The pixels, rearranged and scaled; there is no posterior, so `noise` has no effect."""
    return self.draw(self.moments(image), noise)

  def moments(self, image: Float[Array, 'b h w 3']) -> Float[Array, 'b lh lw z']:
    """The latents themselves."""
    _check(image, self.factor)
    b, h, w, c = image.shape
    p = self.factor
    z = image.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)  # [b lh lw p p c]
    return (z.reshape(b, h // p, w // p, -1) - self.mean) * self.scale

  def draw(
    self, moments: Float[Array, 'b lh lw z'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """The moments, which are the latents."""
    del noise
    return moments

  def decode(self, z: Float[Array, 'b lh lw z']) -> Float[Array, 'b h w 3']:
    b, lh, lw, _ = z.shape
    p = self.factor
    image = (z / self.scale + self.mean).reshape(b, lh, lw, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    return image.reshape(b, lh * p, lw * p, 3)


class Encoder(nnx.Module):
  """Convolutions down to moments [b h/f w/f outputs] (LDM model.py Encoder)."""

  def __init__(
    self,
    widths: Sequence[int],
    outputs: int,
    *,
    layers: int,
    groups: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    level = functools.partial(Level, layers=layers, groups=groups, dtype=dtype, rngs=rngs)
    self.conv_in = blocks.conv(3, widths[0], dtype=dtype, rngs=rngs)
    last = len(widths) - 1
    inputs = [widths[0], *widths[:-1]]
    self.down = nnx.List(
      [
        level(i, o, resize=_down(o, dtype, rngs) if n < last else None)
        for n, (i, o) in enumerate(zip(inputs, widths))
      ]
    )
    self.mid = Middle(widths[-1], groups=groups, dtype=dtype, rngs=rngs)
    self.norm_out = blocks.group_norm(widths[-1], eps=EPS, groups=groups, rngs=rngs)
    self.conv_out = blocks.conv(widths[-1], outputs, dtype=dtype, rngs=rngs)

  def __call__(self, image: Float[Array, 'b h w 3']) -> Float[Array, 'b lh lw z']:
    h = self.conv_in(image)
    for level in self.down:
      h = level(h)
    return self.conv_out(jax.nn.silu(self.norm_out(self.mid(h))))


class Decoder(nnx.Module):
  """Convolutions up to an image; `widths` from coarse to fine (LDM model.py Decoder)."""

  def __init__(
    self,
    widths: Sequence[int],
    inputs: int,
    *,
    layers: int,
    groups: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    level = functools.partial(Level, layers=layers, groups=groups, dtype=dtype, rngs=rngs)
    self.conv_in = blocks.conv(inputs, widths[0], dtype=dtype, rngs=rngs)
    self.mid = Middle(widths[0], groups=groups, dtype=dtype, rngs=rngs)
    last = len(widths) - 1
    coarser = [widths[0], *widths[:-1]]
    self.up = nnx.List(
      [
        level(i, o, resize=blocks.Up(o, dtype=dtype, rngs=rngs) if n < last else None)
        for n, (i, o) in enumerate(zip(coarser, widths))
      ]
    )
    self.norm_out = blocks.group_norm(widths[-1], eps=EPS, groups=groups, rngs=rngs)
    self.conv_out = blocks.conv(widths[-1], 3, dtype=dtype, rngs=rngs)

  def __call__(self, z: Float[Array, 'b lh lw z']) -> Float[Array, 'b h w 3']:
    h = self.mid(self.conv_in(z))
    for level in self.up:
      h = level(h)
    return self.conv_out(jax.nn.silu(self.norm_out(h)))


class Level(nnx.Module):
  """The ResBlocks of one resolution, then the way to the next."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    *,
    layers: int,
    resize: nnx.Conv | blocks.Up | None,
    groups: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    widths = [inputs] + [outputs] * layers
    self.resnets = nnx.List(
      [
        blocks.ResBlock(i, o, eps=EPS, groups=groups, zero=False, dtype=dtype, rngs=rngs)
        for i, o in zip(widths, widths[1:])
      ]
    )
    self.resize = resize

  def __call__(self, h: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    for block in self.resnets:
      h = block(h)
    return h if self.resize is None else self.resize(h)


class Middle(nnx.Module):
  """ResBlock, attention of one head over all positions, ResBlock (LDM model.py AttnBlock)."""

  def __init__(self, width: int, *, groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
    res = functools.partial(
      blocks.ResBlock, width, width, eps=EPS, groups=groups, zero=False, dtype=dtype, rngs=rngs
    )
    self.res1 = res()
    self.norm = blocks.group_norm(width, eps=EPS, groups=groups, rngs=rngs)
    self.attn = Attention(width, heads=1, qkv_bias=True, dtype=dtype, rngs=rngs)
    self.res2 = res()

  def __call__(self, h: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    h = self.res1(h)
    tokens = self.norm(h).reshape(h.shape[0], -1, h.shape[-1])
    return self.res2(h + self.attn(tokens).reshape(h.shape))


def _down(channels: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
  """Halve height and width; unlike the UNet's, padded on the right and at the bottom only."""
  padding = ((0, 1), (0, 1))
  return blocks.conv(channels, channels, strides=2, padding=padding, dtype=dtype, rngs=rngs)


def _check(image: Float[Array, 'b h w 3'], factor: int):
  _, h, w, _ = image.shape
  if h % factor or w % factor:
    raise ValueError(f'an image of {h}x{w} pixels: height and width must be multiples of {factor}')
