"""Edits of queries, keys and values equal edits of the maps; without an edit nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models import attention_edits, kernels
from exedit.models.attention_edits import Edit
from exedit.models.unet import UNet
from tests.networks import with_random_weights

B, TOKENS = 2, 6
SMALL = dict(channels=16, mult=(1, 2), layers=1, heads=2, context_dim=12, groups=8, in_channels=4)


def written(q, k):
  """The maps [r heads n m]."""
  logits = jnp.einsum('bnhd,bmhd->bhnm', q, k) * q.shape[-1] ** -0.5
  return jax.nn.softmax(logits, -1)


def applied(maps, v):
  return jnp.einsum('bhnm,bmhd->bnhd', maps, v)


def edit(seed=0, most=100, hold=(True, False)):
  random = np.random.default_rng(seed)
  mix = random.normal(size=(B, TOKENS, TOKENS)).astype(np.float32)
  own = random.normal(size=(B, TOKENS)).astype(np.float32)
  return Edit(jnp.asarray(mix), jnp.asarray(own), jnp.asarray(hold), most)


def random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def map_edited(q, k, v, change):
  """Cross-attention that writes all maps, edits those of the targets, and applies them."""
  maps = written(q, k)
  source, target = maps[-2 * B : -B], maps[-B:]
  new = jnp.einsum('bhnj,bjw->bhnw', source, change.mix) + target * change.own[:, None, None]
  return jnp.concatenate([maps[:-B], new])


@pytest.mark.parametrize('lanes', [2, 3, 4])
def test_edited_values_equal_edited_maps(lanes):
  q = random(lanes * B, 20, 2, 4)
  k, v = (random(lanes * B, TOKENS, 2, 4, seed=seed) for seed in (1, 2))
  change = edit()
  maps = map_edited(q, k, v, change)
  expected = applied(maps, v)
  found = attention_edits.crossed(kernels.attend, change, q, k, v)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))
  assert float(jnp.abs(found[-B:] - kernels.attend(q, k, v)[-B:]).max()) > 0.1
  np.testing.assert_allclose(found[:-B], kernels.attend(q, k, v)[:-B], rtol=1e-6, atol=1e-6)
  seen = attention_edits.maps(kernels.attend, change, q, k)
  np.testing.assert_allclose(seen, maps[-B:].mean(1), atol=1e-5)
  every = attention_edits.maps(kernels.attend, None, q, k)
  np.testing.assert_allclose(every, written(q, k).mean(1), atol=1e-6)


def test_held_self_attention_has_the_sources_maps_where_it_is_small():
  q, k, v = (random(3 * B, 20, 2, 4, seed=seed) for seed in range(3))
  maps = written(q, k)
  maps = maps.at[4].set(maps[2])  # the first target takes its source's, the second its own
  found = kernels.attend(*attention_edits.held(edit(), q, k), v)
  np.testing.assert_allclose(found, applied(maps, v), atol=1e-5)
  same = attention_edits.held(edit(most=19), q, k)
  assert same[0] is q and same[1] is k


@pytest.fixture(scope='module')
def unet():
  build = lambda: UNet(attention_levels=(0, 1), **SMALL, rngs=nnx.Rngs(0))
  return with_random_weights(build)


def test_a_target_with_its_sources_maps_and_latents_is_its_source(unet):
  """And one program serves all edits."""
  graphdef, params = nnx.split(unet)
  level = unet.word_level()
  x, t = random(B, 8, 12, 4), jnp.full(2 * B, 500)
  context = random(2 * B, TOKENS, 12, seed=3)
  every = Edit(
    jnp.broadcast_to(jnp.eye(TOKENS), (B, TOKENS, TOKENS)), jnp.zeros((B, TOKENS)),
    jnp.ones(B, bool), 1000,
  )  # fmt: skip
  none = Edit(0 * every.mix, jnp.ones((B, TOKENS)), jnp.zeros(B, bool), 1000)

  @jax.jit
  def run(params, context, edit):
    return nnx.merge(graphdef, params)(jnp.concatenate([x, x]), t, context, edit=edit, watch=level)

  @jax.jit
  def plain(params, context):
    return nnx.merge(graphdef, params)(jnp.concatenate([x, x]), t, context, watch=level)

  eps, maps = run(params, context, every)
  own, seen = plain(params, context)
  np.testing.assert_allclose(eps[:B], own[:B], atol=1e-5)
  np.testing.assert_allclose(maps, seen[:B], atol=1e-5)
  np.testing.assert_allclose(seen.sum(-1), 1, atol=1e-5)
  assert level == 1 and seen.shape == (2 * B, 4, 6, TOKENS)
  eps, _ = run(params, jnp.concatenate([context[:B]] * 2), every)
  np.testing.assert_allclose(eps[B:], eps[:B], atol=1e-5)
  eps, _ = run(params, context, none)
  np.testing.assert_allclose(eps, own, atol=1e-5)
  assert float(jnp.abs(own[B:] - own[:B]).max()) > 1e-2
  assert run._cache_size() == 1


def test_without_an_edit_the_program_has_no_trace_of_one(unet):
  graphdef, params = nnx.split(unet)
  x, t, context = random(B, 8, 12, 4), jnp.full(B, 7), random(B, TOKENS, 12, seed=3)
  call = lambda **how: str(
    jax.make_jaxpr(lambda params: nnx.merge(graphdef, params)(x, t, context, **how))(params)
  )
  assert call() == call(edit=None, watch=None)
  assert call(watch=1).count('dot_general') > call().count('dot_general')
