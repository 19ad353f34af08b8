"""A system of a few hundred parameters behind the contract of the real ones, for tests of training.

Run as a program it is the door `exedit.train` with this system added, for tests that kill it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from exedit import images, paint_by_example, systems
from exedit.diffusion.schedule import Schedule
from exedit.editing.settings import PhotoSettings
from exedit.weights import find


class Toy(nnx.Module):
  def __init__(self, width, dtype, rngs):
    self.schedule = Schedule()
    sizes = ((7, width), (width, 3))
    self.unet = nnx.List([nnx.Linear(*size, dtype=dtype, rngs=rngs) for size in sizes])
    self.clip = nnx.Linear(3, 3, rngs=rngs)

  def __call__(self, x, mask, exemplar):
    context = jnp.broadcast_to(self.clip(exemplar.mean((1, 2)))[:, None, None], x.shape)
    h = jnp.concatenate([x, mask, context], -1)
    return self.unet[1](jax.nn.silu(self.unet[0](h))).astype(jnp.float32)


def build(*, width=64, explode=(0, 0), dtype='float32', rngs):
  """`explode`: the loss of examples whose id lies in this range is not a number."""
  model = Toy(width, jnp.dtype(dtype), rngs)
  model.explode = tuple(explode)
  return model


def start(init_from, init_clip, settings):
  """What the folder holds, be it a part of the model."""
  return find.weights(init_from).tensors


def loss(model, batch, key):
  def one(i):
    k_t, k_noise = jax.random.split(jax.random.fold_in(key, i))
    return jax.random.randint(k_t, (), 0, 1000), jax.random.normal(k_noise, (3,))

  t, noise = jax.vmap(one)(batch['id'])
  image = batch['image'].astype(jnp.float32) / 127.5 - 1
  mask = batch['mask'][..., None].astype(jnp.float32) / 255
  exemplar = batch['exemplar'].astype(jnp.float32) / 127.5 - 1
  x = image * (1 - mask) + noise[:, None, None] * (1e-3 * t)[:, None, None, None]
  per_example = ((model(x, mask, exemplar) - image) ** 2).mean((1, 2, 3))
  low, high = model.explode
  per_example = jnp.where((batch['id'] >= low) & (batch['id'] < high), jnp.nan, per_example)
  return per_example.mean(), dict(per_example=per_example, t=t)


def edit(model, arrays, keys, size, *, scale=1.0):
  source, mask = arrays['image'], arrays['mask']
  return source * (1 - mask) + mask * jnp.clip(model(source, mask, arrays['exemplar']), -1, 1)


def preview(model, examples, **settings):
  source = images.from_uint8(examples['image'])
  arrays = dict(
    image=source,
    mask=examples['mask'][..., None].astype(np.float32) / 255,
    exemplar=images.from_uint8(examples['exemplar']),
  )
  result = np.asarray(edit(model, arrays, None, source.shape[1:3], **settings))
  return ('source', 'edit'), [list(row) for row in zip(source, result)]


@dataclasses.dataclass(frozen=True)
class Settings(PhotoSettings):
  scale: float = systems.setting(1.0, 'not used', network=True)


SYSTEM = systems.register(
  dataclasses.replace(
    paint_by_example.SYSTEM,
    name='toy',
    settings=Settings,
    build=build,
    complete=dict,
    start=start,
    loss=loss,
    preview=preview,
    edit=edit,
    picture_size=lambda model: 16,
    moments=None,
  )
)

if __name__ == '__main__':
  from exedit import train

  train.run()
