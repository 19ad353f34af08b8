"""Weights of a very small model, in a folder: for tests of what stands around a model."""

import contextlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from exedit import latent_diffusion
from exedit import paint_by_example as pbe
from exedit.models import parameters
from exedit.runtime import files
from exedit.training import checkpoint, state
from exedit.weights.layouts import own
from tests.networks import keys

SIZE = 16
MODEL = dict(
  autoencoder=dict(kind='space_to_depth', patch=4),
  unet=dict(
    channels=8, mult=(1, 2), layers=1, attention_levels=(1,), heads=2, groups=4, remat='none'
  ),
  clip=dict(width=16, layers=1, heads=2, mlp=32, patch=4, image_size=8),
  conditioner=dict(layers=1),
  context_dim=16,
)
CONFIG = dict(
  data=dict(size=SIZE, exemplar_size=8),
  model=MODEL,
  edit=dict(count=8, steps=3, scale=2.0, sampler='ddim'),
)


def params() -> dict[str, np.ndarray]:
  """Such that the output depends on all inputs (fresh weights would end in zeros)."""
  shapes = parameters.flatten(nnx.eval_shape(lambda: pbe.build(**MODEL, rngs=keys())))[1]
  rng = np.random.default_rng(0)
  return {
    name: np.float32(0.2 * rng.standard_normal(a.shape) + name.endswith('.scale'))
    for name, a in shapes.items()
  }


def config(size=SIZE):
  """CONFIG for weights that were trained on pictures of another size."""
  return CONFIG | dict(data=CONFIG['data'] | dict(size=size))


def export(path, size=SIZE) -> str:
  """The folder of exported weights, made."""
  own.write(path, config(size), params(), step=12)
  return str(path)


@contextlib.contextmanager
def loaded_once():
  """In this block, weights that are loaded again are the model of the first time."""
  models, load = {}, latent_diffusion.load

  def once(build, weights, dtype=None):
    key = (weights.digest(), dtype or 'float32')
    models[key] = models.get(key) or load(build, weights, dtype)
    return models[key]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(latent_diffusion, 'load', once)
    yield


def workdir(path, steps) -> str:
  """The workdir of a run that saved at these steps, made."""
  path.mkdir()
  files.write_json(path / 'config.json', CONFIG)
  trained = {name: jnp.asarray(array) for name, array in params().items()}
  checkpoint.save_frozen(path, {})
  checkpoints = checkpoint.Checkpoints(path)
  for step in steps:
    checkpoints.save(step, state.create(trained, optax.sgd(1.0), ema=False))
  checkpoints.close()
  return str(path)
