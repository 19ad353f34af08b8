"""Samplers: functions of a denoiser, from noise to latents, each one compiled scan.

A denoiser is any `denoise(x, t) -> eps`, x [b ...], t [b] int32. Whatever else changes from step to
step is `per_step`, a pytree whose leaves have a leading axis as long as `timesteps`; its slice for
the timestep at hand is then the denoiser's third argument. Samplers run in x's dtype, with
coefficients computed in float64 beforehand. `timesteps` are descending and on the host.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree, Shaped

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
  """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12), with LDM's last step, to ᾱ[0] and not to 1.

  `eta` in [0, 1] goes from deterministic to ancestral (their eq. 16) and needs a `key`.
  """
  if not 0 <= eta <= 1:
    raise ValueError(f'eta={eta} must be between 0 and 1')
  if eta and key is None:
    raise ValueError(f'eta={eta} draws noise: give a key')
  coefficients = [jnp.asarray(c, x.dtype) for c in _ddim_coefficients(timesteps, schedule, eta)]
  keys = None if key is None or eta == 0 else jax.random.split(key, len(timesteps))

  def step(x, now):
    t, (keep, add, spread), key, extra = now
    x_next = keep * x + add * _eps(denoise, x, t, extra)
    if key is not None:
      x_next += spread * jax.random.normal(key, x.shape, x.dtype)
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
  """PLMS (Liu et al. 2022, arXiv 2202.09778): DDIM steps along Adams-Bashforth means of eps.

  The first step is taken twice (Heun: tentatively to the second timestep, then again from the start
  with the mean of both eps), as in the original's plms.py: 50 timesteps cost 51 evaluations, at
  981, 961, 961, 941, ..., 1.
  """
  steps = len(timesteps)
  evaluated = np.r_[0, min(1, steps - 1), 1:steps]  # which timestep each evaluation sees
  taken = np.r_[0, 0, 1:steps]  # which step it then takes
  keep, add, _ = (jnp.asarray(c[taken], x.dtype) for c in _ddim_coefficients(timesteps, schedule))
  weights = jnp.asarray(_adams_bashforth(steps + 1), x.dtype)
  extras = jax.tree.map(lambda leaf: leaf[evaluated], per_step)

  def step(carry, now):
    origin, x, history = carry
    k, t, keep, add, weights, extra = now
    history = (_eps(denoise, x, t, extra), *history)
    x_next = keep * origin + add * sum(w * e for w, e in zip(weights, history, strict=True))
    origin = jnp.where(k == 0, origin, x_next)  # the tentative step leaves from where it was
    return (origin, x_next, history[:-1]), None

  carry = x, x, (jnp.zeros_like(x),) * 4
  xs = jnp.arange(steps + 1), _int32(timesteps[evaluated]), keep, add, weights, extras
  return jax.lax.scan(step, carry, xs)[0][1]


def dpm_solver_pp(
  denoise: Callable,
  x: Float[Array, 'b ...'],
  timesteps: Int[np.ndarray, ' steps'],
  schedule: Schedule,
  *,
  per_step: PyTree[Shaped[Array, 'steps ...']] | None = None,
) -> Float[Array, 'b ...']:
  """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2), to noise level zero.

  First-order in the first and the last step; its timesteps are `dpm_timesteps`.
  """
  coefficients = [jnp.asarray(c, x.dtype) for c in _dpm_coefficients(timesteps, schedule)]

  def step(carry, now):
    x, z_before = carry
    t, (signal, noise, keep, add, ahead), extra = now
    z = (x - noise * _eps(denoise, x, t, extra)) / signal
    x = keep * x + add * (z + ahead * (z - z_before))
    return (x, z), None

  xs = _int32(timesteps), coefficients, per_step
  return jax.lax.scan(step, (x, jnp.zeros_like(x)), xs)[0][0]


def dpm_timesteps(steps: int, schedule: Schedule) -> Int[np.ndarray, ' steps']:
  """Descending timesteps for DPM-Solver++: 999, 959, ..., 40 for 25 (diffusers' 'linspace')."""
  last = schedule.num_steps - 1
  if not 1 <= steps <= last:
    raise ValueError(f'steps={steps} must be between 1 and {last} for DPM-Solver++')
  return np.linspace(0, last, steps + 1).round()[:0:-1].astype(np.int32)


def _eps(denoise, x, t, extra):
  """One evaluation at a scalar timestep, in x's dtype whatever the network computes in."""
  t = jnp.full(x.shape[:1], t)
  eps = denoise(x, t) if extra is None else denoise(x, t, extra)
  return eps.astype(x.dtype)


def _int32(timesteps):
  return jnp.asarray(timesteps, jnp.int32)


def _ddim_coefficients(timesteps, schedule, eta=0.0):
  """(keep, add, spread) [steps] each: x_next = keep x + add eps + spread noise."""
  towards = np.append(timesteps[1:], 0)
  signal, noise = schedule.signal_rate[timesteps], schedule.noise_rate[timesteps]
  signal_next, noise_next = schedule.signal_rate[towards], schedule.noise_rate[towards]
  keep = signal_next / signal
  spread = eta * noise_next / noise * np.sqrt(1 - keep**-2)
  return keep, np.sqrt(noise_next**2 - spread**2) - keep * noise, spread


def _adams_bashforth(evaluations):
  """Weights [evaluations, 5] of eps, newest first; the second eps (see plms) is used only once."""
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
