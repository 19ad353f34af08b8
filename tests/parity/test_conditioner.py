"""CLIP and the bottleneck against diffusers' PaintByExampleImageEncoder: within 1e-5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit.models.clip import CLIPVision
from exedit.models.conditioner import ExemplarConditioner
from exedit.weights.tables.conditioner import IMAGE_ENCODER
from tests.networks import jitted
from tests.parity import references

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
pytest.importorskip('diffusers')

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Pair(nnx.Module):
  """What the folder image_encoder/ holds."""

  def __init__(self, width, layers, context_dim):
    self.clip = CLIPVision(
      width=width, layers=layers, heads=4, mlp=64, patch=8, image_size=32, rngs=nnx.Rngs(0)
    )
    self.conditioner = ExemplarConditioner(
      width=width, layers=(layers + 1) // 5, context_dim=context_dim, rngs=nnx.Rngs(0)
    )


def reference(width, layers, context_dim):
  try:  # diffusers moved it when it deprecated the pipeline
    from diffusers.pipelines.deprecated.paint_by_example import image_encoder
  except ImportError:
    from diffusers.pipelines.paint_by_example import image_encoder
  config = transformers.CLIPVisionConfig(
    hidden_size=width,
    num_hidden_layers=layers,
    num_attention_heads=4,
    intermediate_size=64,
    patch_size=8,
    image_size=32,
  )
  encoder = image_encoder.PaintByExampleImageEncoder(config, proj_size=context_dim)
  return references.randomised(encoder)


@pytest.fixture(scope='module', params=[(32, 4, 24), (64, 9, 20)], ids=['one-block', 'two-blocks'])
def pair(request):
  theirs = reference(*request.param)
  model = references.ours(lambda: Pair(*request.param), IMAGE_ENCODER, references.weights(theirs))
  return model, theirs


@pytest.mark.parametrize('b', [1, 3])
def test_same_context_from_an_image(pair, b):
  model, theirs = pair
  image = np.random.default_rng(1).uniform(-1, 1, (b, 32, 32, 3)).astype(np.float32)
  pixels = (((image + 1) / 2 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
  with torch.no_grad():
    expected, null = theirs(references.channels_first(pixels), return_uncond_vector=True)
  with jax.default_matmul_precision('highest'):
    context = jitted(model.conditioner)(jitted(model.clip)(image)[:, None])
  assert context.shape == (b, 1, expected.shape[-1])
  np.testing.assert_allclose(context, expected, atol=1e-5, rtol=0)
  np.testing.assert_array_equal(model.conditioner.null[...], null.detach())


@pytest.mark.parametrize('b, n', [(1, 1), (3, 1), (2, 5)])
@pytest.mark.parametrize('shortcut', [True, False])
def test_same_bottleneck_for_one_token_and_for_many(pair, b, n, shortcut):
  model, theirs = pair
  features = np.random.default_rng(2).normal(size=(b, n, model.clip.width)).astype(np.float32)
  with torch.no_grad():
    expected = theirs.proj_out(theirs.final_layer_norm(theirs.mapper(torch.from_numpy(features))))
  with jax.default_matmul_precision('highest'):
    context = model.conditioner(jnp.asarray(features), shortcut=shortcut)
  np.testing.assert_allclose(context, expected, atol=1e-5, rtol=0)


def test_written_back_it_is_the_same_state_dict(pair):
  model, theirs = pair
  on_disk = {
    f'model.vision_model.{k.removeprefix("model.").removeprefix("vision_model.")}'
    if k.startswith('model.')
    else k: v
    for k, v in references.weights(theirs).items()
  }
  references.assert_round_trip(IMAGE_ENCODER, model, on_disk)
