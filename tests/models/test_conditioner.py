"""The bottleneck, its shortcut, and the formulas of the layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models.attention import GEGLU, Attention
from exedit.models.conditioner import ExemplarConditioner
from tests.networks import with_random_weights


@pytest.fixture(scope='module')
def conditioner():
  settings = dict(width=16, layers=3, context_dim=12)
  return with_random_weights(lambda: ExemplarConditioner(**settings, rngs=nnx.Rngs(0)))


def test_value_path_equals_general_attention(conditioner):
  features = jax.random.normal(jax.random.key(0), (3, 1, 16))
  short = conditioner(features)
  np.testing.assert_allclose(short, conditioner(features, shortcut=False), rtol=1e-5, atol=1e-5)
  assert short.shape == (3, 1, 12)


def test_query_and_key_of_the_bottleneck_get_no_gradient(conditioner):
  features = jax.random.normal(jax.random.key(0), (2, 1, 16))
  grads = nnx.grad(lambda m: (m(features) ** 2).sum())(conditioner)
  attn = grads['mapper'][0]['attn']
  assert not np.any(attn['to_q']['kernel'][...]) and not np.any(attn['to_k']['kernel'][...])
  assert np.any(attn['to_v']['kernel'][...])


def test_attention_equals_the_written_formula():
  attention = with_random_weights(
    lambda: Attention(8, heads=2, context_features=6, rngs=nnx.Rngs(0))
  )
  x = jax.random.normal(jax.random.key(0), (1, 5, 8))
  context = jax.random.normal(jax.random.key(1), (1, 3, 6))
  q, k, v = (
    np.asarray(a @ w.kernel[...], np.float64).reshape(-1, 2, 4)
    for a, w in ((x[0], attention.to_q), (context[0], attention.to_k), (context[0], attention.to_v))
  )
  logits = np.einsum('qhd,khd->hqk', q, k) / 2
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  y = np.einsum('hqk,khd->qhd', weights, v).reshape(5, 8)
  y = y @ np.asarray(attention.to_out.kernel[...]) + np.asarray(attention.to_out.bias[...])
  np.testing.assert_allclose(attention(x, context)[0], y, rtol=1e-4, atol=1e-5)


def test_feed_forward_is_value_times_exact_gelu_of_gate():
  ff = with_random_weights(lambda: GEGLU(2, rngs=nnx.Rngs(0)))
  x = jnp.array([[[2.0, -1.0]]])
  w = {
    k: np.asarray(v)
    for k, v in dict(
      p=ff.proj.kernel[...], q=ff.proj.bias[...], r=ff.out.kernel[...], s=ff.out.bias[...]
    ).items()
  }
  value, gate = np.split(np.asarray(x)[0, 0] @ w['p'] + w['q'], 2)
  erf = np.vectorize(math.erf)
  gelu = gate * 0.5 * (1 + erf(gate / np.sqrt(2)))
  expected = (value * gelu) @ w['r'] + w['s']
  np.testing.assert_allclose(ff(x)[0, 0], expected, rtol=1e-4)
