"""CLIP (arXiv 2103.00020) as a system: it trains an image and a text tower, and edits nothing.

A training batch holds uint8 `image [b s s 3]`, int32 `tokens [b n]` and int32 `id [b]`. The loss
has no random numbers. Paint by Example takes the image tower, Stable Diffusion the text tower.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from exedit import images, latent_diffusion, stable_diffusion
from exedit.clip_form import FORM
from exedit.input_pipeline import captioned
from exedit.latent_diffusion import as_signed
from exedit.models.clip import CLIPVision, unit
from exedit.models.clip_text import CLIPText, at_end
from exedit.systems import System
from exedit.training import sharding

START = math.log(1 / 0.07)  # of the logarithm of the scale of the similarities
MOST = math.log(100)


class Contrastive(nnx.Module):
  """Both towers, and their projections to one space."""

  def __init__(self, clip: CLIPVision, text: CLIPText, dim: int, rngs: nnx.Rngs):
    self.clip, self.text = clip, text
    linear = lambda width: nnx.Linear(
      width, dim, use_bias=False, kernel_init=nnx.initializers.normal(width**-0.5), rngs=rngs
    )
    self.image_projection, self.text_projection = linear(clip.width), linear(text.width)
    self.logit_scale = nnx.Param(jnp.full((), START))

  def multiple(self) -> int:
    """Pictures have one size: that of the tower."""
    return self.clip.image_size

  def images(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b d']:
    """Vectors of length 1."""
    return unit(self.image_projection(self.clip(image)))

  def texts(self, tokens: Int[Array, 'b n']) -> Float[Array, 'b d']:
    """Vectors of length 1."""
    hidden = at_end(self.text(tokens), tokens, self.text.vocabulary)
    return unit(self.text_projection(hidden.astype(jnp.float32)))


def build(
  *,
  clip: Mapping[str, Any] = {},
  text: Mapping[str, Any] = {},
  dim: int = 768,
  dtype: str = 'float32',
  rngs: nnx.Rngs,
) -> Contrastive:
  """The model with fresh weights. The defaults are the published sizes of ViT-L/14.

  clip: the arguments of CLIPVision. text: of CLIPText. dim: width of the space of both.
  dtype: the type that the towers compute in; norms, softmax and parameters are float32.
  """
  latent_diffusion.check_groups(dict(clip=clip, text=text), dict(clip=CLIPVision, text=CLIPText))
  if dim < 1:
    raise ValueError(f'dim is {dim}: it must be at least 1')
  how: dict[str, Any] = dict(dtype=latent_diffusion.compute_dtype(dtype), rngs=rngs)
  return Contrastive(CLIPVision(**clip, **how), CLIPText(**text, **how), dim, rngs)


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of `build` with every default value; see `System.complete`."""
  return latent_diffusion.complete(settings, dict(clip=CLIPVision, text=CLIPText), dim=768)


# The loss


def loss(
  model: Contrastive, batch: Mapping[str, Array], key: Key[Array, '']
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The cross-entropy of each picture's own text among all texts of the batch, and vice versa.

  The batch is that of all devices; with `accumulate` it is one part of it. Another row with the
  same text is left out of the sum: it is not a wrong answer.
  """
  image, text = model.images(as_signed(batch['image'])), model.texts(batch['tokens'])
  everyone = [sharding.all_rows(rows) for rows in (image, text, batch['tokens'])]
  own = sharding.first_row(len(image)) + jnp.arange(len(image))
  same = (batch['tokens'][:, None] == everyone[2][None]).all(-1)  # [b all]
  other = same & (own[:, None] != jnp.arange(len(everyone[2]))[None])
  scale = jnp.exp(bounded(model.logit_scale[...]))
  to_texts, found = entropy(scale * image @ everyone[1].T, own, other)
  to_images, _ = entropy(scale * text @ everyone[0].T, own, other)
  per_example = (to_texts + to_images) / 2
  aux = dict(
    per_example=per_example,
    accuracy=found.astype(jnp.float32),
    similarity_scale=jnp.broadcast_to(scale, per_example.shape),
  )
  return per_example.mean(), aux


def entropy(
  logits: Float[Array, 'b n'], own: Int[Array, ' b'], left_out: Bool[Array, 'b n']
) -> tuple[Float[Array, ' b'], Bool[Array, ' b']]:
  """The cross-entropy of the own column of each row, and whether it is the largest.

  left_out: columns that do not count.
  """
  logits = jnp.where(left_out, -jnp.inf, logits)
  right = jnp.take_along_axis(logits, own[:, None], 1)[:, 0]
  return jax.nn.logsumexp(logits, -1) - right, right >= logits.max(-1)


@jax.custom_vjp
def bounded(x: Float[Array, '']) -> Float[Array, '']:
  """x, but not more than MOST; beyond it the gradient can only bring x back."""
  return jnp.minimum(x, MOST)


bounded.defvjp(
  lambda x: (jnp.minimum(x, MOST), x > MOST),
  lambda beyond, ct: (jnp.where(beyond, jnp.maximum(ct, 0), ct),),
)


def preview(
  model: Contrastive, examples: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[list[Any]]]:
  """Each held-out picture with its caption, and the two pictures nearest to that, as grid rows."""
  source = images.from_uint8(examples['image'])
  tokens = jnp.asarray(examples['tokens'])
  order = np.asarray(latent_diffusion.run(_nearest, model, jnp.asarray(source), tokens))
  said = captioned.decoded(examples['caption'])
  rows = zip(source, said, source[order[:, 0]], source[order[:, min(1, len(source) - 1)]])
  return ('picture', 'caption', 'nearest', 'second'), [list(row) for row in rows]


def _nearest(graphdef, params, image, tokens):
  """The compiled part of `preview`: the pictures from the nearest to the farthest, by text."""
  model = nnx.merge(graphdef, params)
  return jnp.argsort(-(model.texts(tokens) @ model.images(image).T), -1)


SYSTEM = System(
  name=FORM.name,
  inputs=FORM.inputs,
  settings=FORM.settings,
  build=build,
  complete=complete,
  data=latent_diffusion.CAPTIONED,
  loss=loss,
  preview=preview,
  data_settings=stable_diffusion.data_settings,
)
