"""CLIP's image tower: published sizes, constants, precision, recomputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models import clip, vit
from exedit.models.clip import CLIPVision
from tests.networks import fresh, jitted, keys, types_of, with_random_weights

CLIP = clip.MEAN, clip.STD
SMALL = dict(width=32, layers=2, heads=4, mlp=48, patch=8, image_size=32)


def image(size: int = 32, b: int = 2):
  x = np.random.default_rng(1).uniform(-1, 1, (b, size, size, 3))
  return jnp.asarray(x, jnp.float32)


@pytest.fixture(scope='module')
def tower():
  return with_random_weights(lambda: CLIPVision(**SMALL, rngs=keys()))


@pytest.fixture(scope='module')
def published():
  return nnx.eval_shape(lambda: CLIPVision(rngs=keys()))


def test_published_shapes_and_epsilons(published):
  assert published.position_embedding.shape == (257, 1024)
  assert published.patch_embedding.kernel.shape == (14, 14, 3, 1024)
  tokens = nnx.eval_shape(lambda m: m.tokens(jnp.zeros((1, 224, 224, 3))), published)
  assert tokens.shape == (1, 257, 1024)
  norms = [m for _, m in nnx.iter_modules(published) if isinstance(m, nnx.LayerNorm)]
  assert len(norms) == 2 * 24 + 2
  assert {(m.epsilon, m.use_fast_variance) for m in norms} == {(1e-5, False)}


@pytest.mark.parametrize('patch, size, tokens', [(8, 32, 17), (7, 30, 17), (5, 5, 2), (14, 28, 5)])
def test_any_patch_and_size(patch, size, tokens):
  settings = SMALL | dict(patch=patch, image_size=size, layers=1)
  model = with_random_weights(lambda: CLIPVision(**settings, rngs=keys()))
  assert jax.eval_shape(model.tokens, image(size)).shape == (2, tokens, 32)
  assert np.isfinite(jitted(model)(image(size))).all()


def test_pooled_is_the_normalised_class_token(tower):
  x = np.asarray(jitted(tower, 'tokens')(image())[:, 0], np.float64)
  mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  expected = (x - mean) / np.sqrt(var + 1e-5)
  expected = expected * np.asarray(tower.post_norm.scale) + np.asarray(tower.post_norm.bias)
  np.testing.assert_allclose(jitted(tower)(image()), expected, rtol=1e-4, atol=1e-5)


def test_images_are_normalised_as_clip_was_trained():
  grey = jnp.zeros((1, 1, 1, 3))  # 0.5 in [0, 1]
  np.testing.assert_allclose(
    vit.normalise(grey, *CLIP)[0, 0, 0],
    [
      (0.5 - 0.48145466) / 0.26862954,
      (0.5 - 0.4578275) / 0.26130258,
      (0.5 - 0.40821073) / 0.27577711,
    ],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    (vit.normalise(grey + 1, *CLIP) - vit.normalise(grey - 1, *CLIP))[0, 0, 0],
    [1 / 0.26862954, 1 / 0.26130258, 1 / 0.27577711],
    rtol=1e-5,
  )


def test_wrong_exemplar_size_names_both(tower):
  with pytest.raises(ValueError, match='images of 24x24 and is built for 32x32'):
    tower(image(24))


def test_impossible_settings_are_errors():
  with pytest.raises(ValueError, match='width 32 cannot have 5 heads'):
    CLIPVision(**(SMALL | dict(heads=5)), rngs=keys())
  with pytest.raises(ValueError, match='patch of 64 pixels exceeds its image_size 32'):
    CLIPVision(**(SMALL | dict(patch=64)), rngs=keys())


def test_remat_changes_memory_not_numbers(tower):
  graphdef, params = nnx.split(tower)

  def grad(remat):
    def f(p):
      model = nnx.merge(graphdef, p)
      model.remat = remat
      return (model(image()) ** 2).mean()

    return jax.jit(jax.value_and_grad(f))(params)

  for a, b in zip(jax.tree.leaves(grad(False)), jax.tree.leaves(grad(True))):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  model = nnx.merge(graphdef, params)
  model.remat = True
  assert 'remat' in str(jax.make_jaxpr(model)(image()))
  assert 'remat' not in str(jax.make_jaxpr(tower)(image()))


def test_bfloat16_keeps_norms_and_softmax_in_float32():
  exact, model = (
    with_random_weights(lambda d=d: CLIPVision(**SMALL, dtype=d, rngs=keys()))
    for d in (jnp.float32, jnp.bfloat16)
  )
  assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype('float32')}
  jaxpr = jax.make_jaxpr(model)(image())
  assert types_of('rsqrt', jaxpr) == {'f32'}
  assert types_of('exp', jaxpr) == {'f32'}
  assert types_of('conv_general_dilated', jaxpr) == {'bf16'}
  assert 'bf16' in types_of('dot_general', jaxpr)
  y = jitted(model)(image())
  assert y.dtype == jnp.float32
  assert 1e-5 < float(jnp.abs(y - jitted(exact)(image())).max()) < 0.1


@pytest.mark.parametrize('settings', [dict(layers=1), dict(layers=8), dict(width=128)])
def test_fresh_towers_are_well_scaled(settings):
  """The scale does not depend on depth and width, so that small towers train from scratch."""
  model = fresh(lambda: CLIPVision(**(SMALL | settings), rngs=keys()))
  assert 0.7 < float(jitted(model, 'tokens')(image()).std()) < 2.0
  red = jnp.broadcast_to(jnp.array([1.0, -1, -1]), (1, 32, 32, 3))
  pooled = jitted(model)(jnp.concatenate([red, -red]))
  assert float(jnp.abs(pooled[0] - pooled[1]).mean()) > 0.05  # fresh weights distinguish images
