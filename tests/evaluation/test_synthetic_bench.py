"""The benchmark of drawn edits: what perfect and blind editors score, and what is written."""

import dataclasses
import functools
import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from exedit import images, systems
from exedit import paint_by_example as pbe
from exedit.editing.settings import saved_evaluations
from exedit.evaluation import synthetic_bench
from exedit.input_pipeline import synthetic
from exedit.runtime.errors import UserError
from exedit.weights.layouts import own
from tests import small

SIZES = small.CONFIG['data']


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  with small.loaded_once():
    yield small.export(tmp_path_factory.mktemp('weights') / 'small')


@pytest.fixture(scope='module')
def second(tmp_path_factory):
  """Weights that say that they were trained on the second version of the scenes."""
  folder = tmp_path_factory.mktemp('weights') / 'second'
  own.write(folder, small.CONFIG | dict(synthetic=dict(version=2)), small.params(), step=12)
  return str(folder)


def stand_in(monkeypatch, edit):
  monkeypatch.setattr(pbe, 'edit', functools.wraps(pbe.edit)(edit))


def scored(weights, output, **settings):
  said = []
  return synthetic_bench.evaluate(weights, str(output), say=said.append, **settings), said


def follows_the_exemplar(monkeypatch, n, seed=0, **drawing):
  """A perfect editor: it finds the edit of an exemplar and returns that edit's truth."""
  bench = list(synthetic.bench(n, seed=seed, **{'truths': 4, **SIZES, **drawing}))
  truth = {edit['exemplar'].tobytes(): edit['truths'][edit['answer']] for edit in bench}

  def edit(model, source, mask, exemplar, key, **settings):
    found = [truth[images.to_uint8(e).tobytes()] for e in exemplar]
    return jnp.asarray(images.from_uint8(np.stack(found)))

  stand_in(monkeypatch, edit)


def test_the_control_exchanges_every_exemplar():
  for n in (2, 3, 50):
    order = synthetic_bench.derangement(n, seed=1)
    assert sorted(order) == list(range(n)) and (order != np.arange(n)).all()
  assert (synthetic_bench.derangement(50, 1) != synthetic_bench.derangement(50, 2)).any()


def test_a_perfect_editor_scores_one_with_its_own_exemplars_only(weights, tmp_path, monkeypatch):
  follows_the_exemplar(monkeypatch, 40)
  output = tmp_path / 'made' / 'here'
  results, said = scored(weights, output, edits=40, truths=4, batch_size=16)
  own, shuffled = results['own'], results['shuffled']
  assert own['identification'] == 1 and own['psnr'] == 100 and own['untouched'] == 40
  assert own['interval'][0] > 0.9 and results['chance'] == 0.25
  assert shuffled['identification'] < 0.6 and shuffled['untouched'] == 40
  assert '1.000 [0.912, 1.000]' in said[0] and '40 of 40' in said[0]
  assert sorted(os.listdir(output)) == ['grid.png', 'results.json']
  stored = json.loads((output / 'results.json').read_text())
  assert stored == json.loads(json.dumps(results))
  assert stored['benchmark'] == dict(edits=40, seed=0, truths=4, batch_size=16, **SIZES)
  assert stored['sampling'] == dict(steps=3, scale=2.0, sampler='ddim')
  assert stored['weights']['step'] == 12 and len(stored['weights']['sha256']) == 64
  assert len(stored['edits']) == 40 and len(stored['edits'][0]['own']['distances']) == 4
  width, height = Image.open(output / 'grid.png').size
  assert width > 7 * 192 and height > 12 * 192


@pytest.mark.parametrize('kind, chance', [('shape', 1 / 10), ('pattern', 1 / 5)])
def test_truths_that_differ_in_one_thing(second, tmp_path, monkeypatch, kind, chance):
  drawing = dict(kind=kind, version=2, truths=None, exemplar_pad=10)
  follows_the_exemplar(monkeypatch, 6, **drawing)
  results, said = scored(second, tmp_path, edits=6, kind=kind)
  assert results['own']['identification'] == 1 and results['chance'] == chance
  assert results['benchmark']['kind'] == kind and results['benchmark']['version'] == 2
  words = dict(shape='subject', pattern='pattern')
  assert f'truths that differ in the {words[kind]} alone' in said[0]


def test_pictures_of_texts_are_scored_by_their_captions(second, tmp_path, monkeypatch):
  truth = {edit['caption']: edit['truth'] for edit in synthetic.texts(4, seed=0, size=64)}
  letters = lambda text: np.array([*text.encode(), *[32] * (80 - len(text))], np.int32)

  def edit(model, arrays, keys, size):
    texts = (bytes(row.tolist()).decode().strip() for row in np.asarray(arrays['prompt'], np.uint8))
    return jnp.asarray(images.from_uint8(np.stack([truth[text] for text in texts])))

  system = dataclasses.replace(
    pbe.SYSTEM,
    inputs=(systems.Input('prompt', 'text', 'text'),),
    settings=dataclasses.make_dataclass('Settings', []),
    edit=edit,
    tokenizer=lambda found: letters,
  )
  monkeypatch.setattr(systems, 'of', lambda found: system)
  like = dict(size=64, scene_size=64, version=2)
  monkeypatch.setattr(synthetic_bench, 'drawn_like', lambda *_: dict(like))
  with pytest.raises(UserError, match='paint_by_example has no setting steps'):
    scored(second, tmp_path, edits=4, kind='text', steps=3)
  results, said = scored(second, tmp_path, edits=4, kind='text', batch_size=3)
  assert results['own']['identification'] == 1 and results['shuffled']['identification'] < 0.5
  assert 'its own text' in said[0] and 'PSNR' not in said[0]
  assert len(results['edits'][0]['own']['gains']) == 10
  assert (tmp_path / 'grid.png').exists()


