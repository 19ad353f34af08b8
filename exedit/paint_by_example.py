"""Paint by Example (arXiv 2211.13227): what is noised, what is still, the loss, the edit.

A training batch holds uint8 `image [b h w 3]`, `mask [b h w]` (255 = repaint), `exemplar [b s s 3]`
and int32 `id [b]`, the example's place in the global stream, which keys all its random numbers.
"""

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, UInt8

from exedit import images
from exedit.diffusion import guidance, sampling
from exedit.diffusion.schedule import Schedule
from exedit.editing import framing
from exedit.models import parameters
from exedit.models.autoencoder import AutoencoderKL, SpaceToDepth
from exedit.models.clip import CLIPVision
from exedit.models.conditioner import ExemplarConditioner
from exedit.models.unet import UNet
from exedit.runtime import compilation
from exedit.runtime.errors import UserError, one_line
from exedit.weights import find, initial, translate
from exedit.weights.formats.tensor import Tensor
from exedit.weights.found import Weights

AUTOENCODERS = {'kl': AutoencoderKL, 'space_to_depth': SpaceToDepth}
DTYPES = ('float32', 'bfloat16', 'float16')
READERS = 2  # threads; each may hold a tensor twice, as it was read and as we lay it out
COMPUTING = ('dtype', 'rngs', 'remat', 'attention')  # settings that change no weight's meaning
SAMPLERS = {'plms': sampling.plms, 'ddim': sampling.ddim, 'dpm_solver_pp': sampling.dpm_solver_pp}


class PaintByExample(nnx.Module):
  """The parts of the system; `p_drop` is the share of examples trained without their exemplar."""

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
    """The exemplar as context: one token, or all of CLIP's where the bottleneck is ablated."""
    if self.bottleneck:
      return self.conditioner(self.clip(exemplar)[:, None])
    return self.conditioner(self.clip.tokens(exemplar))

  def multiple(self) -> int:
    """Height and width of an image must be multiples of this many pixels."""
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
  """The whole model with fresh weights; the defaults are the published sizes (facts 1).

  Each group is splatted into its network. `autoencoder.kind` is 'kl' or 'space_to_depth'. `dtype`
  is what the networks compute in (norms and softmax stay float32, parameters are float32).
  `drop` is 'example' (one coin each) or 'batch' (one coin for all, as the released code does).
  """
  if drop not in ('example', 'batch'):
    raise ValueError(f"drop is '{drop}'; use 'example' or 'batch'")
  if not 0 <= p_drop <= 1:
    raise ValueError(f'p_drop is {p_drop}; it is a share, from 0 to 1')
  if dtype not in DTYPES:
    raise ValueError(f"dtype is '{dtype}'; use one of {', '.join(DTYPES)}")
  compute = jnp.dtype(dtype)
  settings = dict(autoencoder)
  kind = settings.pop('kind', 'kl')
  if kind not in AUTOENCODERS:
    raise ValueError(f"autoencoder.kind is '{kind}'; use one of {', '.join(AUTOENCODERS)}")
  encoder = AUTOENCODERS[kind](**settings, dtype=compute, rngs=rngs)
  z = encoder.z_channels
  tower = CLIPVision(**clip, dtype=compute, rngs=rngs)
  return PaintByExample(
    unet=UNet(
      in_channels=2 * z + 1,
      out_channels=z,
      context_dim=context_dim,
      **unet,
      dtype=compute,
      rngs=rngs,
    ),
    autoencoder=encoder,
    clip=tower,
    conditioner=ExemplarConditioner(
      width=tower.width, context_dim=context_dim, **conditioner, dtype=compute, rngs=rngs
    ),
    schedule=Schedule(**schedule),
    p_drop=p_drop,
    drop=drop,
    bottleneck=bottleneck,
  )


