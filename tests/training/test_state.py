import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models import parameters
from exedit.training import optimizer, state
from tests import toy


class WithDropout(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
    self.dropout = nnx.Dropout(0.5, rngs=rngs)
    self.gain = nnx.Param(jnp.ones((1, 2)))

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return x * self.gain[...]


def test_flatten_gives_dotted_names_of_parameters_only():
  _, params = parameters.flatten(WithDropout(nnx.Rngs(0)))
  assert sorted(params) == [
    'gain',
    'layers.0.bias',
    'layers.0.kernel',
    'layers.1.bias',
    'layers.1.kernel',
  ]
  assert type(params) is dict and all(isinstance(a, jax.Array) for a in params.values())


def test_merge_undoes_flatten_and_works_inside_jit():
  model = WithDropout(nnx.Rngs(0))
  graph, params = parameters.flatten(model)
  x = jnp.ones((1, 3))
  np.testing.assert_array_equal(parameters.merge(graph, params)(x), model(x))
  doubled = {**params, 'gain': 2 * params['gain']}
  result = jax.jit(lambda p: parameters.merge(graph, p)(x))(doubled)
  np.testing.assert_allclose(result, 2 * model(x), rtol=1e-6)
  np.testing.assert_array_equal(model.gain[...], 1)  # the first model is untouched


def test_keys_are_those_of_nnx_also_inside_jit():
  def params(rngs):
    return parameters.flatten(toy.build(rngs=rngs))[1]

  key = jax.random.key(3)
  expected = params(nnx.Rngs(key))
  jax.tree.map(np.testing.assert_array_equal, params(parameters.Keys(key)), expected)
  inside = jax.jit(lambda key: params(parameters.Keys(key)))(key)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), inside, expected)


def test_merge_refuses_other_parameters_by_name():
  graph, params = parameters.flatten(WithDropout(nnx.Rngs(0)))
  params['stray'] = params.pop('gain')
  with pytest.raises(ValueError, match=r"1 missing \['gain'\], 1 unknown \['stray'\]"):
    parameters.merge(graph, params)


def test_split_trainable_matches_whole_parts_from_the_start():
  params = dict.fromkeys(['unet.a.kernel', 'unet2.a', 'clip.unet.b', 'null'], 0)
  trainable, frozen = parameters.split_trainable(params, 'unet|null')
  assert sorted(trainable) == ['null', 'unet.a.kernel']
  assert sorted(frozen) == ['clip.unet.b', 'unet2.a']
  assert list(parameters.split_trainable(params, r'unet\.a')[0]) == ['unet.a.kernel']


def test_ema_warms_up_to_its_decay():
  average = state.Ema(decay=0.99)
  ema, params = {'w': jnp.zeros(())}, {'w': jnp.ones(())}
  expected = 0.0
  for n, decay in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15], 1):  # (1 + n) / (10 + n)
    ema = average.update(ema, params, jnp.int32(n))
    expected = decay * expected + (1 - decay)
    np.testing.assert_allclose(ema['w'], expected, rtol=1e-6)
  late = average.update({'w': jnp.zeros(())}, params, jnp.int32(10**6))
  np.testing.assert_allclose(late['w'], 0.01, rtol=1e-4)
  flat = state.Ema(decay=0.5, warmup=False).update({'w': jnp.zeros(())}, params, jnp.int32(0))
  np.testing.assert_allclose(flat['w'], 0.5)


def test_ema_off_keeps_nothing():
  assert not state.Ema().on
  assert state.Ema().update({}, {'w': jnp.ones(())}, jnp.int32(0)) == {}
  with pytest.raises(ValueError, match='ema.decay is 1'):
    state.Ema(decay=1.0)


def make_state():
  _, params = parameters.flatten(toy.build(width=4, rngs=nnx.Rngs(0)))
  return state.create(params, optimizer.make_optimizer(), ema=True)


@pytest.mark.parametrize('finite', [True, False])
def test_a_bad_step_changes_nothing_but_the_counts(finite):
  old = make_state()
  update = lambda tree: jax.tree.map(lambda x: x + 1, tree)
  kept = jax.jit(lambda finite, old: state.guarded(finite, update, old))(finite, old)
  jax.tree.map(np.testing.assert_array_equal, kept, update(old) if finite else old)

  old = dataclasses.replace(old, counts=dict(old.counts, skipped=jnp.int32(3)))
  result = state.counted(old, jnp.array(finite), jnp.int32(2))
  assert int(result.step) == 1
  counts = {name: int(n) for name, n in result.counts.items()}
  assert counts == dict(skipped=3 if finite else 4, in_a_row=0 if finite else 1, corrupt=2)


def test_timestep_buckets_are_quarters_and_keep_a_nan_to_itself():
  losses = jnp.array([1.0, 2.0, jnp.nan, 4.0, 5.0])
  t = jnp.array([0, 249, 250, 999, 750])
  sums, counts = state.timestep_buckets(losses, t, 1000)
  np.testing.assert_array_equal(counts, [2, 1, 0, 2])
  np.testing.assert_array_equal(sums, [3, np.nan, 0, 9])
