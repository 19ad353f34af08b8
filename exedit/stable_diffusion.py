"""Stable Diffusion 1.x (arXiv 2112.10752): a picture from a text.

A training batch holds uint8 `image [b h w 3]`, int32 `tokens [b n]` and int32 `id [b]`, the
example's index in the global stream. All random numbers of an example are functions of its id.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped

from exedit import images, latent_diffusion, text_editing
from exedit.diffusion import guidance
from exedit.diffusion.schedule import Schedule
from exedit.editing import prompts
from exedit.editing.settings import STRENGTH, interval_shares
from exedit.input_pipeline import captioned
from exedit.input_pipeline import tokenizer as texts
from exedit.input_pipeline.tokenizer import Tokenizer
from exedit.latent_diffusion import as_signed, latent_shape, normal
from exedit.models.clip_text import CLIPText
from exedit.models.unet import UNet
from exedit.runtime.errors import UserError
from exedit.stable_diffusion_form import FORM
from exedit.systems import System
from exedit.weights import find
from exedit.weights.found import Weights


class StableDiffusion(nnx.Module):
  """The networks of the system; `p_drop` is the share of examples trained without their text."""

  def __init__(self, unet, autoencoder, text, schedule, p_drop):
    self.unet = unet
    self.autoencoder = autoencoder
    self.text = text
    self.schedule = schedule
    self.p_drop = p_drop

  def empty(self, count: int) -> Int[Array, 'b n']:
    """The tokens of `count` empty texts: the start token, then end tokens."""
    start, end = self.text.vocabulary - 2, self.text.vocabulary - 1
    return jnp.full((count, self.text.length), end, jnp.int32).at[:, 0].set(start)

  def multiple(self) -> int:
    """The sides of an image must be multiples of this number of pixels."""
    return self.autoencoder.factor * self.unet.multiple


def build(
  *,
  unet: Mapping[str, Any] = {},
  autoencoder: Mapping[str, Any] = {},
  text: Mapping[str, Any] = {},
  schedule: Mapping[str, Any] = {},
  context_dim: int = 768,
  p_drop: float = 0.1,
  dtype: str = 'float32',
  rngs: nnx.Rngs,
) -> StableDiffusion:
  """The model with fresh weights. The defaults are the published sizes (docs/facts.md).

  Each group holds the arguments of its network; `autoencoder.kind` is 'kl' or 'space_to_depth'.

  context_dim: width of the context, which is that of the text tower.
  p_drop: share of the examples that are trained with the empty text.
  dtype: the type that the networks compute in; norms, softmax and parameters are float32.

  Raises:
    ValueError: for a text tower of another width than the UNet's context.
  """
  groups = dict(unet=unet, autoencoder=autoencoder, text=text, schedule=schedule)
  latent_diffusion.check_groups(groups, networks(autoencoder))
  if not 0 <= p_drop <= 1:
    raise ValueError(f'p_drop is {p_drop}; it is a share, from 0 to 1')
  compute = latent_diffusion.compute_dtype(dtype)
  encoder = latent_diffusion.make_autoencoder(autoencoder, compute, rngs)
  tower = CLIPText(**text, dtype=compute, rngs=rngs)
  if tower.width != context_dim:
    raise ValueError(
      f'the text tower gives vectors of {tower.width} numbers and the UNet takes {context_dim}'
    )
  z = encoder.z_channels
  sizes = dict(in_channels=z, out_channels=z, context_dim=context_dim)
  net = UNet(**sizes, **unet, dtype=compute, rngs=rngs)
  return StableDiffusion(net, encoder, tower, Schedule(**schedule), p_drop)


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of `build` with every default value; see `System.complete`."""
  autoencoder = settings.get('autoencoder', {})
  result = latent_diffusion.complete(settings, networks(autoencoder), context_dim=768)
  result['autoencoder']['kind'] = autoencoder.get('kind', 'kl')
  return result


