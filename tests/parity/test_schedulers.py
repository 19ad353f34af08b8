"""Agreement with diffusers' schedulers, step for step, on random trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

from exedit.diffusion import inversion  # noqa: E402
from exedit.diffusion.sampling import ddim, dpm_solver_pp, dpm_timesteps, plms  # noqa: E402
from exedit.diffusion.schedule import Schedule  # noqa: E402
from tests.parity.references import PNDM  # noqa: E402

SHAPE = (2, 4, 4, 3)


def scheduler_of(kind, **settings):
  """As a diffusers pipeline changes schedulers; the published json says clip_sample false."""
  config = dict(diffusers.PNDMScheduler(**PNDM).config, clip_sample=False)
  return kind.from_config(config, **settings)


def random_network(seed):
  """(ours, theirs): one output, random in t and nonlinear in x, in both libraries."""
  table = np.random.default_rng(seed).normal(size=(1000, *SHAPE[1:])).astype(np.float32)
  on_device = jnp.asarray(table)
  ours = lambda x, t: 0.4 * jnp.tanh(x) + 0.8 * on_device[t]
  theirs = lambda x, t: 0.4 * torch.tanh(x) + 0.8 * torch.from_numpy(table[t])
  return ours, theirs


def start(seed):
  return np.random.default_rng(seed + 100).normal(size=SHAPE).astype(np.float32)


def trajectory(scheduler, network, x, steps, timesteps=None, **settings):
  scheduler.set_timesteps(steps)
  if timesteps is not None:  # of the same distance
    scheduler.timesteps = torch.tensor(timesteps)
  x = torch.from_numpy(x)
  for i, t in enumerate(scheduler.timesteps):
    now = {name: values[i] for name, values in settings.items()}
    x = scheduler.step(network(x, int(t)), t, x, **now).prev_sample
  return x.numpy()


def assert_close(ours, theirs):
  """Relative to the size of the latents: diffusers' ᾱ is a float32 product, ours a float64 one."""
  np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max(), rtol=0)


def test_alphas_cumprod():
  theirs = diffusers.PNDMScheduler(**PNDM).alphas_cumprod.numpy()
  np.testing.assert_allclose(Schedule().signal_rate ** 2, theirs, rtol=2e-6)


@pytest.mark.parametrize('seed, steps', [(0, 50), (1, 50), (2, 20), (3, 30), (4, 3), (5, 2)])
def test_plms_is_pndm(seed, steps):
  ours, theirs = random_network(seed)
  scheduler = scheduler_of(diffusers.PNDMScheduler)
  expected = trajectory(scheduler, theirs, start(seed), steps)
  timesteps = Schedule().timesteps(steps)
  assert scheduler.timesteps.tolist() == [*timesteps[:2], *timesteps[1:]]
  assert_close(plms(ours, jnp.asarray(start(seed)), timesteps, Schedule()), expected)


@pytest.mark.parametrize('seed, steps', [(0, 50), (1, 20), (2, 30), (3, 7), (4, 1)])
def test_ddim(seed, steps):
  ours, theirs = random_network(seed)
  scheduler = scheduler_of(diffusers.DDIMScheduler)
  expected = trajectory(scheduler, theirs, start(seed), steps)
  timesteps = Schedule().timesteps(steps)
  assert scheduler.timesteps.tolist() == timesteps.tolist()
  assert_close(ddim(ours, jnp.asarray(start(seed)), timesteps, Schedule()), expected)


