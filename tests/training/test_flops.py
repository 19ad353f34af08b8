import jax
import jax.numpy as jnp
import pytest

from exedit.training import flops


def of(f, *args):
  return flops.count(jax.make_jaxpr(f)(*args).jaxpr)


def test_products():
  a, b = jnp.ones((2, 3, 5)), jnp.ones((2, 5, 7))
  assert of(jnp.matmul, a, b) == 2 * 2 * 3 * 5 * 7
  assert of(jnp.vdot, jnp.ones(7), jnp.ones(7)) == 2 * 7


@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions(groups):
  x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4 // groups, 6))

  def conv(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups
    )

  assert of(conv, x, kernel) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4 // groups)


def test_loops_branches_and_calls():
  x = jnp.ones((4, 4))

  def loop(x):
    return jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0]

  def branch(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

  assert of(loop, x) == 5 * 128
  assert of(branch, x) == 2 * 128
  assert of(jax.jit(lambda x: jax.checkpoint(lambda y: y @ y)(x)), x) == 128


def network(trained, frozen, x, remat=False):
  block = lambda w, h: jnp.tanh(h @ w)
  block = jax.checkpoint(block) if remat else block
  h = jnp.tanh(x @ frozen)
  for w in trained:
    h = block(w, h)
  return h.sum()


def test_training_counts_frozen_work_once_and_recomputation_not_at_all():
  """First trained layer: forward and its kernel's gradient; later ones also their input's."""
  x, w = jnp.ones((2, 8)), jnp.ones((8, 8))
  one = 2 * 2 * 8 * 8
  assert flops.training(network, [w, w, w], w, x) == one * (1 + 2 + 3 + 3)
  remat = lambda t, f, x: network(t, f, x, remat=True)
  assert flops.training(remat, [w, w, w], w, x) == one * (1 + 2 + 3 + 3)


def test_training_agrees_with_the_gradient_itself():
  x, w = jnp.ones((2, 8)), jnp.ones((8, 8))
  both = jax.make_jaxpr(jax.value_and_grad(network))([w, w, w], w, x)
  assert flops.training(network, [w, w, w], w, x) == flops.count(both.jaxpr)


@pytest.mark.parametrize(
  'kind, expected',
  [
    ('TPU v5 lite', 1.97e14),
    ('TPU v5p', 4.59e14),
    ('TPU v5', 4.59e14),
    ('TPU v4', 2.75e14),
    ('TPU v6 lite', 9.18e14),
    ('NVIDIA H100 80GB HBM3', 9.89e14),
    ('NVIDIA A100-SXM4-40GB', 3.12e14),
    ('cpu', None),
  ],
)
def test_peak_of_known_devices_only(kind, expected):
  assert flops.peak(kind) == expected
