"""Paint by Example (arXiv 2211.13227): repaint a hole in a photo with an exemplar's subject.

A training batch holds uint8 `image [b h w 3]`, `mask [b h w]` (255 = repaint), `exemplar [b s s 3]`
and int32 `id [b]`, the example's index in the global stream. All random numbers of an example are
functions of its id.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from exedit import images, latent_diffusion
from exedit.diffusion import guidance
from exedit.diffusion.schedule import Schedule
from exedit.editing import photo
from exedit.editing.settings import FEATHER, interval_shares
from exedit.latent_diffusion import as_signed, latent_shape, normal
from exedit.models.clip import CLIPVision
from exedit.models.conditioner import ExemplarConditioner
from exedit.models.parameters import Graph
from exedit.models.unet import UNet
from exedit.paint_by_example_form import FORM, Settings
from exedit.runtime.errors import UserError
from exedit.systems import System
from exedit.weights import find, initial
from exedit.weights.formats.tensor import Tensor
from exedit.weights.found import Weights

CAPTIONS = ('source', 'hole', 'exemplar', 'edit', 'another', 'edit')


class PaintByExample(nnx.Module):
  """The networks of the system; `p_drop` is the share of examples trained without exemplar."""

  def __init__(self, unet, autoencoder, clip, conditioner, schedule, p_drop, drop, bottleneck):
    self.unet = unet
    self.autoencoder = autoencoder
    self.clip = clip
    self.conditioner = conditioner
    self.schedule = schedule
    self.p_drop = p_drop
    self.drop = drop
    self.bottleneck = bottleneck

  def context(self, exemplar: Float[Array, 'b s s 3']) -> Float[Array, 'b n d']:
    """The UNet's context: one token, or all of CLIP's tokens if `bottleneck` is False."""
    if self.bottleneck:
      return self.conditioner(self.clip(exemplar)[:, None])
    return self.conditioner(self.clip.tokens(exemplar))

  def multiple(self) -> int:
    """The sides of an image must be multiples of this number of pixels."""
    return self.autoencoder.factor * self.unet.multiple


def build(
  *,
  unet: Mapping[str, Any] = {},
  autoencoder: Mapping[str, Any] = {},
  clip: Mapping[str, Any] = {},
  conditioner: Mapping[str, Any] = {},
  schedule: Mapping[str, Any] = {},
  context_dim: int = 768,
  p_drop: float = 0.2,
  drop: str = 'example',
  bottleneck: bool = True,
  dtype: str = 'float32',
  rngs: nnx.Rngs,
) -> PaintByExample:
  """The model with fresh weights. The defaults are the published sizes (docs/facts.md).

  Each group holds the arguments of its network; `autoencoder.kind` is 'kl' or 'space_to_depth'.

  context_dim: width of the context.
  dtype: the type that the networks compute in; norms, softmax and parameters are float32.
  p_drop: share of the examples that are trained without exemplar. drop: 'example' (one coin for
    each example) or 'batch' (one coin for the batch, as the released code does).
  bottleneck: the context is one token; False: all of CLIP's tokens.
  """
  groups = dict(unet=unet, autoencoder=autoencoder, clip=clip, conditioner=conditioner)
  latent_diffusion.check_groups({**groups, 'schedule': schedule}, networks(autoencoder))
  if drop not in ('example', 'batch'):
    raise ValueError(f"drop is '{drop}'; use 'example' or 'batch'")
  if not 0 <= p_drop <= 1:
    raise ValueError(f'p_drop is {p_drop}; it is a share, from 0 to 1')
  compute = latent_diffusion.compute_dtype(dtype)
  encoder = latent_diffusion.make_autoencoder(autoencoder, compute, rngs)
  z = encoder.z_channels
  tower = CLIPVision(**clip, dtype=compute, rngs=rngs)
  sizes = dict(in_channels=2 * z + 1, out_channels=z, context_dim=context_dim)
  conditioner = dict(conditioner, width=tower.width, context_dim=context_dim)
  return PaintByExample(
    unet=UNet(**sizes, **unet, dtype=compute, rngs=rngs),
    autoencoder=encoder,
    clip=tower,
    conditioner=ExemplarConditioner(**conditioner, dtype=compute, rngs=rngs),
    schedule=Schedule(**schedule),
    p_drop=p_drop,
    drop=drop,
    bottleneck=bottleneck,
  )


def abstract(
  settings: Mapping[str, Any], where: str = 'config.model'
) -> tuple[Graph, dict[str, Any]]:
  """The model of these `build` settings without its parameters, and their shapes by path."""
  return latent_diffusion.abstract(build, settings, where)


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of `build` with every default value; see `System.complete`."""
  autoencoder = settings.get('autoencoder', {})
  result = latent_diffusion.complete(settings, networks(autoencoder), context_dim=768)
  result['conditioner'].pop('width', None)
  result['autoencoder']['kind'] = autoencoder.get('kind', 'kl')
  return result


