"""The formula of guidance, and the distribution of dropped contexts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.diffusion.guidance import combined, doubled, drop

CONTEXT = jax.random.normal(jax.random.key(1), (2, 1, 3))
NULL = jax.random.normal(jax.random.key(2), (1, 1, 3))


def test_doubled_puts_the_null_first():
  both = doubled(CONTEXT.astype(jnp.bfloat16), NULL)
  assert both.dtype == jnp.bfloat16
  expected = np.concatenate([NULL, NULL, CONTEXT]).astype(jnp.bfloat16)
  np.testing.assert_array_equal(both, expected)


@pytest.mark.parametrize('scale', [0.0, 0.5, 5, 7.5])
def test_guidance_is_its_formula(scale):
  eps_null, eps = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
  both = jnp.concatenate([eps_null, eps])
  guided = combined(both, scale)
  np.testing.assert_allclose(guided, eps_null + scale * (eps - eps_null), atol=1e-5)
  np.testing.assert_allclose(
    jax.jit(combined)(both, float(scale)), guided, atol=1e-5
  )  # a traced scale


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
