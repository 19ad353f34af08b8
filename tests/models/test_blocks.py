"""Norms and convolutions give the results and gradients of nnx and JAX."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models import blocks, kernels
from exedit.training import flops


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
  """E[x^2] - E[x]^2 would lose it (docs/facts.md, "JAX and XLA")."""
  norm = blocks.group_norm(8, eps=1e-6, groups=2, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).normal(50, 0.1, (1, 16, 16, 8)).astype(np.float32)
  exact = x.astype(np.float64).reshape(1, 256, 2, 4)
  exact = (exact - exact.mean((1, 3), keepdims=True)) / exact.std((1, 3), keepdims=True)
  np.testing.assert_allclose(norm(jnp.asarray(x)), exact.reshape(x.shape), atol=2e-3)


def convolution(shape, outputs, dtype=jnp.float32):
  """(ours, JAX's, arguments): two functions of input and kernel, and random arguments."""
  layer = blocks.conv(shape[-1], outputs, use_bias=False, dtype=dtype, rngs=nnx.Rngs(0))
  graph, params = cast(Any, nnx.split(layer))

  def ours(x, kernel):
    return nnx.merge(graph, {**params, 'kernel': params['kernel'].replace(kernel)})(x)

  def jaxs(x, kernel):
    numbers, same = ('NHWC', 'HWIO', 'NHWC'), ((1, 1), (1, 1))
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), same, dimension_numbers=numbers)

  normal = np.random.default_rng(0).normal
  given = (
    jnp.asarray(normal(size=shape), dtype),
    jnp.asarray(normal(size=(3, 3, shape[-1], outputs))),
  )
  return ours, jaxs, given


FEW, MANY = ((2, 3, 4, 6), 40), ((2, 5, 4, 6), 40)  # 24 and 40 pixels for 40 channels


@pytest.mark.parametrize('shape, outputs', [FEW, MANY, ((1, 1, 1, 3), 2), ((3, 1, 5, 70), 16)])
@pytest.mark.parametrize('dtype, within', [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_a_convolution_and_its_gradient_are_jaxs(shape, outputs, dtype, within):
  ours, jaxs, given = convolution(shape, outputs, dtype)
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(*shape[:-1], outputs)), jnp.float32)

  def both(function):
    loss = lambda *given: (function(*given) * weights).sum()
    return function(*given), *jax.jit(jax.grad(loss, (0, 1)))(*given)

  for own, other in zip(both(ours), both(jaxs)):
    assert own.dtype == other.dtype
    own, other = own.astype(jnp.float32), other.astype(jnp.float32)
    np.testing.assert_allclose(own, other, atol=within * float(abs(other).max()))


def test_only_on_a_cpu_and_for_few_pixels_is_the_gradient_two_matrix_products():
  def products(shape, outputs, device):
    ours, _, given = convolution(shape, outputs)
    with kernels.traced_for(device):
      text = str(jax.make_jaxpr(jax.grad(lambda *given: ours(*given).sum(), (0, 1)))(*given))
    return text.count('dot_general[')

  assert products(*FEW, kernels.Device('cpu')) == 2
  for other in (kernels.Device('gpu', (9, 0)), kernels.Device('tpu'), kernels.PLAIN):
    assert products(*FEW, other) == 0
  assert products(*MANY, kernels.Device('cpu')) == 0


def test_a_plain_trace_has_countable_convolutions():
  ours, _, (x, kernel) = convolution(*FEW)
  with kernels.traced_for(kernels.PLAIN):
    counted = flops.training(lambda given: ours(*given).sum(), (x, kernel))
  assert counted == 3 * 2 * 24 * 40 * 9 * 6
