"""The autoencoder that made stored latents: load it, name it, and require it in a training."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from exedit import systems
from exedit.input_pipeline import latent_shards
from exedit.models import parameters
from exedit.runtime import checksums, settings
from exedit.runtime.errors import UserError
from exedit.training.given import given_weights

PREFIX = 'autoencoder.'
USED = ('encoder', 'quant_conv')  # its parts that latents depend on


def load(config: Mapping[str, Any], size: int) -> tuple[parameters.Graph, dict[str, Array]]:
  """Returns the autoencoder that a training with this config starts from, and its parameters.

  size: the side of its images in pixels.

  Raises:
    UserError: if the config names no weights to start from or unusable ones, or the size does not
      fit the model.
  """
  system, model = systems.get(config['system']), config['model']
  with settings.fixable(config):
    whole = nnx.eval_shape(lambda: system.build(**model, rngs=parameters.Keys(jax.random.key(0))))
  if size % whole.multiple():
    raise UserError(
      f'data.size is {size}: with this model it must be a multiple of {whole.multiple()}'
    )
  graph, shapes = parameters.flatten(whole.autoencoder)
  if not shapes:
    return graph, {}
  if not config.get('init_from'):
    raise UserError(
      'config.init_from is not set: latents belong to the weights that the training will start '
      'from, --config.init_from=...'
    )
  with settings.fixable(config):
    tensors = given_weights(system, config)
  if any(PREFIX + name not in tensors for name in shapes):
    raise UserError(
      f"config.init_parts is '{config['init_parts']}', so that the training's autoencoder would be "
      'random: take it from the weights too'
    )
  # In the types of the training, because its digests are compared with these.
  return graph, {n: jnp.asarray(tensors[PREFIX + n].read(), a.dtype) for n, a in shapes.items()}


def identity(config: Mapping[str, Any], params: Mapping[str, Array]) -> str:
  """Returns a SHA-256 of an encoder's settings and of the checksums of its parameters.

  params: those of the autoencoder, by their names in it; the decoder's do not count.
  """
  sizes = systems.get(config['system']).complete(config['model'])['autoencoder']
  used = {name: a for name, a in params.items() if name.split('.')[0] in USED}
  fact = json.dumps([sizes, checksums.digests(used)], sort_keys=True)
  return hashlib.sha256(fact.encode()).hexdigest()


def require_same(
  config: Mapping[str, Any], trained: Mapping[str, Array], frozen: Mapping[str, Array]
) -> None:
  """Checks that the stored latents of a training were made by the training's own autoencoder.

  trained, frozen: the parameters of the training by name.

  Raises:
    UserError: if they were made by another one, or the autoencoder trains.
  """
  root = config['data']['root']
  found = latent_shards.manifest(root)
  if found is None:
    return
  if any(name.startswith(PREFIX) for name in trained):
    raise UserError(
      f'{root} holds latents, so the autoencoder cannot train: leave it out of config.trainable, '
      'or train on the photos'
    )
  own = {n.removeprefix(PREFIX): a for n, a in frozen.items() if n.startswith(PREFIX)}
  here = identity(config, own)
  if found['autoencoder'] != here:
    raise UserError(
      f'{root} was encoded with another autoencoder ({found["autoencoder"]:.12} there, {here:.12} '
      'here): start from the weights it was encoded with, or encode again'
    )