def networks(autoencoder: Mapping[str, Any]) -> dict[str, Any]:
  """The class behind each group of `build`'s settings."""
  return dict(
    unet=UNet,
    autoencoder=latent_diffusion.autoencoder_class(autoencoder),
    clip=CLIPVision,
    conditioner=ExemplarConditioner,
    schedule=Schedule,
  )


def load(
  src: str | os.PathLike | Weights,
  which: str = 'ema',
  dtype: str | None = None,
  revision: str | None = None,
) -> PaintByExample:
  """The model with existing weights.

  Args:
    src: the workdir of a training, an exported folder, the folder of a diffusers pipeline, an
      original .ckpt or .safetensors, the id of a hub repository that holds one of these, or the
      result of `find.weights`.
    which: 'ema' or 'params', if the source holds both.
    dtype: the type that the networks compute in and that their kernels are stored in. None: the
      dtype of the source's config, and float32 kernels.
    revision: of the hub repository.
  Raises:
    UserError: if there are no weights, or damaged ones, or those of another network.
  """
  weights = src if isinstance(src, Weights) else find.weights(src, which, revision)
  if weights.kind != SYSTEM.name:
    raise UserError(f'{weights.where} holds weights of {weights.kind}: name those of {SYSTEM.name}')
  return cast(PaintByExample, latent_diffusion.load(build, weights, dtype))


