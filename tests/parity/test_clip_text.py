"""CLIPText against transformers' CLIPTextModel, same random weights, float32: within 1e-5."""

import jax
import numpy as np
import pytest

from exedit.models.clip_text import CLIPText
from exedit.weights.tables.clip_text import TABLE
from exedit.weights.translate import SAME
from tests.networks import jitted, keys
from tests.parity import references

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

SETTINGS = [
  dict(vocabulary=50, length=12, width=32, layers=2, heads=4, mlp=64),
  dict(vocabulary=99, length=77, width=48, layers=3, heads=3, mlp=100),
  dict(vocabulary=33, length=20, width=64, layers=1, heads=1, mlp=32),
]


def reference(settings):
  return references.randomised(transformers.CLIPTextModel(references.text_config(**settings)))


@pytest.mark.parametrize('settings', SETTINGS)
def test_same_hidden_states_for_texts_of_every_length(settings):
  theirs = reference(settings)
  model = references.ours(
    lambda: CLIPText(**settings, rngs=keys()), TABLE, references.weights(theirs)
  )
  for b, n in ((1, settings['length']), (3, 5)):
    ids = np.random.default_rng(n).integers(0, settings['vocabulary'], (b, n), np.int32)
    with torch.no_grad():
      expected = theirs(torch.from_numpy(ids).long()).last_hidden_state
    with jax.default_matmul_precision('highest'):
      np.testing.assert_allclose(jitted(model)(ids), expected, atol=1e-5, rtol=0)


def test_new_tokens_are_rows_behind_the_table():
  settings = SETTINGS[0]
  theirs = reference(settings | dict(vocabulary=53))
  tensors = references.weights(theirs)
  name = next(n for n in tensors if n.endswith('token_embedding.weight'))
  table, new = np.split(tensors[name], [50])
  rows = [*TABLE, ('new', 'new_tokens', SAME)]
  build = lambda: CLIPText(**settings, new=3, rngs=keys())
  model = references.ours(build, rows, tensors | {name: table, 'new': new})
  ids = np.random.default_rng(0).integers(0, 53, (4, 12), np.int32)
  ids[0, :3] = 50, 51, 52
  with torch.no_grad():
    expected = theirs(torch.from_numpy(ids).long()).last_hidden_state
  with jax.default_matmul_precision('highest'):
    np.testing.assert_allclose(jitted(model)(ids), expected, atol=1e-5, rtol=0)


def test_files_of_every_age_are_read():
  build = lambda: CLIPText(**SETTINGS[0], rngs=keys())
  bare = {
    k.removeprefix('text_model.'): v for k, v in references.weights(reference(SETTINGS[0])).items()
  }
  full = {f'text_model.{k}': v for k, v in bare.items()}
  old = full | {'text_model.embeddings.position_ids': np.arange(12)[None]}
  model = references.ours(build, TABLE, bare)
  for other in (full, old):
    references.assert_same_weights(references.ours(build, TABLE, other), model)
