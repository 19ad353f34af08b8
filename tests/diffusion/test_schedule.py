"""The schedule's numbers against the published ones, and its algebra against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.diffusion.schedule import Schedule


def noised(schedule, seed=0, t=(0, 1, 500, 981, 999)):
  rng = np.random.default_rng(seed)
  t = jnp.asarray(t, jnp.int32)
  z, noise = (jnp.asarray(rng.normal(size=(len(t), 4, 4, 3)), jnp.float32) for _ in range(2))
  return z, noise, t, schedule.add_noise(z, noise, t)


@pytest.mark.parametrize(
  't, golden',
  [
    (0, 0.99915),
    (1, 0.99829602),
    (21, 0.98038077),
    (501, 0.27499905),
    (961, 0.0072817272),
    (981, 0.0057755001),
    (999, 0.0046600983),
  ],
)
def test_alphas_cumprod_is_the_originals(t, golden):
  rate = Schedule().signal_rate
  assert rate.dtype == np.float64 and rate.shape == (1000,)
  np.testing.assert_allclose(np.float32(rate[t] ** 2), golden, rtol=1e-7)


def test_terminal_snr_is_not_zero():
  schedule = Schedule()
  np.testing.assert_allclose(schedule.signal_rate[-1], 0.0682649, rtol=1e-6)


def test_add_noise_takes_each_example_to_its_own_timestep():
  schedule = Schedule()
  z, noise, t, x_t = noised(schedule)
  for i, step in enumerate(np.asarray(t)):
    a = np.prod(1 - schedule.betas[: step + 1])
    expected = np.sqrt(a) * np.asarray(z[i]) + np.sqrt(1 - a) * np.asarray(noise[i])
    np.testing.assert_allclose(x_t[i], expected, atol=1e-6)


@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0'])
def test_a_perfect_output_gives_back_the_noise(prediction):
  schedule = Schedule(prediction=prediction)
  z, noise, t, x_t = noised(schedule)
  output = schedule.target(z, noise, t)
  np.testing.assert_allclose(schedule.eps(output, x_t, t), noise, atol=1e-5)


def test_targets_are_the_noise_and_the_rotated_pair():
  z, noise, t, x_t = noised(Schedule())
  assert Schedule().target(z, noise, t) is noise
  assert Schedule(prediction='x0').target(z, noise, t) is z
  v = Schedule(prediction='v').target(z, noise, t)
  # (x_t, v) is (z, noise) rotated: almost (z, noise) at t = 0, almost (noise, -z) at the end
  np.testing.assert_allclose(x_t**2 + v**2, z**2 + noise**2, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(v[0], noise[0], atol=0.15)
  np.testing.assert_allclose(v[-1], -z[-1], atol=0.3)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_methods_run_in_jit_and_keep_the_dtype(dtype):
  @jax.jit
  def everything(z, noise, t):
    schedule = Schedule(prediction='v')
    x_t = schedule.add_noise(z, noise, t)
    output = schedule.target(z, noise, t)
    return x_t, output, schedule.eps(output, x_t, t)

  z, noise, t, _ = noised(Schedule())
  for array in everything(z.astype(dtype), noise.astype(dtype), t):
    assert array.dtype == dtype and array.shape == z.shape


@pytest.mark.parametrize('steps, first, second', [(50, 981, 961), (20, 951, 901), (10, 901, 801)])
def test_timesteps_are_the_originals(steps, first, second):
  timesteps = Schedule().timesteps(steps)
  assert timesteps.dtype == np.int32
  assert timesteps.tolist() == list(range(first, 0, second - first)) and timesteps[-1] == 1
  assert len(timesteps) == steps


@pytest.mark.parametrize(
  'steps, said',
  [
    (0, ['steps=0', '1000']),
    (1001, ['steps=1001', '1000']),
    (1000, ['steps=1000', 't=1000', '999']),
  ],
)
def test_impossible_timesteps_are_one_line(steps, said):
  with pytest.raises(ValueError) as error:
    Schedule().timesteps(steps)
  assert '\n' not in str(error.value)
  assert all(word in str(error.value) for word in said), str(error.value)


def originals(steps):
  """The original's timesteps (LDM util.py make_ddim_timesteps), descending."""
  return [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]


def test_ldm_spacing_is_the_originals_for_every_number_of_steps():
  refused = []
  for steps in range(1, 1000):
    if originals(steps)[0] < 1000:
      assert Schedule().timesteps(steps, 'ldm').tolist() == originals(steps), steps
    else:  # the original reads past its table there
      with pytest.raises(ValueError, match=f"steps={steps} with spacing 'ldm' would start at t=10"):
        Schedule().timesteps(steps, 'ldm')
      refused.append(steps)
  assert refused[:4] == [3, 9, 27, 36] and len(originals(30)) == 31 and originals(30)[0] == 991
  assert Schedule().timesteps(50, 'ldm').tolist() == Schedule().timesteps(50).tolist()
  with pytest.raises(ValueError, match="spacing is 'karras'; use one of leading, ldm"):
    Schedule().timesteps(50, 'karras')


def test_timesteps_always_stay_inside():
  for steps in range(1, 1000):
    timesteps = Schedule().timesteps(steps)
    assert len(timesteps) == steps and timesteps[0] < 1000 and timesteps[-1] == 1, steps
    assert np.all(np.diff(timesteps) < 0), steps


@pytest.mark.parametrize(
  'settings, said',
  [
    (dict(prediction='x1'), "'x1'"),
    (dict(num_steps=0), 'num_steps=0'),
    (dict(beta_start=0.5, beta_end=0.1), 'beta_start=0.5'),
    (dict(beta_end=1.0), 'beta_end=1.0'),
  ],
)
def test_impossible_settings_are_one_line(settings, said):
  with pytest.raises(ValueError, match=said) as error:
    Schedule(**settings)
  assert '\n' not in str(error.value)
