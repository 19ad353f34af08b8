"""The bottleneck that turns an exemplar's CLIP features into the UNet's context."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from exedit.models import blocks
from exedit.models.attention import Attention


class MapperBlock(nnx.Module):
  """Attention and MLP with exact GELU, each behind a norm (PbE ldm/modules/encoders/xf.py)."""

  def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.norm1 = blocks.layer_norm(width, rngs=rngs)
    self.attn = Attention(width, heads=1, qkv_bias=True, dtype=dtype, rngs=rngs)
    self.norm2 = blocks.layer_norm(width, rngs=rngs)
    self.fc1 = blocks.linear(width, 4 * width, dtype=dtype, rngs=rngs)
    self.fc2 = blocks.linear(4 * width, width, dtype=dtype, rngs=rngs)

  def __call__(self, x: Float[Array, 'b n c'], *, shortcut: bool = True) -> Float[Array, 'b n c']:
    # The softmax over one token is 1 (docs/design.md, "Exact shortcuts").
    attend = self.attn.constant if shortcut and x.shape[1] == 1 else self.attn
    x = x + attend(self.norm1(x))
    return x + self.fc2(jax.nn.gelu(self.fc1(self.norm2(x)), approximate=False))


class ExemplarConditioner(nnx.Module):
  """The paper's bottleneck: it maps CLIP's pooled vector to one context token.

  `conditioner(features [b n width]) -> context [b n context_dim]`, with n = 1 for the bottleneck
  and n = 257 for the ablation without it. `null [1 1 context_dim]` is a learned vector; it replaces
  the context in classifier-free guidance.

  layers: number of transformer blocks before the last projection.
  """

  def __init__(
    self,
    *,
    width: int = 1024,
    layers: int = 5,
    context_dim: int = 768,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    blocks.require_sizes('conditioner', layers=layers, context_dim=context_dim)
    self.mapper = nnx.List([MapperBlock(width, dtype=dtype, rngs=rngs) for _ in range(layers)])
    self.final_norm = blocks.layer_norm(width, rngs=rngs)
    self.proj_out = blocks.linear(width, context_dim, dtype=dtype, rngs=rngs)
    self.null = nnx.Param(jax.random.normal(rngs.params(), (1, 1, context_dim)))

  def __call__(
    self, features: Float[Array, 'b n width'], *, shortcut: bool = True
  ) -> Float[Array, 'b n d']:
    for block in self.mapper:
      features = block(features, shortcut=shortcut)
    return self.proj_out(self.final_norm(features))
