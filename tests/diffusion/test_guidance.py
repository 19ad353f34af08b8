"""Guidance as algebra, dropping as a distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.diffusion.guidance import classifier_free, drop
from exedit.diffusion.sampling import ddim
from exedit.diffusion.schedule import Schedule

X = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
T = jnp.asarray([7, 9], jnp.int32)
CONTEXT = jax.random.normal(jax.random.key(1), (2, 1, 3))
NULL = jax.random.normal(jax.random.key(2), (1, 1, 3))


def denoise(x, t, context):
  """Nonlinear in everything, so that no mix-up cancels."""
  return jnp.tanh(x * context[:, :, None, :]) + t.reshape(-1, 1, 1, 1) / 10


def counted(calls):
  def wrapped(x, t, context):
    calls.append((x, t, context))
    return denoise(x, t, context)

  return wrapped


@pytest.mark.parametrize('scale', [0.0, 0.5, 5, 7.5])
def test_guidance_is_its_formula(scale):
  eps, eps_null = denoise(X, T, CONTEXT), denoise(X, T, jnp.repeat(NULL, 2, 0))
  guided = classifier_free(denoise, CONTEXT, NULL, scale)(X, T)
  np.testing.assert_allclose(guided, eps_null + scale * (eps - eps_null), atol=1e-5)


def test_guidance_is_one_batched_call_null_first():
  calls = []
  classifier_free(counted(calls), CONTEXT, NULL, 5.0)(X, T)
  ((x, t, context),) = calls
  np.testing.assert_array_equal(x, np.concatenate([X, X]))
  np.testing.assert_array_equal(t, [7, 9, 7, 9])
  np.testing.assert_array_equal(context, np.concatenate([NULL, NULL, CONTEXT]))


@pytest.mark.parametrize('scale', [1.0, 1])
def test_guidance_is_off_at_one(scale):
  calls = []
  eps = classifier_free(counted(calls), CONTEXT, NULL, scale)(X, T)
  ((x, t, context),) = calls
  assert x is X and t is T and context is CONTEXT
  np.testing.assert_array_equal(eps, denoise(X, T, CONTEXT))


@pytest.mark.parametrize('scale', [0.9, 1.0, 5.0])
def test_scale_may_be_traced(scale):
  calls = []
  run = jax.jit(lambda scale: classifier_free(counted(calls), CONTEXT, NULL, scale)(X, T))
  guided = run(scale)
  assert [len(x) for x, _, _ in calls] == [4]  # the value is unknown, so even 1.0 is guided
  np.testing.assert_allclose(
    guided, classifier_free(denoise, CONTEXT, NULL, scale)(X, T), atol=1e-5
  )


@pytest.mark.parametrize('null_batch', [1, 2])
def test_context_may_be_a_pytree(null_batch):
  """As with the constants of the one-token cross-attentions, computed once per image."""
  split = lambda c: {'first': c[..., :1], 'rest': (c[..., 1:], c)}
  join = lambda tree: jnp.concatenate([tree['first'], tree['rest'][0]], -1)
  null = jnp.repeat(NULL, null_batch, 0)
  guided = classifier_free(
    lambda x, t, tree: denoise(x, t, join(tree)), split(CONTEXT), split(null), 5.0
  )(X, T)
  np.testing.assert_array_equal(guided, classifier_free(denoise, CONTEXT, NULL, 5.0)(X, T))


def test_halves_are_combined_in_the_dtype_of_x():
  network = lambda x, t, context: denoise(x, t, context).astype(jnp.bfloat16)
  guided = classifier_free(network, CONTEXT.astype(jnp.bfloat16), NULL, 5.0)(X, T)
  both = [network(X, T, c.astype(jnp.bfloat16)) for c in (jnp.repeat(NULL, 2, 0), CONTEXT)]
  eps_null, eps = (np.asarray(e, np.float32) for e in both)
  assert guided.dtype == jnp.float32
  np.testing.assert_allclose(guided, eps_null + 5 * (eps - eps_null), atol=1e-5)


def test_guidance_inside_a_sampler_with_a_null_per_step():
  """How null-text inversion composes: the sampler hands each step its own null."""
  schedule, steps = Schedule(), 4
  timesteps = schedule.timesteps(steps)
  nulls = jnp.repeat(NULL[None], steps, 0)
  fixed = ddim(classifier_free(denoise, CONTEXT, NULL, 5.0), X, timesteps, schedule)
  stepped = ddim(
    lambda x, t, null: classifier_free(denoise, CONTEXT, null, 5.0)(x, t),
    X,
    timesteps,
    schedule,
    per_step=nulls,
  )
  np.testing.assert_allclose(fixed, stepped, rtol=1e-5)


def contexts(b):
  return 1 + jax.random.uniform(jax.random.key(4), (b, 2, 3)), jnp.full((1, 2, 3), -1.0)


def dropped(context, null, key, p):
  """Which examples lost their condition; each is either kept or replaced, whole."""
  result = np.asarray(drop(context, null, key, p))
  lost = np.all(result == np.asarray(null), axis=(1, 2))
  np.testing.assert_array_equal(result[~lost], np.asarray(context)[~lost])
  return lost


@pytest.mark.parametrize('per_example', [False, True])
def test_probabilities_zero_and_one_are_certain(per_example):
  context, null = contexts(50)
  for seed in range(10):
    key = jax.random.key(seed)
    key = jax.random.split(key, 50) if per_example else key
    assert not dropped(context, null, key, 0.0).any()
    assert dropped(context, null, key, 1.0).all()


def test_one_key_is_one_coin_for_the_batch():
  context, null = contexts(3)
  toss = jax.jit(lambda key: drop(context, null, key, 0.2)[:, 0, 0] == -1)
  lost = np.asarray(jax.vmap(toss)(jax.random.split(jax.random.key(0), 4000)))  # [4000 3]
  assert np.all(lost == lost[:, :1])
  np.testing.assert_allclose(lost[:, 0].mean(), 0.2, atol=0.025)  # 4 standard deviations


def test_b_keys_are_b_coins():
  context, null = contexts(4000)
  lost = dropped(context, null, jax.random.split(jax.random.key(0), 4000), 0.2)
  np.testing.assert_allclose(lost.mean(), 0.2, atol=0.025)
  neighbours = np.mean(lost[1:] & lost[:-1])  # independent: 0.2 squared
  np.testing.assert_allclose(neighbours, 0.04, atol=0.015)


def test_a_coin_belongs_to_its_key_not_to_its_place():
  context, null = contexts(64)
  keys = jax.random.split(jax.random.key(3), 64)
  order = np.random.default_rng(0).permutation(64)
  lost = dropped(context, null, keys, 0.5)
  assert 0 < lost.sum() < 64
  np.testing.assert_array_equal(dropped(context[order], null, keys[order], 0.5), lost[order])
  np.testing.assert_array_equal(dropped(context[:8], null, keys[:8], 0.5), lost[:8])


def test_the_null_learns_from_the_dropped_and_only_them():
  context, null = contexts(64)
  keys = jax.random.split(jax.random.key(3), 64)
  total = lambda context, null: drop(context, null, keys, 0.5).sum()
  to_context, to_null = jax.jit(jax.grad(total, argnums=(0, 1)))(context, null)
  lost = dropped(context, null, keys, 0.5)
  np.testing.assert_array_equal(to_null, np.full((1, 2, 3), lost.sum()))
  np.testing.assert_array_equal(to_context[:, 0, 0], ~lost)


def test_drop_keeps_the_dtype_of_the_context():
  context, null = contexts(4)
  assert drop(context.astype(jnp.bfloat16), null, jax.random.key(0), 1.0).dtype == jnp.bfloat16
