"""The UNet at its published size, its exact shortcuts, and PyTorch's conventions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models import blocks
from exedit.models.unet import UNet
from tests.networks import keys, types_of, with_random_weights

SMALL = dict(channels=16, mult=(1, 2), layers=1, heads=2, context_dim=12, groups=8)


@pytest.fixture(scope='module')
def unet():
  settings = dict(in_channels=9, attention_levels=(0, 1), **SMALL)
  return with_random_weights(lambda: UNet(**settings, rngs=keys()))


def inputs(n: int = 1):
  k = jax.random.split(jax.random.key(1), 3)
  return (
    jax.random.normal(k[0], (2, 8, 12, 9)),
    jnp.array([981, 3]),
    jax.random.normal(k[1], (2, n, 12)),
  )


@pytest.fixture(scope='module')
def published():
  """The shapes of the published network."""
  return nnx.eval_shape(lambda: UNet(rngs=keys()))


def test_published_layers_have_sixteen_cross_attentions_of_12480_floats(published):
  context = jax.ShapeDtypeStruct((1, 1, 768), jnp.float32)
  constants = nnx.eval_shape(lambda m, c: m.constants(c), published, context)
  assert len(constants) == 16
  assert sum(c.shape[-1] for c in constants) == 12_480


def test_timestep_embedding_golden():
  e = blocks.timestep_embedding(jnp.array([981]), 320)[0]
  golden = [0.6799572, -0.7984292, 0.9946059, 0.7332518, 0.6020887, 0.1037259]
  np.testing.assert_allclose(e[jnp.array([0, 1, 159, 160, 161, 319])], golden, atol=2e-5)


@pytest.mark.parametrize('n', [1, 5])
def test_shortcuts_equal_the_general_path(unet, n):
  x, t, context = inputs(n)
  general = unet(x, t, context, shortcut=False)
  prepared = unet.prepare(x[..., 4:], context)
  np.testing.assert_allclose(unet(x, t, context), general, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(unet.denoise(x[..., :4], t, prepared), general, rtol=1e-4, atol=1e-4)
  assert float(jnp.abs(general).max()) > 0.1


@pytest.mark.parametrize('n, attention_levels', [(1, (1,)), (1, ()), (5, (0, 1))])
def test_examples_under_two_contexts_equal_the_doubled_batch(n, attention_levels):
  """Three examples with two contexts each, wherever the first cross-attention is."""
  build = lambda: UNet(in_channels=9, attention_levels=attention_levels, **SMALL, rngs=keys())
  model = with_random_weights(build)
  random = np.random.default_rng(3)
  x = random.normal(size=(3, 4, 6, 9)).astype(np.float32)
  contexts = random.normal(size=(6, n, 12)).astype(np.float32)
  t = np.array([981, 500, 3])
  graphdef, params = nnx.split(model)

  @jax.jit
  def run(params, x, t, contexts):
    model = nnx.merge(graphdef, params)
    prepared = model.prepare(x[..., 4:], contexts)
    shared = model(x, t, contexts), model.denoise(x[..., :4], t, prepared)
    return model(jnp.tile(x, (2, 1, 1, 1)), jnp.tile(t, 2), contexts, shortcut=False), *shared

  expected, *shared = run(params, x, t, contexts)
  for eps in shared:
    np.testing.assert_allclose(eps, expected, rtol=1e-4, atol=1e-4)
  assert np.abs(expected[:3] - expected[3:]).max() > 1e-2  # the contexts matter


def test_first_resblock_and_self_attention_see_no_doubled_batch(unet):
  x, t, context = inputs()
  graphdef, params = nnx.split(unet)
  call = lambda p, x, context: nnx.merge(graphdef, p)(x, t, context)
  text = str(jax.make_jaxpr(call)(params, x, jnp.concatenate([context, context])))
  convolved = re.findall(r':f32\[(\d+),8,12,16\] = conv_general_dilated', text)
  assert convolved[:3] == ['2'] * 3 and set(convolved[3:]) == {'4'}  # conv_in and one ResBlock


def test_context_timestep_and_every_channel_matter(unet):
  x, t, context = inputs()
  y = unet(x, t, context)
  assert float(jnp.abs(unet(x, t, context + 1) - y).max()) > 1e-3
  assert float(jnp.abs(unet(x, t + 100, context) - y).max()) > 1e-3
  for channel in range(9):
    assert float(jnp.abs(unet(x.at[..., channel].add(1), t, context) - y).max()) > 1e-3


def test_remat_changes_memory_not_numbers(unet):
  arrays = inputs()
  graphdef, params = nnx.split(unet)

  def loss(params, remat):
    model = nnx.merge(graphdef, params)
    model.remat = remat
    return (model(*arrays) ** 2).mean()

  @jax.jit
  def gradients(params):
    return [jax.grad(loss)(params, remat) for remat in ('none', 'block', 'conv1')]

  plain, *others = map(jax.tree.leaves, gradients(params))
  for other in others:
    for a, b in zip(plain, other, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_unknown_remat_is_named(unet):
  x, t, context = inputs()
  graphdef, params = nnx.split(unet)
  model = nnx.merge(graphdef, params)
  model.remat = 'all'
  with pytest.raises(ValueError, match="remat is 'all'; use one of none, block, conv1"):
    model(x, t, context)


def test_bfloat16_computes_norms_in_float32():
  build = lambda: UNet(in_channels=9, **SMALL, dtype=jnp.bfloat16, rngs=keys())
  small = with_random_weights(build)
  jaxpr = jax.make_jaxpr(small)(*inputs())
  assert types_of('rsqrt', jaxpr) == {'f32'}
  assert types_of('conv_general_dilated', jaxpr) == {'bf16'}
  assert jaxpr.out_avals[0].dtype == jnp.float32
  for _, module in nnx.iter_modules(small):
    if isinstance(module, nnx.GroupNorm | nnx.LayerNorm):
      assert module.dtype == jnp.float32
      assert not module.use_fast_variance
    elif isinstance(module, nnx.Conv | nnx.Linear):
      assert module.dtype == jnp.bfloat16
      assert module.kernel[...].dtype == jnp.float32


def test_norm_epsilons_are_the_published_ones(published):
  model = published
  res, transformer = model.down[0].resnets[0], model.down[0].attentions[0]
  assert (res.norm1.epsilon, res.norm2.epsilon, model.norm_out.epsilon) == (1e-5, 1e-5, 1e-5)
  assert transformer.norm.epsilon == 1e-6
  assert (transformer.norm1.epsilon, transformer.norm3.epsilon) == (1e-5, 1e-5)


def test_downsampling_pads_every_side():
  """A kernel with only its top left tap sees padding there, and none at the bottom right."""
  down = blocks.Down(1, rngs=keys())
  down.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)
  down.conv.bias[...] = jnp.zeros(1)
  x = jnp.arange(1.0, 17).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(down(x)[0, :, :, 0], [[0, 0], [0, 6]])


def test_upsampling_is_nearest():
  up = blocks.Up(1, rngs=keys())
  up.conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
  up.conv.bias[...] = jnp.zeros(1)
  x = jnp.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1)
  expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
  np.testing.assert_array_equal(up(x)[0, :, :, 0], expected)
