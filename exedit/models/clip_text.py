"""CLIP's text tower at any size: tokens as one vector each, which condition Stable Diffusion."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from exedit.models import blocks, vit
from exedit.models.clip import quick_gelu


class CLIPText(nnx.Module):
  """The text tower of CLIP (arXiv 2103.00020; transformers CLIPTextModel).

  `text(ids [b n]) -> [b n width]` are the normalised last hidden states; n is at most `length`. A
  token sees only itself and the tokens before it. The defaults are the text side of ViT-L/14, with
  123,060,480 parameters.

  vocabulary: number of tokens, that is of rows of the table. length: the most tokens of a text.
  width: width of a token. layers: number of transformer blocks. heads: number of heads of each.
  mlp: width of each MLP.
  new: number of tokens beside the vocabulary, with the ids from `vocabulary` on. Their rows are a
    parameter of their own, `new_tokens`, so that they can train while the table does not.
  remat: compute each layer again in the backward pass, which saves memory.
  """

  def __init__(
    self,
    *,
    vocabulary: int = 49408,
    length: int = 77,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    mlp: int = 3072,
    new: int = 0,
    remat: bool = False,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    sizes = dict(vocabulary=vocabulary, length=length, width=width, layers=layers)
    blocks.require_sizes('CLIPText', **sizes, heads=heads, mlp=mlp)
    if new < 0:
      raise ValueError(f'CLIPText.new is {new}: it must be at least 0')
    if width % heads:
      raise ValueError(f'a text tower of width {width} cannot have {heads} heads: use a divisor')
    self.vocabulary, self.length, self.width, self.new = vocabulary, length, width, new
    self.remat, self.dtype = remat, dtype
    table, place = (nnx.initializers.normal(std) for std in (0.02, 0.01))  # CLIP model.py
    self.token_embedding = nnx.Param(table(rngs.params(), (vocabulary, width)))
    self.position_embedding = nnx.Param(place(rngs.params(), (length, width)))
    settings: dict[str, Any] = dict(heads=heads, mlp=mlp, depth=layers, activation=quick_gelu)
    settings |= dict(eps=1e-5, causal=True, dtype=dtype, rngs=rngs)
    self.layers = nnx.List([vit.Layer(width, **settings) for _ in range(layers)])
    self.final_norm = blocks.layer_norm(width, rngs=rngs)
    if new:
      self.new_tokens = nnx.Param(table(rngs.params(), (new, width)))

  def __call__(self, ids: Int[Array, 'b n']) -> Float[Array, 'b n width']:
    x = self.embedded(ids) + self.position_embedding[: ids.shape[1]][None]
    x = x.astype(self.dtype)
    for layer in self.layers:
      x = vit.recomputed(layer, x) if self.remat else layer(x)
    return self.final_norm(x)

  def embedded(self, ids: Int[Array, 'b n']) -> Float[Array, 'b n width']:
    """The rows of these tokens, of the table or of `new_tokens`."""
    table = self.token_embedding[...]
    if not self.new:
      return table[ids]
    place = ids - self.vocabulary
    own = self.new_tokens[...][jnp.maximum(place, 0)]
    return jnp.where((place < 0)[..., None], table[jnp.minimum(ids, self.vocabulary - 1)], own)


class CLIPTextEncoder(nnx.Module):
  """CLIP's `encode_text`: a text's vector in the space that texts share with images.

  `encoder(ids [b n]) -> [b dim]`, not normalised. `text` are the arguments of CLIPText.
  """

  def __init__(
    self,
    *,
    dim: int = 512,
    text: Mapping[str, Any] = {},
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.text = CLIPText(**text, dtype=dtype, rngs=rngs)
    self.projection = nnx.Linear(self.text.width, dim, use_bias=False, dtype=dtype, rngs=rngs)

  def __call__(self, ids: Int[Array, 'b n']) -> Float[Array, 'b dim']:
    return self.projection(at_end(self.text(ids), ids, self.text.vocabulary))


def at_end(
  hidden: Float[Array, 'b n width'], ids: Int[Array, 'b n'], vocabulary: int
) -> Float[Array, 'b width']:
  """The state of each text's first end token, which sees all before it."""
  end = jnp.argmax(ids == vocabulary - 1, 1)
  return jnp.take_along_axis(hidden, end[:, None, None], 1)[:, 0]
