"""The KL autoencoder as a system: it trains the latents that diffusion works in, and edits nothing.

The loss is that of Latent Diffusion (arXiv 2112.10752, LPIPSWithDiscriminator) without its two
networks, the discriminator and the perceptual distance; `spread` is added (see `build`). A training
batch holds uint8 `image [b h w 3]` and int32 `id [b]`. All random numbers of an example are
functions of its id.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from exedit import images, latent_diffusion
from exedit.autoencoder_form import FORM
from exedit.latent_diffusion import as_signed, latent_shape, normal
from exedit.models.autoencoder import AutoencoderKL
from exedit.systems import System
from exedit.training import sharding

KL, SPREAD, EDGES = 1e-6, 1e-2, 0.0  # weights of the parts of the loss; see `build`


class Autoencoder(nnx.Module):
  """The network and the weights of the parts of its loss."""

  def __init__(self, autoencoder: AutoencoderKL, kl: float, spread: float, edges: float):
    self.autoencoder = autoencoder
    self.kl, self.spread, self.edges = kl, spread, edges

  def multiple(self) -> int:
    """The sides of an image must be multiples of this number of pixels."""
    return self.autoencoder.factor


def build(
  *,
  autoencoder: Mapping[str, Any] = {},
  kl: float = KL,
  spread: float = SPREAD,
  edges: float = EDGES,
  dtype: str = 'float32',
  rngs: nnx.Rngs,
) -> Autoencoder:
  """The model with fresh weights. The defaults are the published sizes of KL-f8.

  autoencoder: the arguments of AutoencoderKL, and `kind`, which is 'kl'.
  kl: weight of the posterior's divergence from the standard normal distribution, summed over
    latents where the error is summed over pixels. spread: weight of the divergence of all latents
    of a channel together; it makes their mean 0 and their variance 1, as diffusion wants them.
    edges: weight of the error of the differences between neighbouring pixels.
  dtype: the type that the network computes in; norms, softmax and parameters are float32.
  """
  latent_diffusion.check_groups(dict(autoencoder=autoencoder), dict(autoencoder=AutoencoderKL))
  if (kind := autoencoder.get('kind', 'kl')) != 'kl':
    raise ValueError(f"autoencoder.kind is '{kind}': only 'kl' has parameters to train")
  for name, weight in dict(kl=kl, spread=spread, edges=edges).items():
    if not weight >= 0:
      raise ValueError(f'{name} is {weight}: a part of the loss has a weight of at least 0')
  compute = latent_diffusion.compute_dtype(dtype)
  network = latent_diffusion.make_autoencoder(autoencoder, compute, rngs)
  assert isinstance(network, AutoencoderKL)
  return Autoencoder(network, kl, spread, edges)


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of `build` with every default value; see `System.complete`."""
  weights = dict(kl=KL, spread=SPREAD, edges=EDGES)
  result = latent_diffusion.complete(settings, dict(autoencoder=AutoencoderKL), **weights)
  result['autoencoder']['kind'] = 'kl'
  return result


def loss(
  model: Autoencoder, batch: Mapping[str, Array], key: Key[Array, '']
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The error of the pictures made from drawn latents, and the divergences of `build`.

  The latents of a channel are those of the whole batch, on all devices; with `accumulate` they are
  those of one part of it.
  """
  image = as_signed(batch['image'])
  (key,) = latent_diffusion.example_keys(key, batch['id'], 1)
  network = model.autoencoder
  moments = network.moments(image)
  z = network.draw(moments, normal(key, latent_shape(model, image.shape)))
  error = network.decode(z) - image
  off = jnp.abs(error).mean((1, 2, 3))
  if model.edges:
    off += model.edges * sum(jnp.abs(jnp.diff(error, axis=a)).mean((1, 2, 3)) for a in (1, 2))
  mean, logvar = jnp.split(moments, 2, -1)
  inside = divergence(mean, logvar).sum((1, 2, 3)) / image[0].size
  firsts, seconds = (sharding.all_rows((z**n).mean((1, 2))).mean(0) for n in (1, 2))
  variance = seconds - firsts**2
  between = divergence(firsts, jnp.log(variance + 1e-8)).mean()
  per_example = off + model.kl * inside
  squares = (error**2).mean((1, 2, 3))
  psnr = 10 * jnp.log10(4 / (squares + 1e-10))  # the range of the pixels is 2
  deviation = jnp.broadcast_to(jnp.sqrt(variance).mean(), psnr.shape)
  aux = dict(per_example=per_example, psnr=psnr, kl=inside, latents_std=deviation)
  return per_example.mean() + model.spread * between, aux


def divergence(mean: Float[Array, '*s'], logvar: Float[Array, '*s']) -> Float[Array, '*s']:
  """The Kullback-Leibler divergence of normal distributions from the standard one."""
  return 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar)


def preview(
  model: Autoencoder, examples: Mapping[str, Any]
) -> tuple[tuple[str, ...], list[list[Any]]]:
  """Each held-out picture beside what the mean of its latents becomes, as grid rows."""
  source = images.from_uint8(examples['image'])
  made = latent_diffusion.run(_made, model, jnp.asarray(source))
  return ('picture', 'made from latents'), [list(row) for row in zip(source, np.asarray(made))]


def _made(graphdef, params, image):
  """The compiled part of `preview`."""
  network = nnx.merge(graphdef, params).autoencoder
  return network.decode(network.encode(image))


SYSTEM = System(
  name=FORM.name,
  inputs=FORM.inputs,
  settings=FORM.settings,
  build=build,
  complete=complete,
  data=latent_diffusion.PICTURES,
  loss=loss,
  preview=preview,
)
