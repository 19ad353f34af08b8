"""Blended Diffusion (arXiv 2111.14818) guided by an exemplar: repaint a hole with Stable Diffusion.

In each step, the gradient of a distance between CLIP's vectors of the hole and of the exemplar is
added to the predicted noise, and outside the hole the photo stays. The paper guides a network of
pixels by a text, or here by a picture in its place. The network is Stable Diffusion, so the photo
stays in latents (Blended Latent Diffusion, `latent_diffusion.blended`), and the gradient goes
through the autoencoder. CLIP compares the hole's box alone, resized to its square; in the published
code it sees the whole picture, grey outside the hole, in which a small hole has few patches.

Nothing is trained: `exedit.convert --clip` joins the networks.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from exedit import latent_diffusion, stable_diffusion
from exedit.blended_diffusion_form import FORM
from exedit.editing.settings import interval_shares
from exedit.latent_diffusion import Denoiser
from exedit.models import hole_views
from exedit.models.clip import CLIPVision, unit
from exedit.stable_diffusion import StableDiffusion
from exedit.systems import System


class BlendedDiffusion(StableDiffusion):
  """The networks of Stable Diffusion, CLIP's image tower and its projection."""

  def __init__(self, base: StableDiffusion, clip: CLIPVision, image_projection: nnx.Linear):
    super().__init__(base.unet, base.autoencoder, base.text, base.schedule, base.p_drop)
    self.clip, self.image_projection = clip, image_projection

  def vectors(self, image: Float[Array, 'b s s 3']) -> Float[Array, 'b d']:
    """CLIP's vectors of pictures, of length 1."""
    return unit(self.image_projection(self.clip(image)))


