"""CLIP's image tower at any size: an image as one vector or as tokens."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks, vit
from exedit.models.kernels import Implementation

# Mean and standard deviation of CLIP's training images in [0, 1].
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def quick_gelu(x: Float[Array, '*b']) -> Float[Array, '*b']:
  """OpenAI's approximation of GELU: x * sigmoid(1.702 x)."""
  return x * jax.nn.sigmoid(1.702 * x)


def unit(vectors: Float[Array, '*b d']) -> Float[Array, '*b d']:
  """Each vector divided by its length."""
  return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


class CLIPVision(vit.VisionTransformer):
  """The image tower of CLIP (arXiv 2103.00020; transformers CLIPVisionModel).

  `clip(image [b s s 3] in [-1, 1]) -> [b width]` is the normalised class token, the input of the
  exemplar's bottleneck. `clip.tokens(image) -> [b n width]` are all last hidden states before that
  norm, the class token first. The tower applies CLIP's mean and deviation itself. The defaults are
  ViT-L/14.

  width: width of a token. layers: number of transformer blocks. heads: number of heads of each.
  mlp: width of each MLP.
  patch: side of a patch in pixels. image_size: the side s of the image in pixels.
  remat: compute each layer again in the backward pass.
  """

  def __init__(
    self,
    *,
    width: int = 1024,
    layers: int = 24,
    heads: int = 16,
    mlp: int = 4096,
    patch: int = 14,
    image_size: int = 224,
    attention: Implementation = None,
    remat: bool = False,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    super().__init__(
      width=width,
      heads=heads,
      patch=patch,
      image_size=image_size,
      patches=dict(use_bias=False, kernel_init=nnx.initializers.normal(0.02)),
      # This scale keeps class and positions as large as the patches (CLIP model.py).
      embedding=nnx.initializers.normal(width**-0.5),
      dtype=dtype,
      rngs=rngs,
    )
    blocks.require_sizes('CLIP', layers=layers, mlp=mlp)
    self.remat = remat
    self.pre_norm = blocks.layer_norm(width, rngs=rngs)
    settings: dict[str, Any] = dict(heads=heads, mlp=mlp, depth=layers, activation=quick_gelu)
    settings |= dict(eps=1e-5, implementation=attention, dtype=dtype, rngs=rngs)
    self.layers = nnx.List([vit.Layer(width, **settings) for _ in range(layers)])
    self.post_norm = blocks.layer_norm(width, rngs=rngs)

  def __call__(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b width']:
    return self.post_norm(self.tokens(image)[:, 0])

  def tokens(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b n width']:
    """The last hidden states of all tokens in float32, the class token first."""
    x = self.pre_norm(self.embed(vit.normalise(image, MEAN, STD))).astype(self.dtype)
    for layer in self.layers:
      x = vit.recomputed(layer, x) if self.remat else layer(x)
    return x.astype(jnp.float32)


class CLIPImageEncoder(nnx.Module):
  """CLIP's `encode_image`: the pooled vector in the space that images share with texts.

  `encoder(image [b s s 3] in [-1, 1]) -> [b dim]`, not normalised. `vision` are the arguments of
  CLIPVision.
  """

  def __init__(
    self,
    *,
    dim: int = 512,
    vision: Mapping[str, Any] = {},
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.vision = CLIPVision(**vision, dtype=dtype, rngs=rngs)
    self.projection = nnx.Linear(self.vision.width, dim, use_bias=False, dtype=dtype, rngs=rngs)

  def __call__(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b dim']:
    return self.projection(self.vision(image))
