"""A system without any input: a latent-diffusion model of pictures. Tests register it.

It proves that training, sampling, evaluation and planning know no system.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from exedit import latent_diffusion, systems
from exedit.diffusion.schedule import Schedule
from exedit.editing.settings import EditSettings
from exedit.models.unet import UNet
from exedit.weights import find


class Unconditional(nnx.Module):
  def __init__(self, width, dtype, rngs):
    self.schedule = Schedule()
    self.autoencoder = latent_diffusion.make_autoencoder(
      dict(kind='space_to_depth', patch=4), dtype, rngs
    )
    z = self.autoencoder.z_channels
    sizes = dict(in_channels=z, out_channels=z, context_dim=4)
    layers = dict(mult=(1,), layers=1, attention_levels=(), heads=2, groups=4)
    self.unet = UNet(**sizes, **layers, channels=width, dtype=dtype, rngs=rngs)

  def multiple(self):
    return self.autoencoder.factor * self.unet.multiple

  def __call__(self, x, t):
    return self.unet(x, t, jnp.zeros((len(x), 1, 4)))


def build(*, width=8, dtype='float32', rngs):
  return Unconditional(width, latent_diffusion.compute_dtype(dtype), rngs)


def loss(model, batch, key):
  k_t, k_noise = latent_diffusion.example_keys(key, batch['id'], 2)
  z = model.autoencoder.encode(latent_diffusion.as_signed(batch['image']), None)
  return latent_diffusion.noise_prediction_loss(model, model.schedule, z, k_t, k_noise)


@functools.partial(nnx.jit, static_argnames=('size', 'steps', 'sampler'))
def edit(model, arrays, keys, size, *, steps, sampler):
  z = latent_diffusion.normal(keys, latent_diffusion.latent_shape(model, (1, *size)))
  denoise = lambda x, t: model.schedule.eps(model(x, t), x, t)
  z = latent_diffusion.sample(denoise, z, model.schedule, steps=steps, sampler=sampler)
  return model.autoencoder.decode(z)


def preview(model, examples, **settings):
  keys = latent_diffusion.picture_keys(jax.random.key(0), len(examples['image']))
  return ('sample',), [[x] for x in np.asarray(edit(model, {}, keys, size=(16, 16), **settings))]


@dataclasses.dataclass(frozen=True)
class Settings(EditSettings):
  steps: int = systems.setting(3, 'denoising steps', bounds=(1, 999), network=True)
  sampler: str = systems.setting('ddim', 'sampler', choices=('ddim', 'plms'), network=True)


SYSTEM = systems.System(
  name='unconditional',
  inputs=(),
  settings=Settings,
  build=build,
  complete=dict,
  start=lambda init_from, init_clip, model: dict(find.weights(init_from).tensors),
  data=latent_diffusion.OPEN_IMAGES,
  loss=loss,
  preview=preview,
  edit=edit,
)