def load(
  src: str | os.PathLike | Weights,
  which: str = 'ema',
  dtype: str | None = None,
  revision: str | None = None,
) -> PaintByExample:
  """The model of whatever weights there are, read a few tensors at a time.

  src: a training run's workdir or an exported folder, the folder of a diffusers pipeline, an
    original .ckpt or .safetensors, the id of a hub repository with one of these, or what
    `find.weights` found.
  which: 'ema' or 'params', where a source keeps both. revision: of the hub repository.
  dtype: what the networks compute in and their kernels are kept in (all else stays float32);
    None: what the source's config says, and float32 kernels.
  Raises:
    UserError: where there are no weights, damaged ones, or those of another network.
  """
  weights = src if isinstance(src, Weights) else find.weights(src, which, revision)
  settings = dict(weights.config['model'])
  if dtype is not None:
    settings['dtype'] = dtype
  graph, shapes = abstract(settings, weights.where)
  tensors = weights.fit(shapes)

  def place(name):
    kept = dtype if dtype is not None and name.endswith('.kernel') else 'float32'
    tensor = translate.cast({name: tensors[name]}, kept)[name]
    # device_put, for jnp.asarray compiles by shape; waiting lets go of the host's copy.
    return jax.device_put(tensor.read()).block_until_ready()

  with ThreadPoolExecutor(READERS) as readers:
    params = dict(zip(shapes, readers.map(place, shapes)))
  return cast(PaintByExample, parameters.merge(graph, params))


def abstract(
  settings: Mapping[str, Any], where: str = 'config.model'
) -> tuple[parameters.Graph, dict[str, Any]]:
  """The model of these `build` settings without its parameters, and their shapes by path.

  Raises:
    UserError: for settings that build no model.
  """
  try:
    return parameters.flatten(
      nnx.eval_shape(lambda: build(**settings, rngs=parameters.Keys(jax.random.key(0))))
    )
  except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
    raise UserError(f'{where}: its config builds no model ({one_line(error)})') from error


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of `build` with all defaults said, except for those that only say how to compute."""
  kind = settings.get('autoencoder', {}).get('kind', 'kl')
  parts = dict(
    unet=UNet,
    autoencoder=AUTOENCODERS[kind],
    clip=CLIPVision,
    conditioner=ExemplarConditioner,
    schedule=Schedule,
  )
  result = dict(settings, context_dim=settings.get('context_dim', 768))
  for part, network in parts.items():
    arguments = inspect.signature(network.__init__).parameters.values()
    defaults = {p.name: p.default for p in arguments if p.default is not p.empty}
    values = {**defaults, **settings.get(part, {})}
    drop = (*COMPUTING, 'in_channels', 'out_channels', 'context_dim')  # the last three are build's
    result[part] = {name: value for name, value in values.items() if name not in drop}
  result['conditioner'].pop('width', None)
  result['autoencoder']['kind'] = kind
  return json.loads(json.dumps(result))  # tuples as lists


def start(
  init_from: str | None, init_clip: str | None, settings: Mapping[str, Any]
) -> dict[str, Tensor]:
  """Unread tensors to start a training with these `build` settings from; see weights/start.py."""
  _, shapes = abstract(settings)
  ours = complete(settings)

  def check(theirs, parts, where):
    initial.require_same(complete(theirs), ours, parts, where)

  return initial.tensors(init_from, init_clip, shapes, check)


def loss(
  model: PaintByExample, batch: Mapping[str, Array], key: Key[Array, '']
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The paper's objective on one batch: predict the noise, given the hole and the exemplar's token.

  A batch has images, or the moments of their latents (input_pipeline/encoded.py). Every random
  number is a function of (key, the example's id), so neither the order of the batch nor its split
  over devices or micro-batches matters. Also returns the loss `per_example [b]` at its timestep
  `t [b]`.
  """
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['id'])
  k_z, k_still, k_t, k_noise, k_drop = jnp.moveaxis(jax.vmap(_split_5)(keys), 1, 0)
  mask = batch['mask'][..., None].astype(jnp.float32) / 255
  shape = latent_shape(model, mask.shape)
  noises = jnp.stack([normal(k_z, shape), normal(k_still, shape)], 1)
  if 'moments' in batch:  # exedit.encode has been there
    z, still = drawn(model, batch['moments'].astype(jnp.float32), mask, noises)
  else:
    z, still = latents(model, as_signed(batch['image']), mask, noises)
  context = model.context(as_signed(batch['exemplar']))
  coins = k_drop if model.drop == 'example' else jax.random.fold_in(key, 2**31)
  context = guidance.drop(context, model.conditioner.null[...], coins, model.p_drop)
  t = jax.vmap(lambda k: jax.random.randint(k, (), 0, model.schedule.num_steps))(k_t)
  noise = normal(k_noise, shape)
  x_t = model.schedule.add_noise(z, noise, t)
  output = model.unet(join(x_t, still), t, context)
  error = (output - model.schedule.target(z, noise, t)) ** 2
  per_example = error.mean((1, 2, 3))
  return per_example.mean(), dict(per_example=per_example, t=t)


