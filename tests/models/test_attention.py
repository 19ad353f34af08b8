"""Every form of attention gives the same result and gradient, and each device gets its form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from exedit.models import kernels
from exedit.training import flops
from tests import on_devices

SHAPES = [(2, 700, 900, 2, 8), (1, 1100, 520, 1, 20)]  # not multiples of any block


def random(b, n, m, heads, d, dtype=jnp.float32):
  draw = np.random.default_rng(0).normal
  shapes = (b, n, heads, d), (b, m, heads, d), (b, m, heads, d)
  return [jnp.asarray(draw(size=shape), dtype) for shape in shapes]


def with_gradient(function, qkv):
  """The result of an attention, and the gradient of the sum of its squares."""
  loss = lambda *qkv: (function(*qkv).astype(jnp.float32) ** 2).sum()
  return function(*qkv), *jax.jit(jax.grad(loss, (0, 1, 2)))(*qkv)


whole = jax.nn.dot_product_attention
in_blocks = functools.partial(kernels.in_blocks, 512, whole)
WAYS = {'on cpu': kernels.on_cpu, 'in blocks': in_blocks, 'chosen': kernels.attend}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('way', WAYS)
def test_blocks_give_the_whole_and_its_gradient(way, shape):
  qkv = random(*shape)
  for part, expected in zip(with_gradient(WAYS[way], qkv), with_gradient(whole, qkv)):
    np.testing.assert_allclose(part, expected, atol=2e-5 * float(abs(expected).max()))


@pytest.mark.parametrize('way', WAYS)
def test_softmax_is_in_float32_and_the_result_in_the_inputs_type(way):
  qkv = random(*SHAPES[0], dtype=jnp.bfloat16)
  result = WAYS[way](*qkv)
  exact = whole(*(a.astype(jnp.float32) for a in qkv))
  assert result.dtype == jnp.bfloat16
  np.testing.assert_allclose(result.astype(jnp.float32), exact, atol=0.01)


def test_huge_logits_do_not_overflow():
  q, k, v = random(*SHAPES[0])
  np.testing.assert_allclose(kernels.on_cpu(100 * q, k, v), whole(100 * q, k, v), atol=1e-3)


def biggest(function, *args) -> int:
  """Elements of the largest array in the program of any platform."""

  def inside(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (v.aval.size for v in eqn.outvars)
      for inner in core.jaxprs_in_params(eqn.params):
        yield from inside(inner)

  return max(inside(jax.make_jaxpr(function)(*args).jaxpr))


@pytest.mark.parametrize('heads', [1, 8])
def test_logits_of_a_large_image_never_exist_all_at_once(heads):
  """All logits of a guided 1024x1024 picture, 2 x 8 x 16384 x 16384, would need 17 GB."""
  q = jax.ShapeDtypeStruct((2, 16384, heads, 40), jnp.float32)
  assert biggest(kernels.attend, q, q, q) <= max(kernels.MAX_LOGITS, 2 * heads * 512 * 16384)
  gradient = jax.grad(lambda q, k, v: kernels.attend(q, k, v).sum(), (0, 1, 2))
  assert biggest(gradient, q, q, q) <= max(kernels.MAX_LOGITS, 2 * heads * 512 * 16384)


def test_few_tokens_are_computed_without_loops():
  q = jax.ShapeDtypeStruct((8, 512, 4, 14), jnp.float32)
  text = str(jax.make_jaxpr(kernels.attend)(q, q, q))
  assert 'scan' not in text and 'cond' not in text


@pytest.mark.parametrize(
  'shape, dtype, tolerance',
  [
    ((1, 512, 1024, 2, 40), 'float32', 1e-5),  # several blocks of keys
    ((2, 1152, 384, 1, 80), 'float32', 1e-5),  # blocks of 384
    ((1, 256, 512, 1, 512), 'float32', 1e-5),  # the autoencoder's wide head
    ((1, 640, 640, 2, 40), 'bfloat16', 2e-2),
  ],
)
def test_the_tpu_kernel_gives_the_same_result_and_gradient(shape, dtype, tolerance):
  qkv = random(*shape, dtype=jnp.dtype(dtype))
  kernel = functools.partial(kernels.splash, interpret=True)
  for part, expected in zip(with_gradient(kernel, qkv), with_gradient(whole, qkv)):
    assert part.dtype == expected.dtype
    part, expected = (np.asarray(a, np.float32) for a in (part, expected))
    np.testing.assert_allclose(part, expected, atol=tolerance * abs(expected).max())


def test_the_tpu_kernel_runs_on_several_devices():
  (found,) = on_devices.with_devices(2, on_devices.shared, [[]])
  assert found == dict(same=True, devices=2)


TPU = kernels.Device('tpu')


@pytest.mark.parametrize(
  'dtype, tokens, d, expected',
  [
    ('bfloat16', (4096, 4096), 40, 'splash'),
    ('bfloat16', (1024, 1024), 80, 'splash'),
    ('bfloat16', (4096, 4096), 512, 'splash'),  # the autoencoder's
    ('bfloat16', (256, 256), 160, 'xla'),  # few
    ('bfloat16', (4032, 4032), 40, 'xla'),  # 56 x 72: not in 128s
    ('float32', (4096, 4096), 40, 'xla'),
    ('float16', (4096, 4096), 40, 'xla'),
  ],
)
def test_splash_is_chosen_for_many_bfloat16_logits(dtype, tokens, d, expected):
  assert kernels.choose(dtype, tokens, d, TPU) == expected
  assert kernels.choose(dtype, tokens, d, TPU, 'xla') == 'xla'
  with pytest.raises(ValueError, match="attention is 'cudnn', which needs"):
    kernels.choose(dtype, tokens, d, TPU, 'cudnn')


def test_a_trace_for_a_tpu_has_its_kernel():
  q = jax.ShapeDtypeStruct((1, 1024, 2, 40), jnp.bfloat16)
  products = 2 * 2 * 1024 * 1024 * 2 * 40
  loss = lambda q: kernels.attend(q, q, q).astype(jnp.float32).sum()
  with kernels.traced_for(TPU):
    forward, both = (jax.make_jaxpr(f)(q).jaxpr for f in (loss, jax.grad(loss)))
    assert 'pallas_call' in str(forward)
  assert flops.count(forward) == products
  assert flops.count(both) == pytest.approx(
    3.5 * products, rel=0.01
  )  # the backward pass computes the logits again
  here = jax.make_jaxpr(lambda q: loss(q))(q)  # another function, because JAX caches traces
  assert 'pallas_call' not in str(here)


AMPERE, HOPPER = kernels.Device('gpu', (8, 0)), kernels.Device('gpu', (9, 0))


@pytest.mark.parametrize(
  'dtype, d, on, expected',
  [
    ('bfloat16', 40, AMPERE, 'cudnn'),
    ('float16', 128, AMPERE, 'cudnn'),
    ('bfloat16', 160, AMPERE, 'xla'),  # Stable Diffusion's deepest levels
    ('bfloat16', 160, HOPPER, 'cudnn'),
    ('bfloat16', 512, HOPPER, 'xla'),  # the autoencoder's one head
    ('bfloat16', 20, HOPPER, 'xla'),
    ('float32', 40, HOPPER, 'xla'),
    ('bfloat16', 40, kernels.Device('gpu', (7, 5)), 'xla'),
    ('bfloat16', 40, kernels.Device('gpu'), 'xla'),  # not NVIDIA's
    ('bfloat16', 40, kernels.Device('cpu'), 'xla'),
  ],
)
def test_cudnn_is_chosen_if_it_can_compute(dtype, d, on, expected):
  assert kernels.choose(dtype, (4096, 4096), d, on) == expected
  assert kernels.choose(dtype, (4096, 4096), d, on, 'xla') == 'xla'
  if expected == 'cudnn':
    assert kernels.choose(dtype, (4096, 4096), d, on, 'cudnn') == 'cudnn'
  else:
    with pytest.raises(ValueError, match="attention is 'cudnn', which needs"):
      kernels.choose(dtype, (4096, 4096), d, on, 'cudnn')


def test_plain_attention_is_countable_products():
  q = jax.ShapeDtypeStruct((1, 64, 2, 40), jnp.bfloat16)
  loss = lambda q: kernels.attend(q, q, q, 'cudnn').astype(jnp.float32).sum()
  with kernels.traced_for(kernels.PLAIN):
    assert flops.training(loss, q) == 3 * 2 * 2 * 64 * 64 * 2 * 40


def test_the_error_names_every_unmet_requirement_of_cudnn():
  q = jnp.ones((1, 4, 2, 20))
  with pytest.raises(ValueError) as error:
    kernels.attend(q, q, q, 'cudnn')
  for words in ('8.0 or higher (here: cpu)', 'not float32', 'at most 128 features (not 20)'):
    assert words in str(error.value)
  assert kernels.current_device() == kernels.Device('cpu')
