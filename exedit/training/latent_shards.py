"""The autoencoder of a training to come, and whether data were encoded with it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from exedit import paint_by_example as pbe
from exedit.input_pipeline import latents as encoded
from exedit.input_pipeline import loader
from exedit.models import parameters
from exedit.runtime import checksums, settings
from exedit.runtime.errors import UserError

LATER = ('augment', 'affine_jitter', 'blur_kernels')  # what no latent depends on
PREFIX = 'autoencoder.'


def autoencoder(config: Mapping[str, Any]) -> tuple[parameters.Graph, dict[str, Array]]:
  """The autoencoder that a training with this config starts from, and its parameters by name.

  Raises:
    UserError: where the config names no weights to start from, or unusable ones.
  """
  model, size = config['model'], drawn(config['data'])['size']
  with settings.mendable(config):
    whole = nnx.eval_shape(lambda: pbe.build(**model, rngs=parameters.Keys(jax.random.key(0))))
  if size % whole.multiple():
    raise UserError(
      f'data.size is {size}: with this model it must be a multiple of {whole.multiple()}'
    )
  graph, shapes = parameters.flatten(whole.autoencoder)
  if not shapes:
    return graph, {}
  if not config.get('init_from'):
    raise UserError(
      'config.init_from is not set: latents are those of the weights that the training will start '
      'from, --config.init_from=...'
    )
  tensors = pbe.start(config['init_from'], config.get('init_clip'), model)
  if parts := config.get('init_parts'):
    with settings.mendable(config):
      tensors = parameters.split_trainable(tensors, parts, 'init_parts')[0]
  if any(PREFIX + name not in tensors for name in shapes):
    raise UserError(
      f"config.init_parts is '{parts}', so that the training's autoencoder would be random: take "
      'it from the weights too'
    )
  # As the training has them, whatever the file does.
  return graph, {n: jnp.asarray(tensors[PREFIX + n].read(), a.dtype) for n, a in shapes.items()}


def identity(model: Mapping[str, Any], params: Mapping[str, Array]) -> str:
  """SHA-256 that names an encoder: its settings and the checksums of its parameters.

  params: the autoencoder's, by their names in it; those of the decoder do not count.
  """
  sizes = pbe.complete(model)['autoencoder']
  used = {name: a for name, a in params.items() if name.split('.')[0] in ('encoder', 'quant_conv')}
  fact = json.dumps([sizes, checksums.digests(used)], sort_keys=True)
  return hashlib.sha256(fact.encode()).hexdigest()


def drawn(data: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of `config.data` that decide crops and masks, defaults included."""
  known = loader.defaults().items()
  chosen = {name: data.get(name, value) for name, value in known if name not in LATER}
  return json.loads(json.dumps(chosen))  # tuples as lists


def require_same(
  config: Mapping[str, Any], trained: Mapping[str, Array], frozen: Mapping[str, Array]
) -> None:
  """UserError where the data of a training were encoded with another autoencoder than it has.

  trained, frozen: its parameters by name.
  """
  root = config['data']['root']
  found = encoded.manifest(root)
  if found is None:
    return
  if any(name.startswith(PREFIX) for name in trained):
    raise UserError(
      f'{root} holds latents, so the autoencoder cannot train: leave it out of config.trainable, '
      'or train on the photos'
    )
  own = {n.removeprefix(PREFIX): a for n, a in frozen.items() if n.startswith(PREFIX)}
  here = identity(config['model'], own)
  if found['autoencoder'] != here:
    raise UserError(
      f'{root} was encoded with another autoencoder ({found["autoencoder"]:.12} there, {here:.12} '
      'here): start from the weights it was encoded with, or encode again'
    )