def latents(
  model: PaintByExample,
  image: Float[Array, 'b h w 3'],
  mask: Float[Array, 'b h w 1'],
  noises: Float[Array, 'b 2 lh lw z'] | None = None,
) -> tuple[Float[Array, 'b lh lw z'], Float[Array, 'b lh lw s']]:
  """What is noised (the image's latent) and what is still (the masked image's, and the mask).

  Each posterior is sampled with its noise, or is its mean without.
  """
  return drawn(model, moments(model.autoencoder, image, mask), mask, noises)


def moments(
  autoencoder: AutoencoderKL | SpaceToDepth,
  image: Float[Array, 'b h w 3'],
  mask: Float[Array, 'b h w 1'],
) -> Float[Array, 'b 2 lh lw m']:
  """Of the latents of the image and of the masked image.

  Both encodes are one call; the pair is stacked on a new axis so that a batch sharded over devices
  stays where it is.
  """
  pair = jnp.stack([image, image * (1 - mask)], 1)
  found = autoencoder.moments(pair.reshape(-1, *pair.shape[2:]))
  return jax.lax.stop_gradient(found.reshape(*pair.shape[:2], *found.shape[1:]))


def drawn(
  model: PaintByExample,
  moments: Float[Array, 'b 2 lh lw m'],
  mask: Float[Array, 'b h w 1'],
  noises: Float[Array, 'b 2 lh lw z'] | None = None,
) -> tuple[Float[Array, 'b lh lw z'], Float[Array, 'b lh lw s']]:
  """`latents` from the moments of both."""
  flat = lambda pair: pair.reshape(-1, *pair.shape[2:])
  z = model.autoencoder.draw(flat(moments), None if noises is None else flat(noises))
  z = z.reshape(*moments.shape[:2], *z.shape[1:])
  return z[:, 0], jnp.concatenate([z[:, 1], keep(mask, z.shape[2:4])], -1)


def keep(
  mask: Float[Array, 'b h w 1'], size: tuple[int, int], method: str = 'bilinear'
) -> Float[Array, 'b lh lw 1']:
  """The mask as the network sees it, at the latents' size.

  The released weights saw 1 where the picture stays, so the sign flips here and nowhere else.
  'bilinear' without antialiasing is the original's resize, 'nearest' is diffusers' (facts 8.1).
  """
  shape = (mask.shape[0], *size, 1)
  if method == 'nearest':
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, mask.shape[1:3]))
    return 1 - mask[:, rows][:, :, columns]
  return 1 - jax.image.resize(mask, shape, 'linear', antialias=False)


def join(x_t: Float[Array, 'b h w z'], still: Float[Array, 'b h w s']) -> Float[Array, 'b h w c']:
  """The UNet's input; the one place that knows the order of its channels (facts 0.1)."""
  return jnp.concatenate([x_t, still], -1)


