"""Stable Diffusion learns concepts from a few pictures: the first half of Custom-Edit.

The paper is arXiv 2305.15779.

It trains a row of the text tower for each new word, and with it what `config.trainable` says: the
keys and values of all cross-attentions (Custom Diffusion, arXiv 2212.04488), nothing (Textual
Inversion, arXiv 2208.01618), or the whole UNet (DreamBooth, arXiv 2208.12242). The result is a
concept (`exedit.concepts`), with which Stable Diffusion makes and edits pictures.

A training batch holds uint8 `image [b h w 3]`, uint8 `mask [b lh lw]` (255 where the loss counts,
by latents), int32 `tokens [b n]` and int32 `id [b]`; for the prior also `prior_tokens [b n]` and
perhaps uint8 `prior_image [b h w 3]`. All random numbers of an example are functions of its id.
"""

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from exedit import latent_diffusion, stable_diffusion
from exedit.concepts import concept as concepts
from exedit.concepts import files as concept_files
from exedit.concepts.concept import KEYS_AND_VALUES, ROWS
from exedit.custom_edit_form import FORM
from exedit.input_pipeline import concept_examples as examples
from exedit.input_pipeline import few_pictures
from exedit.input_pipeline.tokenizer import Tokenizer
from exedit.latent_diffusion import as_signed, latent_shape, normal
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.stable_diffusion import StableDiffusion
from exedit.systems import Data, System
from exedit.weights import find, initial
from exedit.weights.formats.tensor import Tensor

NORMALISATIONS = ('paper', 'diffusers')
BEFORE = 'before'  # the part of the model that holds parameters of the UNet as they were
RARE = ('ktn', 'pll', 'ucd')  # pieces of words that new words start from (custom-diffusion)
OWN: dict[str, Any] = dict(
  prior='prediction',
  prior_weight=1.0,
  normalisation='paper',
  before=KEYS_AND_VALUES,
  hold_first=True,
)


class CustomEdit(StableDiffusion):
  """Stable Diffusion with new words, and the settings of the loss; see `build`."""

  def __init__(self, unet, autoencoder, text, schedule, weight, relation, before):
    super().__init__(unet, autoencoder, text, schedule, p_drop=0.0)
    self.weight, self.relation = weight, relation
    self.before = nnx.Dict(before)


class FirstHeld(nnx.Linear):
  """A linear layer through whose first token no gradient flows, neither to it nor to the kernel."""

  def __call__(self, x: Float[Array, 'b n d']) -> Float[Array, 'b n c']:
    y = super().__call__(x)
    return jnp.concatenate([jax.lax.stop_gradient(y[:, :1]), y[:, 1:]], 1)


def build(
  *,
  unet: Mapping[str, Any] = {},
  autoencoder: Mapping[str, Any] = {},
  text: Mapping[str, Any] = {},
  schedule: Mapping[str, Any] = {},
  context_dim: int = 768,
  prior: str = 'prediction',
  prior_weight: float = 1.0,
  normalisation: str = 'paper',
  before: str = KEYS_AND_VALUES,
  hold_first: bool = True,
  dtype: str = 'float32',
  rngs: nnx.Rngs,
) -> CustomEdit:
  """The model with fresh weights. The defaults are the published sizes (docs/facts.md).

  Each group holds the arguments of its network; `text.new` is the number of concepts.

  context_dim: width of the context, which is that of the text tower.
  prior: what keeps the class as it was: 'prediction' (no pictures: on the prompts without the new
    word the network has to predict what it predicted before), 'pictures' (it trains on those in
    data.prior_root too) or 'none'. prior_weight: of that part of the loss.
  normalisation: 'paper' weighs both parts of the loss alike, as CompVis' code for Custom Diffusion
    does; 'diffusers' weighs the concept's by the channels of the latents (4), as its training does.
  before: a regular expression of the parameters of the UNet whose values before the training are
    kept for 'prediction': all that train.
  hold_first: no gradient flows through the keys and values of the first token of a prompt, as in
    Custom Diffusion.
  dtype: the type that the networks compute in; norms, softmax and parameters are float32.

  Raises:
    ValueError: for a value that is not allowed.
  """
  for name, value, known in (
    ('prior', prior, examples.PRIORS),
    ('normalisation', normalisation, NORMALISATIONS),
  ):
    if value not in known:
      raise ValueError(f"{name} is '{value}'; use one of {', '.join(known)}")
  if not prior_weight >= 0:
    raise ValueError(f'prior_weight is {prior_weight}: it must be at least 0')
  if not text.get('new'):
    raise ValueError('text.new is 0: it is the number of concepts')
  groups = dict(unet=unet, autoencoder=autoencoder, text=text, schedule=schedule)
  base = stable_diffusion.build(
    **groups, context_dim=context_dim, p_drop=0.0, dtype=dtype, rngs=rngs
  )
  for path, layer in [*nnx.iter_modules(base.unet)]:
    if hold_first and path and path[-1] == 'attn2':
      for name in ('to_k', 'to_v'):
        setattr(layer, name, _first_held(getattr(layer, name), rngs))
  kept = {}
  if prior == 'prediction':
    own = parameters.flatten(base.unet)[1]
    kept = {name: nnx.Param(value) for name, value in own.items() if _is_before(name, before)}
  relation = base.autoencoder.z_channels if normalisation == 'diffusers' else 1
  parts = base.unet, base.autoencoder, base.text, base.schedule
  return CustomEdit(*parts, prior_weight, relation, kept)


