"""The guided denoiser that all latent-diffusion systems share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit import latent_diffusion
from exedit.diffusion.schedule import Schedule
from exedit.models.unet import Prepared, UNet

SCHEDULE = Schedule()


class Counted(UNet):
  """A noise predictor without layers, which notes the timestep and the rows of each evaluation."""

  def __init__(self):
    self.seen = []

  def prepare(self, still, context):
    return Prepared(jnp.zeros(()), context)

  def denoise(self, x_t, t, prepared):
    rows = len(prepared.context)
    jax.debug.callback(lambda t: self.seen.append((int(t), rows)), t[0], ordered=True)
    x = jnp.tile(x_t, (rows // len(x_t), 1, 1, 1))
    return 0.3 * x + jnp.sin(prepared.context[..., None] + t[0] / 100)


@pytest.mark.parametrize('sampler', latent_diffusion.SAMPLERS)
def test_outside_the_guidance_interval_the_null_is_not_evaluated(sampler):
  """Against a denoiser that evaluates both halves everywhere and changes its scale by timestep."""
  context, null = jnp.asarray([[[0.1]], [[0.2]]]), jnp.full((2, 1, 1), 0.7)
  noise = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
  how, interval = dict(steps=10, sampler=sampler), (0.3, 0.7)

  def run(scale, interval=None):
    unet = Counted()
    more = () if interval is None else (interval,)
    denoise = latent_diffusion.denoiser(unet, SCHEDULE, None, context, null, scale, *more)
    if interval is None:
      plain = latent_diffusion.denoiser(unet, SCHEDULE, None, context, None, 1.0)
      both = denoise
      inside = lambda t: ((t >= 300) & (t <= 700))[:, None, None, None]
      denoise = lambda x, t: jnp.where(inside(t), both(x, t), plain(x, t))
    z = latent_diffusion.sample(denoise, noise, SCHEDULE, **how)
    jax.effects_barrier()
    return z, unet.seen

  expected, everything = run(3.0)
  result, seen = run(3.0, interval)
  np.testing.assert_allclose(result, expected, rtol=1e-5)
  assert seen == [(t, rows) for t, rows in everything if (rows == 4) == (300 <= t <= 700)]
  total, guided = latent_diffusion.evaluations(SCHEDULE, interval, **how)
  assert total == len(seen) and guided == sum(rows == 4 for _, rows in seen) > 0
