"""GroupNorm gives what nnx's does, and its gradient, whatever comes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models import blocks


@pytest.mark.parametrize('channels, groups', [(12, 4), (8, 8), (6, 1)])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_group_norm_is_that_of_nnx(channels, groups, dtype):
  ours = blocks.group_norm(channels, eps=1e-5, groups=groups, rngs=nnx.Rngs(0))
  theirs = nnx.GroupNorm(
    channels, num_groups=groups, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0)
  )
  random = np.random.default_rng(0)
  scale, bias = (jnp.asarray(random.normal(size=channels), jnp.float32) for _ in range(2))
  for norm in (ours, theirs):
    norm.scale[...], norm.bias[...] = scale, bias
  x = jnp.asarray(random.normal(3, 2, (2, 5, 7, channels)), dtype)
  weights = jnp.asarray(random.normal(size=x.shape), jnp.float32)

  def value(norm, x):
    return (norm(x) * weights).sum()

  assert ours(x).dtype == jnp.float32
  np.testing.assert_allclose(ours(x), theirs(x.astype(jnp.float32)), atol=2e-5)
  for own, other in zip(*(jax.tree.leaves(nnx.grad(value)(norm, x)) for norm in (ours, theirs))):
    np.testing.assert_allclose(own, other, atol=1e-4 * float(abs(other).max()))


def test_group_norm_keeps_a_small_deviation_beside_a_large_mean():
  """E[x^2] - E[x]^2 would lose it (engineering facts 1.5)."""
  norm = blocks.group_norm(8, eps=1e-6, groups=2, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(50, 0.1, (1, 16, 16, 8)).astype(np.float32)
  exact = x.astype(np.float64).reshape(1, 256, 2, 4)
  exact = (exact - exact.mean((1, 3), keepdims=True)) / exact.std((1, 3), keepdims=True)
  np.testing.assert_allclose(norm(jnp.asarray(x)), exact.reshape(x.shape), atol=2e-3)
