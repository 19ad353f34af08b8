"""The parts that all latent-diffusion systems share.

Models are built and loaded here, and the noise-prediction loss, the guided denoiser and the
samplers are called here. A system adds its conditions: see `paint_by_example.py`.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, Shaped, UInt8

from exedit import images
from exedit.diffusion import guidance, sampling, watch
from exedit.diffusion.schedule import Schedule
from exedit.input_pipeline import captioned, loader, open_images, pictures
from exedit.models import parameters
from exedit.models.autoencoder import AutoencoderKL, SpaceToDepth
from exedit.models.parameters import Graph
from exedit.models.unet import UNet
from exedit.runtime import compilation, settings
from exedit.runtime.errors import UserError, one_line
from exedit.systems import Data
from exedit.weights.formats.tensor import to_dtype
from exedit.weights.found import Weights

AUTOENCODERS = {'kl': AutoencoderKL, 'space_to_depth': SpaceToDepth}
DTYPES = ('float32', 'bfloat16', 'float16')
SAMPLERS = {'plms': sampling.plms, 'ddim': sampling.ddim, 'dpm_solver_pp': sampling.dpm_solver_pp}
MASK_RESIZES = ('bilinear', 'nearest')
WHOLE = (0.0, 1.0)  # the guidance interval that is the whole schedule
READERS = 2  # threads that read tensors; each may hold a tensor twice, in two layouts
COMPUTING = ('dtype', 'rngs', 'remat', 'attention')  # settings that do not change the function
LATER = dict(
  fold=1, new=0
)  # settings that came later; with these values a model is what it was before
FROM_BUILD = ('in_channels', 'out_channels', 'context_dim')  # `build` passes these to the UNet

Denoiser = Callable[[Float[Array, 'b lh lw z'], Int[Array, ' b']], Float[Array, 'b lh lw z']]


def _data(make_example: Callable[..., dict[str, Any]]) -> Data:
  """Records of shards, as examples that this function makes."""
  bound = lambda function: functools.partial(function, make_example=make_example)
  return Data(
    batches=bound(loader.batches),
    held_out=bound(loader.held_out),
    shapes=bound(loader.shapes),
    survey=loader.survey,
    defaults=bound(loader.defaults),
  )


# Photos with boxes, as TFRecords of tensorflow-datasets' open_images_v4; also drawn scenes.
OPEN_IMAGES = _data(open_images.make_example)
CAPTIONED = _data(captioned.make_example)  # pictures with captions
PICTURES = _data(pictures.make_example)  # the pictures of either


# Building and loading


def make_autoencoder(
  settings: Mapping[str, Any], dtype: Any, rngs: nnx.Rngs
) -> AutoencoderKL | SpaceToDepth:
  """The autoencoder of these settings; their `kind` is one of AUTOENCODERS ('kl' by default)."""
  own = {name: value for name, value in settings.items() if name != 'kind'}
  return autoencoder_class(settings)(**own, dtype=dtype, rngs=rngs)


def autoencoder_class(settings: Mapping[str, Any]) -> type:
  """The class that `kind` names; ValueError if there is none."""
  kind = settings.get('kind', 'kl')
  if kind not in AUTOENCODERS:
    raise ValueError(f"autoencoder.kind is '{kind}'; use one of {', '.join(AUTOENCODERS)}")
  return AUTOENCODERS[kind]


def check_groups(
  groups: Mapping[str, Mapping[str, Any]], networks: Mapping[str, Callable[..., Any]]
) -> None:
  """Checks the keys of the model's groups and the types of their values against the networks.

  Raises:
    UserError: for the first that does not fit.
  """
  for name, group in groups.items():
    own = {key: value for key, value in group.items() if key != 'kind'}
    settings.check(own, networks[name], f'config.model.{name}')


def compute_dtype(name: str) -> Any:
  """The dtype of this name; ValueError if the networks cannot compute in it."""
  if name not in DTYPES:
    raise ValueError(f"dtype is '{name}'; use one of {', '.join(DTYPES)}")
  return jnp.dtype(name)


def abstract(
  build: Callable[..., nnx.Module], settings: Mapping[str, Any], where: str = 'config.model'
) -> tuple[Graph, dict[str, Any]]:
  """The model of these settings without its parameters, and the parameters' shapes by path.

  Raises:
    UserError: for settings that build no model.
  """
  try:
    return parameters.flatten(
      nnx.eval_shape(lambda: build(**settings, rngs=parameters.Keys(jax.random.key(0))))
    )
  except (UserError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
    raise UserError(f'{where}: its config builds no model ({one_line(error)})') from error


def load(
  build: Callable[..., nnx.Module], weights: Weights, dtype: str | None = None
) -> nnx.Module:
  """The model with these weights. The tensors are read a few at a time.

  dtype: the networks compute in it, and their kernels are stored in it; all other parameters are
  float32. None: the dtype of the weights' config, and float32 kernels.

  Raises:
    UserError: for weights that are damaged or belong to another network.
  """
  settings = dict(weights.config['model'])
  if dtype is not None:
    settings['dtype'] = dtype
  graph, shapes = abstract(build, settings, weights.where)
  tensors = weights.fit(shapes)

  def place(name):
    stored = dtype if dtype is not None and name.endswith('.kernel') else 'float32'
    tensor = to_dtype({name: tensors[name]}, stored)[name]
    # device_put does not compile by shape as jnp.asarray does. Waiting frees the host's copy.
    return jax.device_put(tensor.read()).block_until_ready()

  with ThreadPoolExecutor(READERS) as readers:
    params = dict(zip(shapes, readers.map(place, shapes)))
  return parameters.merge(graph, params)


def complete(
  settings: Mapping[str, Any], networks: Mapping[str, Callable[..., Any]], **defaults: Any
) -> dict[str, Any]:
  """Model settings with the default values of every network, without those in COMPUTING.

  Those in LATER are left out too, so that the digests of older weights stay.

  networks: the class behind each group of settings. defaults: of `build`'s own settings.
  """
  result = {**defaults, **settings}
  for group, network in networks.items():
    arguments = inspect.signature(network.__init__).parameters.values()
    values = {p.name: p.default for p in arguments if p.default is not p.empty}
    values |= settings.get(group, {})
    left_out = (*COMPUTING, *FROM_BUILD, *(n for n, v in LATER.items() if values.get(n) == v))
    result[group] = {n: v for n, v in values.items() if n not in left_out}
  return json.loads(json.dumps(result))  # tuples become lists


# Shapes, pixels and random numbers


def factor(settings: Mapping[str, Any]) -> int:
  """The side in pixels of one latent, from complete settings of `autoencoder`."""
  if settings.get('kind') == 'space_to_depth':
    return settings['patch']
  return settings.get('fold', LATER['fold']) * 2 ** (len(settings['mult']) - 1)


def latent_shape(model: Any, shape: tuple[int, ...]) -> tuple[int, int, int]:
  """Height, width and channels of the latents of images of a shape [b h w c]."""
  f = model.autoencoder.factor
  return shape[1] // f, shape[2] // f, model.autoencoder.z_channels


def as_signed(pixels: UInt8[Array, '*b c']) -> Float[Array, '*b c']:
  """uint8 pixels as float32 in [-1, 1]."""
  return pixels.astype(jnp.float32) / 127.5 - 1


def exemplars(
  given: Float[Array, 'b h w c'] | Float[np.ndarray, 'b h w c'], count: int, side: int
) -> Float[Array, 'b side side c'] | Float[np.ndarray, 'b side side c']:
  """The exemplars of `count` sources at the size that the network sees.

  Raises:
    ValueError: for another number of them.
  """
  if len(given) != count:
    raise ValueError(f'{len(given)} exemplars for {count} sources: give one exemplar per source')
  return images.squash(given, side)


def example_keys(key: Key[Array, ''], ids: Int[Array, ' b'], count: int) -> Key[Array, 'k b']:
  """`count` random keys for each example, functions of the key and the example's id."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
  return jnp.moveaxis(jax.vmap(functools.partial(jax.random.split, num=count))(keys), 1, 0)


