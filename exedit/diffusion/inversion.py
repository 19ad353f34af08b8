"""Inversion: the noisy latents that sampling would turn into given ones, and what keeps it there.

A path is `[steps+1 b ...]`, from the noisiest latents, at the first of the descending `timesteps`,
to the given ones. A denoiser here is any `denoise(x, t) -> (eps, seen)`; the mean of `seen` over
the steps comes with the path.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from exedit.diffusion import sampling
from exedit.diffusion.schedule import Schedule

INNER_STEPS = 10  # of null-text inversion, per step
RATE = 1e-2  # its first learning rate; it falls to half over the steps
LOSS, LOSS_RISE = 1e-5, 2e-5  # it stops below LOSS + step * LOSS_RISE

Path = Float[Array, 'path b ...']
Steps = Int[np.ndarray, ' steps']


def timesteps(
  schedule: Schedule, steps: int, spacing: str = 'leading', offset: int = 1
) -> Int[np.ndarray, ' n']:
  """Descending timesteps that end at `offset`: 1, as Stable Diffusion's config says, or 0.

  With 0, as in the notebook of null-text inversion, the last step changes nothing.
  """
  if offset not in (0, 1):
    raise ValueError(f'offset is {offset}: it must be 0 or 1')
  return schedule.timesteps(steps, spacing) - np.int32(1 - offset)


def ddim(
  denoise: Callable, z: Float[Array, 'b ...'], timesteps: Steps, schedule: Schedule
) -> tuple[Path, PyTree[Array]]:
  """DDIM in reverse (Song et al. 2020, arXiv 2010.02502, section 4.3).

  As upstream and in diffusers, a step takes eps at the timestep that it goes to, for the latents
  that it comes from.
  """
  following = sampling.after(timesteps)
  keep = schedule.signal_rate[timesteps] / schedule.signal_rate[following]
  add = schedule.noise_rate[timesteps] - keep * schedule.noise_rate[following]
  coefficients = [jnp.asarray(c, z.dtype) for c in (keep, add)]

  def step(x, inputs):
    t, (keep, add) = inputs
    eps, seen = denoise(x, jnp.full(x.shape[:1], t))
    x = keep * x + add * eps
    return x, (x, seen)

  xs = jnp.asarray(timesteps, jnp.int32), coefficients
  _, (noisier, seen) = jax.lax.scan(step, z, xs, reverse=True)
  return jnp.concatenate([noisier, z[None]]), _mean(seen)


def edit_friendly(
  denoise: Callable,
  z: Float[Array, 'b ...'],
  noise: Float[Array, 'steps b ...'],
  timesteps: Steps,
  schedule: Schedule,
  at_once: int = 0,
) -> tuple[Path, Float[Array, 'steps b ...'], PyTree[Array]]:
  """The path and the noises of edit-friendly DDPM inversion (arXiv 2304.06140, algorithm 1).

  The latents of all timesteps are drawn apart from each other, each with its own `noise`, and the
  noise of each ancestral step follows from them. Sampling with eta 1 and these noises gives z. So
  the steps need not wait for each other.

  at_once: the number of steps that are evaluated together; 0: all.
  """
  t = jnp.asarray(timesteps, jnp.int32)
  rate = lambda table: jnp.asarray(table[timesteps], z.dtype).reshape(-1, *[1] * z.ndim)
  path = rate(schedule.signal_rate) * z[None] + rate(schedule.noise_rate) * noise
  path = jnp.concatenate([path, z[None]])
  one = lambda inputs: denoise(inputs[0], jnp.full(z.shape[:1], inputs[1]))
  eps, seen = jax.lax.map(one, (path[:-1], t), batch_size=at_once or len(timesteps))
  coefficients = sampling.ddim_coefficients(timesteps, schedule, eta=1.0)
  keep, add, spread = (jnp.asarray(c, z.dtype).reshape(-1, *[1] * z.ndim) for c in coefficients)
  drawn = path[1:] - keep * path[:-1] - add * eps
  noises = jnp.where(spread > 0, drawn / jnp.where(spread > 0, spread, 1), 0)
  return path, noises, _mean(seen)


def null_text(
  predict: Callable[[Array, Array, Array], Float[Array, 'b ...']],
  path: Path,
  eps: Callable[[Array, Array], Float[Array, 'b ...']],
  null: Float[Array, 'b n d'],
  timesteps: Steps,
  schedule: Schedule,
  scale: float,
  stop_early: bool = True,
) -> Float[Array, 'steps b n d']:
  """The null contexts with which guided DDIM follows a path (Mokady et al. 2022, arXiv 2211.09794).

  At each step the context of before is changed by up to INNER_STEPS steps of a new Adam, so that
  the step ends on the path. As upstream, the loss is measured before each change and compared after
  it, so that there is one change at least.

  Args:
    predict(x, t, null): eps under a null context. eps(x, t): that under the source's text.
    null: the context to start from. scale: of guidance.
    stop_early: stop below the published loss; each example stops for itself.
  """
  steps = len(timesteps)
  keep, add, _ = (
    jnp.asarray(c, path.dtype) for c in sampling.ddim_coefficients(timesteps, schedule)
  )
  rates = RATE * (1 - jnp.arange(steps) / (2 * steps))
  limits = LOSS + LOSS_RISE * jnp.arange(steps) if stop_early else jnp.full(steps, -1.0)
  adam = optax.scale_by_adam()

  def step(carry, inputs):
    x, null = carry
    t, keep, add, wanted, rate, limit = inputs
    t = jnp.full(x.shape[:1], t)
    with_text = eps(x, t)

    def next_of(null):
      without = predict(x, t, null)
      return keep * x + add * (without + scale * (with_text - without))

    def losses(null):
      each = ((next_of(null) - wanted) ** 2).mean(tuple(range(1, x.ndim)))
      return each.sum(), each

    def inner(state):
      j, null, moments, going = state
      gradient, each = jax.grad(losses, has_aux=True)(null)
      change, moments = adam.update(gradient, moments)
      null = jnp.where(going[:, None, None], null - rate * change, null)
      return j + 1, null, moments, going & (each >= limit)

    more = lambda state: (state[0] < INNER_STEPS) & state[3].any()
    start = jnp.int32(0), null, adam.init(null), jnp.ones(len(x), bool)
    null = jax.lax.while_loop(more, inner, start)[1]
    return (next_of(null), null), null

  xs = jnp.asarray(timesteps, jnp.int32), keep, add, path[1:], rates, limits
  return jax.lax.scan(step, (path[0], null), xs)[1]


def _mean(seen: PyTree[Shaped[Array, 'steps ...']]) -> PyTree[Array]:
  return jax.tree.map(functools.partial(jnp.mean, axis=0), seen)
