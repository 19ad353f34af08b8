"""Samplers against golden trajectories, exact solutions, and the timesteps that they evaluate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.diffusion.sampling import ddim, dpm_solver_pp, dpm_timesteps, plms
from exedit.diffusion.schedule import Schedule

SCHEDULE = Schedule()
SAMPLERS = [ddim, plms, dpm_solver_pp]


def timesteps_for(sampler, steps):
  return dpm_timesteps(steps, SCHEDULE) if sampler is dpm_solver_pp else SCHEDULE.timesteps(steps)


def broadcast(t, x):
  return t.astype(x.dtype).reshape(t.shape + (1,) * (x.ndim - 1))


def toy(x, t):
  """The denoiser of the golden trajectories."""
  return 0.3 * x + 0.1 * jnp.sin(broadcast(t, x) / 100)


def gaussian(mean, spread=0.0):
  """The exact denoiser if all data is N(mean, spread²): one known image without a spread."""

  def denoise(x, t):
    rates = SCHEDULE.signal_rate, SCHEDULE.noise_rate
    signal, noise = (jnp.asarray(rate, x.dtype)[t].reshape(-1, 1, 1, 1) for rate in rates)
    return noise * (x - signal * mean) / ((signal * spread) ** 2 + noise**2)

  return denoise


@pytest.mark.parametrize(
  'sampler, steps, golden, rtol',
  [
    (ddim, 50, 4.904337681, 2e-10),
    (ddim, 20, 4.418753736, 2e-10),
    (ddim, 10, 3.719081214, 2e-10),
    (plms, 50, 4.790127109, 2e-10),
    (plms, 20, 4.191742830, 2e-10),
    (plms, 10, 3.412824270, 2e-10),
    (dpm_solver_pp, 25, 5.175648, 1e-6),  # computed in float32
    (dpm_solver_pp, 10, 5.282548, 1e-6),
  ],
)
def test_golden_trajectories(sampler, steps, golden, rtol):
  timesteps = timesteps_for(sampler, steps)
  with jax.enable_x64(True):
    exact = sampler(toy, jnp.ones((1, 1, 1, 1)), timesteps, SCHEDULE)
    assert exact.dtype == jnp.float64
    np.testing.assert_allclose(exact.item(), golden, rtol=rtol)
  single = sampler(toy, jnp.ones((1, 1, 1, 1)), timesteps, SCHEDULE)
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single.item(), golden, rtol=2e-6)


@pytest.mark.parametrize(
  'sampler, steps, expected',
  [
    (ddim, 50, [*range(981, 0, -20)]),
    (plms, 50, [981, 961, *range(961, 0, -20)]),
    (plms, 2, [501, 1, 1]),
    (plms, 1, [1, 1]),
    (dpm_solver_pp, 5, [999, 799, 599, 400, 200]),
  ],
)
def test_evaluations_are_at_these_timesteps(sampler, steps, expected):
  seen = []

  def denoise(x, t):
    assert t.dtype == jnp.int32 and t.shape == (2,)
    jax.debug.callback(lambda t: seen.append(t.tolist()), t, ordered=True)
    return toy(x, t)

  jax.block_until_ready(
    sampler(denoise, jnp.ones((2, 1, 1, 1)), timesteps_for(sampler, steps), SCHEDULE)
  )
  jax.effects_barrier()
  assert seen == [[t, t] for t in expected]


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_one_trace_for_a_batch_whose_examples_do_not_touch_each_other(sampler):
  traces = []

  def denoise(x, t):
    traces.append(x.shape)
    return toy(x, t)

  timesteps = timesteps_for(sampler, 20)
  run = jax.jit(lambda x: sampler(denoise, x, timesteps, SCHEDULE))
  x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
  together = run(x)
  run(-x)
  assert traces == [x.shape]
  alone = sampler(toy, x[1:2], timesteps, SCHEDULE)  # outside of jit
  np.testing.assert_allclose(together[1:2], alone, rtol=1e-5)


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('steps', [1, 3])
def test_per_step_arrives_with_its_timestep(sampler, steps):
  timesteps = timesteps_for(sampler, steps)
  per_step = {'t': jnp.asarray(timesteps), 'shift': jnp.asarray(timesteps[:, None] / 100)}

  def denoise(x, t, now):
    assert now['shift'].shape == (1,)
    return toy(x, jnp.broadcast_to(now['t'], t.shape)) + now['shift'].reshape(1, 1, 1, 1)

  x = jnp.ones((2, 1, 1, 1))
  plain = sampler(lambda x, t: toy(x, t) + broadcast(t, x) / 100, x, timesteps, SCHEDULE)
  scanned = sampler(denoise, x, timesteps, SCHEDULE, per_step=per_step)
  np.testing.assert_allclose(scanned, plain, rtol=1e-6)


@pytest.mark.parametrize(
  'sampler, steps',  # one PLMS step is not exact, because it uses its timestep twice
  [(s, n) for s in SAMPLERS for n in (1, 2, 3, 10) if (s, n) != (plms, 1)],
)
def test_one_known_image_is_reached_exactly(sampler, steps):
  """If all data is one image, every number of steps is exact."""
  image = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  noise = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
  timesteps = timesteps_for(sampler, steps)
  start = SCHEDULE.add_noise(image, noise, jnp.full((2,), timesteps[0]))
  end = sampler(gaussian(image), start, timesteps, SCHEDULE)
  last = image  # DPM-Solver++ goes to noise zero, the other two to ᾱ[0]
  if sampler is not dpm_solver_pp:
    last = SCHEDULE.add_noise(image, noise, jnp.zeros(2, jnp.int32))
  np.testing.assert_allclose(end, last, atol=1e-4)


def test_orders_of_convergence():
  """DDIM is of first order and DPM-Solver++ (2M) of second, on Gaussian data with a known flow."""
  spread = 2.0

  def deviation(t):
    return np.sqrt((SCHEDULE.signal_rate[t] * spread) ** 2 + SCHEDULE.noise_rate[t] ** 2)

  def error(sampler, steps):
    timesteps = SCHEDULE.timesteps(steps)
    with jax.enable_x64(True):
      end = sampler(gaussian(0, spread), jnp.ones((1, 1, 1, 1)), timesteps, SCHEDULE).item()
    last = spread if sampler is dpm_solver_pp else deviation(0)
    return abs(end * deviation(timesteps[0]) / last - 1)

  first, second, multistep = ((error(s, 50), error(s, 100)) for s in (ddim, dpm_solver_pp, plms))
  np.testing.assert_allclose(first[0] / first[1], 2, rtol=0.1)
  np.testing.assert_allclose(second[0] / second[1], 4, rtol=0.1)
  assert second[0] < first[0] / 5 and multistep[0] < first[0] / 100, (first, second, multistep)


@pytest.mark.parametrize('eta', [0.5, 1.0])
def test_eta_keeps_the_marginals(eta):
  """If all data is one image, x_t ~ N(√ᾱ image, 1-ᾱ) for every eta (DDIM paper, lemma 1)."""
  k_start, k_steps = jax.random.split(jax.random.key(0))
  timesteps = SCHEDULE.timesteps(20)
  noise = jax.random.normal(k_start, (1, 100, 100, 1))
  start = SCHEDULE.add_noise(jnp.full_like(noise, 0.7), noise, jnp.asarray(timesteps[:1]))
  end = ddim(gaussian(0.7), start, timesteps, SCHEDULE, eta=eta, key=k_steps)
  np.testing.assert_allclose(end.mean(), 0.7 * SCHEDULE.signal_rate[0], atol=1e-3)
  np.testing.assert_allclose(end.std(), SCHEDULE.noise_rate[0], rtol=0.03)
  memory = np.corrcoef(np.ravel(noise), np.ravel(end))[0, 1]  # 1 where eta = 0
  assert abs(memory) < {0.5: 0.6, 1.0: 0.04}[eta]


def test_noise_comes_from_the_key_alone():
  x, timesteps = jnp.ones((2, 4, 4, 1)), SCHEDULE.timesteps(5)
  run = lambda eta, key: np.asarray(ddim(toy, x, timesteps, SCHEDULE, eta=eta, key=key))
  one, two = jax.random.key(1), jax.random.key(2)
  np.testing.assert_array_equal(run(1.0, one), run(1.0, one))
  assert np.all(run(1.0, one) != run(1.0, two))
  np.testing.assert_array_equal(run(0.0, one), run(0.0, None))


@pytest.mark.parametrize(
  'settings, said',
  [(dict(eta=1.5), 'eta=1.5'), (dict(eta=-0.1), 'eta=-0.1'), (dict(eta=0.5), 'key')],
)
def test_impossible_eta_is_one_line(settings, said):
  with pytest.raises(ValueError, match=said) as error:
    ddim(toy, jnp.ones((1, 1, 1, 1)), SCHEDULE.timesteps(5), SCHEDULE, **settings)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('sampler', SAMPLERS)
def test_latents_stay_float32_under_a_bfloat16_network(sampler):
  network = lambda x, t: toy(x, t).astype(jnp.bfloat16)
  x = jnp.ones((1, 2, 2, 1))
  end = sampler(network, x, timesteps_for(sampler, 10), SCHEDULE)
  assert end.dtype == jnp.float32
  exact = sampler(toy, x, timesteps_for(sampler, 10), SCHEDULE)
  np.testing.assert_allclose(end, exact, rtol=0.02)


def test_dpm_timesteps():
  timesteps = dpm_timesteps(25, SCHEDULE)
  assert timesteps.dtype == np.int32 and len(timesteps) == 25
  assert timesteps[[0, 1, -2, -1]].tolist() == [999, 959, 80, 40]
  for steps in range(1, 1000):
    timesteps = dpm_timesteps(steps, SCHEDULE)
    assert len(timesteps) == steps and timesteps[0] == 999 and np.all(np.diff(timesteps) < 0)


@pytest.mark.parametrize('steps', [0, -1, 1000])
def test_impossible_dpm_timesteps_are_one_line(steps):
  with pytest.raises(ValueError, match=f'steps={steps} must be between 1 and 999'):
    dpm_timesteps(steps, SCHEDULE)
