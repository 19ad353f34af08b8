"""The noise schedule: betas, timesteps, and the conversion between noise, image and output."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

PREDICTIONS = ('eps', 'v', 'x0')
SPACINGS = ('leading', 'ldm')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Latent diffusion's discrete schedule (Rombach et al. 2022), x_t = √ᾱ_t z + √(1-ᾱ_t) noise.

  The square roots of the betas are linear ("linear" in LDM's configs, "scaled_linear" in diffusers;
  docs/facts.md, "Schedule and timesteps"). The tables are computed in float64; the methods compute
  in the dtype of their arrays. A timestep `t` is one index in [0, num_steps) per example.

  prediction: the meaning of the network's output, the noise ('eps'), the image ('x0') or the
    velocity √ᾱ_t noise - √(1-ᾱ_t) z ('v'; Salimans & Ho 2022, arXiv 2202.00512, appendix D).
  num_steps: number of timesteps. beta_start, beta_end: noise variance of the first and last one.
  """

  num_steps: int = 1000
  beta_start: float = 0.00085
  beta_end: float = 0.012
  prediction: str = 'eps'

  def __post_init__(self):
    if self.prediction not in PREDICTIONS:
      raise ValueError(f'prediction={self.prediction!r} is unknown: use one of {PREDICTIONS}')
    if self.num_steps < 1:
      raise ValueError(f'num_steps={self.num_steps} must be at least 1')
    if not 0 < self.beta_start <= self.beta_end < 1:
      raise ValueError(
        'betas must grow within (0, 1), '
        f'got beta_start={self.beta_start} and beta_end={self.beta_end}'
      )

  @functools.cached_property
  def betas(self) -> Float[np.ndarray, ' steps']:
    """Noise variances in float64."""
    return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps) ** 2

  @functools.cached_property
  def signal_rate(self) -> Float[np.ndarray, ' steps']:
    """√ᾱ in float64, the share of the image in x_t."""
    return np.sqrt(np.cumprod(1 - self.betas))

  @functools.cached_property
  def noise_rate(self) -> Float[np.ndarray, ' steps']:
    """√(1-ᾱ) in float64, the share of the noise in x_t."""
    return np.sqrt(1 - np.cumprod(1 - self.betas))

  def add_noise(
    self, z: Float[Array, 'b ...'], noise: Float[Array, 'b ...'], t: Int[Array, ' b']
  ) -> Float[Array, 'b ...']:
    """x_t, the forward process in closed form (Ho et al. 2020, eq. 4)."""
    return _at(self.signal_rate, t, z) * z + _at(self.noise_rate, t, z) * noise

  def target(
    self, z: Float[Array, 'b ...'], noise: Float[Array, 'b ...'], t: Int[Array, ' b']
  ) -> Float[Array, 'b ...']:
    """The output that the network is trained to give."""
    if self.prediction == 'eps':
      return noise
    if self.prediction == 'x0':
      return z
    return _at(self.signal_rate, t, z) * noise - _at(self.noise_rate, t, z) * z

  def eps(
    self, output: Float[Array, 'b ...'], x_t: Float[Array, 'b ...'], t: Int[Array, ' b']
  ) -> Float[Array, 'b ...']:
    """The noise in x_t according to the network's output."""
    if self.prediction == 'eps':
      return output
    if self.prediction == 'x0':
      return (x_t - _at(self.signal_rate, t, x_t) * output) / _at(self.noise_rate, t, x_t)
    return _at(self.signal_rate, t, x_t) * output + _at(self.noise_rate, t, x_t) * x_t

  def timesteps(self, steps: int, spacing: str = 'leading') -> Int[np.ndarray, ' steps']:
    """Descending timesteps for DDIM and PLMS, `num_steps // steps` apart, the last one 1.

    'leading' gives exactly `steps` of them (diffusers' name and rule). 'ldm' goes on to the end of
    the schedule (LDM util.py make_ddim_timesteps): that is the same if `steps` divides `num_steps`,
    and more timesteps otherwise (31 for 30).
    """
    if spacing not in SPACINGS:
      raise ValueError(f"spacing is '{spacing}'; use one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= self.num_steps:
      raise ValueError(f'steps={steps} must be between 1 and {self.num_steps}')
    stride = self.num_steps // steps
    ascending = np.arange(0, self.num_steps if spacing == 'ldm' else steps * stride, stride) + 1
    if ascending[-1] >= self.num_steps:
      raise ValueError(
        f"steps={steps} with spacing '{spacing}' would start at t={ascending[-1]}, but the "
        f'schedule ends at {self.num_steps - 1}: use another number of steps'
        + (" or spacing 'leading'" if spacing == 'ldm' else '')
      )
    return ascending[::-1].astype(np.int32)


def _at(table, t, like):
  """table[t] in the dtype of `like`, with as many axes as `like`."""
  values = jnp.asarray(table, like.dtype)[t]
  return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))
