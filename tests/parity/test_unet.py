"""UNet against diffusers' UNet2DConditionModel, same random weights, float32: within 1e-4."""

import jax
import numpy as np
import pytest

from exedit.models.unet import UNet
from exedit.weights.tables.unet import TABLE
from tests.networks import count, jitted, keys
from tests.parity import references

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')

SETTINGS = [
  dict(
    channels=16, mult=(1, 2), layers=1, attention_levels=(0,), heads=2, context_dim=12, groups=8
  ),
  dict(  # the published plan, a tenth as wide
    channels=32,
    mult=(1, 2, 4, 4),
    layers=2,
    attention_levels=(0, 1, 2),
    heads=8,
    context_dim=24,
    groups=32,
  ),
]


@pytest.fixture(scope='module', params=SETTINGS, ids=['two-levels', 'four-levels'])
def pair(request):
  theirs = references.unet(**request.param)
  build = lambda: UNet(in_channels=9, **request.param, rngs=keys())
  return references.ours(build, TABLE, references.weights(theirs)), theirs


@pytest.mark.parametrize('b, h, w, tokens', [(1, 16, 16, 1), (2, 8, 24, 1), (2, 8, 16, 7)])
def test_same_noise(pair, b, h, w, tokens):
  model, theirs = pair
  random = np.random.default_rng(1)
  x = random.normal(size=(b, h, w, 9)).astype(np.float32)
  width = theirs.config.cross_attention_dim
  context = random.normal(size=(b, tokens, width)).astype(np.float32)
  t = np.array([981, 1][:b])
  with torch.no_grad():
    expected = references.channels_last(
      theirs(references.channels_first(x), torch.from_numpy(t), torch.from_numpy(context)).sample
    )
  with jax.default_matmul_precision('highest'):
    y = jitted(model)(x, t, context)
  np.testing.assert_allclose(y, expected, atol=1e-4, rtol=0)
  assert np.abs(expected).max() > 0.5  # it could have failed


def test_published_names_and_shapes():
  """At full size, without weights: their 686 tensors are ours, one for one."""
  with torch.device('meta'):
    theirs = diffusers.UNet2DConditionModel(
      in_channels=9, cross_attention_dim=768, attention_head_dim=8
    )
  shapes = {k: np.broadcast_to(np.int8(0), v.shape) for k, v in theirs.state_dict().items()}
  assert len(shapes) == 686
  model = references.ours(lambda: UNet(rngs=keys()), TABLE, shapes)
  assert count(model) == 859_535_364