def edit(
  model: PaintByExample,
  source: Float[Array, 'b h w 3'],
  mask: Float[Array, 'm mh mw 1'],
  exemplar: Float[Array, 'e eh ew 3'],
  key: Key[Array, ''] | Key[Array, ' b'],
  *,
  steps: int = 50,
  scale: float = 5.0,
  sampler: str = 'plms',
  noise: Float[Array, 'b lh lw z'] | None = None,
  posterior_noise: Float[Array, 'b lh lw z'] | None = None,
  paste: bool = True,
  mask_resize: str = 'bilinear',
) -> Float[Array, 'b h w 3']:
  """Repaint the mask (1 = repaint) of each source with its exemplar's subject.

  Images are float32 in [-1, 1]; the source may have any size (it is padded to what the network
  needs and cropped back), the exemplar too (squashed to CLIP's square as in training). `key` is one
  key for all, from which image i takes `fold_in(key, i)`, or one key per image: no image depends on
  its batch neighbours. `noise` and `posterior_noise` replace the drawn initial latents and the
  draw from the masked image's posterior (zeros: its mean). `paste=False` returns the raw decode;
  otherwise every pixel outside the mask is the source's own.

  Raises:
    ValueError: for an unknown sampler or mask_resize, a mask of another size than the source, and
      another number of exemplars than of sources.
  """
  if sampler not in SAMPLERS:
    raise ValueError(f"sampler is '{sampler}'; use one of {', '.join(SAMPLERS)}")
  if mask_resize not in ('bilinear', 'nearest'):
    raise ValueError(f"mask_resize is '{mask_resize}'; use 'bilinear' or 'nearest'")
  b, h, w, _ = source.shape
  if mask.shape != (b, h, w, 1):
    raise ValueError(f'mask has shape {mask.shape}; the source needs {(b, h, w, 1)}')
  if len(exemplar) != b:
    raise ValueError(f'{len(exemplar)} exemplars for {b} sources: give one exemplar per source')
  keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(b))
  padded = [images.pad_to_multiple(a, model.multiple()) for a in (source, mask)]
  shape = latent_shape(model, padded[0].shape)
  k_noise, k_posterior = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
  noise = normal(k_noise, shape) if noise is None else noise
  posterior_noise = normal(k_posterior, shape) if posterior_noise is None else posterior_noise
  graphdef, params = nnx.split(model)
  platform = None if isinstance(source, jax.core.Tracer) else jax.default_backend()
  result = _compiled(platform)(
    graphdef,
    params,
    *padded,
    images.squash(exemplar, model.clip.image_size),
    noise,
    posterior_noise,
    steps=steps,
    scale=float(scale),
    sampler=sampler,
    mask_resize=mask_resize,
  )[:, :h, :w]
  return images.paste(result, source, mask) if paste else result


def edit_photo(
  model: PaintByExample,
  source: Float[Array, '1 h w 3'],
  mask: Float[Array, '1 mh mw 1'],
  exemplar: Float[Array, '1 eh ew 3'],
  key: Key[Array, ''],
  *,
  trained: int = 512,
  zoom: str = 'auto',
  feather: float = framing.FEATHER,
  match: str = 'colour',
  fit: str = 'squash',
  exemplar_mask: Float[Array, '1 sh sw 1'] | None = None,
  **settings: Any,
) -> Float[Array, '1 h w 3']:
  """A finished edit of one photo of any size, at its own resolution.

  The network works on the part of the photo that `framing.choose` picks, at about the size it was
  `trained` at; `framing.stitch` puts the result back with `feather` and `match`. Every pixel
  outside the mask is the source's own. The exemplar is fitted by `framing.fit_exemplar`, without
  its background where `exemplar_mask` (1 = subject) is given. `settings` are those of `edit`.

  Raises:
    ValueError: for an unknown `zoom`, `match` or `fit`, an empty mask, and as `edit`.
    UserError: for a window that is too long, and a result that is not finite.
  """
  if mask.shape[1:3] != source.shape[1:3]:
    raise ValueError(f'mask has shape {mask.shape}; the source needs {source.shape[:3]} and 1')
  framing.check(feather, match)
  hole = np.asarray(mask[0, ..., 0] >= 0.5)
  subject = None if exemplar_mask is None else np.asarray(exemplar_mask[0, ..., 0] >= 0.5)
  frame = framing.choose(hole, trained, zoom)
  pixels = images.to_uint8(source[0])
  raw = edit(
    model,
    jnp.asarray(framing.cut(frame, pixels))[None],
    jnp.asarray(framing.cut_mask(frame, hole))[None],
    jnp.asarray(
      framing.fit_exemplar(images.to_uint8(exemplar[0]), subject, model.clip.image_size, fit)
    )[None],
    key,
    **settings,
    paste=False,
  )
  result = framing.stitch(frame, np.asarray(raw[0]), pixels, hole, feather=feather, match=match)
  return images.paste(jnp.asarray(images.from_uint8(result))[None], source, mask)


