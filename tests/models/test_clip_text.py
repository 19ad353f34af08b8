"""CLIP's text tower: published size, causality, gradients, sizes."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models import parameters
from exedit.models.clip_text import CLIPText
from tests.networks import count, jitted, keys, with_random_weights

SMALL = dict(vocabulary=40, length=9, width=32, layers=2, heads=4, mlp=48)


def tower(**more):
  return with_random_weights(lambda: CLIPText(**SMALL, **more, rngs=keys()))


def ids(b=2, n=9, most=40):
  return np.random.default_rng(0).integers(0, most, (b, n), np.int32)


def test_published_size():
  assert count(nnx.eval_shape(lambda: CLIPText(rngs=keys()))) == 123_060_480


def test_a_token_sees_only_itself_and_earlier_ones():
  model = jitted(tower())
  one, other = ids(), ids()
  other[:, 5] = (other[:, 5] + 1) % 40
  a, b = model(one), model(other)
  np.testing.assert_array_equal(a[:, :5], b[:, :5])
  assert (np.abs(a[:, 5:] - b[:, 5:]).max(-1) > 1e-3).all()


@pytest.mark.parametrize('remat', [False, True])
def test_gradients_reach_every_parameter(remat):
  model = tower(remat=remat)
  one = jnp.asarray(np.resize(np.arange(40), (5, 9)))
  grads = nnx.grad(lambda m: (m(one) ** 2).sum())(model)
  for path, grad in nnx.to_flat_state(grads):
    assert np.abs(grad[...]).max() > 0 or path[-1] == 'bias', path


def test_only_the_rows_of_new_tokens_train_while_the_table_does_not():
  more = tower(new=2)
  params = parameters.flatten(more)[1]
  plain = parameters.flatten(tower())[0]
  assert params.keys() - plain.variables.keys() == {'new_tokens'}
  plain = parameters.merge(plain, {name: params[name] for name in plain.variables})
  known, new = ids(), ids()
  new[:, 3] = 41
  np.testing.assert_array_equal(jitted(more)(known), jitted(plain)(known))
  grads = nnx.grad(lambda m: (m(jnp.asarray(new))[:, 3] ** 2).sum())(more)
  rows, table = (np.abs(grads[n][...]).max(-1) > 0 for n in ('new_tokens', 'token_embedding'))
  assert rows.tolist() == [False, True]
  assert np.flatnonzero(table).tolist() == sorted({*new[:, :3].ravel().tolist()})


@pytest.mark.parametrize(
  'sizes, says',
  [
    (dict(heads=5), 'width 32 cannot have 5 heads'),
    (dict(heads=0), 'CLIPText.heads is 0: it must be at least 1'),
    (dict(layers=0), 'CLIPText.layers is 0: it must be at least 1'),
    (dict(new=-1), 'CLIPText.new is -1: it must be at least 0'),
  ],
)
def test_sizes_that_make_no_tower_are_refused(sizes, says):
  with pytest.raises(ValueError, match=says):
    CLIPText(**SMALL | sizes, rngs=keys())
