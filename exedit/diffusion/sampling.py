"""Samplers: functions of a denoiser that turn noise into latents, each by one compiled scan.

A denoiser is any `denoise(x, t) -> eps`, x [b ...], t [b] int32. `per_step` is for other values
that change from step to step: a pytree whose leaves have a leading axis as long as `timesteps`. The
slice for the current timestep becomes the denoiser's third argument. Samplers compute in x's dtype,
with coefficients that were computed in float64. `timesteps` are descending numbers on the host.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

from exedit.diffusion import watch
from exedit.diffusion.schedule import Schedule


def ddim(
  denoise: Callable,
  x: Float[Array, 'b ...'],
  timesteps: Int[np.ndarray, ' steps'],
  schedule: Schedule,
  *,
  eta: float = 0.0,
  key: Key[Array, ''] | None = None,
  per_step: PyTree[Shaped[Array, 'steps ...']] | None = None,
) -> Float[Array, 'b ...']:
  """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12); as in LDM, its last step ends at ᾱ[0].

  eta: from 0, deterministic, to 1, ancestral (their eq. 16). key: of the noise, if eta is not 0.
  """
  if not 0 <= eta <= 1:
    raise ValueError(f'eta={eta} must be between 0 and 1')
  if eta and key is None:
    raise ValueError(f'eta={eta} needs random noise: give a key')
  coefficients = [jnp.asarray(c, x.dtype) for c in ddim_coefficients(timesteps, schedule, eta)]
  keys = None if key is None or eta == 0 else jax.random.split(key, len(timesteps))

  def step(x, inputs):
    t, (keep, add, spread), key, extra = inputs
    x_next = keep * x + add * _eps(denoise, x, t, extra)
    if key is not None:
      x_next += spread * jax.random.normal(key, x.shape, x.dtype)
    watch.tell(x_next, after(timesteps))
    return x_next, None

  return jax.lax.scan(step, x, (_int32(timesteps), coefficients, keys, per_step))[0]


def plms(
  denoise: Callable,
  x: Float[Array, 'b ...'],
  timesteps: Int[np.ndarray, ' steps'],
  schedule: Schedule,
  *,
  per_step: PyTree[Shaped[Array, 'steps ...']] | None = None,
) -> Float[Array, 'b ...']:
  """PLMS (Liu et al. 2022, arXiv 2202.09778): DDIM steps with Adams-Bashforth means of eps.

  The first step is a Heun step, as in LDM's plms.py: it goes to the second timestep, and then again
  from the start with the mean of both eps. So 50 timesteps need 51 evaluations, at 981, 961, 961,
  941, ..., 1.
  """
  steps = len(timesteps)
  evaluated = plms_evaluations(steps)
  taken = np.r_[0, 0, 1:steps]  # the DDIM step after it
  keep, add, _ = (jnp.asarray(c[taken], x.dtype) for c in ddim_coefficients(timesteps, schedule))
  weights = jnp.asarray(_adams_bashforth(steps + 1), x.dtype)
  extras = jax.tree.map(lambda leaf: leaf[evaluated], per_step)

  def step(carry, inputs):
    origin, x, history = carry
    k, t, keep, add, weights, extra = inputs
    history = (_eps(denoise, x, t, extra), *history)
    x_next = keep * origin + add * sum(w * e for w, e in zip(weights, history, strict=True))
    origin = jnp.where(k == 0, origin, x_next)  # the second step starts from the same x again
    watch.tell(x_next, after(timesteps[evaluated]))
    return (origin, x_next, history[:-1]), None

  carry = x, x, (jnp.zeros_like(x),) * 4
  xs = jnp.arange(steps + 1), _int32(timesteps[evaluated]), keep, add, weights, extras
  return jax.lax.scan(step, carry, xs)[0][1]


def plms_evaluations(steps: int) -> Int[np.ndarray, ' evaluations']:
  """The index of the timestep of each evaluation of PLMS."""
  return np.r_[0, min(1, steps - 1), 1:steps]


def dpm_solver_pp(
  denoise: Callable,
  x: Float[Array, 'b ...'],
  timesteps: Int[np.ndarray, ' steps'],
  schedule: Schedule,
  *,
  per_step: PyTree[Shaped[Array, 'steps ...']] | None = None,
) -> Float[Array, 'b ...']:
  """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), down to noise level zero.

  The first and the last step are of first order. Its timesteps come from `dpm_timesteps`.
  """
  coefficients = [jnp.asarray(c, x.dtype) for c in _dpm_coefficients(timesteps, schedule)]

  def step(carry, inputs):
    x, z_before = carry
    t, (signal, noise, keep, add, ahead), extra = inputs
    z = (x - noise * _eps(denoise, x, t, extra)) / signal
    x = keep * x + add * (z + ahead * (z - z_before))
    watch.tell(x, after(timesteps))
    return (x, z), None

  xs = _int32(timesteps), coefficients, per_step
  return jax.lax.scan(step, (x, jnp.zeros_like(x)), xs)[0][0]


def after(timesteps: Int[np.ndarray, ' n']) -> Int[np.ndarray, ' n']:
  """The timestep that each step reaches; 0 is the end of sampling."""
  return np.append(timesteps[1:], 0)


def dpm_timesteps(steps: int, schedule: Schedule) -> Int[np.ndarray, ' steps']:
  """Descending timesteps for DPM-Solver++: 999, 959, ..., 40 for 25 (diffusers' 'linspace')."""
  last = schedule.num_steps - 1
  if not 1 <= steps <= last:
    raise ValueError(f'steps={steps} must be between 1 and {last} for DPM-Solver++')
  return np.linspace(0, last, steps + 1).round()[:0:-1].astype(np.int32)


def _eps(denoise, x, t, extra):
  """One evaluation at a scalar timestep, converted to x's dtype."""
  t = jnp.full(x.shape[:1], t)
  eps = denoise(x, t) if extra is None else denoise(x, t, extra)
  return eps.astype(x.dtype)


def _int32(timesteps):
  return jnp.asarray(timesteps, jnp.int32)


def ddim_coefficients(timesteps, schedule, eta=0.0):
  """(keep, add, spread) [steps] each: x_next = keep x + add eps + spread noise."""
  following = after(timesteps)
  signal, noise = schedule.signal_rate[timesteps], schedule.noise_rate[timesteps]
  signal_next, noise_next = schedule.signal_rate[following], schedule.noise_rate[following]
  keep = signal_next / signal
  spread = eta * noise_next / noise * np.sqrt(1 - keep**-2)
  return keep, np.sqrt(noise_next**2 - spread**2) - keep * noise, spread


def _adams_bashforth(evaluations):
  """Weights [evaluations, 5] of eps, newest first; only the first step uses the second eps."""
  weights = np.zeros([evaluations, 5])
  weights[0, :1] = 1
  weights[1, :2] = np.array([1, 1]) / 2
  weights[2:3, :3] = np.array([3, 0, -1]) / 2
  weights[3:4, :4] = np.array([23, -16, 0, 5]) / 12
  weights[4:5] = np.array([55, -59, 37, 0, -9]) / 24
  weights[5:] = np.array([55, -59, 37, -9, 0]) / 24
  return weights


def _dpm_coefficients(timesteps, schedule):
  """(signal, noise, keep, add, ahead) [steps] each.

  z = (x - noise eps) / signal, then x_next = keep x + add (z + ahead (z - z_before)).
  """
  signal, noise = schedule.signal_rate[timesteps], schedule.noise_rate[timesteps]
  signal_next, noise_next = np.append(signal[1:], 1), np.append(noise[1:], 0)
  keep = noise_next / noise
  add = signal_next - signal * keep  # their -α (exp(-h) - 1)
  h = np.diff(np.log(signal / noise))
  ahead = np.zeros(len(timesteps))
  ahead[1:-1] = h[1:] / h[:-1] / 2
  return signal, noise, keep, add, ahead