def test_a_strength_counts_no_evaluations_of_a_picture_of_a_text():
  how = dict(steps=20, scale=2.0, sampler='ddim', guidance_interval='0,0.5', strength=0.5)
  assert 'of 10 evaluations' in saved_evaluations(how, 999)
  assert 'of 20 evaluations' in saved_evaluations(how, 999, photo=False)


def test_an_editor_that_ignores_the_exemplar_scores_the_same_in_both(
  weights, tmp_path, monkeypatch
):
  stand_in(monkeypatch, lambda m, source, mask, *_, **__: jnp.where(mask > 0, 0.1, source))
  results, said = scored(weights, tmp_path, edits=30, batch_size=8, guidance_interval='0,0.5')
  assert results['sampling']['guidance_interval'] == '0,0.5'
  assert 'guidance in 2 of 3 evaluations: 1 of 6 runs of the network are saved' in said[0]
  assert results['own'] == results['shuffled']
  assert results['own']['identification'] < 0.4


def test_a_system_without_exemplars_is_scored_too(weights, tmp_path, monkeypatch):
  edit = lambda model, arrays, keys, size: arrays['image'] * 0
  inputs = pbe.SYSTEM.inputs_of('photo', 'mask')
  settings = dataclasses.make_dataclass('Settings', [])
  system = dataclasses.replace(
    pbe.SYSTEM, inputs=inputs, settings=settings, edit=edit, picture_size=lambda model: 0
  )
  monkeypatch.setattr(systems, 'of', lambda found: system)
  results, _ = scored(weights, tmp_path, edits=4, truths=2)
  assert results['own'] == results['shuffled'] and results['own']['untouched'] == 4
  assert results['sampling'] == {}


def test_paint_outside_the_mask_is_counted():
  bench = list(synthetic.bench(4, seed=0, truths=2, **SIZES))
  results = np.stack([edit['source'] for edit in bench])
  y, x = np.argwhere(bench[2]['mask'] == 0)[-1]
  results[2, y, x, 1] ^= 1
  assert synthetic_bench.score_edits(results, bench)['untouched'].tolist() == [
    True,
    True,
    False,
    True,
  ]


def test_results_do_not_depend_on_the_batch_size(weights, tmp_path):
  runs = [scored(weights, tmp_path, edits=7, batch_size=b, truths=3)[0] for b in (3, 7)]
  for name in ('own', 'shuffled'):
    a, b = (np.array([edit[name]['distances'] for edit in run['edits']]) for run in runs)
    np.testing.assert_allclose(a, b, rtol=2e-3)
  assert runs[0]['own'] != runs[0]['shuffled']  # the small model does look at the exemplar


def test_unusable_settings_are_refused_before_anything_is_drawn(weights, tmp_path, monkeypatch):
  def bench(*_, **__):
    raise AssertionError('drawing began')

  monkeypatch.setattr(synthetic, 'bench', bench)
  (tmp_path / 'file').write_text('')
  for change in [
    dict(edits=1),
    dict(truths=1),
    dict(kind='colour'),
    dict(kind='shape'),  # the weights are of the first version
    dict(kind='text'),
    dict(batch_size=0),
    dict(steps=0),
    dict(sampler='euler'),
    dict(guidance_interval='1,0'),
    dict(output=str(tmp_path / 'file')),
    dict(output=str(tmp_path / 'file' / 'below')),
    dict(weights=str(tmp_path)),
    dict(weights=str(tmp_path / 'nowhere')),
  ]:
    arguments = dict(weights=weights, output=str(tmp_path / 'out')) | change
    with pytest.raises(UserError) as caught:
      synthetic_bench.evaluate(**arguments)
    assert '\n' not in str(caught.value)
  assert os.listdir(tmp_path) == ['file']


def test_scenes_are_drawn_as_the_weights_were_trained():
  photographs = dict(data=dict(size=64))
  found = synthetic_bench.drawn_like(pbe.SYSTEM, photographs)
  assert found == dict(size=64, exemplar_size=224)
  scenes = dict(data=dict(size=64, exemplar_size=32, exemplar_pad=4), synthetic=dict(size=128))
  drawing = dict(size=64, exemplar_size=32, exemplar_pad=4, scene_size=128)
  assert synthetic_bench.drawn_like(pbe.SYSTEM, scenes) == drawing
  scenes['synthetic']['version'] = 2
  assert synthetic_bench.drawn_like(pbe.SYSTEM, scenes) == drawing | dict(version=2)
  edit = next(synthetic.bench(1, seed=0, **drawing))
  assert edit['source'].shape == (64, 64, 3) and edit['exemplar'].shape == (32, 32, 3)
