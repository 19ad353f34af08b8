"""The contrastive loss and the text tower of a folder against transformers' CLIPModel: 1e-5."""

import jax
import numpy as np
import pytest
from flax import nnx

from exedit import contrastive
from exedit.weights import find
from exedit.weights.tables import clip, clip_text
from exedit.weights.translate import LINEAR, SAME, under
from tests.parity import references

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

TOWER = dict(width=32, layers=2, heads=4, mlp=64, patch=8, image_size=32)
TEXT = dict(vocabulary=50, length=12, width=24, layers=2, heads=3, mlp=40)
TABLE = [
  *under('', 'clip.', clip.TABLE),
  *under('', 'text.', clip_text.TABLE),
  ('visual_projection.weight', 'image_projection.kernel', LINEAR),
  ('text_projection.weight', 'text_projection.kernel', LINEAR),
  ('logit_scale', 'logit_scale', SAME),
]


@pytest.fixture(scope='module')
def theirs():
  end = TEXT['vocabulary'] - 1
  config = transformers.CLIPConfig(
    text_config=references.text_config(**TEXT, eos_token_id=end).to_dict(),
    vision_config=references.tower_config(**TOWER).to_dict(),
    projection_dim=20,
  )
  return references.randomised(transformers.CLIPModel(config))


def test_the_same_loss(theirs):
  build = lambda: contrastive.build(clip=TOWER, text=TEXT, dim=20, rngs=nnx.Rngs(0))
  model = references.ours(build, TABLE, references.weights(theirs))
  random = np.random.default_rng(0)
  tokens = random.integers(0, 48, (5, 12), np.int32)
  tokens[:, 0] = 48
  for row, length in zip(tokens, (2, 12, 5, 7, 9)):
    row[length - 1 :] = 49
  image = random.integers(0, 256, (5, 32, 32, 3), np.uint8)
  signed = np.asarray(contrastive.as_signed(jax.numpy.asarray(image)))
  with torch.no_grad():
    given = dict(input_ids=torch.from_numpy(tokens).long(), pixel_values=references.pixels(signed))
    expected = theirs(**given, return_loss=True)
  graphdef, params = nnx.split(model)
  call = jax.jit(lambda p, b: contrastive.loss(nnx.merge(graphdef, p), b, jax.random.key(0)))
  with jax.default_matmul_precision('highest'):
    value, _ = call(params, dict(image=image, tokens=tokens))
  assert abs(float(value) - float(expected.loss)) < 1e-5


def test_towers_of_a_folder_of_transformers(theirs, tmp_path):
  theirs.save_pretrained(tmp_path)
  saved = references.weights(theirs)
  for part, settings in (('clip', TOWER), ('text', TEXT)):
    found = find.clip_tower(tmp_path, part=part)
    assert found.config['model'] == {part: settings}
    assert {name.split('.')[0] for name in found.tensors} == {part}
  read = found.tensors['text.token_embedding'].read()
  np.testing.assert_array_equal(read, saved['text_model.embeddings.token_embedding.weight'])
