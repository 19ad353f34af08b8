"""Autoencoders between images and latents; `encode` and `decode` apply the latents' scale."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks
from exedit.models.attention import Attention

EPS = 1e-6  # of every GroupNorm in this file; the UNet's ResBlocks use 1e-5


class AutoencoderKL(nnx.Module):
  """The autoencoder of Stable Diffusion 1.x, kl-f8 (LDM autoencoder.py AutoencoderKL).

  It maps images [b h w 3] in [-1, 1] to latents [b h/factor w/factor z_channels] of about unit
  variance and back; `factor` is 8. Norms and softmax compute in float32, convolutions in `dtype`
  (docs/facts.md, "Autoencoder").

  channels: width of the first level. mult: the width of each level in multiples of it.
  layers: ResBlocks of a level of the encoder; the decoder's have one more. z_channels: channels of
    the latents. groups: of every norm. scale: the factor of the latents.
  fold: the first convolution takes squares of `fold` x `fold` pixels as channels, and the last one
    gives them, so that all layers work at a lower resolution; 1: the published network.
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
    fold: int = 1,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    blocks.require_sizes(
      'autoencoder',
      channels=channels,
      mult=mult,
      layers=layers,
      z_channels=z_channels,
      groups=groups,
      fold=fold,
    )
    _require_scale(scale)
    self.fold = fold
    self.factor = fold * 2 ** (len(mult) - 1)
    self.z_channels = z_channels
    self.scale = scale
    widths = [channels * m for m in mult]
    common: dict[str, Any] = dict(groups=groups, dtype=dtype, rngs=rngs)
    pixels = 3 * fold**2
    self.encoder = Encoder(pixels, widths, 2 * z_channels, layers=layers, **common)
    self.quant_conv = blocks.conv(2 * z_channels, 2 * z_channels, 1, dtype=dtype, rngs=rngs)
    self.post_quant_conv = blocks.conv(z_channels, z_channels, 1, dtype=dtype, rngs=rngs)
    self.decoder = Decoder(z_channels, widths[::-1], pixels, layers=layers + 1, **common)

  def encode(
    self, image: Float[Array, 'b h w 3'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """A sample of the posterior from standard normal noise; without noise, its mean."""
    return self.draw(self.moments(image), noise)

  def moments(self, image: Float[Array, 'b h w 3']) -> Float[Array, 'b lh lw m']:
    """Mean and log-variance of the posterior, concatenated (m = 2 z), not scaled.

    The log-variance is clipped to [-30, 20] (LDM distributions.py).
    """
    _check(image, self.factor)
    moments = self.quant_conv(self.encoder(fold(image, self.fold)))
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, -1)
    return jnp.concatenate([mean, jnp.clip(logvar, -30, 20)], -1)

  def draw(
    self, moments: Float[Array, 'b lh lw m'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """Latents drawn from these moments with standard normal noise; without noise, their mean."""
    mean, logvar = jnp.split(moments, 2, -1)
    z = mean if noise is None else mean + jnp.exp(0.5 * logvar) * noise
    return z * self.scale

  def decode(self, z: Float[Array, 'b lh lw z']) -> Float[Array, 'b h w 3']:
    """Latents to float32 images, about in [-1, 1] but not clipped."""
    pixels = self.decoder(self.post_quant_conv(z / self.scale))
    return unfold(pixels, self.fold).astype(jnp.float32)


class SpaceToDepth(nnx.Module):
  """An autoencoder without parameters: it moves squares of `patch` x `patch` pixels into channels.

  It has the interface of AutoencoderKL and serves to train a small model without pretrained
  weights.

  patch: side of the squares in pixels. scale, mean: latents are `(pixel - mean) * scale`.

  The default scale gives photos about unit variance,
  because their deviation is about one half; as a power of two it is also exact in floating point.
  Any other scale and mean still return every uint8 value.
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
    del dtype, rngs  # accepted for the common interface; there are no parameters
    blocks.require_sizes('autoencoder', patch=patch)
    _require_scale(scale)
    self.factor = patch
    self.z_channels = 3 * patch**2
    self.scale = scale
    self.mean = mean

  def encode(
    self, image: Float[Array, 'b h w 3'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """The rearranged and scaled pixels; `noise` has no effect, because there is no posterior."""
    return self.draw(self.moments(image), noise)

  def moments(self, image: Float[Array, 'b h w 3']) -> Float[Array, 'b lh lw z']:
    """The latents themselves, because there is no posterior."""
    _check(image, self.factor)
    return (fold(image, self.factor) - self.mean) * self.scale

  def draw(
    self, moments: Float[Array, 'b lh lw z'], noise: Float[Array, 'b lh lw z'] | None = None
  ) -> Float[Array, 'b lh lw z']:
    """The moments unchanged, because they are the latents."""
    del noise
    return moments

  def decode(self, z: Float[Array, 'b lh lw z']) -> Float[Array, 'b h w 3']:
    return unfold(z / self.scale + self.mean, self.factor)


def fold(image: Float[Array, 'b h w c'], p: int) -> Float[Array, 'b lh lw z']:
  """Squares of p x p pixels as channels (z = p p c), row by row."""
  if p == 1:
    return image
  b, h, w, c = image.shape
  z = image.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)  # [b lh lw p p c]
  return z.reshape(b, h // p, w // p, -1)


def unfold(z: Float[Array, 'b lh lw z'], p: int) -> Float[Array, 'b h w c']:
  """The inverse of `fold`."""
  if p == 1:
    return z
  b, lh, lw, c = z.shape
  image = z.reshape(b, lh, lw, p, p, c // p**2).transpose(0, 1, 3, 2, 4, 5)
  return image.reshape(b, lh * p, lw * p, c // p**2)


def _require_scale(scale: float) -> None:
  """Raises ValueError for a scale of latents that cannot be undone."""
  if not math.isfinite(scale) or scale == 0:
    raise ValueError(f'autoencoder.scale is {scale}: it must be finite and not 0')


class Encoder(nnx.Module):
  """Image, perhaps folded, to moments by convolutions (LDM model.py Encoder).

  `common` are the arguments groups, dtype and rngs of all layers, here and in the next classes.
  """

  def __init__(
    self, inputs: int, widths: Sequence[int], outputs: int, *, layers: int, **common: Any
  ):
    conv = {name: common[name] for name in ('dtype', 'rngs')}
    norm = {name: common[name] for name in ('groups', 'rngs')}
    self.conv_in = blocks.conv(inputs, widths[0], **conv)
    last = len(widths) - 1
    self.down = nnx.List(
      [
        Level(i, o, layers=layers, resize=_down(o, **conv) if n < last else None, **common)
        for n, (i, o) in enumerate(zip([widths[0], *widths], widths))
      ]
    )
    self.mid = Middle(widths[-1], **common)
    self.norm_out = blocks.group_norm(widths[-1], eps=EPS, **norm)
    self.conv_out = blocks.conv(widths[-1], outputs, **conv)

  def __call__(self, image: Float[Array, 'b h w c']) -> Float[Array, 'b lh lw z']:
    h = self.conv_in(image)
    for level in self.down:
      h = level(h)
    return self.conv_out(jax.nn.silu(self.norm_out(self.mid(h))))


class Decoder(nnx.Module):
  """Latents to image by convolutions; `widths` go from coarse to fine (LDM model.py Decoder)."""

  def __init__(
    self, inputs: int, widths: Sequence[int], outputs: int, *, layers: int, **common: Any
  ):
    conv = {name: common[name] for name in ('dtype', 'rngs')}
    norm = {name: common[name] for name in ('groups', 'rngs')}
    self.conv_in = blocks.conv(inputs, widths[0], **conv)
    self.mid = Middle(widths[0], **common)
    last = len(widths) - 1
    self.up = nnx.List(
      [
        Level(i, o, layers=layers, resize=blocks.Up(o, **conv) if n < last else None, **common)
        for n, (i, o) in enumerate(zip([widths[0], *widths], widths))
      ]
    )
    self.norm_out = blocks.group_norm(widths[-1], eps=EPS, **norm)
    self.conv_out = blocks.conv(widths[-1], outputs, **conv)

  def __call__(self, z: Float[Array, 'b lh lw z']) -> Float[Array, 'b h w c']:
    h = self.mid(self.conv_in(z))
    for level in self.up:
      h = level(h)
    return self.conv_out(jax.nn.silu(self.norm_out(h)))


class Level(nnx.Module):
  """The ResBlocks of one resolution, then the change to the next resolution."""

  def __init__(self, inputs: int, outputs: int, *, layers: int, resize: Any, **common: Any):
    widths = [inputs] + [outputs] * layers
    self.resnets = nnx.List([_res(i, o, **common) for i, o in zip(widths, widths[1:])])
    self.resize = resize

  def __call__(self, h: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 d']:
    for block in self.resnets:
      h = block(h)
    return h if self.resize is None else self.resize(h)


class Middle(nnx.Module):
  """ResBlock, one-head attention over all positions, ResBlock (LDM model.py AttnBlock)."""

  def __init__(self, width: int, *, groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
    self.res1 = _res(width, width, groups=groups, dtype=dtype, rngs=rngs)
    self.norm = blocks.group_norm(width, eps=EPS, groups=groups, rngs=rngs)
    self.attn = Attention(width, heads=1, qkv_bias=True, dtype=dtype, rngs=rngs)
    self.res2 = _res(width, width, groups=groups, dtype=dtype, rngs=rngs)

  def __call__(self, h: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    h = self.res1(h)
    tokens = self.norm(h).reshape(h.shape[0], -1, h.shape[-1])
    return self.res2(h + self.attn(tokens).reshape(h.shape))


def _res(inputs: int, outputs: int, **common: Any) -> blocks.ResBlock:
  return blocks.ResBlock(inputs, outputs, eps=EPS, zero=False, **common)


def _down(channels: int, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Conv:
  """Halve height and width, padded only at the right and the bottom, unlike in the UNet."""
  padding = ((0, 1), (0, 1))
  return blocks.conv(channels, channels, strides=2, padding=padding, dtype=dtype, rngs=rngs)


def _check(image: Float[Array, 'b h w 3'], factor: int):
  _, h, w, _ = image.shape
  if h % factor or w % factor:
    raise ValueError(f'an image of {h}x{w} pixels: height and width must be multiples of {factor}')