@pytest.mark.parametrize('kind, sampler', [('DDIMScheduler', ddim), ('PNDMScheduler', plms)])
@pytest.mark.parametrize('seed, steps', [(0, 30), (1, 7), (2, 60)])
def test_ldm_spacing(kind, sampler, seed, steps):
  """diffusers' steps, at the original's timesteps: more than asked, because 1000 is not divided."""
  ours, theirs = random_network(seed)
  timesteps = Schedule().timesteps(steps, 'ldm')
  original = [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
  assert timesteps.tolist() == original and len(original) > steps
  again = [*original[:2], *original[1:]] if sampler is plms else original
  scheduler = scheduler_of(getattr(diffusers, kind))
  expected = trajectory(scheduler, theirs, start(seed), steps, again)
  assert_close(sampler(ours, jnp.asarray(start(seed)), timesteps, Schedule()), expected)


@pytest.mark.parametrize('seed, steps, eta', [(0, 50, 1.0), (1, 20, 0.3)])
def test_ddim_with_eta(seed, steps, eta):
  ours, theirs = random_network(seed)
  key = jax.random.key(seed)
  noise = [jax.random.normal(k, SHAPE) for k in jax.random.split(key, steps)]
  expected = trajectory(
    scheduler_of(diffusers.DDIMScheduler),
    theirs,
    start(seed),
    steps,
    eta=[eta] * steps,
    variance_noise=[torch.from_numpy(np.array(n)) for n in noise],
  )
  result = ddim(
    ours, jnp.asarray(start(seed)), Schedule().timesteps(steps), Schedule(), eta=eta, key=key
  )
  assert_close(result, expected)


@pytest.mark.parametrize('seed, steps', [(0, 25), (1, 50), (2, 10), (3, 33), (4, 2), (5, 1)])
def test_dpm_solver_pp(seed, steps):
  ours, theirs = random_network(seed)
  scheduler = scheduler_of(diffusers.DPMSolverMultistepScheduler)
  expected = trajectory(scheduler, theirs, start(seed), steps)
  timesteps = dpm_timesteps(steps, Schedule())
  assert scheduler.timesteps.tolist() == timesteps.tolist()
  assert_close(dpm_solver_pp(ours, jnp.asarray(start(seed)), timesteps, Schedule()), expected)


@pytest.mark.parametrize('sampler', [ddim, dpm_solver_pp])
def test_v_prediction(sampler):
  """Not PLMS: diffusers' PNDM averages past velocities, ours (and its paper) past eps."""
  kinds = {ddim: diffusers.DDIMScheduler, dpm_solver_pp: diffusers.DPMSolverMultistepScheduler}
  output, theirs = random_network(6)
  schedule = Schedule(prediction='v')
  timesteps = dpm_timesteps(20, schedule) if sampler is dpm_solver_pp else schedule.timesteps(20)
  scheduler = scheduler_of(kinds[sampler], prediction_type='v_prediction')
  expected = trajectory(scheduler, theirs, start(6), 20)
  denoise = lambda x, t: schedule.eps(output(x, t), x, t)
  assert_close(sampler(denoise, jnp.asarray(start(6)), timesteps, schedule), expected)


def test_add_noise_and_velocity():
  rng = np.random.default_rng(0)
  t = np.array([0, 1, 500, 999])
  z, noise = rng.normal(size=(2, 4, *SHAPE[1:])).astype(np.float32)
  scheduler = scheduler_of(diffusers.DDIMScheduler)
  schedule = Schedule(prediction='v')
  for ours, theirs in [
    (schedule.add_noise, scheduler.add_noise),
    (schedule.target, scheduler.get_velocity),
  ]:
    expected = theirs(*map(torch.from_numpy, (z, noise, t))).numpy()
    result = ours(jnp.asarray(z), jnp.asarray(noise), jnp.asarray(t, jnp.int32))
    np.testing.assert_allclose(result, expected, atol=2e-6)


@pytest.mark.parametrize('offset, steps', [(1, 50), (1, 20), (0, 50)])
def test_inversion_is_ddim_inverse(offset, steps):
  """diffusers' scheduler also takes eps at the step that it goes to (its timesteps say so)."""
  ours, theirs = random_network(offset + steps)
  z = start(steps)
  config = dict(PNDM, steps_offset=offset, clip_sample=False)
  known = {n: v for n, v in config.items() if n not in ('skip_prk_steps', '_class_name')}
  scheduler = diffusers.DDIMInverseScheduler(**known)
  assert not scheduler.config.set_alpha_to_one
  scheduler.set_timesteps(steps)
  found = inversion.timesteps(Schedule(), steps, offset=offset)
  np.testing.assert_array_equal(np.asarray(scheduler.timesteps), found[::-1])
  expected, x = [z], torch.from_numpy(z)
  for t in scheduler.timesteps:
    x = scheduler.step(theirs(x, int(t)), t, x).prev_sample
    expected.append(x.numpy())
  path, _ = inversion.ddim(lambda x, t: (ours(x, t), ()), jnp.asarray(z), found, Schedule())
  for a, b in zip(path[::-1], expected, strict=True):
    assert_close(a, b)
