"""Watched sampling: the same bits, every step told in order, and an end between two steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit import latent_diffusion
from exedit.diffusion import watch
from exedit.diffusion.schedule import Schedule

SCHEDULE = Schedule()


def edit(graphdef, params, x, **how):
  """A small network that is sampled.

  Its latents have more than 1 KB, because XLA's CPU compiler makes a single function of a loop over
  less, if the loop calls nobody.
  """
  denoise = lambda x, t: jnp.tanh(x @ params) + 1e-3 * t[:, None, None, None]
  return latent_diffusion.sample(denoise, x, SCHEDULE, **how)


@pytest.fixture
def run(monkeypatch):
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.standard_normal((4, 4)), jnp.float32)
  x = jnp.asarray(rng.standard_normal((2, 8, 8, 4)), jnp.float32)
  monkeypatch.setattr('flax.nnx.split', lambda model: (None, model))
  return lambda **how: np.asarray(latent_diffusion.run(edit, weights, x, **how))


@pytest.mark.parametrize('sampler', latent_diffusion.SAMPLERS)
def test_a_watched_program_gives_the_same_bits_and_tells_each_evaluation(run, sampler):
  how = dict(steps=5, sampler=sampler)
  plain, told = run(**how), []
  with watch.watching(lambda x, done, reached: told.append((x.copy(), done, reached))):
    np.testing.assert_array_equal(run(**how), plain)
  evaluations, _ = latent_diffusion.evaluations(SCHEDULE, (0.0, 1.0), **how)
  assert [done for _, done, _ in told] == [*range(1, evaluations + 1)]
  [reached] = {reached for _, _, reached in told}
  assert len(reached) == evaluations and reached[-1] == 0
  assert list(reached) == sorted(reached, reverse=True)
  assert told[0][0].shape == (2, 8, 8, 4)
  told.clear()
  run(**how)
  assert not told  # outside of the block nothing is told, and no watched program is used


def test_what_the_watcher_raises_ends_the_program_and_the_next_one_runs(run):
  how = dict(steps=8, sampler='ddim')
  plain, steps = run(**how), []

  def stop(x, done, reached):
    steps.append(done)
    if len(steps) == 3:
      raise InterruptedError

  with pytest.raises(jax.errors.JaxRuntimeError), watch.watching(stop):
    run(**how)
  assert steps == [1, 2, 3]
  with watch.watching(lambda x, done, reached: None):
    np.testing.assert_array_equal(run(**how), plain)
