"""Attention by parts is attention, and its gradient; the whole of it where there is little."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from exedit.models import attention

SHAPES = [(2, 700, 900, 2, 8), (1, 1100, 520, 1, 20)]  # neither is a multiple of any part


def random(b, n, m, heads, d, dtype=jnp.float32):
  draw = np.random.default_rng(0).normal
  shapes = (b, n, heads, d), (b, m, heads, d), (b, m, heads, d)
  return [jnp.asarray(draw(size=shape), dtype) for shape in shapes]


whole = jax.nn.dot_product_attention
by_queries = functools.partial(attention._by_queries, 512, whole)
WAYS = {'by head': attention._by_head, 'by queries': by_queries, 'chosen': attention.attend}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('way', WAYS)
def test_parts_give_the_whole_and_its_gradient(way, shape):
  qkv = random(*shape)
  loss = lambda f: lambda *qkv: (f(*qkv) ** 2).sum()
  both = lambda f: (f(*qkv), *jax.jit(jax.grad(loss(f), (0, 1, 2)))(*qkv))
  for part, expected in zip(both(WAYS[way]), both(whole)):
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
  np.testing.assert_allclose(attention._by_head(100 * q, k, v), whole(100 * q, k, v), atol=1e-3)


def biggest(function, *args) -> int:
  """Elements of the largest array anywhere in what a platform would run."""

  def inside(jaxpr):
    for eqn in jaxpr.eqns:
      yield from (v.aval.size for v in eqn.outvars)
      for inner in core.jaxprs_in_params(eqn.params):
        yield from inside(inner)

  return max(inside(jax.make_jaxpr(function)(*args).jaxpr))


@pytest.mark.parametrize('heads', [1, 8])
def test_logits_of_a_large_image_are_never_all_there(heads):
  """A 1024x1024 picture guided: 2 x 8 x 16384 x 16384 of them would be 17 GB."""
  q = jax.ShapeDtypeStruct((2, 16384, heads, 40), jnp.float32)
  assert biggest(attention.attend, q, q, q) <= max(attention.MANY, 2 * heads * 512 * 16384)
  gradient = jax.grad(lambda q, k, v: attention.attend(q, k, v).sum(), (0, 1, 2))
  assert biggest(gradient, q, q, q) <= max(attention.MANY, 2 * heads * 512 * 16384)


def test_few_tokens_take_the_plain_path():
  """Small models, training's included, are not slowed down by loops."""
  q = jax.ShapeDtypeStruct((8, 512, 4, 14), jnp.float32)
  text = str(jax.make_jaxpr(attention.attend)(q, q, q))
  assert 'scan' not in text and 'cond' not in text


AMPERE, HOPPER = attention.Device('gpu', (8, 0)), attention.Device('gpu', (9, 0))


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
    ('bfloat16', 40, attention.Device('gpu', (7, 5)), 'xla'),
    ('bfloat16', 40, attention.Device('gpu'), 'xla'),  # not NVIDIA's
    ('bfloat16', 40, attention.Device('tpu'), 'xla'),
    ('bfloat16', 40, attention.Device('cpu'), 'xla'),
  ],
)
def test_cudnn_is_chosen_where_it_can_be(dtype, d, on, expected):
  assert attention.choose(dtype, d, on) == expected
  assert attention.choose(dtype, d, on, 'xla') == 'xla'
  if expected == 'cudnn':
    assert attention.choose(dtype, d, on, 'cudnn') == 'cudnn'
  else:
    with pytest.raises(ValueError, match="attention is 'cudnn', which needs"):
      attention.choose(dtype, d, on, 'cudnn')


def test_what_is_lacking_is_said():
  q = jnp.ones((1, 4, 2, 20))
  said = 'needs an NVIDIA GPU from 8.0 on .here: cpu. and bfloat16 or float16 .not float32. and '
  with pytest.raises(ValueError, match=said + 'heads of at most 128 features, in eights .not 20.'):
    attention.attend(q, q, q, 'cudnn')
  assert attention.device() == attention.Device('cpu')
