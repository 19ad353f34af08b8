"""DINO's vision transformer at any size: an image as one vector, learned without labels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks, vit

# Mean and standard deviation of DINO's training images (ImageNet) in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

_gelu = functools.partial(jax.nn.gelu, approximate=False)


class DINO(vit.VisionTransformer):
  """The backbone of DINO (arXiv 2104.14294; transformers ViTModel without its pooler).

  `dino(image [b s s 3] in [-1, 1]) -> [b width]` is the class token after the last norm. s is
  `image_size`. The network applies ImageNet's mean and deviation itself. The defaults are ViT-S/16.
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
    super().__init__(
      width=width,
      heads=heads,
      patch=patch,
      image_size=image_size,
      patches={},
      embedding=nnx.initializers.truncated_normal(0.02),
      dtype=dtype,
      rngs=rngs,
    )
    settings: dict[str, Any] = dict(heads=heads, mlp=mlp, depth=layers, activation=_gelu, eps=1e-6)
    settings |= dict(dtype=dtype, rngs=rngs)
    self.layers = nnx.List([vit.Layer(width, **settings) for _ in range(layers)])
    self.norm = blocks.layer_norm(width, eps=1e-6, rngs=rngs)

  def __call__(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b width']:
    x = self.embed(vit.normalise(image, MEAN, STD)).astype(self.dtype)
    for layer in self.layers:
      x = layer(x)
    return self.norm(x)[:, 0]

  def keys(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b n width']:
    """The keys of all tokens in the last layer's attention, all heads side by side."""
    x = self.embed(vit.normalise(image, MEAN, STD)).astype(self.dtype)
    *earlier, last = self.layers
    for layer in earlier:
      x = layer(x)
    return last.attn.to_k(last.norm1(x)).astype(jnp.float32)

  def structure_distance(
    self, a: Float[Array, 'b s s 3'], b: Float[Array, 'b s s 3']
  ) -> Float[Array, ' b']:
    """Mean squared difference of the self-similarities of both images' keys (arXiv 2201.00424)."""
    first, second = (self_similarity(self.keys(image)) for image in (a, b))
    return ((first - second) ** 2).mean((1, 2))


def self_similarity(keys: Float[Array, 'b n c']) -> Float[Array, 'b n n']:
  """The cosine of every token's keys with every other's."""
  norm = jnp.linalg.norm(keys, axis=-1)
  products = jnp.einsum('bnc,bmc->bnm', keys, keys)
  return products / jnp.maximum(norm[:, :, None] * norm[:, None, :], 1e-8)