def picture_keys(key: Key[Array, ''] | Key[Array, ' b'], count: int) -> Key[Array, ' b']:
  """One key for each of `count` pictures: those given, or `fold_in(key, i)` for picture i."""
  return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def normal(keys: Key[Array, ' b'], shape: tuple[int, ...]) -> Float[Array, 'b ...']:
  """Standard normal noise; each row is a function of its own key."""
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


# Training and sampling


def moments(
  autoencoder: AutoencoderKL | SpaceToDepth,
  image: Float[Array, 'b h w 3'],
  mask: Float[Array, 'b h w 1'],
) -> Float[Array, 'b 2 lh lw m']:
  """The moments of the latents of the image and of the masked image, by one call of the encoder.

  The pair is on a new axis, so that a batch that is sharded over devices does not move.
  """
  pair = jnp.stack([image, image * (1 - mask)], 1)
  found = autoencoder.moments(pair.reshape(-1, *pair.shape[2:]))
  return jax.lax.stop_gradient(found.reshape(*pair.shape[:2], *found.shape[1:]))


def noise_prediction_loss(
  predict: Denoiser,
  schedule: Schedule,
  z: Float[Array, 'b lh lw z'],
  k_t: Key[Array, ' b'],
  k_noise: Key[Array, ' b'],
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The loss of latent diffusion (arXiv 2112.10752, equation 2), for any target of the schedule.

  predict(x_t, t): the network's output. z: clean latents. The keys draw timesteps and noise, one
  for each example. Returns the mean, and the loss `per_example [b]` at its timestep `t [b]`.
  """
  x_t, t, target = noisy(schedule, z, k_t, k_noise)
  per_example = ((predict(x_t, t) - target) ** 2).mean((1, 2, 3))
  return per_example.mean(), dict(per_example=per_example, t=t)


def noisy(
  schedule: Schedule, z: Float[Array, 'b lh lw z'], k_t: Key[Array, ' b'], k_noise: Key[Array, ' b']
) -> tuple[Float[Array, 'b lh lw z'], Int[Array, ' b'], Float[Array, 'b lh lw z']]:
  """Latents with noise on them, their timesteps, and what a network has to predict."""
  t = jax.vmap(lambda k: jax.random.randint(k, (), 0, schedule.num_steps))(k_t)
  noise = normal(k_noise, z.shape[1:])
  return schedule.add_noise(z, noise, t), t, schedule.target(z, noise, t)


def denoiser(
  unet: UNet,
  schedule: Schedule,
  still: Float[Array, 'b lh lw s'] | None,
  context: Float[Array, 'b n d'],
  null: Float[Array, '...'] | None,
  scale: float,
  interval: tuple[float, float] = WHOLE,
) -> Denoiser:
  """The guided noise prediction `(x, t) -> eps` that a sampler takes.

  still: the channels that stay the same in all steps; None: there are none. null: the context of
  guidance's second half, which scale 1 does not need. scale: the guidance scale; 1 turns guidance
  off. interval: see `guidance.inside`; outside it only the half with the context is evaluated. All
  examples must then be at one timestep. Everything that no step changes is computed once, here
  (docs/design.md, Exact shortcuts).
  """
  if scale != 1:
    assert null is not None
    context = guidance.doubled(context, null)
  prepared = unet.prepare(still, context)

  def guided(x, t):  # both halves of guidance see the same x
    return guidance.combined(unet.denoise(x, t, prepared), scale)

  def plain(x, t):
    own = jax.tree.map(lambda halves: halves[-len(x) :], prepared.context)
    return unet.denoise(x, t, dataclasses.replace(prepared, context=own))

  def denoise(x, t):
    if scale == 1:
      output = unet.denoise(x, t, prepared)
    elif interval == WHOLE:
      output = guided(x, t)
    else:
      now = guidance.inside(t[0], interval, schedule.num_steps)
      output = jax.lax.cond(now, guided, plain, x, t)
    return schedule.eps(output, x, t)

  return denoise


def blended(
  denoise: Denoiser,
  known: Float[Array, 'b lh lw z'],
  hole: Bool[Array, 'b lh lw 1'],
  noise: Float[Array, 'b lh lw z'],
  schedule: Schedule,
) -> Denoiser:
  """A denoiser that always sees the known latents, as noisy as its timestep, outside the hole.

  This is Blended Latent Diffusion (Avrahami et al. 2022, arXiv 2206.02779, algorithm 1): there the
  latents outside the hole are replaced after each step, which is before each prediction. A sampler
  works on each number separately, so latents outside the hole act on those inside only through the
  network. The caller puts the known latents back at the end. The noise is the same at all
  timesteps, as in diffusers' StableDiffusionInpaintPipeline; in the paper it is drawn for each.
  """
  return lambda x, t: denoise(jnp.where(hole, x, schedule.add_noise(known, noise, t)), t)


def sample(
  denoise: Denoiser,
  noise: Float[Array, 'b lh lw z'],
  schedule: Schedule,
  *,
  origin: Float[Array, 'b lh lw z'] | None = None,
  **how: Any,
) -> Float[Array, 'b lh lw z']:
  """Latents from noise, by the sampler of this name (one of SAMPLERS).

  origin: latents to start from, with noise on them as at the first timestep (SDEdit, Meng et al.
  2021, arXiv 2108.01073). None: the start is noise alone. how: see `timesteps`.
  """
  found = timesteps(schedule, **how)
  if origin is not None:
    noise = schedule.add_noise(origin, noise, jnp.full(len(noise), found[0]))
  return SAMPLERS[how['sampler']](denoise, noise, found, schedule)


def timesteps(
  schedule: Schedule, *, steps: int, sampler: str, spacing: str = 'leading', strength: float = 1.0
) -> Int[np.ndarray, ' n']:
  """The descending timesteps of a sampler.

  strength: the share of the steps that is made, the last ones, rounded down as in diffusers; one
    step at least.

  Raises:
    ValueError: if the schedule has no such timesteps, and for a spacing that the sampler has not.
  """
  found = _all_timesteps(schedule, steps, sampler, spacing)
  return found[len(found) - max(int(len(found) * strength), 1) :]


def _all_timesteps(schedule, steps, sampler, spacing):
  if sampler != 'dpm_solver_pp':
    return schedule.timesteps(steps, spacing)
  if spacing != 'leading':
    raise ValueError(
      f"spacing is '{spacing}', but dpm_solver_pp has timesteps of its own: leave spacing out, or "
      'use plms or ddim'
    )
  return sampling.dpm_timesteps(steps, schedule)


def evaluations(schedule: Schedule, interval: tuple[float, float], **how: Any) -> tuple[int, int]:
  """How often a sampler evaluates the network, and how often of these inside an interval.

  interval: see `guidance.inside`. how: see `timesteps`.
  """
  found = timesteps(schedule, **how)
  if how['sampler'] == 'plms':
    found = found[sampling.plms_evaluations(len(found))]
  return len(found), int(guidance.inside(found, interval, schedule.num_steps).sum())


def resize_mask(
  mask: Float[Array, 'b h w 1'], size: Sequence[int], method: str = 'bilinear'
) -> Float[Array, 'b lh lw 1']:
  """A mask at the size of the latents.

  'bilinear' without antialiasing is the original's resize, 'nearest' is diffusers' (docs/facts.md,
  Mask and channel order).
  """
  if method not in MASK_RESIZES:
    raise ValueError(f"mask_resize is '{method}'; use 'bilinear' or 'nearest'")
  if method == 'nearest':
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, mask.shape[1:3]))
    return mask[:, rows][:, :, columns]
  return jax.image.resize(mask, (len(mask), *size, 1), 'linear', antialias=False)


def repaint(
  function: Callable[..., Any],
  model: Any,
  source: Float[Array, 'b h w 3'],
  mask: Shaped[Array | np.ndarray, 'm mh mw 1'],
  *conditions: Any,
  key: Key[Array, ''] | Key[Array, ' b'],
  noise: Float[Array, 'b lh lw z'] | None,
  posterior_noise: Float[Array, 'b lh lw z'] | None,
  paste: bool,
  **settings: Any,
) -> Float[Array, 'b h w 3']:
  """Call a system's compiled edit on padded images, and crop and paste the result.

  function(graphdef, params, source, mask, *conditions, noise, posterior_noise, **settings): the
    edit of images whose sides are multiples of `model.multiple()`. It is compiled once for each
    value of the settings.
  key: one key, from which picture i takes `fold_in(key, i)`, or one key for each picture.
  noise, posterior_noise: the two noises of each edit. None: they are drawn with the keys.
  paste: every pixel outside the mask is the source's own.

  Raises:
    ValueError: for an unknown sampler, and a mask of another size than the source or of other
      values than `images.as_mask` takes.
  """
  if settings['sampler'] not in SAMPLERS:
    raise ValueError(f"sampler is '{settings['sampler']}'; use one of {', '.join(SAMPLERS)}")
  b, h, w, _ = source.shape
  if mask.shape != (b, h, w, 1):
    raise ValueError(f'mask has shape {mask.shape}; the source needs {(b, h, w, 1)}')
  mask = images.as_mask(mask)
  padded = [images.pad_to_multiple(array, model.multiple()) for array in (source, mask)]
  shape = latent_shape(model, padded[0].shape)
  keys = jax.vmap(jax.random.split)(picture_keys(key, b))
  noise = normal(keys[:, 0], shape) if noise is None else noise
  posterior_noise = normal(keys[:, 1], shape) if posterior_noise is None else posterior_noise
  result = run(function, model, *padded, *conditions, noise, posterior_noise, **settings)
  result = result[:, :h, :w]
  return images.paste(result, source, mask) if paste else result


def run(function: Callable[..., Any], model: Any, first: Any, *arrays: Any, **settings: Any) -> Any:
  """`function(graphdef, params, first, *arrays, **settings)`, compiled for the settings' values."""
  graphdef, params = nnx.split(model)
  given = params, first, *arrays
  # Inside another compiled function the options of that one count.
  inside = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given))
  platform = None if inside else jax.default_backend()
  call = compiled(function, platform, tuple(settings), watch.watched())
  return call(graphdef, *given, **settings)


@functools.cache
def compiled(
  function: Callable[..., Any], platform: str | None, static: tuple[str, ...], watched: bool = False
) -> Any:
  """`function(graphdef, ...)` compiled with the options of a platform.

  platform: None if the function runs inside another compiled function. static: names of arguments
  that select a program. watched: see `diffusion.watch`.
  """
  options = compilation.compiler_options(platform) if platform else None
  function = watch.program(function) if watched else function
  return jax.jit(function, static_argnames=('graphdef', *static), compiler_options=options)