def start(
  init_from: str | None, init_clip: str | None, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
  """The unread tensors from which a training with these `build` settings starts."""
  _, shapes = abstract(settings)
  ours = complete(settings)

  def check(theirs, parts, where):
    initial.require_same(complete(theirs), ours, parts, where)

  return initial.tensors(init_from, init_clip, shapes, check, ours['clip']['heads'])


# Training


def loss(
  model: PaintByExample, batch: Mapping[str, Array], key: Key[Array, '']
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The paper's objective on one batch: predict the noise, given the hole and the exemplar's token.

  The batch holds images, or the moments of their latents (`exedit.encode`). Every random number is
  a function of (key, the example's id), so the order of the batch and its split over devices or
  micro-batches do not matter.
  """
  k_z, k_still, k_t, k_noise, k_drop = latent_diffusion.example_keys(key, batch['id'], 5)
  mask = batch['mask'][..., None].astype(jnp.float32) / 255
  shape = latent_shape(model, mask.shape)
  noises = jnp.stack([normal(k_z, shape), normal(k_still, shape)], 1)
  if 'moments' in batch:
    pair = batch['moments'].astype(jnp.float32)
  else:
    pair = latent_diffusion.moments(model.autoencoder, as_signed(batch['image']), mask)
  z, still = latents_from(model, pair, mask, noises)
  context = model.context(as_signed(batch['exemplar']))
  coins = k_drop if model.drop == 'example' else jax.random.fold_in(key, 2**31)
  context = guidance.drop(context, model.conditioner.null[...], coins, model.p_drop)
  predict = lambda x_t, t: model.unet(join(x_t, still), t, context)
  return latent_diffusion.noise_prediction_loss(predict, model.schedule, z, k_t, k_noise)


def latents(
  model: PaintByExample,
  image: Float[Array, 'b h w 3'],
  mask: Float[Array, 'b h w 1'],
  noises: Float[Array, 'b 2 lh lw z'] | None = None,
) -> tuple[Float[Array, 'b lh lw z'], Float[Array, 'b lh lw s']]:
  """The image's latent, and the still channels: the masked image's latent and the mask.

  noises: the noise of both posteriors. None: the means of the posteriors.
  """
  pair = latent_diffusion.moments(model.autoencoder, image, mask)
  return latents_from(model, pair, mask, noises)


def latents_from(
  model: PaintByExample,
  moments: Float[Array, 'b 2 lh lw m'],
  mask: Float[Array, 'b h w 1'],
  noises: Float[Array, 'b 2 lh lw z'] | None = None,
) -> tuple[Float[Array, 'b lh lw z'], Float[Array, 'b lh lw s']]:
  """`latents` from the moments of both images."""
  flat = lambda pair: pair.reshape(-1, *pair.shape[2:])
  z = model.autoencoder.draw(flat(moments), None if noises is None else flat(noises))
  z = z.reshape(*moments.shape[:2], *z.shape[1:])
  return z[:, 0], jnp.concatenate([z[:, 1], keep(mask, z.shape[2:4])], -1)


def keep(
  mask: Float[Array, 'b h w 1'], size: tuple[int, int], method: str = 'bilinear'
) -> Float[Array, 'b lh lw 1']:
  """The mask that the network sees, at the size of the latents.

  In the released weights 1 means keep, so the sign flips here and nowhere else.
  """
  return 1 - latent_diffusion.resize_mask(mask, size, method)


def join(x_t: Float[Array, 'b h w z'], still: Float[Array, 'b h w s']) -> Float[Array, 'b h w c']:
  """The UNet's input. Only this function knows the order of the channels."""
  return jnp.concatenate([x_t, still], -1)


def preview(
  model: PaintByExample, examples: Mapping[str, np.ndarray], **settings: Any
) -> tuple[tuple[str, ...], list[list[Any]]]:
  """Each held-out picture edited with its own exemplar and with its neighbour's, as grid rows."""
  source = images.from_uint8(examples['image'])
  mask = examples['mask'][..., None].astype(np.float32) / 255
  exemplar = images.from_uint8(examples['exemplar'])
  other = np.roll(exemplar, 1, axis=0)
  twice = [
    jnp.asarray(np.concatenate(pair)) for pair in ((source,) * 2, (mask,) * 2, (exemplar, other))
  ]
  result = edit(model, *twice, key=jax.random.key(0), **settings)
  own, others = np.split(np.asarray(result), 2)
  rows = zip(source, source * (1 - mask), exemplar, own, other, others)
  return CAPTIONS, [list(row) for row in rows]


# Editing


def edit(
  model: PaintByExample,
  source: Float[Array, 'b h w 3'],
  mask: Shaped[Array | np.ndarray, 'm mh mw 1'],
  exemplar: Float[Array, 'e eh ew 3'],
  key: Key[Array, ''] | Key[Array, ' b'],
  *,
  steps: int = 50,
  scale: float = 5.0,
  sampler: str = 'plms',
  spacing: str = 'leading',
  guidance_interval: str | Sequence[float | int] = latent_diffusion.WHOLE,
  noise: Float[Array, 'b lh lw z'] | None = None,
  posterior_noise: Float[Array, 'b lh lw z'] | None = None,
  paste: bool = True,
  mask_resize: str = 'bilinear',
) -> Float[Array, 'b h w 3']:
  """Repaint the mask (1 = repaint) of each source with its exemplar's subject.

  Args:
    source: in [-1, 1], of any size; it is padded to the network's multiple and cropped back.
    mask: bool, 0..1, or whole numbers from 0 to 255; see `images.as_mask`.
    exemplar: in [-1, 1], of any size; it is squashed to CLIP's square, as in training.
    key: one key, from which picture i takes `fold_in(key, i)`, or one key for each picture. No
      picture depends on the others of its batch.
    steps, scale, sampler, spacing, guidance_interval: see `Settings`.
    noise: the initial latents, instead of random ones.
    posterior_noise: the noise of the masked image's posterior, instead of random noise. Zeros give
      its mean.
    paste: every pixel outside the mask is the source's own. False: the raw decode.
    mask_resize: see `latent_diffusion.resize_mask`.
  Raises:
    ValueError: for an unknown sampler or mask_resize, steps that the schedule does not have, a mask
      of another size than the source, and another number of exemplars than of sources.
  """
  return latent_diffusion.repaint(
    _edit,
    model,
    source,
    mask,
    latent_diffusion.exemplars(exemplar, len(source), model.clip.image_size),
    key=key,
    noise=noise,
    posterior_noise=posterior_noise,
    paste=paste,
    steps=steps,
    scale=float(scale),
    sampler=sampler,
    spacing=spacing,
    interval=interval_shares(guidance_interval),
    mask_resize=mask_resize,
  )


def _edit(
  graphdef, params, source, mask, exemplar, noise, posterior_noise, *, scale, interval,
  mask_resize, **how
):  # fmt: skip
  """The compiled part of `edit`: encode, sample, decode."""
  model = nnx.merge(graphdef, params)
  z = model.autoencoder.encode(source * (1 - mask), posterior_noise)
  still = jnp.concatenate([z, keep(mask, z.shape[1:3], mask_resize)], -1)
  denoise = denoiser(model, still, model.context(exemplar), scale, interval)
  z = latent_diffusion.sample(denoise, noise, model.schedule, **how)
  return model.autoencoder.decode(z)


def denoiser(
  model: PaintByExample,
  still: Float[Array, 'b lh lw s'],
  context: Float[Array, 'b n d'],
  scale: float = 5.0,
  interval: tuple[float, float] = latent_diffusion.WHOLE,
) -> latent_diffusion.Denoiser:
  """The guided noise prediction `(x, t) -> eps` for one `still` and one context."""
  null = model.conditioner.null[...]
  parts = model.unet, model.schedule, still, context, null
  return latent_diffusion.denoiser(*parts, scale, interval)


def edit_photo(
  model: PaintByExample,
  source: Float[Array, '1 h w 3'],
  mask: Shaped[Array | np.ndarray, '1 mh mw 1'],
  exemplar: Float[Array, '1 eh ew 3'],
  key: Key[Array, ''],
  *,
  trained: int = 512,
  zoom: str = 'auto',
  feather: float = FEATHER,
  match: str = 'colour',
  fit: str = 'squash',
  exemplar_mask: Shaped[Array | np.ndarray, '1 sh sw 1'] | None = None,
  **settings: Any,
) -> Float[Array, '1 h w 3']:
  """A finished edit of one photo of any size, at its own resolution.

  The network works on the part of the photo that `framing.choose` finds, at about the size that it
  was `trained` at. `framing.stitch` puts the result back, with `feather` and `match`. Every pixel
  outside the mask is the source's own. `framing.fit_exemplar` makes the exemplar square; with
  `exemplar_mask` (1 = subject) it removes the background. `settings` are those of `edit`.

  Raises:
    ValueError: for an unknown `zoom`, `match` or `fit`, an empty mask, and as `edit`.
    UserError: for a window that is too long, and a result that is not finite.
  """
  given = dict(image=source, mask=mask, exemplar=exemplar, exemplar_mask=exemplar_mask)
  how = Settings(zoom=zoom, feather=feather, match=match, exemplar_fit=fit)
  run = functools.partial(_edit_arrays, model, keys=key, **settings)
  size = model.clip.image_size
  return photo.edit_photo(SYSTEM.inputs, given, how, run, trained=trained, picture_size=size)


# The system


def _edit_arrays(model, arrays, keys, size=None, **settings):
  """`System.edit`; the arrays have the size already."""
  source, mask, exemplar = arrays['image'], arrays['mask'], arrays['exemplar']
  return edit(model, source, mask, exemplar, keys, **settings, paste=False)


def picture_size(settings: Mapping[str, Any]) -> int:
  """The side in pixels of the exemplar that CLIP sees, from the model settings."""
  return complete(settings)['clip']['image_size']


SYSTEM = System(
  name=FORM.name,
  inputs=FORM.inputs,
  settings=FORM.settings,
  build=build,
  complete=complete,
  start=start,
  starts_from=('stable_diffusion', 'stable_diffusion_inpainting'),  # it refuses the second by name
  data=latent_diffusion.OPEN_IMAGES,
  loss=loss,
  preview=preview,
  edit=_edit_arrays,
  picture_size=picture_size,
  moments=latent_diffusion.moments,
)  # fmt: skip
