"""The whole edit agrees with diffusers' PaintByExamplePipeline, from files that diffusers wrote.

Random weights, float32, the same initial latents and posterior noise: final latents within 1e-3 of
their largest, images within 2/255.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit import paint_by_example as pbe
from tests.networks import jitted
from tests.parity import references

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
pytest.importorskip('transformers')

SHAPES = {
  'two-levels': dict(
    unet=dict(channels=16, mult=(1, 2), layers=1, attention_levels=(0,), heads=2, groups=8),
    autoencoder=dict(channels=16, mult=(1, 2), layers=1, groups=8),
    clip=dict(width=32, layers=4, heads=4, mlp=64, patch=8, image_size=32),
    context_dim=12,
  ),
  'three-levels': dict(
    unet=dict(channels=24, mult=(1, 3, 3), layers=1, attention_levels=(0, 1), heads=3, groups=12),
    autoencoder=dict(channels=24, mult=(1, 1, 2), layers=2, groups=12),
    clip=dict(width=48, layers=4, heads=3, mlp=100, patch=7, image_size=30),
    context_dim=40,
  ),
  'four-levels': dict(  # as published, but a tenth as wide
    unet=dict(
      channels=32, mult=(1, 2, 4, 4), layers=2, attention_levels=(0, 1, 2), heads=8, groups=32
    ),
    autoencoder=dict(channels=32, mult=(1, 2, 2, 4), layers=2, groups=32),
    clip=dict(width=64, layers=9, heads=4, mlp=128, patch=14, image_size=56),
    context_dim=24,
  ),
}
SCHEDULERS = dict(
  plms=diffusers.PNDMScheduler,
  ddim=diffusers.DDIMScheduler,
  dpm_solver_pp=diffusers.DPMSolverMultistepScheduler,
)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """(ours, theirs) by name, each made once; ours is read from the folder that theirs wrote."""
  made = {}

  def get(name):
    if name not in made:
      made[name] = load(name, tmp_path_factory.mktemp('pipeline'))
    return made[name]

  return get


@pytest.fixture(params=SHAPES)
def pair(request, pairs):
  return pairs(request.param)


def load(name, path):
  shape, dim = SHAPES[name], SHAPES[name]['context_dim']
  theirs = references.pipeline(
    references.unet(**shape['unet'], context_dim=dim),
    references.vae(**shape['autoencoder']),
    references.encoder(dim, **shape['clip']),
  )
  theirs.set_progress_bar_config(disable=True)
  theirs.save_pretrained(path, safe_serialization=True)
  return pbe.load(path), theirs


def inputs(model, b, h, w):
  """(source, mask, exemplar, noise, posterior_noise), with a random mask."""
  random = np.random.default_rng(7)
  size, f = model.clip.image_size, model.autoencoder.factor
  mask = np.zeros((b, h, w, 1))
  for one in mask:
    (y, y_end), (x, x_end) = (np.sort(random.integers(0, n, 2)) for n in (h, w))
    one[y : y_end + 3, x : x_end + 5] = 1  # edges inside the latents' pixels
  return [
    np.asarray(a, np.float32)
    for a in (
      random.uniform(-1, 1, (b, h, w, 3)),
      mask,
      random.uniform(-1, 1, (b, size, size, 3)),
      random.normal(size=(b, h // f, w // f, 4)),
      random.normal(size=(b, h // f, w // f, 4)),
    )
  ]


def test_same_context_and_null(pair):
  model, theirs = pair
  exemplar = inputs(model, 3, 16, 16)[2]
  with torch.no_grad():
    expected, null = theirs.image_encoder(references.pixels(exemplar), return_uncond_vector=True)
  np.testing.assert_allclose(jitted(model, 'context')(exemplar), expected, atol=1e-5, rtol=0)
  np.testing.assert_array_equal(model.conditioner.null[...], null.detach())
  assert expected.abs().max() > 0.5  # the comparison is not of zeros


@pytest.mark.parametrize('b, n', [(1, 1), (3, 1), (2, 5)])
@pytest.mark.parametrize('shortcut', [True, False])
def test_same_bottleneck_for_one_token_and_for_many(pair, b, n, shortcut):
  model, theirs = pair[0].conditioner, pair[1].image_encoder
  features = np.random.default_rng(2).normal(size=(b, n, pair[0].clip.width)).astype(np.float32)
  with torch.no_grad():
    expected = theirs.proj_out(theirs.final_layer_norm(theirs.mapper(torch.from_numpy(features))))
  with jax.default_matmul_precision('highest'):
    context = model(jnp.asarray(features), shortcut=shortcut)
  np.testing.assert_allclose(context, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
  ('shape', 'scale'),
  [('two-levels', 1.0), ('three-levels', 5.0), ('four-levels', 5.0)],
)
def test_same_guided_prediction(pairs, shape, scale):
  """One guided prediction, with all exact shortcuts, agrees with two plain calls."""
  model, theirs = pairs(shape)
  random = np.random.default_rng(8)
  side, width = 2 * model.unet.multiple, theirs.unet.config.cross_attention_dim
  x, still = (random.normal(size=(3, side, side, c)).astype(np.float32) for c in (4, 5))
  context = random.normal(size=(3, 1, width)).astype(np.float32)
  t = np.array([981, 500, 1])
  null = np.broadcast_to(model.conditioner.null[...], context.shape)
  with torch.no_grad():
    joined = references.channels_first(np.concatenate([x, still], -1))
    call = lambda context: theirs.unet(joined, torch.tensor(t), torch.tensor(context)).sample
    expected = call(null) + scale * (call(context) - call(null))
  graphdef, params = nnx.split(model)

  @jax.jit
  def run(params, x, t, still, context):
    return pbe.denoiser(nnx.merge(graphdef, params), still, context, scale)(x, t)

  eps = run(params, x, t, still, context)
  expected = references.channels_last(expected)
  np.testing.assert_allclose(eps, expected, atol=1e-4 * max(1, np.abs(expected).max()), rtol=0)
  assert np.abs(expected).max() > 0.5


class Seen(nnx.Module):
  """An autoencoder that shows the latents that it decodes."""

  def __init__(self, inner, show):
    self.inner, self.show = inner, show
    self.factor, self.z_channels = inner.factor, inner.z_channels

  def encode(self, image, noise):
    return self.inner.encode(image, noise)

  def decode(self, z):
    jax.debug.callback(self.show, z)
    return self.inner.decode(z)


CASES = {
  'two-levels-plms50-scale5-square': (1, 32, 32, 'plms', 50, 5.0, 'nearest'),
  'two-levels-ddim20-scale1-batch3-tall-bilinear': (3, 40, 24, 'ddim', 20, 1.0, 'bilinear'),
  'three-levels-dpm10-scale5-batch3-wide': (3, 32, 48, 'dpm_solver_pp', 10, 5.0, 'nearest'),
  'four-levels-plms10-scale5-batch2-wide': (2, 64, 128, 'plms', 10, 5.0, 'bilinear'),
}


@pytest.mark.parametrize('name', CASES)
def test_same_edit(pairs, monkeypatch, name):
  model, theirs = pairs('-'.join(name.split('-')[:2]))
  b, h, w, sampler, steps, scale, resize = CASES[name]
  source, mask, exemplar, noise, posterior = inputs(model, b, h, w)
  expected = reference(
    theirs, monkeypatch, source, mask, exemplar, noise, posterior, sampler, steps, scale, resize
  )
  seen = []
  graphdef, params = nnx.split(model)
  watched = nnx.merge(graphdef, params)
  watched.autoencoder = Seen(watched.autoencoder, lambda z: seen.append(np.asarray(z)))
  image = pbe.edit(
    watched,
    *map(jnp.asarray, (source, mask, exemplar)),
    jax.random.key(0),
    steps=steps,
    scale=scale,
    sampler=sampler,
    noise=jnp.asarray(noise),
    posterior_noise=jnp.asarray(posterior),
    paste=False,
    mask_resize=resize,
  )
  jax.effects_barrier()
  (z,) = seen
  np.testing.assert_allclose(z, expected[0], atol=1e-3 * np.abs(expected[0]).max(), rtol=0)
  bytes_ = [np.clip(np.asarray(a) * 127.5 + 127.5, 0, 255) for a in (image, expected[1])]
  np.testing.assert_allclose(*bytes_, atol=2, rtol=0)
  assert bytes_[1].std() > 10 and np.abs(expected[0]).max() > 0.5  # the comparison is not of zeros


def reference(
  theirs, monkeypatch, source, mask, exemplar, noise, posterior, sampler, steps, scale, resize
):
  """(final latents, decoded image) of diffusers' own pipeline, channels last."""
  config = dict(diffusers.PNDMScheduler(**references.PNDM).config, clip_sample=False)
  theirs.scheduler = SCHEDULERS[sampler].from_config(config)
  to_torch = references.channels_first
  references.give_posterior(monkeypatch, posterior)
  nearest = torch.nn.functional.interpolate
  if resize == 'bilinear':  # as in the original; diffusers has only nearest

    def resized(mask, *args, **kwargs):
      if mask.shape[1] == 1:
        kwargs |= dict(mode='bilinear', align_corners=False, antialias=False)
      return nearest(mask, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, 'interpolate', resized)
  z = theirs(
    references.pixels(exemplar),
    to_torch(source),
    to_torch(mask),
    num_inference_steps=steps,
    guidance_scale=scale,
    latents=to_torch(noise),
    output_type='latent',
  ).images
  with torch.no_grad():
    image = theirs.vae.decode(z / theirs.vae.config.scaling_factor).sample
  return references.channels_last(z), references.channels_last(image)
