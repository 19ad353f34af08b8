"""Patches, positions and layers, which the vision transformers of CLIP and DINO share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks
from exedit.models.attention import Attention
from exedit.models.kernels import Implementation


class Layer(nnx.Module):
  """Self-attention and MLP, each behind a LayerNorm and beside a skip (transformers CLIP, ViT)."""

  def __init__(
    self,
    width: int,
    *,
    heads: int,
    mlp: int,
    depth: int,
    activation: Callable[[Array], Array],
    eps: float,
    causal: bool = False,
    implementation: Implementation = None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.activation = activation
    self.norm1 = blocks.layer_norm(width, eps=eps, rngs=rngs)
    self.attn = Attention(
      width,
      heads=heads,
      qkv_bias=True,
      causal=causal,
      implementation=implementation,
      linear=nnx.Linear,  # kernels of standard deviation width**-0.5, as CLIP's
      dtype=dtype,
      rngs=rngs,
    )
    self.norm2 = blocks.layer_norm(width, eps=eps, rngs=rngs)
    self.fc1 = nnx.Linear(width, mlp, dtype=dtype, rngs=rngs)
    self.fc2 = nnx.Linear(mlp, width, dtype=dtype, rngs=rngs)
    for last in (self.attn.to_out, self.fc2):  # keeps the output's scale equal at any depth
      last.kernel[...] = last.kernel[...] * (2 * depth) ** -0.5

  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    x = x + self.attn(self.norm1(x))
    return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class VisionTransformer(nnx.Module):
  """Base class of CLIP's and DINO's image towers: it makes the tokens that the layers see."""

  def __init__(
    self,
    *,
    width: int,
    heads: int,
    patch: int,
    image_size: int,
    patches: dict[str, Any],
    embedding: nnx.Initializer,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    name = type(self).__name__.removesuffix('Vision')
    blocks.require_sizes(name, width=width, heads=heads, patch=patch, image_size=image_size)
    if width % heads:
      raise ValueError(f'{name} of width {width} cannot have {heads} heads: choose a divisor')
    if patch > image_size:
      raise ValueError(f'{name} patch of {patch} pixels exceeds its image_size {image_size}')
    self.name, self.width, self.image_size, self.dtype = name, width, image_size, dtype
    self.patch_embedding = nnx.Conv(
      3, width, (patch, patch), strides=patch, padding='VALID', dtype=dtype, rngs=rngs, **patches
    )
    positions = (image_size // patch) ** 2 + 1
    self.class_embedding = nnx.Param(embedding(rngs.params(), (width,)))
    self.position_embedding = nnx.Param(embedding(rngs.params(), (positions, width)))

  def embed(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b n width']:
    """The class token, then the patches row by row, each with its position added.

    Raises:
      ValueError: for images of another size than `image_size`.
    """
    height, width = image.shape[1:3]
    if (height, width) != (self.image_size, self.image_size):
      raise ValueError(
        f'{self.name} got images of {height}x{width} and is built for {self.image_size}x'
        f'{self.image_size}: make the size of the data and image_size of the model equal'
      )
    patches = self.patch_embedding(image)
    patches = patches.reshape(len(image), -1, self.width)
    first = jnp.broadcast_to(self.class_embedding[...], (len(image), 1, self.width))
    tokens = jnp.concatenate([first.astype(self.dtype), patches], 1)
    return tokens + self.position_embedding[...][None]


def recomputed(layer: Layer, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
  """The layer's output; the backward pass computes the activations inside again."""
  graphdef, params = nnx.split(layer)
  return jax.checkpoint(lambda params, x: nnx.merge(graphdef, params)(x))(params, x)


def normalise(
  image: Float[Array, 'b h w 3'], mean: Float[np.ndarray, ' 3'], std: Float[np.ndarray, ' 3']
) -> Float[Array, 'b h w 3']:
  """Images in [-1, 1], normalised with the mean and deviation of a network's images in [0, 1]."""
  return (image * 0.5 + (0.5 - mean).reshape(1, 1, 1, 3)) / std.reshape(1, 1, 1, 3)
