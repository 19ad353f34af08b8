"""DINO's vision transformer, any size: an image as one vector that knows no words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks
from exedit.models.clip import Layer, normalise

# ImageNet's mean and standard deviation of images in [0, 1]: what DINO was trained to see.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

_gelu = functools.partial(jax.nn.gelu, approximate=False)


class DINO(nnx.Module):
  """The backbone of DINO (arXiv 2104.14294; transformers ViTModel without its pooler).

  `dino(image [b s s 3] in [-1, 1]) -> [b width]`, the class token after the last norm. s is
  `image_size`; ImageNet's mean and deviation are applied in here. The defaults are ViT-S/16.
  """

  def __init__(
    self,
    *,
    width: int = 384,
    layers: int = 12,
    heads: int = 6,
    mlp: int = 1536,
    patch: int = 16,
    image_size: int = 224,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if width % heads:
      raise ValueError(f'DINO of width {width} cannot have {heads} heads: choose a divisor')
    self.width, self.image_size, self.dtype = width, image_size, dtype
    self.patch_embedding = nnx.Conv(
      3, width, (patch, patch), strides=patch, padding='VALID', dtype=dtype, rngs=rngs
    )
    small = nnx.initializers.truncated_normal(0.02)
    positions = (image_size // patch) ** 2 + 1
    self.class_embedding = nnx.Param(small(rngs.params(), (width,)))
    self.position_embedding = nnx.Param(small(rngs.params(), (positions, width)))
    layer = functools.partial(
      Layer,
      width,
      heads=heads,
      mlp=mlp,
      depth=layers,
      activation=_gelu,
      eps=1e-6,
      implementation=None,
      dtype=dtype,
      rngs=rngs,
    )
    self.layers = nnx.List([layer() for _ in range(layers)])
    self.norm = blocks.layer_norm(width, eps=1e-6, rngs=rngs)

  def __call__(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b width']:
    if image.shape[1:3] != (self.image_size, self.image_size):
      raise ValueError(
        f'DINO got images of {image.shape[1]}x{image.shape[2]} and is built for'
        f' {self.image_size}x{self.image_size}'
      )
    patches = self.patch_embedding(normalise(image, MEAN, STD))
    patches = patches.reshape(len(image), -1, self.width)  # [b n-1 width], row by row
    first = jnp.broadcast_to(self.class_embedding[...], (len(image), 1, self.width))
    x = jnp.concatenate([first.astype(self.dtype), patches], 1)
    x = (x + self.position_embedding[...][None]).astype(self.dtype)
    for layer in self.layers:
      x = layer(x)
    return self.norm(x)[:, 0]
