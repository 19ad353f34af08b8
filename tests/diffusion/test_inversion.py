"""Inversions lead back to where they began; null texts are optimised and stopped as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.diffusion import inversion, sampling
from exedit.diffusion.schedule import Schedule

SCHEDULE = Schedule()


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def watched(eps):
  """A denoiser that also says where it was asked."""
  return lambda x, t: (eps(x, t), t.astype(jnp.float32))


def test_ddim_goes_up_the_steps_that_sampling_goes_down():
  z, steps = random(2, 3, 3, 2), inversion.timesteps(SCHEDULE, 10)
  path, seen = inversion.ddim(watched(lambda x, t: jnp.ones_like(x)), z, steps, SCHEDULE)
  assert path.shape == (11, 2, 3, 3, 2)
  np.testing.assert_array_equal(path[-1], z)
  np.testing.assert_allclose(seen, steps.mean())  # each eps is taken at the step that is gone to
  back = sampling.ddim(lambda x, t: jnp.ones_like(x), path[0], steps, SCHEDULE)
  np.testing.assert_allclose(back, z, atol=1e-4)  # eps does not depend on x


def test_offset_0_ends_with_a_step_that_changes_nothing():
  z = random(1, 2, 2, 1)
  steps = inversion.timesteps(SCHEDULE, 50, offset=0)
  assert (steps[0], steps[-1]) == (980, 0) and inversion.timesteps(SCHEDULE, 50)[0] == 981
  path, _ = inversion.ddim(watched(lambda x, t: jnp.tanh(x)), z, steps, SCHEDULE)
  np.testing.assert_array_equal(path[-2], path[-1])
  with pytest.raises(ValueError, match='offset is 2: it must be 0 or 1'):
    inversion.timesteps(SCHEDULE, 50, offset=2)


@pytest.mark.parametrize('offset, at_once', [(1, 0), (1, 3), (0, 0)])
def test_edit_friendly_noises_lead_back(offset, at_once):
  z, noise = random(2, 3, 3, 2), random(10, 2, 3, 3, 2, seed=1)
  steps = inversion.timesteps(SCHEDULE, 10, offset=offset)
  eps = lambda x, t: jnp.tanh(x) + 1e-3 * t[:, None, None, None]
  path, noises, _ = inversion.edit_friendly(watched(eps), z, noise, steps, SCHEDULE, at_once)
  keep, add, spread = (jnp.asarray(c, jnp.float32) for c in sampling.ddim_coefficients(
    steps, SCHEDULE, eta=1.0
  ))  # fmt: skip
  x = path[0]
  for i, t in enumerate(steps):
    x = keep[i] * x + add[i] * eps(x, jnp.full(2, t)) + spread[i] * noises[i]
    if spread[i] > 0:
      np.testing.assert_allclose(x, path[i + 1], atol=1e-3)
  expected = path[-2] if offset == 0 else z  # with offset 0 the last step is empty
  np.testing.assert_allclose(x, expected, atol=2e-3)
  assert np.isfinite(noises).all() and float(jnp.abs(noises).max()) < 100


def null_texts_one_by_one(eps, path, text, null, steps, scale, stop):
  """The same optimisation of one example as a loop, as the notebook has it; and its inner steps."""
  coefficients = zip(*sampling.ddim_coefficients(steps, SCHEDULE)[:2])

  @jax.jit
  def slope(null, x, keep, add, wanted):
    def loss(null):
      without, with_text = (eps(x[None], None, c[None])[0] for c in (null, text))
      ahead = keep * x + add * (without + scale * (with_text - without))
      return ((ahead - wanted) ** 2).mean(), ahead

    return jax.value_and_grad(loss, has_aux=True)(null)

  x, found, count = path[0], [], 0
  for i, (keep, add) in enumerate(coefficients):
    first = second = 0
    for j in range(1, 11):
      (value, _), gradient = slope(null, x, keep, add, path[i + 1])
      first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
      change = first / (1 - 0.9**j) / (np.sqrt(second / (1 - 0.999**j)) + 1e-8)
      null = null - 1e-2 * (1 - i / (2 * len(steps))) * change
      count += 1
      if stop and value < 1e-5 + i * 2e-5:
        break
    x = slope(null, x, keep, add, path[i + 1])[0][1]
    found.append(null)
  return np.stack(found), count


@pytest.mark.parametrize('stop', [True, False])
def test_null_texts_are_optimised_and_stopped_as_published(stop):
  z, steps = random(2, 2, 2, 2), inversion.timesteps(SCHEDULE, 4)
  text, null = random(2, 3, 2, seed=1), random(2, 3, 2, seed=2)
  z = z.at[1].mul(1e-3)  # the second example stops earlier
  text = text.at[1].set(null[1] + 1e-3)
  eps = lambda x, t, c: 0.3 * jnp.tanh(x) + 0.3 * c.mean(1)[:, None, None]
  run = jax.jit(
    lambda path, text, null: inversion.null_text(
      eps, path, lambda x, t: eps(x, t, text), null, steps, SCHEDULE, 7.5, stop
    )
  )
  path, _ = inversion.ddim(watched(lambda x, t: eps(x, t, text)), z, steps, SCHEDULE)
  found = run(path, text, null)
  counts = []
  for row in range(2):
    given = np.asarray(path[:, row]), text[row], null[row]
    expected, count = null_texts_one_by_one(eps, *given, steps, 7.5, stop)
    np.testing.assert_allclose(found[:, row], expected, atol=1e-4)
    counts.append(count)
  assert counts == [40, 40] if not stop else counts[1] < counts[0]
  guided = lambda null, i: eps(path[i], None, null) * (1 - 7.5) + 7.5 * eps(path[i], None, text)
  keep, add, _ = (jnp.asarray(c, jnp.float32) for c in sampling.ddim_coefficients(steps, SCHEDULE))
  off = lambda null: float(jnp.abs(keep[0] * path[0] + add[0] * guided(null, 0) - path[1])[0].max())
  assert off(found[0]) < 0.9 * off(null)
