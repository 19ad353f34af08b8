"""CLIP's text tower: published size, causality, added words."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models.clip_text import CLIPText
from tests.networks import count, jitted, with_random_weights

SMALL = dict(vocabulary=40, length=9, width=32, layers=2, heads=4, mlp=48)


def tower(**more):
  return with_random_weights(lambda: CLIPText(**SMALL, **more, rngs=nnx.Rngs(0)))


def ids(b=2, n=9, most=40):
  return np.random.default_rng(0).integers(0, most, (b, n), np.int32)


def test_published_size():
  assert count(nnx.eval_shape(lambda: CLIPText(rngs=nnx.Rngs(0)))) == 123_060_480


def test_a_token_sees_only_itself_and_earlier_ones():
  model = jitted(tower())
  one, other = ids(), ids()
  other[:, 5] = (other[:, 5] + 1) % 40
  a, b = model(one), model(other)
  np.testing.assert_array_equal(a[:, :5], b[:, :5])
  assert (np.abs(a[:, 5:] - b[:, 5:]).max(-1) > 1e-3).all()


def test_added_words_stand_beside_the_table():
  model = tower(added=2)
  copied = model.added[...].at[1].set(model.token_embedding[7])
  model.added[...] = copied
  one = ids(most=7)
  one[:, 3] = 7
  other = one.copy()
  other[:, 3] = 41  # the second added word
  np.testing.assert_array_equal(jitted(model)(one), jitted(model)(other))
  other[:, 3] = 40
  assert np.abs(jitted(model)(one) - jitted(model)(other)).max() > 1e-3


@pytest.mark.parametrize('remat', [False, True])
def test_gradients_reach_every_parameter(remat):
  model = tower(added=1, remat=remat)
  one = jnp.asarray(ids()).at[0, 0].set(40)
  grads = nnx.grad(lambda m: (m(one) ** 2).sum())(model)
  for path, grad in nnx.to_flat_state(grads):
    assert np.abs(grad[...]).max() > 0 or path[-1] == 'bias', path


def test_other_heads_are_refused():
  with pytest.raises(ValueError, match='width 32 cannot have 5 heads'):
    CLIPText(**{**SMALL, 'heads': 5}, rngs=nnx.Rngs(0))