def _first_held(layer: nnx.Linear, rngs: nnx.Rngs) -> FirstHeld:
  """The same layer with the same kernel, as `FirstHeld`."""
  sizes = layer.in_features, layer.out_features
  made = FirstHeld(*sizes, use_bias=False, dtype=layer.dtype, rngs=rngs)
  made.kernel = layer.kernel
  return made


def _is_before(name: str, pattern: str) -> bool:
  return bool(re.match(rf'(?:{pattern})(?:\.|$)', f'unet.{name}'))


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of `build` with every default value; see `System.complete`."""
  return {**OWN, **stable_diffusion.complete(settings)}


# Training


def loss(
  model: CustomEdit, batch: Mapping[str, Array], key: Key[Array, '']
) -> tuple[Float[Array, ''], dict[str, Array]]:
  """The error of the concept's pictures where the mask counts, and that of the prior.

  Returns the sum of both, and by example that of the picture and, as `prior`, that of the prior.
  """
  k_z, k_t, k_noise, *k_prior = latent_diffusion.example_keys(key, batch['id'], 6)
  shape = latent_shape(model, batch['image'].shape)
  encoded = lambda image, keys: model.autoencoder.draw(
    jax.lax.stop_gradient(model.autoencoder.moments(as_signed(image))), normal(keys, shape)
  )
  z, count = encoded(batch['image'], k_z), len(batch['image'])
  x, t, target = latent_diffusion.noisy(model.schedule, z, k_t, k_noise)
  tokens = batch['tokens']
  if 'prior_tokens' in batch:
    if 'prior_image' in batch:
      z = encoded(batch['prior_image'], k_prior[2])
    also = latent_diffusion.noisy(model.schedule, z, *k_prior[:2])
    x, t, target = (jnp.concatenate(pair) for pair in zip((x, t, target), also))
    tokens = jnp.concatenate([tokens, batch['prior_tokens']])
  context = model.text(tokens)
  made = model.unet(x, t, context)
  if 'prior_tokens' in batch and 'prior_image' not in batch:
    was = _unet_before(model)(x[count:], t[count:], context[count:])
    target = jnp.concatenate([target[:count], jax.lax.stop_gradient(was)])
  error = ((made - target) ** 2).mean(-1)
  mask = batch['mask'].astype(jnp.float32) / 255
  own = (error[:count] * mask).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1e-3)
  aux = dict(per_example=own, t=t[:count])
  total = model.relation * own.mean()
  if 'prior_tokens' in batch:
    aux['prior'] = error[count:].mean((1, 2))
    total += model.weight * aux['prior'].mean()
  return total, aux


def _unet_before(model: CustomEdit):
  """The UNet as it was before the training."""
  graph, params = parameters.flatten(model.unet)
  kept = {name: param[...] for name, param in model.before.items()}
  return parameters.merge(graph, {**params, **kept})


def start(
  init_from: str | None, init_clip: str | None, model: Mapping[str, Any]
) -> dict[str, Tensor]:
  """`System.start`: the weights of a Stable Diffusion, twice where the values before are kept.

  Raises:
    UserError: for weights of another system or of other sizes.
  """
  if init_clip or not init_from:
    raise UserError(
      'a concept is learned by Stable Diffusion as a whole: set --config.init_from and leave out '
      '--config.init_clip'
    )
  weights = find.weights(init_from)
  if weights.kind != 'stable_diffusion':
    raise UserError(
      f'{init_from} holds weights of {weights.kind}: concepts are learned from those of Stable '
      'Diffusion'
    )
  ours, theirs = (stable_diffusion.complete(m) for m in (model, weights.config['model']))
  ours['text'].pop('new', None)
  parts = ('unet', 'autoencoder', 'text', 'schedule', 'context_dim')
  initial.require_same(theirs, ours, parts, init_from)
  _, shapes = latent_diffusion.abstract(build, model)
  like = {n: a for n, a in shapes.items() if n != ROWS and not n.startswith(f'{BEFORE}.')}
  found = weights.fit(like)
  kept = (n for n in shapes if n.startswith(f'{BEFORE}.'))
  return found | {name: found[name.replace(BEFORE, 'unet', 1)] for name in kept}


def completed(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
  """`System.completed`: the tensors, and the rows that the new words start from."""
  if 'text.token_embedding' not in tensors:
    return dict(tensors)
  table = tensors['text.token_embedding']
  words = examples.words_of(config['concept'])
  folder = config['data'].get('tokenizer') or find.tokenizer(config['init_from'])
  text = stable_diffusion.complete(config['model'])['text']
  assert folder is not None  # the settings of the data have been read
  known = Tokenizer(folder, text['vocabulary'], text['length'])

  def ids(place, word):
    rare = known.piece(RARE[place]) if place < len(RARE) else None
    if not word.init and rare is not None:
      return [rare]
    return known.tokens(word.init or word.noun)

  chosen = [ids(place, word) for place, word in enumerate(words)]
  read = lambda: np.stack([table.read()[own].mean(0) for own in chosen])
  return {**tensors, ROWS: Tensor((len(words), *table.shape[1:]), table.dtype, read)}


def data_settings(config: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
  """`System.data_settings`: the new words, the prior and the size of latents too.

  Raises:
    UserError: for data settings that contradict the model's; for another number of words than the
      model has rows; for a prior that could not hold; if there is no tokenizer.
  """
  model, data = complete(config['model']), config['data']
  own = dict(prior=model['prior'], factor=latent_diffusion.factor(model['autoencoder']))
  for name, value in own.items():
    if data.get(name, value) != value:
      raise UserError(
        f'config.data.{name} is {data[name]}, and the model says {value}: leave it out'
      )
  if workdir is None:
    return stable_diffusion.data_settings(config) | own
  if not config.get('init_from'):
    raise UserError('config.init_from is not set: name the weights that are to learn the concept')
  words = examples.words_of(config['concept'])
  if (new := model['text'].get('new', 0)) != len(words):
    raise UserError(
      f'config.model.text.new is {new} and concept.name has {len(words)} names: set '
      f'--config.model.text.new={len(words)}'
    )
  _check_before(config)
  found = stable_diffusion.data_settings(config, workdir) | own
  return found | dict(words=tuple((word.name, word.noun) for word in words))


def _check_before(config: Mapping[str, Any]) -> None:
  """Raises UserError if the prediction before the training would change with the training."""
  model = complete(config['model'])
  if model['prior'] != 'prediction':
    return
  _, shapes = latent_diffusion.abstract(build, config['model'])
  trained, _ = parameters.split_trainable(shapes, config['trainable'])
  kept = {name.replace(BEFORE, 'unet', 1) for name in shapes if name.startswith(f'{BEFORE}.')}
  lost = sorted(name for name in trained if name not in kept and name != ROWS)
  if lost:
    others = f' and {len(lost) - 1} others' if len(lost) > 1 else ''
    remedy = '--config.model.prior=none'
    if all(name.startswith('unet.') for name in lost):
      remedy = f"--config.model.before='{config['trainable']}', or {remedy}"
    raise UserError(
      f"config.trainable is '{config['trainable']}', and of {lost[0]}{others} no values from "
      f'before the training are kept: set {remedy}'
    )


def outcome(
  folder: str, config: Mapping[str, Any], trained: Mapping[str, Any], frozen: Mapping[str, Any],
  step: int,
) -> None:  # fmt: skip
  """`System.outcome`: writes the concept, concept.safetensors."""
  words = examples.words_of(config['concept'])
  rows = np.asarray(trained[ROWS] if ROWS in trained else frozen[ROWS])
  kernels = {name: np.asarray(array) for name, array in trained.items() if name != ROWS}
  known = {**examples.defaults(), **config['data']}
  about = dict(
    classes={word.name: word.noun for word in words},
    prompts=[*known['templates']],
    phrase=known['phrase'],
    trained=config['trainable'],
    prior=complete(config['model'])['prior'],
    learned_from=config['init_from'],
    step=step,
  )
  tokens = {word.name: row for word, row in zip(words, rows)}
  made = concepts.Concept(kernels, tokens, _base(config['init_from']), about)
  concept_files.write(os.path.join(folder, concept_files.NAME), made)


@functools.cache
def _base(init_from: str) -> str:
  return concepts.base_digest(find.weights(init_from))


SYSTEM = System(
  name=FORM.name,
  inputs=FORM.inputs,
  settings=FORM.settings,
  build=build,
  complete=complete,
  start=start,
  starts_from=('stable_diffusion',),
  completed=completed,
  data=Data(
    batches=examples.batches,
    held_out=examples.held_out,
    shapes=examples.shapes,
    survey=few_pictures.survey,
    defaults=examples.defaults,
  ),
  loss=loss,
  preview=stable_diffusion.preview,
  data_settings=data_settings,
  outcome=outcome,
)
