"""The networks of the benchmarks at three widths, with random weights on disk.

They are those of Paint by Example, or of Stable Diffusion with the same UNet and autoencoder.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from exedit import latent_diffusion
from exedit import paint_by_example as pbe
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts import diffusers

LEVELS = dict(mult=(1, 2, 4, 4), layers=2)
WIDTHS: dict[str, dict[str, Any]] = {
  'tiny': dict(
    unet=dict(channels=16, mult=(1, 2), layers=1, attention_levels=(0,), heads=2, groups=8),
    autoencoder=dict(channels=16, mult=(1, 2), layers=1, groups=8),
    clip=dict(width=32, layers=4, heads=4, mlp=64, patch=8, image_size=32),
    conditioner=dict(layers=1),
    context_dim=12,
  ),
  'quarter': dict(
    unet=dict(channels=80, groups=16, **LEVELS),
    autoencoder=dict(channels=32, **LEVELS),
    clip=dict(width=256, layers=24, heads=4, mlp=1024),
    context_dim=192,
  ),
  'full': {},  # the published sizes
}
TEXTS: dict[str, dict[str, Any]] = {
  'tiny': dict(vocabulary=99, length=16, width=12, layers=1, heads=2, mlp=24),
  'quarter': dict(width=192, layers=12, heads=3, mlp=768),
  'full': {},
}


def settings_of(width: str, system: Any = pbe) -> dict[str, Any]:
  """The complete settings of a system's model; system: its module."""
  given = WIDTHS[width]
  if system is not pbe:
    shared = ('unet', 'autoencoder', 'context_dim')
    given = {name: given[name] for name in shared if name in given} | dict(text=TEXTS[width])
  return system.complete(given)


def write_weights(width: str, folder: str | Path, system: Any = pbe) -> None:
  """Writes random weights as a diffusers pipeline, unless the folder already has one.

  Each tensor depends only on its name. system: the module of another system.
  """
  folder = Path(folder)
  if (folder / 'model_index.json').exists():
    return
  settings = settings_of(width, system)
  _, shapes = latent_diffusion.abstract(system.build, settings)

  def random(name, shape):
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) > 1 and name != 'conditioner.null':
      return values * np.float32((values.size / shape[-1]) ** -0.5)
    return np.float32(0.1) * values + np.float32(name.endswith('.scale'))

  tensors = {
    name: Tensor(a.shape, np.dtype(np.float32), lambda name=name, a=a: random(name, a.shape))
    for name, a in shapes.items()
  }
  folder.mkdir(parents=True, exist_ok=True)
  diffusers.write(folder, dict(model=settings), tensors)


def edit_inputs(width: str, size: int, batch: int) -> dict[str, np.ndarray]:
  """source, mask (a quarter of it), exemplar, noise and posterior_noise, channels last."""
  random = np.random.default_rng(0)
  settings = pbe.complete(WIDTHS[width])
  latent = size // 2 ** (len(settings['autoencoder']['mult']) - 1)
  s = settings['clip']['image_size']
  mask = np.zeros((batch, size, size, 1))
  mask[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
  made = dict(
    source=random.uniform(-1, 1, (batch, size, size, 3)),
    mask=mask,
    exemplar=random.uniform(-1, 1, (batch, s, s, 3)),
    noise=random.normal(size=(batch, latent, latent, 4)),
    posterior_noise=random.normal(size=(batch, latent, latent, 4)),
  )
  return {name: a.astype(np.float32) for name, a in made.items()}


def training_batch(width: str, size: int, batch: int) -> dict[str, np.ndarray]:
  """A batch with the shapes and types of the input pipeline."""
  random = np.random.default_rng(0)
  s = pbe.complete(WIDTHS[width])['clip']['image_size']
  pixels = lambda *shape: random.integers(0, 256, (batch, *shape), np.uint8)
  mask = np.zeros((batch, size, size), np.uint8)
  mask[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 255
  return dict(
    image=pixels(size, size, 3),
    mask=mask,
    exemplar=pixels(s, s, 3),
    id=np.arange(batch, dtype=np.int32),
    corrupt=np.zeros(batch, np.int32),
  )
