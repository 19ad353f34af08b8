"""CLIP's image tower, any size: what the exemplar looks like, as one vector or as tokens."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks
from exedit.models.attention import Attention

# What CLIP was trained to see: mean and standard deviation of its images in [0, 1].
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def quick_gelu(x: Float[Array, '*b']) -> Float[Array, '*b']:
  """OpenAI's approximation of GELU: x * sigmoid(1.702 x)."""
  return x * jax.nn.sigmoid(1.702 * x)


class Layer(nnx.Module):
  """Pre-norm self-attention and MLP (transformers modeling_clip.py); other ViTs differ in GELU."""

  def __init__(
    self,
    width: int,
    *,
    heads: int,
    mlp: int,
    depth: int,
    activation: Callable[[Array], Array] = quick_gelu,
    eps: float = 1e-5,
    implementation: Literal['xla', 'cudnn'] | None,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.activation = activation
    self.norm1 = blocks.layer_norm(width, eps=eps, rngs=rngs)
    self.attn = Attention(
      width, heads=heads, qkv_bias=True, implementation=implementation, dtype=dtype, rngs=rngs
    )
    self.norm2 = blocks.layer_norm(width, eps=eps, rngs=rngs)
    self.fc1 = nnx.Linear(width, mlp, dtype=dtype, rngs=rngs)
    self.fc2 = nnx.Linear(mlp, width, dtype=dtype, rngs=rngs)
    for last in (self.attn.to_out, self.fc2):  # the residual stream starts as wide at any depth
      last.kernel[...] = last.kernel[...] * (2 * depth) ** -0.5

  def __call__(self, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
    x = x + self.attn(self.norm1(x))
    return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class CLIPVision(nnx.Module):
  """The image tower of CLIP (arXiv 2103.00020; transformers CLIPVisionModel, facts 1.3).

  `clip(image [b s s 3] in [-1, 1]) -> [b width]`, the normalised class token that the exemplar's
  bottleneck starts from; `clip.tokens(image) -> [b n width]`, all last hidden states, class token
  first, before that norm. s is `image_size`; CLIP's mean and deviation are applied in here. The
  defaults are ViT-L/14. `remat` recomputes each layer in the backward pass.
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
    attention: Literal['xla', 'cudnn'] | None = None,
    remat: bool = False,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if width % heads:
      raise ValueError(f'CLIP of width {width} cannot have {heads} heads: choose a divisor')
    if patch > image_size:
      raise ValueError(f'CLIP patch of {patch} pixels exceeds its image_size {image_size}')
    self.width, self.image_size = width, image_size
    self.remat, self.dtype = remat, dtype
    self.patch_embedding = nnx.Conv(
      3,
      width,
      (patch, patch),
      strides=patch,
      padding='VALID',
      use_bias=False,
      kernel_init=nnx.initializers.normal(0.02),
      dtype=dtype,
      rngs=rngs,
    )
    # As in OpenAI's code, so that neither drowns in the patches (CLIP model.py VisionTransformer).
    embedding = nnx.initializers.normal(width**-0.5)
    positions = (image_size // patch) ** 2 + 1
    self.class_embedding = nnx.Param(embedding(rngs.params(), (width,)))
    self.position_embedding = nnx.Param(embedding(rngs.params(), (positions, width)))
    self.pre_norm = blocks.layer_norm(width, rngs=rngs)
    layer = functools.partial(
      Layer,
      width,
      heads=heads,
      mlp=mlp,
      depth=layers,
      implementation=attention,
      dtype=dtype,
      rngs=rngs,
    )
    self.layers = nnx.List([layer() for _ in range(layers)])
    self.post_norm = blocks.layer_norm(width, rngs=rngs)

  def __call__(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b width']:
    return self.post_norm(self.tokens(image)[:, 0])

  def tokens(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b n width']:
    """The last hidden states of all tokens, the class token first, float32."""
    if image.shape[1:3] != (self.image_size, self.image_size):
      given, wanted = 'x'.join(map(str, image.shape[1:3])), f'{self.image_size}x{self.image_size}'
      raise ValueError(
        f'CLIP got an exemplar of {given} and is built for {wanted}: '
        'make the exemplar size of the data and image_size of the model equal'
      )
    x = self.pre_norm(self._embed(normalise(image))).astype(self.dtype)
    for layer in self.layers:
      x = _recomputed(layer, x) if self.remat else layer(x)
    return x.astype(jnp.float32)

  def _embed(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b n width']:
    """Patches behind the class token, each with its position."""
    patches = self.patch_embedding(image)
    patches = patches.reshape(len(image), -1, self.width)  # [b n-1 width], row by row
    first = jnp.broadcast_to(self.class_embedding[...], (len(image), 1, self.width))
    tokens = jnp.concatenate([first.astype(self.dtype), patches], 1)
    return tokens + self.position_embedding[...][None]


def _recomputed(layer: Layer, x: Float[Array, 'b n c']) -> Float[Array, 'b n c']:
  """The layer's output; the backward pass computes what is inside once more."""
  graphdef, params = nnx.split(layer)
  return jax.checkpoint(lambda params, x: nnx.merge(graphdef, params)(x))(params, x)


class CLIPImageEncoder(nnx.Module):
  """CLIP's `encode_image`: the pooled vector in the space that images share with texts.

  `encoder(image [b s s 3] in [-1, 1]) -> [b dim]`, not normalised. `vision` is CLIPVision's.
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


def normalise(
  image: Float[Array, 'b h w 3'],
  mean: Float[np.ndarray, ' 3'] = MEAN,
  std: Float[np.ndarray, ' 3'] = STD,
) -> Float[Array, 'b h w 3']:
  """From [-1, 1] to the statistics that a network was trained with, CLIP's if not told."""
  return (image * 0.5 + (0.5 - mean).reshape(1, 1, 1, 3)) / std.reshape(1, 1, 1, 3)
