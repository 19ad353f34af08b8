"""AutoencoderKL against diffusers' class, same random weights, float32: within 1e-4."""

import jax
import numpy as np
import pytest
from flax import nnx

from exedit.models.autoencoder import AutoencoderKL
from exedit.weights.tables.autoencoder import TABLE
from tests.networks import jitted, keys
from tests.parity import references

torch = pytest.importorskip('torch')
pytest.importorskip('diffusers')

SETTINGS = [
  dict(channels=16, mult=(1, 2), layers=1, groups=8),
  dict(channels=32, mult=(1, 2, 4, 4), layers=2, groups=32),  # the published plan, a quarter wide
]
SCALE = 0.18215


@pytest.fixture(scope='module', params=SETTINGS, ids=['two-levels', 'four-levels'])
def pair(request):
  theirs = references.vae(**request.param)
  build = lambda: AutoencoderKL(**request.param, rngs=keys())
  return references.ours(build, TABLE, references.weights(theirs)), theirs


@pytest.mark.parametrize('b, h, w', [(1, 32, 32), (2, 16, 40), (1, 48, 24)])
def test_same_latents_and_images(pair, b, h, w):
  model, theirs = pair
  random = np.random.default_rng(1)
  image = random.uniform(-1, 1, (b, h, w, 3)).astype(np.float32)
  noise = random.normal(size=(b, h // model.factor, w // model.factor, 4)).astype(np.float32)
  with torch.no_grad():
    posterior = theirs.encode(references.channels_first(image)).latent_dist
    mean, std = references.channels_last(posterior.mean), references.channels_last(posterior.std)
    z = SCALE * (mean + std * noise)
    expected = references.channels_last(theirs.decode(references.channels_first(z / SCALE)).sample)
  with jax.default_matmul_precision('highest'):
    encode, decode = jitted(model, 'encode'), jitted(model, 'decode')
    np.testing.assert_allclose(encode(image, 0 * noise), SCALE * mean, atol=1e-4, rtol=0)
    np.testing.assert_allclose(encode(image, noise), z, atol=1e-4, rtol=0)
    np.testing.assert_allclose(decode(z), expected, atol=1e-4, rtol=0)
  assert np.abs(expected).max() > 0.5 and np.abs(mean).max() > 0.1  # it could have failed


def test_files_with_the_old_attention_names_are_read(pair):
  model, theirs = pair
  new = references.weights(theirs)
  renamed = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
  old = {}
  for name, value in new.items():
    for a, b in renamed.items():
      name = name.replace(f'attentions.0.{a}.', f'attentions.0.{b}.')
    old[name] = value
  assert len(old.keys() - new.keys()) == 16
  graph = lambda: nnx.merge(*nnx.split(model))
  references.assert_same_weights(references.ours(graph, TABLE, old), model)


def test_attention_as_1x1_convolutions_is_read(pair):
  model, theirs = pair
  convolutions = {
    name: value[:, :, None, None] if 'attentions' in name and value.ndim == 2 else value
    for name, value in references.weights(theirs).items()
  }
  graph = lambda: nnx.merge(*nnx.split(model))
  references.assert_same_weights(references.ours(graph, TABLE, convolutions), model)
