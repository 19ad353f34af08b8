"""A rough look at latents while they are sampled: colours by a linear map, without a decoder.

The map is fitted to what the autoencoder makes of a drawn picture, once for each model. For latents
of Stable Diffusion such a map is known to be near (github.com/invoke-ai, "latents to rgb").
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image

from exedit import images, latent_diffusion
from exedit.input_pipeline import codec

CELLS = 16  # latents across the drawn picture


class Colours:
  """The map from a model's latents to colours; the encoder is compiled when it is first asked."""

  def __init__(self, model: Any):
    self.schedule = model.schedule
    self.factor = model.autoencoder.factor if hasattr(model, 'autoencoder') else 1
    self._map: Float[np.ndarray, 'z 3'] | None = None
    if self.factor > 1:
      drawn = _drawn(self.factor)
      z = np.asarray(latent_diffusion.run(_encode, model, jnp.asarray(drawn)))
      cells = z.shape[1]
      means = drawn.reshape(cells, self.factor, cells, self.factor, 3).mean((1, 3))
      self._map = np.linalg.lstsq(_with_one(z), means.reshape(-1, 3), rcond=None)[0]

  def png(
    self, before: tuple[np.ndarray, int], now: tuple[np.ndarray, int], size: tuple[int, int]
  ) -> bytes:
    """The clean picture that two states of a sampler agree on: latents, at two timesteps.

    size: height and width of the picture that the network sees.
    """
    (a, s), (b, t) = before, now
    signal, noise = self.schedule.signal_rate, self.schedule.noise_rate
    step = signal[t] * noise[s] - signal[s] * noise[t]
    z = (b * noise[s] - a * noise[t]) / step
    z = z[: -(-size[0] // self.factor), : -(-size[1] // self.factor)]
    colours = z if self._map is None else (_with_one(z) @ self._map).reshape(*z.shape[:2], 3)
    return codec.png(images.to_uint8(colours.astype(np.float32)))


def _with_one(z: np.ndarray) -> np.ndarray:
  flat = z.reshape(-1, z.shape[-1]).astype(np.float64)
  return np.concatenate([flat, np.ones((len(flat), 1))], 1)


def _drawn(factor: int) -> Float[np.ndarray, '1 h w 3']:
  """Soft patches of all colours."""
  rng = np.random.default_rng(0)
  small = rng.integers(0, 256, (CELLS // 2, CELLS // 2, 3), dtype=np.uint8)
  side = CELLS * factor
  grown = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
  return images.from_uint8(np.asarray(grown)[None])


def _encode(graphdef, params, picture):
  return nnx.merge(graphdef, params).autoencoder.encode(picture)[0]
