"""Stable Diffusion 1.x inpainting: repaint a hole in a photo as a text says.

The network of Stable Diffusion with five more input channels, in the layout of the published
weights: the mask (1 = repaint) and the masked photo's latent (diffusers'
StableDiffusionInpaintPipeline). Paint by Example has another order and the opposite mask.

A training batch is that of `stable_diffusion`. The masks are drawn here.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from exedit import images, latent_diffusion, stable_diffusion
from exedit.diffusion import guidance
from exedit.editing.settings import interval_shares
from exedit.latent_diffusion import as_signed, latent_shape, normal
from exedit.models import blocks
from exedit.stable_diffusion import StableDiffusion
from exedit.stable_diffusion_form import INPAINTING
from exedit.systems import System

WHOLE = 0.25  # share of the training masks that are the whole picture, as published


@functools.wraps(stable_diffusion.build)
def build(*, rngs: nnx.Rngs, **model: Any) -> StableDiffusion:
  made = stable_diffusion.build(**model, rngs=rngs)
  unet, inputs = made.unet, 2 * made.autoencoder.z_channels + 1
  unet.conv_in = blocks.conv(inputs, unet.channels, dtype=unet.dtype, rngs=rngs)
  return made


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """`System.complete`. The entry `still` keeps a training from mixing UNets of other channels."""
  found = stable_diffusion.complete(settings)
  return found | dict(unet=found['unet'] | dict(still='mask, masked latent'))


def still_channels(
  masked: Float[Array, 'b lh lw z'], mask: Float[Array, 'b h w 1']
) -> Float[Array, 'b lh lw s']:
  """The channels behind x_t: the mask at the size of the latents, then the masked latent."""
  return jnp.concatenate(
    [latent_diffusion.resize_mask(mask, (masked.shape[1], masked.shape[2]), 'nearest'), masked], -1
  )


# Training


def loss(
  model: StableDiffusion, batch: Mapping[str, Array], key: Key[Array, '']
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The objective of latent diffusion on one batch: predict the noise, given text and hole.

  Every random number is a function of (key, the example's id).
  """
  keys = latent_diffusion.example_keys(key, batch['id'], 6)
  k_z, k_masked, k_t, k_noise, k_drop, k_mask = keys
  image = as_signed(batch['image'])
  mask = draw_masks(k_mask, (image.shape[1], image.shape[2]))
  shape = latent_shape(model, image.shape)
  noises = jnp.stack([normal(k_z, shape), normal(k_masked, shape)], 1)
  pair = latent_diffusion.moments(model.autoencoder, image, mask)
  flat = lambda array: array.reshape(-1, *array.shape[2:])
  z = model.autoencoder.draw(flat(pair), flat(noises)).reshape(-1, 2, *shape)
  still = still_channels(z[:, 1], mask)
  context = model.text(guidance.drop(batch['tokens'], model.empty(1), k_drop, model.p_drop))
  predict = lambda x_t, t: model.unet(jnp.concatenate([x_t, still], -1), t, context)
  return latent_diffusion.noise_prediction_loss(predict, model.schedule, z[:, 0], k_t, k_noise)


def draw_masks(keys: Key[Array, ' b'], size: tuple[int, int]) -> Float[Array, 'b h w 1']:
  """A random rectangle for each key, or in a share of WHOLE the whole picture (1 = repaint)."""

  def draw(key):
    k_whole, k_corners = jax.random.split(key)
    corners = jnp.sort(jax.random.uniform(k_corners, (2, 2)), 1)  # [axis, first and last]
    rows, columns = (
      (place >= first) & (place <= last)
      for place, (first, last) in zip([(np.arange(n) + 0.5) / n for n in size], corners)
    )
    whole = jax.random.bernoulli(k_whole, WHOLE)
    return (whole | (rows[:, None] & columns[None]))[..., None].astype(jnp.float32)

  return jax.vmap(draw)(keys)


def preview(
  model: StableDiffusion, examples: Mapping[str, Any], **settings: Any
) -> tuple[tuple[str, ...], list[list[Any]]]:
  """Each held-out picture, its centre removed, and the centre painted twice, as grid rows."""
  source = images.from_uint8(examples['image'])
  mask = np.zeros((*source.shape[:3], 1), np.float32)
  top, left = (side // 4 for side in source.shape[1:3])
  mask[:, top:-top, left:-left] = 1
  arrays = [np.concatenate([a, a]) for a in (source, mask, np.asarray(examples['tokens']))]
  made = edit(model, *map(jnp.asarray, arrays), key=jax.random.key(0), **settings)
  first, second = np.split(np.asarray(made), 2)
  rows = zip(source, source * (1 - mask), first, second)
  return ('picture', 'hole', 'edit', 'another'), [list(row) for row in rows]


# Editing


def edit(
  model: StableDiffusion,
  source: Float[Array, 'b h w 3'],
  mask: Shaped[Array | np.ndarray, 'm mh mw 1'],
  tokens: Int[Array, 'b n'],
  negative: Int[Array, 'b n'] | None = None,
  *,
  key: Key[Array, ''] | Key[Array, ' b'],
  guidance_interval: str | Sequence[float | int] = latent_diffusion.WHOLE,
  noise: Float[Array, 'b lh lw z'] | None = None,
  posterior_noise: Float[Array, 'b lh lw z'] | None = None,
  paste: bool = True,
  steps: int = 50,
  scale: float = 7.5,
  sampler: str = 'plms',
  spacing: str = 'leading',
) -> Float[Array, 'b h w 3']:
  """Repaint the mask (1 = repaint) of each source as its text says.

  Args:
    source, mask, key, noise, posterior_noise, paste: see `paint_by_example.edit`. The mask counts
      where it is at least one half.
    tokens, negative and the sampling: see `stable_diffusion.generate`.
  Raises:
    ValueError: as `latent_diffusion.repaint`.
  """
  negative = model.empty(len(tokens)) if negative is None else negative
  return latent_diffusion.repaint(
    _inpaint,
    model,
    source,
    mask,
    tokens,
    negative,
    key=key,
    noise=noise,
    posterior_noise=posterior_noise,
    paste=paste,
    steps=steps,
    scale=float(scale),
    sampler=sampler,
    spacing=spacing,
    interval=interval_shares(guidance_interval),
  )


def _inpaint(
  graphdef, params, source, mask, tokens, negative, noise, posterior_noise,
  *, scale, interval, **how,
):  # fmt: skip
  """The compiled part of `edit`: encode, sample, decode."""
  model = nnx.merge(graphdef, params)
  mask = (mask >= 0.5).astype(source.dtype)
  still = still_channels(model.autoencoder.encode(source * (1 - mask), posterior_noise), mask)
  denoise = stable_diffusion.denoiser(model, still, tokens, negative, scale, interval)
  z = latent_diffusion.sample(denoise, noise, model.schedule, **how)
  return model.autoencoder.decode(z)


# The system


def _edit(model, arrays, keys, size=None, **settings):
  """`System.edit`; the arrays have the size already."""
  given = [arrays.get(name) for name in ('image', 'mask', 'prompt', 'negative_prompt')]
  return edit(model, *given, key=keys, paste=False, **settings)


SYSTEM = System(
  name=INPAINTING.name,
  inputs=INPAINTING.inputs,
  settings=INPAINTING.settings,
  build=build,
  complete=complete,
  data=stable_diffusion.SYSTEM.data,
  loss=loss,
  preview=preview,
  edit=_edit,
  mask_grid=stable_diffusion.mask_grid,
  tokenizer=stable_diffusion.tokenizer,
  data_settings=stable_diffusion.data_settings,
)