@functools.cache
def _compiled(platform: str | None):
  """`_edit` compiled as suits a platform; None: inside another compiled function, as suits that."""
  return jax.jit(
    _edit,
    static_argnames=('graphdef', 'steps', 'scale', 'sampler', 'mask_resize'),
    compiler_options=compilation.compiler_options(platform) if platform else None,
  )


def _edit(
  graphdef,
  params,
  source,
  mask,
  exemplar,
  noise,
  posterior_noise,
  *,
  steps,
  scale,
  sampler,
  mask_resize,
):
  """The compiled part of `edit`: encode, sample, decode."""
  model = nnx.merge(graphdef, params)
  z = model.autoencoder.encode(source * (1 - mask), posterior_noise)
  still = jnp.concatenate([z, keep(mask, z.shape[1:3], mask_resize)], -1)
  context = model.context(exemplar)
  denoise = denoiser(model, still, context, scale)
  if sampler == 'dpm_solver_pp':
    timesteps = sampling.dpm_timesteps(steps, model.schedule)
  else:
    timesteps = model.schedule.timesteps(steps)
  z = SAMPLERS[sampler](denoise, noise, timesteps, model.schedule)
  return model.autoencoder.decode(z)


def denoiser(
  model: PaintByExample,
  still: Float[Array, 'b lh lw s'],
  context: Float[Array, 'b n d'],
  scale: float = 5.0,
) -> Callable[[Float[Array, 'b lh lw z'], Int[Array, ' b']], Float[Array, 'b lh lw z']]:
  """What a sampler takes: the guided noise prediction `(x, t) -> eps`, for one still and context.

  Whatever no step changes is computed here (design: exact shortcuts 1 and 3), and what both halves
  of guidance have in common once per step (5). Guidance is off where scale is 1.
  """
  if scale != 1:
    context = guidance.doubled(context, model.conditioner.null[...])
  prepared = model.unet.prepare(still, context)

  def denoise(x, t):
    # The halves see the same x: the network parts them where the context enters.
    output = model.unet.denoise(x, t, prepared)
    return model.schedule.eps(guidance.combined(output, scale) if scale != 1 else output, x, t)

  return denoise


def latent_shape(model: PaintByExample, shape: tuple[int, ...]) -> tuple[int, int, int]:
  """Height, width and channels of the latent of an image [b h w 3]."""
  f = model.autoencoder.factor
  return shape[1] // f, shape[2] // f, model.autoencoder.z_channels


def as_signed(pixels: UInt8[Array, '*b c']) -> Float[Array, '*b c']:
  """uint8 pixels to float32 in [-1, 1]."""
  return pixels.astype(jnp.float32) / 127.5 - 1


def normal(keys: Key[Array, ' b'], shape: tuple[int, ...]) -> Float[Array, 'b ...']:
  """Standard normal noise, each example from its own key."""
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def _split_5(key):
  return jax.random.split(key, 5)
