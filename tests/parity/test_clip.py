"""CLIPVision against transformers' CLIPVisionModel, same random weights, float32: within 1e-5."""

import jax
import numpy as np
import pytest

from exedit.models.clip import CLIPVision
from exedit.weights.tables.clip import TABLE
from tests.networks import jitted, keys
from tests.parity import references

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SETTINGS = [
  dict(width=32, layers=2, heads=4, mlp=64, patch=8, image_size=32),
  dict(width=48, layers=3, heads=3, mlp=100, patch=7, image_size=30),  # a border is left over
  dict(width=64, layers=1, heads=1, mlp=32, patch=14, image_size=56),
]


def reference(settings):
  return references.randomised(transformers.CLIPVisionModel(references.tower_config(**settings)))


@pytest.mark.parametrize('b', [1, 3])
@pytest.mark.parametrize('settings', SETTINGS)
def test_same_pooled_vector_and_tokens(settings, b):
  theirs = reference(settings)
  model = references.ours(
    lambda: CLIPVision(**settings, rngs=keys()), TABLE, references.weights(theirs)
  )
  size = settings['image_size']
  image = np.random.default_rng(1).uniform(-1, 1, (b, size, size, 3)).astype(np.float32)
  with torch.no_grad():
    expected = theirs(references.pixels(image))
  with jax.default_matmul_precision('highest'):
    pooled, tokens = jitted(model)(image), jitted(model, 'tokens')(image)
  np.testing.assert_allclose(pooled, expected.pooler_output, atol=1e-5, rtol=0)
  np.testing.assert_allclose(tokens, expected.last_hidden_state, atol=1e-5, rtol=0)


def test_files_of_every_age_are_read():
  build = lambda: CLIPVision(**SETTINGS[0], rngs=keys())
  bare = {
    k.removeprefix('vision_model.'): v
    for k, v in references.weights(reference(SETTINGS[0])).items()
  }
  full = {f'vision_model.{k}': v for k, v in bare.items()}
  old = full | {'vision_model.embeddings.position_ids': np.arange(17)[None]}
  model = references.ours(build, TABLE, bare)
  for other in (full, old):
    references.assert_same_weights(references.ours(build, TABLE, other), model)
