"""Autoencoders: published sizes, scale and padding, and the exact SpaceToDepth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models.autoencoder import AutoencoderKL, SpaceToDepth
from tests.networks import jitted, keys, types_of, with_random_weights

SMALL = dict(channels=8, mult=(1, 2, 2), layers=1, groups=4)
SMALLEST = dict(channels=8, mult=(1, 1), layers=1, groups=4)


@pytest.fixture(scope='module')
def kl():
  return with_random_weights(lambda: AutoencoderKL(**SMALL, rngs=keys()))


@pytest.fixture(scope='module')
def encode(kl):
  return jitted(kl, 'encode')


def image(h: int = 16, w: int = 24, b: int = 2):
  return jax.random.uniform(jax.random.key(1), (b, h, w, 3), minval=-1, maxval=1)


@pytest.fixture(scope='module')
def published():
  return nnx.eval_shape(lambda: AutoencoderKL(rngs=keys()))


def test_published_shapes_and_epsilons(published):
  assert (published.factor, published.z_channels, published.scale) == (8, 4, 0.18215)
  z = nnx.eval_shape(lambda m: m.encode(jnp.zeros((1, 512, 512, 3))), published)
  assert z.shape == (1, 64, 64, 4)
  out = nnx.eval_shape(lambda m: m.decode(jnp.zeros((1, 64, 64, 4))), published)
  assert out.shape == (1, 512, 512, 3)
  norms = [m for _, m in nnx.iter_modules(published) if isinstance(m, nnx.GroupNorm)]
  assert {(m.epsilon, m.num_groups, m.use_fast_variance) for m in norms} == {(1e-6, 32, False)}


def test_latents_are_scaled_once_each_way(kl, encode):
  mean, logvar = np.split(jitted(kl, 'moments')(image()), 2, -1)
  assert mean.shape == (2, 4, 6, 4)
  noise = np.random.default_rng(2).normal(size=mean.shape).astype(np.float32)
  drawn = 0.18215 * (mean + np.exp(logvar / 2) * noise)
  np.testing.assert_allclose(encode(image()), 0.18215 * mean, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(encode(image(), noise), drawn, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(encode(image(), 0 * noise), encode(image()), rtol=1e-4, atol=1e-5)


def test_decode_undoes_the_scale(kl):
  z = np.random.default_rng(2).normal(size=(2, 4, 6, 4)).astype(np.float32)
  unscaled = nnx.merge(*nnx.split(kl))
  unscaled.scale = 1.0
  decode = jitted(kl, 'decode')
  assert decode(z).shape == (2, 16, 24, 3)
  np.testing.assert_allclose(decode(0.18215 * z), jitted(unscaled, 'decode')(z), atol=1e-3)


def test_log_variance_is_clamped(kl):
  model = nnx.clone(kl)
  model.quant_conv.bias[...] = jnp.array([0.0] * 4 + [1e3, 1e3, -1e3, -1e3])
  _, logvar = np.split(jitted(model, 'moments')(image()), 2, -1)
  np.testing.assert_array_equal(logvar[0, 0, 0], [20, 20, -30, -30])


def test_downsampling_pads_right_and_bottom_only(kl):
  """Each output is the written sum over rows 2i..2i+2 and columns 2j..2j+2, zero past the end."""
  down = kl.encoder.down[0].resize
  x = np.random.default_rng(3).normal(size=(1, 6, 8, 8)).astype(np.float32)
  kernel, bias = np.asarray(down.kernel), np.asarray(down.bias)
  padded = np.zeros((1, 7, 9, 8))
  padded[:, :6, :8] = x
  expected = np.zeros((1, 3, 4, 8))
  for i in range(3):
    for j in range(4):
      window = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
      expected[:, i, j] = np.einsum('bhwc,hwcd->bd', window, kernel) + bias
  np.testing.assert_allclose(down(x), expected, rtol=1e-4, atol=1e-5)


def test_middle_attention_equals_the_written_formula(kl):
  """One head over all positions, behind a norm and between two ResBlocks that see 5x5 pixels."""
  middle = kl.encoder.mid
  random = np.random.default_rng(4)
  h = jnp.asarray(random.normal(size=(1, 3, 5, 16)), jnp.float32)
  inner = middle.res1(h)
  x = np.asarray(middle.norm(inner)).reshape(15, 16)
  attn = middle.attn
  project = lambda layer: x @ np.asarray(layer.kernel) + np.asarray(layer.bias)
  q, k, v = project(attn.to_q), project(attn.to_k), project(attn.to_v)
  weights = np.exp(q @ k.T / 4)  # 1 / sqrt(16)
  x = weights / weights.sum(-1, keepdims=True) @ v  # which to_out projects
  inner = inner + project(attn.to_out).reshape(1, 3, 5, 16)
  np.testing.assert_allclose(middle(h), middle.res2(inner), rtol=1e-3, atol=1e-4)


def test_bfloat16_keeps_norms_and_softmax_in_float32():
  exact, model = (
    with_random_weights(lambda d=d: AutoencoderKL(**SMALLEST, dtype=d, rngs=keys()))
    for d in (jnp.float32, jnp.bfloat16)
  )
  assert {x.dtype for x in jax.tree.leaves(nnx.state(model, nnx.Param))} == {jnp.dtype('float32')}
  noise = jnp.zeros((2, 8, 12, 4))
  jaxpr = jax.make_jaxpr(lambda x: model.decode(model.encode(x, noise)))(image())
  assert types_of('rsqrt', jaxpr) == {'f32'}
  assert types_of('exp', jaxpr) == {'f32'}
  assert types_of('conv_general_dilated', jaxpr) == {'bf16'}
  z = jitted(model, 'encode')(image())
  assert z.dtype == jax.eval_shape(model.decode, noise).dtype == jnp.float32
  assert 1e-6 < float(jnp.abs(z - jitted(exact, 'encode')(image())).max()) < 0.02


def test_folded_pixels_are_channels():
  """Latents at a lower resolution; the same function of a square of pixels as without folding."""
  model = with_random_weights(lambda: AutoencoderKL(fold=2, **SMALLEST, rngs=keys()))
  assert model.factor == 4
  assert model.encoder.conv_in.kernel.shape == (3, 3, 12, 8)
  assert model.decoder.conv_out.kernel.shape == (3, 3, 8, 12)
  z = jitted(model, 'encode')(image())
  assert z.shape == (2, 4, 6, 4)
  assert jitted(model, 'decode')(z).shape == (2, 16, 24, 3)
  folded = SpaceToDepth(patch=2, scale=1.0).encode(image())
  h = jitted(model.encoder)(folded)
  moments = np.asarray(jitted(model.quant_conv)(h))
  np.testing.assert_allclose(z, model.scale * moments[..., :4], rtol=1e-4, atol=1e-5)


def test_sizes_that_do_not_fit_are_named(kl):
  for model in (kl, SpaceToDepth(patch=4)):
    with pytest.raises(ValueError, match='15x24 pixels: height and width must be multiples of 4'):
      model.encode(jnp.zeros((1, 15, 24, 3)))


@pytest.mark.parametrize('patch, h, w', [(1, 8, 8), (4, 8, 24), (8, 16, 16)])
def test_space_to_depth_is_inverted_to_the_last_bit(patch, h, w):
  model = SpaceToDepth(patch=patch)
  z = model.encode(image(h, w))
  assert z.shape == (2, h // patch, w // patch, model.z_channels)
  assert (model.factor, model.z_channels) == (patch, 3 * patch**2)
  np.testing.assert_array_equal(model.decode(z), image(h, w))
  other = jax.random.normal(jax.random.key(5), z.shape)
  np.testing.assert_array_equal(model.encode(model.decode(other)), other)


@pytest.mark.parametrize('scale, mean', [(2.0, 0.0), (1.7, 0.1), (3.6, -0.27), (0.18215, 0.0)])
def test_space_to_depth_returns_every_byte_at_any_setting(scale, mean):
  pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
  model = SpaceToDepth(patch=2, scale=scale, mean=mean)
  out = model.decode(model.encode(jnp.asarray(pixels) / 127.5 - 1))
  np.testing.assert_array_equal(np.round((np.asarray(out) + 1) * 127.5).astype(np.uint8), pixels)


def test_space_to_depth_has_the_interface_but_no_parameters():
  model = SpaceToDepth(dtype=jnp.bfloat16, rngs=keys())
  assert not jax.tree.leaves(nnx.state(model))
  z = model.encode(image())
  assert z.dtype == jnp.float32
  np.testing.assert_array_equal(model.encode(image(), jnp.ones_like(z)), z)