def networks(autoencoder: Mapping[str, Any]) -> dict[str, Any]:
  """The class behind each group of `build`'s settings."""
  return dict(
    unet=UNet,
    autoencoder=latent_diffusion.autoencoder_class(autoencoder),
    text=CLIPText,
    schedule=Schedule,
  )


# Training


def loss(
  model: StableDiffusion, batch: Mapping[str, Array], key: Key[Array, '']
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The objective of latent diffusion on one batch: predict the noise, given the text.

  Every random number is a function of (key, the example's id).
  """
  k_z, k_t, k_noise, k_drop = latent_diffusion.example_keys(key, batch['id'], 4)
  moments = jax.lax.stop_gradient(model.autoencoder.moments(as_signed(batch['image'])))
  shape = latent_shape(model, batch['image'].shape)
  z = model.autoencoder.draw(moments, normal(k_z, shape))
  tokens = guidance.drop(batch['tokens'], model.empty(1), k_drop, model.p_drop)
  context = model.text(tokens)
  predict = lambda x_t, t: model.unet(x_t, t, context)
  return latent_diffusion.noise_prediction_loss(predict, model.schedule, z, k_t, k_noise)


def preview(
  model: StableDiffusion, examples: Mapping[str, Any], **settings: Any
) -> tuple[tuple[str, ...], list[list[Any]]]:
  """Each held-out picture with its caption and two pictures made of it, as grid rows."""
  tokens = jnp.concatenate([jnp.asarray(examples['tokens'])] * 2)
  size = examples['image'].shape[1:3]
  made: Any = _edit(model, dict(prompt=tokens), jax.random.key(0), size, **settings)
  said = captioned.decoded(examples['caption'])
  rows = zip(images.from_uint8(examples['image']), said, *jnp.split(made, 2))
  return ('picture', 'caption', 'sample', 'another'), [list(row) for row in rows]


# Sampling


def generate(
  model: StableDiffusion,
  tokens: Int[Array, 'b n'],
  negative: Int[Array, 'b n'] | None = None,
  *,
  key: Key[Array, ''] | Key[Array, ' b'],
  size: Sequence[int] = (512, 512),
  steps: int = 50,
  scale: float = 7.5,
  sampler: str = 'plms',
  spacing: str = 'leading',
  guidance_interval: str | Sequence[float | int] = latent_diffusion.WHOLE,
  noise: Float[Array, 'b lh lw z'] | None = None,
) -> Float[Array, 'b h w 3']:
  """Pictures of texts, in [-1, 1].

  Args:
    tokens: the texts, by `Tokenizer`.
    negative: the texts that guidance leads away from. None: empty texts.
    key: one key, from which picture i takes `fold_in(key, i)`, or one key for each picture.
    size: height and width, multiples of `model.multiple()`.
    steps, scale, sampler, spacing, guidance_interval: see `stable_diffusion_form.Settings`.
    noise: the latents to start from. None: they are drawn with the key.
  Raises:
    ValueError: for an unknown sampler.
  """
  if sampler not in latent_diffusion.SAMPLERS:
    known = ', '.join(latent_diffusion.SAMPLERS)
    raise ValueError(f"sampler is '{sampler}'; use one of {known}")
  if noise is None:
    keys = latent_diffusion.picture_keys(key, len(tokens))
    noise = normal(keys, latent_shape(model, (len(tokens), *size)))
  negative = model.empty(len(tokens)) if negative is None else negative
  how = dict(steps=steps, scale=float(scale), sampler=sampler, spacing=spacing)
  shares = interval_shares(guidance_interval)
  return latent_diffusion.run(_generate, model, tokens, negative, noise, interval=shares, **how)


def _generate(graphdef, params, tokens, negative, noise, *, scale, interval, **how):
  """The compiled part of `generate`: the texts, sampling, decoding."""
  model = nnx.merge(graphdef, params)
  denoise = denoiser(model, None, tokens, negative, scale, interval)
  z = latent_diffusion.sample(denoise, noise, model.schedule, **how)
  return model.autoencoder.decode(z)


def denoiser(
  model: StableDiffusion,
  still: Float[Array, 'b lh lw s'] | None,
  tokens: Int[Array, 'b n'],
  negative: Int[Array, 'b n'],
  scale: float,
  interval: tuple[float, float],
) -> latent_diffusion.Denoiser:
  """The guided noise prediction `(x, t) -> eps` for texts; see `latent_diffusion.denoiser`."""
  null = model.text(negative) if scale != 1 else None
  context = model.text(tokens)
  parts = model.unet, model.schedule, still, context, null
  return latent_diffusion.denoiser(*parts, scale, interval)


def edit(
  model: StableDiffusion,
  source: Float[Array, 'b h w 3'],
  mask: Shaped[Array | np.ndarray, 'm mh mw 1'],
  tokens: Int[Array, 'b n'],
  negative: Int[Array, 'b n'] | None = None,
  *,
  key: Key[Array, ''] | Key[Array, ' b'],
  strength: float = 0.8,
  steps: int = 50,
  scale: float = 7.5,
  sampler: str = 'plms',
  spacing: str = 'leading',
  guidance_interval: str | Sequence[float] = latent_diffusion.WHOLE,
  noise: Float[Array, 'b lh lw z'] | None = None,
  posterior_noise: Float[Array, 'b lh lw z'] | None = None,
  paste: bool = True,
) -> Float[Array, 'b h w 3']:
  """Change the mask (1 = change) of each source as its text says, without an inpainting model.

  It starts from the source with noise on it (SDEdit, `latent_diffusion.sample`), and outside the
  mask the source stays (Blended Latent Diffusion, `latent_diffusion.blended`). A mask of ones
  leaves SDEdit alone.

  Args:
    source, mask, key, noise, posterior_noise, paste: see `paint_by_example.edit`.
    tokens, negative and the sampling: see `generate`.
    strength: see `latent_diffusion.timesteps`.
  Raises:
    ValueError: as `latent_diffusion.repaint` and `latent_diffusion.timesteps`.
  """
  negative = model.empty(len(tokens)) if negative is None else negative
  return latent_diffusion.repaint(
    _blend,
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
    strength=float(strength),
  )


def _blend(
  graphdef, params, source, mask, tokens, negative, noise, posterior_noise,
  *, scale, interval, **how,
):  # fmt: skip
  """The compiled part of `edit`: encode, sample, decode."""
  model = nnx.merge(graphdef, params)
  denoise = denoiser(model, None, tokens, negative, scale, interval)
  return blend(model, denoise, source, mask, noise, posterior_noise, **how)


def blend(
  model: StableDiffusion,
  denoise: latent_diffusion.Denoiser,
  source: Float[Array, 'b h w 3'],
  mask: Float[Array, 'b h w 1'],
  noise: Float[Array, 'b lh lw z'],
  posterior_noise: Float[Array, 'b lh lw z'],
  **how: Any,
) -> Float[Array, 'b h w 3']:
  """The source with its hole as this denoiser fills it; how: see `latent_diffusion.timesteps`."""
  z = model.autoencoder.encode(source, posterior_noise)
  hole = latent_diffusion.resize_mask(mask, z.shape[1:3], 'nearest') >= 0.5
  denoise = latent_diffusion.blended(denoise, z, hole, noise, model.schedule)
  made = latent_diffusion.sample(denoise, noise, model.schedule, origin=z, **how)
  return model.autoencoder.decode(jnp.where(hole, made, z))


# The system

PROMPT_TO_PROMPT = dict(inversion='direct', blend='source')  # settings that a target gives a use


def _edit(model, arrays, keys, size, *, strength=None, **settings):
  """`System.edit`; a size that the model cannot make is cut out of the next larger one."""
  tokens, negative = arrays['prompt'], arrays.get('negative_prompt')
  prompt = {name: settings.pop(name, default) for name, default in PROMPT_TO_PROMPT.items()}
  if 'target' in arrays:
    how = dict(steps=settings['steps'], scale=settings['scale'], **prompt)
    return text_editing.edit(model, arrays, keys, **how)
  strength = STRENGTH if strength is None else strength
  if 'image' in arrays:
    given = arrays['image'], arrays['mask'], tokens, negative
    return edit(model, *given, key=keys, strength=strength, paste=False, **settings)
  multiple = model.multiple()
  larger = [-(-side // multiple) * multiple for side in size]
  made = generate(model, tokens, negative, key=keys, size=larger, **settings)
  return made[:, : size[0], : size[1]]


def tokenizer(weights: Weights) -> Tokenizer:
  """The tokenizer that belongs to these weights.

  Raises:
    UserError: for weights without one, or with one of another vocabulary.
  """
  if weights.tokenizer is None:
    raise UserError(
      f'{weights.where} has no tokenizer: put vocab.json and merges.txt into a folder tokenizer/ '
      'beside the weights'
    )
  text = complete(weights.config['model'])['text']
  sizes = text['vocabulary'], text['length']
  return Tokenizer(weights.tokenizer, *sizes, weights.words, strict=True)


def mask_grid(settings: Mapping[str, Any]) -> int:
  """`System.mask_grid`: `latent_diffusion.resize_mask` takes the nearest pixel for each latent."""
  return latent_diffusion.factor(complete(settings)['autoencoder'])


def data_settings(config: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
  """`System.data_settings`: what the text tower takes, and the folder of the tokenizer.

  Raises:
    UserError: for data settings that contradict the model's; if there is no tokenizer.
  """
  data, tower = config['data'], complete(config['model'])['text']
  own = dict(length=tower['length'], vocabulary=tower['vocabulary'])
  for name, value in own.items():
    if data.get(name, value) != value:
      raise UserError(
        f'config.data.{name} is {data[name]} and config.model.text.{name} is {value}: leave it out '
        'of config.data'
      )
  found = {**data, **own}
  return found if workdir is None else found | dict(tokenizer=_tokenizer_folder(config, workdir))


def _tokenizer_folder(config: Mapping[str, Any], workdir: str) -> str:
  """The tokenizer of a training: the config's, the run's, the weights', or that of the data.

  A run without checkpoints starts anew, so that the copy in its workdir does not count.
  """
  from exedit.training import initial  # here, because it imports Orbax, which edits do not need

  data = config['data']
  if told := data.get('tokenizer'):
    return texts.local(told)
  own, beside = (os.path.join(folder, texts.FOLDER) for folder in (workdir, data['root']))
  if initial.has_checkpoints(workdir) and texts.is_there(own):
    return texts.local(own)
  start_from, tower = config.get('init_from'), config.get('init_clip')
  if start_from and (folder := find.tokenizer(str(start_from))):
    return os.fspath(folder)
  if tower and (folder := find.clip_tower(str(tower), part='text').tokenizer):
    return os.fspath(folder)
  if texts.is_there(beside):
    return texts.local(beside)
  where = f'{start_from} and {data["root"]} have' if start_from else f'{data["root"]} has'
  raise UserError(
    f'{where} no folder {texts.FOLDER}/: name one with vocab.json and merges.txt as '
    '--config.data.tokenizer=DIR'
  )


SYSTEM = System(
  name=FORM.name,
  inputs=FORM.inputs,
  settings=FORM.settings,
  build=build,
  complete=complete,
  data=latent_diffusion.CAPTIONED,
  loss=loss,
  preview=preview,
  edit=_edit,
  mask_grid=mask_grid,
  tokenizer=tokenizer,
  together=prompts.together,
  kept=prompts.kept,
  data_settings=data_settings,
)
