"""Concepts in files, and applied to weights: what the model then is, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from exedit import latent_diffusion, stable_diffusion, systems
from exedit.concepts import concept as concepts
from exedit.concepts import files
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.layouts import own
from tests import concepts_made, small_text

K = 'unet.mid_attention.attn2.to_k.kernel'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_text.export(tmp_path_factory.mktemp('sd'), stable_diffusion.SYSTEM)


@pytest.fixture(scope='module')
def weights(folder):
  return find.weights(folder)


@pytest.fixture(scope='module')
def concept(weights):
  return concepts_made.made(weights)


def same(a, b):
  for one, two in ((a.kernels, b.kernels), (a.tokens, b.tokens)):
    assert [*one] == [*two] and all((one[n] == two[n]).all() for n in one)
  assert (a.base, a.about) == (b.base, b.about)


def test_the_published_size_has_32_keys_and_values():
  _, shapes = latent_diffusion.abstract(stable_diffusion.build, {})
  pairs = {n: a for n, a in shapes.items() if concepts.is_key_or_value(n)}
  assert len(pairs) == 32 and sum(a.size for a in pairs.values()) == 19_169_280


def test_a_file_holds_everything_and_the_order_of_the_words(tmp_path, weights):
  concept = concepts_made.made(weights, ('<new2>', '<new1>'))
  files.write(tmp_path / files.NAME, concept)
  for place in (tmp_path, tmp_path / files.NAME):  # the folder of a run, or the file
    found = files.read(place)
    assert [*found.tokens] == ['<new2>', '<new1>']
    same(dataclasses.replace(found, kernels=dict(sorted(found.kernels.items()))), concept)
  assert found.digest() == concept.digest() != concepts_made.made(weights, seed=1).digest()


def test_arrays_of_one_axis_are_read_too(tmp_path, weights, concept):
  biases = {n: t.read() + 1 for n, t in weights.tensors.items() if n == 'unet.conv_in.bias'}
  files.write(tmp_path / files.NAME, without(concept, kernels=biases))
  found = files.read(tmp_path)
  np.testing.assert_array_equal(found.kernels['unet.conv_in.bias'], biases['unet.conv_in.bias'])
  assert 'unet.conv_in.bias' in concepts.applied(weights, [found]).tensors


def test_applied_the_model_has_its_arrays_and_the_tokenizer_its_words(weights, concept):
  style = concepts_made.made(weights, ('<style>',), seed=1, kernels=False)
  found = concepts.applied(weights, [concept, style])
  params = parameters.flatten(systems.load(found))[1]
  before = {name: tensor.read() for name, tensor in weights.tensors.items()}
  assert params.keys() - before.keys() == {concepts.ROWS}
  rows = np.stack([concept.tokens['<new1>'], style.tokens['<style>']])
  assert (params[concepts.ROWS] == rows).all()
  changed = {n for n in before if (params[n] != before[n]).any()}
  assert changed == concept.kernels.keys() and len(changed) == 2 * 7
  assert all((params[n] == array).all() for n, array in concept.kernels.items())
  size = before['text.token_embedding'].shape[0]
  ids = stable_diffusion.tokenizer(found)('<style> of <new1> ball')
  assert [*ids[[1, 3]]] == [size + 1, size]
  assert len({weights.digest(), found.digest(), concepts.applied(weights, [concept]).digest()}) == 3


def test_the_base_is_known_in_other_files_and_in_half_precision(tmp_path, weights, concept):
  half = {n: t.read().astype(np.float16) for n, t in weights.tensors.items()}
  own.write(tmp_path / 'half', weights.config | dict(system=weights.kind), half, step=0)
  found = find.weights(tmp_path / 'half')
  assert concepts.base_digest(found) == concept.base
  assert concepts.applied(found, [concept]).words == ('<new1>',)
  half[K] = half[K] + np.float16(0.01)
  own.write(tmp_path / 'tuned', weights.config | dict(system=weights.kind), half, step=0)
  tuned = find.weights(tmp_path / 'tuned')
  with pytest.raises(UserError, match='learned on other weights .*tuned.*name its own'):
    concepts.applied(tuned, [concept])
  forced = concepts.applied(tuned, [concept], force=True)
  assert forced.words == ('<new1>',) and 'is used all the same' in forced.notes[-1]
  said = []
  source, to = str(tmp_path / 'tuned'), str(tmp_path / 'forced.safetensors')
  files.write(tmp_path / files.NAME, concept)
  files.convert(source, to, str(tmp_path / files.NAME), force=True, say=said.append)
  assert said[0] == forced.notes[-1] and files.read(to).base == concepts.base_digest(tuned)
  unknown = dataclasses.replace(concept, base='')
  assert 'does not say which weights' in concepts.applied(tuned, [unknown]).notes[-1]


def without(concept, *names, **more):
  kernels = {n: a for n, a in concept.kernels.items() if n not in names}
  return dataclasses.replace(concept, kernels=kernels | more.pop('kernels', {}), **more)


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda c: [without(c, K)], f'<new1> lacks 1 of 14 keys and values, such as {K}'),
    (lambda c: [without(c, kernels={K: np.zeros((3, 8))})], r'to_k.kernel \(3, 8\) and .* has it'),
    (lambda c: [without(c, kernels={'unet.x': np.zeros(3)})], 'unet.x .*has no such array'),
    (lambda c: [c, c], 'concepts of <new1>, <new1> both set .*: merge them'),
    (lambda c: [c, without(c, *c.kernels)], 'two concepts teach the same word'),
    (lambda c: [without(c, tokens={'<new1>': np.zeros(3)})], 'has 3 numbers and .* has 16'),
  ],
)
def test_a_concept_that_does_not_fit_is_refused(weights, concept, change, says):
  with pytest.raises(UserError, match=says):
    concepts.applied(weights, change(concept))


def test_weights_without_texts_and_with_new_words_are_refused(weights, concept):
  exemplar = dataclasses.replace(weights.without('text'), kind='paint_by_example')
  with pytest.raises(UserError, match='paint_by_example, which takes no texts'):
    concepts.applied(exemplar, [concept])
  with pytest.raises(UserError, match='name all concepts at once'):
    concepts.applied(concepts.applied(weights, [concept]), [concept])


def test_files_that_are_no_concept_are_refused(tmp_path, folder, concept):
  with pytest.raises(UserError, match='end its name in .safetensors'):
    files.write(tmp_path / 'c.ckpt', concept)
  for path, says in (
    (tmp_path, 'holds no concept: it has neither concept.safetensors nor'),
    (tmp_path / 'x', 'does not exist'),
    (f'{folder}/model.safetensors', 'entries that a concept does not have'),
  ):
    with pytest.raises(UserError, match=says):
      files.read(path)
  note = dict(version=1, words=['<new1>'], base='', about={})
  row, file = np.zeros(4, np.float32), tmp_path / 'damaged.safetensors'
  for tensors, change, says in (
    ({'tokens.<new1>': row}, dict(version=2), 'is of version 2'),
    ({'tokens.<new1>': row}, dict(words='<new1>'), 'damaged .its note'),
    ({'a': row[None]}, {}, 'it has no tokens.<new1>'),
    ({'tokens.<new1>': row[None]}, {}, r'tokens.<new1>|<new1> is float32 \(1, 4\)'),
    ({'tokens.<new1>': row, 'tokens.<new2>': row}, {}, 'tokens.<new2> is float32'),
  ):
    save_tensors(file, tensors, dict(concept=json.dumps(note | change)))
    with pytest.raises(UserError, match=says):
      files.read(file)