def build(
  *,
  clip: Mapping[str, Any] = {},
  dim: int = 768,
  dtype: str = 'float32',
  rngs: nnx.Rngs,
  **model: Any,
) -> BlendedDiffusion:
  """The model with fresh weights; the defaults are Stable Diffusion 1.x and CLIP ViT-L/14.

  clip: the arguments of CLIPVision. dim: width of CLIP's vectors. model: see
  `stable_diffusion.build`; the gradient computes the UNet's blocks again unless `unet.remat` says
  otherwise, because the memory for all of them is large.
  """
  latent_diffusion.check_groups(dict(clip=clip), dict(clip=CLIPVision))
  if dim < 1:
    raise ValueError(f'dim is {dim}: it must be at least 1')
  model['unet'] = dict(remat='block') | dict(model.get('unet', {}))
  base = stable_diffusion.build(**model, dtype=dtype, rngs=rngs)
  tower = CLIPVision(**clip, dtype=latent_diffusion.compute_dtype(dtype), rngs=rngs)
  return BlendedDiffusion(base, tower, nnx.Linear(tower.width, dim, use_bias=False, rngs=rngs))


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of `build` with every default value; see `System.complete`."""
  own = {name: settings[name] for name in ('clip', 'dim') if name in settings}
  tower = latent_diffusion.complete(own, dict(clip=CLIPVision), dim=768)
  return stable_diffusion.complete(settings) | tower


# The guidance


def distance(a: Float[Array, 'b v d'], b: Float[Array, 'b 1 d']) -> Float[Array, 'b v']:
  """Half the square of the angle between vectors of length 1 (optimization/losses.py)."""
  chord = jnp.clip(((a - b) ** 2).sum(-1), 1e-12, 4 - 1e-6)  # its root has a derivative there
  return 2 * jnp.arcsin(jnp.sqrt(chord) / 2) ** 2


def guided(
  denoise: Denoiser,
  model: BlendedDiffusion,
  target: Float[Array, 'b d'],
  mask: Float[Array, 'b h w 1'],
  keys: Key[Array, ' b'],
  clip_scale: float | Float[Array, ''],
  views: int,
) -> Denoiser:
  """The denoiser `eps + clip_scale √(1-ᾱ) gradient` of the mean distance between hole and target.

  The gradient is with respect to x_t and goes through the denoiser, the autoencoder and CLIP
  (Dhariwal & Nichol 2021, arXiv 2105.05233, algorithm 2). As in the published code, CLIP sees the
  clean estimate mixed with x_t in the shares √(1-ᾱ) and 1 - √(1-ᾱ).

  target: CLIP's vectors of the exemplars. mask: in pixels, 1 in the hole. keys: of the views, which
  are functions of the key and the timestep.
  """
  shown = (mask >= 0.5).astype(mask.dtype)
  first, last = hole_views.box(shown[..., 0] > 0)
  cut = functools.partial(hole_views.cut, side=model.clip.image_size)
  rates = model.schedule.signal_rate, model.schedule.noise_rate

  def far(x, t):
    signal, noise = (jnp.asarray(rate, x.dtype)[t][:, None, None, None] for rate in rates)
    eps = denoise(x, t)
    estimate = (x - noise * eps) / signal
    image = model.autoencoder.decode(noise * estimate + (1 - noise) * x) * shown
    cuts = jax.vmap(cut)(image, first, last)
    seen = hole_views.copies(cuts, jax.vmap(jax.random.fold_in)(keys, t), views)
    found = model.vectors(seen.reshape(-1, *seen.shape[2:])).reshape(*seen.shape[:2], -1)
    return distance(found, target[:, None]).mean(1).sum(), (eps, noise)

  def denoise_towards(x, t):
    gradient, (eps, noise) = jax.grad(far, has_aux=True)(x, t)
    return eps + clip_scale * noise * gradient

  return denoise_towards


# Editing


def edit(
  model: BlendedDiffusion,
  source: Float[Array, 'b h w 3'],
  mask: Shaped[Array | np.ndarray, 'm mh mw 1'],
  exemplar: Float[Array, 'e eh ew 3'],
  tokens: Int[Array, 'b n'] | None = None,
  negative: Int[Array, 'b n'] | None = None,
  *,
  key: Key[Array, ''] | Key[Array, ' b'],
  clip_scale: float = 100.0,
  views: int = 8,
  strength: float = 0.75,
  steps: int = 50,
  scale: float = 7.5,
  sampler: str = 'ddim',
  spacing: str = 'leading',
  guidance_interval: str | Sequence[float | int] = latent_diffusion.WHOLE,
  noise: Float[Array, 'b lh lw z'] | None = None,
  posterior_noise: Float[Array, 'b lh lw z'] | None = None,
  paste: bool = True,
) -> Float[Array, 'b h w 3']:
  """Repaint the mask (1 = repaint) of each source so that it resembles its exemplar.

  Args:
    source, mask, exemplar, key, noise, posterior_noise, paste: see `paint_by_example.edit`.
    tokens, negative and the sampling: see `stable_diffusion.edit`. Without any text, `scale` has no
      effect and each step runs the network once.
    clip_scale, views: see `blended_diffusion_form.Settings`.
  Raises:
    ValueError: as `stable_diffusion.edit`, and for another number of exemplars than of sources.
  """
  if tokens is None and negative is None:
    scale = 1.0  # both halves of guidance would be the same
  empty = model.empty(len(source))
  keys = latent_diffusion.picture_keys(key, len(source))
  return latent_diffusion.repaint(
    _edit,
    model,
    source,
    mask,
    latent_diffusion.exemplars(exemplar, len(source), model.clip.image_size),
    empty if tokens is None else tokens,
    empty if negative is None else negative,
    jax.vmap(jax.random.fold_in, (0, None))(keys, 2),  # 0 and 1 are the two noises
    jnp.float32(clip_scale),  # one program serves all scales
    key=keys,
    noise=noise,
    posterior_noise=posterior_noise,
    paste=paste,
    views=views if clip_scale else 0,
    steps=steps,
    scale=float(scale),
    sampler=sampler,
    spacing=spacing,
    interval=interval_shares(guidance_interval),
    strength=float(strength),
  )


def _edit(
  graphdef, params, source, mask, exemplar, tokens, negative, keys, clip_scale, noise,
  posterior_noise, *, views, scale, interval, **how,
):  # fmt: skip
  """The compiled part of `edit`: encode, sample, decode; without views there is no guidance."""
  model = nnx.merge(graphdef, params)
  denoise = stable_diffusion.denoiser(model, None, tokens, negative, scale, interval)
  if views:
    target = model.vectors(exemplar)
    denoise = guided(denoise, model, target, mask, keys, clip_scale, views)
  return stable_diffusion.blend(model, denoise, source, mask, noise, posterior_noise, **how)


# The system


def _edit_arrays(model, arrays, keys, size=None, **settings):
  """`System.edit`; the arrays have the size already."""
  given = [arrays[name] for name in ('image', 'mask', 'exemplar')]
  texts = [arrays.get(name) for name in ('prompt', 'negative_prompt')]
  return edit(model, *given, *texts, key=keys, paste=False, **settings)


def picture_size(settings: Mapping[str, Any]) -> int:
  """The side in pixels of the exemplar that CLIP sees, from the model settings."""
  return complete(settings)['clip']['image_size']


SYSTEM = System(
  name=FORM.name,
  inputs=FORM.inputs,
  settings=FORM.settings,
  build=build,
  complete=complete,
  data=stable_diffusion.SYSTEM.data,
  edit=_edit_arrays,
  picture_size=picture_size,
  mask_grid=stable_diffusion.mask_grid,
  tokenizer=stable_diffusion.tokenizer,
)
