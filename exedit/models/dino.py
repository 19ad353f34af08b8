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
