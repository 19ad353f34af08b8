"""Training Stable Diffusion on captioned pictures: previews, the run's tokenizer, exact resume."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import sd
from exedit import stable_diffusion, systems
from exedit.input_pipeline import vocabulary as words
from exedit.input_pipeline import world
from exedit.planning import compile_step
from exedit.runtime.errors import UserError
from exedit.training import history
from exedit.training.config import read_config
from exedit.training.given import given_weights
from exedit.weights import find
from tests import captions, runs, vocabulary
from tests.small_text import EDIT, MODEL
from tests.systems.test_third_system import open_sample_door


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('captioned')
  return folder, captions.write(folder)


@pytest.fixture(scope='module')
def config(data):
  root, size = data
  return dict(
    system='stable_diffusion',
    steps=2,
    batch_size=4,
    log_every=1,
    save_every=1,
    edit_every=2,
    trainable='unet|text',
    compile_cache=False,
    data=dict(root=str(root), split='train', size=16),
    model=dict(MODEL, text=dict(MODEL['text'], vocabulary=size)),
    optimizer=dict(lr=1e-3, warmup=1),
    ema=dict(decay=0.9),
    edit=dict(EDIT, count=2),
  )


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
  """The workdir of a training of two steps that continued to a third without its first data."""
  folder = tmp_path_factory.mktemp('run') / 'run'
  runs.train(folder, **config)
  moved = tmp_path_factory.mktemp('moved') / 'data'
  shutil.copytree(config['data']['root'], moved, ignore=lambda *_: {'tokenizer'})
  again = dict(config, steps=3, edit_every=0, data=dict(config['data'], root=str(moved)))
  assert runs.train(folder, **again).step == 3
  return folder


def test_the_run_continues_with_its_own_tokenizer_to_the_same_weights(config, run, tmp_path):
  runs.train(tmp_path / 'whole', **dict(config, steps=3, edit_every=0))
  assert runs.digests(run, 3) == runs.digests(tmp_path / 'whole', 3)
  assert runs.lines(run) == runs.lines(tmp_path / 'whole')


def test_previews_show_the_captions(run):
  sheet = np.asarray(Image.open(run / 'samples' / '2.png'))
  cell = (sheet.shape[1] - 4) // 4
  second = sheet[20:, cell + 4 : 2 * cell]  # texts: dark on white
  assert second.min() < 100 and np.median(second) == 255


def test_a_run_is_all_that_sampling_needs(run, tmp_path):
  open_sample_door(weights=run, prompt='a red ball', output=tmp_path / 'a.png', size=20)
  assert Image.open(tmp_path / 'a.png').size == (20, 20)
  assert json.loads((tmp_path / 'a.json').read_text())['settings']['size'] == 20
  assert find.weights(run).tokenizer == run / 'tokenizer'


def test_fine_tuning_takes_the_weights_and_their_tokenizer(run, config, data, tmp_path):
  root = tmp_path / 'data'
  shutil.copytree(data[0], root, ignore=lambda *_: {'tokenizer'})
  tuned = dict(config, data=dict(config['data'], root=str(root)), init_from=str(run))
  found = stable_diffusion.data_settings(tuned, str(tmp_path / 'tuned'))
  assert found['tokenizer'] == str(run / 'tokenizer') and found['length'] == 12
  tensors = given_weights(stable_diffusion.SYSTEM, tuned)
  assert tensors.keys() == find.weights(run).tensors.keys()


def test_trainings_without_the_right_tokenizer_are_refused(config, data, run, tmp_path):
  root = tmp_path / 'data'
  shutil.copytree(data[0], root, ignore=lambda *_: {'tokenizer'})
  told = lambda **more: dict(config, data=dict(config['data'], root=str(root), **more))
  vocabulary.write(tmp_path / 'other', words=('red', 'blue'))
  model = config['model']
  small = dict(model, text=dict(model['text'], width=24, heads=2))
  for given, says in (
    (told(), r'data has no folder tokenizer/: name one .* --config.data.tokenizer=DIR'),
    (told(tokenizer=str(tmp_path / 'other')), 'other has 59 tokens, .* the text tower has 70'),
    (told(length=5), 'config.data.length is 5 and config.model.text.length is 12: leave it out'),
    (dict(config, model=small), 'gives vectors of 24 numbers and the UNet takes 16'),
    (dict(config, init_from=str(run), init_clip='x'), 'has its own text tower: leave out'),
  ):
    with pytest.raises(UserError, match=says):
      runs.train(tmp_path / 'run', **given)
    assert not (tmp_path / 'run').exists()


def test_a_run_does_not_go_on_with_another_tokenizer(config, run, tmp_path):
  other = tmp_path / 'other'
  shutil.copytree(run / 'tokenizer', other)
  words = json.loads((other / 'vocab.json').read_text())
  words['a'], words['b'] = words['b'], words['a']
  (other / 'vocab.json').write_text(json.dumps(words))
  given = dict(config, steps=4, data=dict(config['data'], tokenizer=str(other)))
  with pytest.raises(UserError, match='other settings: the tokenizer .*tokenizer -> .*other;'):
    runs.train(run, **given)


def test_the_folder_of_the_tokenizer_may_change(config, run, tmp_path):
  shutil.copytree(run / 'tokenizer', tmp_path / 'same')
  assert history.other_tokenizer(str(run), str(tmp_path / 'same')) == []
  told = dict(config, data=dict(config['data'], tokenizer='elsewhere'))
  for data in ({}, dict(root='r')):  # an older program has not described its data
    past = history.History(config=told, data=data)
    learned, other = past.changes(read_config(config))
    assert learned == [] and len(other) == 1 and 'data.tokenizer elsewhere -> ' in other[0]


def test_a_run_that_has_not_saved_takes_its_tokenizer_anew(config, data, run, tmp_path):
  folder = tmp_path / 'killed'
  shutil.copytree(run / 'tokenizer', folder / 'tokenizer')
  found = lambda: stable_diffusion.data_settings(config, str(folder))['tokenizer']
  assert found() == str(data[0] / 'tokenizer')
  shutil.copytree(run / 'checkpoints', folder / 'checkpoints')
  assert found() == str(folder / 'tokenizer')


@pytest.mark.parametrize('variant', ['full', 'tiny'])
def test_the_configs_lay_their_step_out(variant):
  config = read_config(sd.get_config(variant).to_dict()).as_dict()
  compile_step.check(config)
  shapes = compile_step.example_shapes(config)
  side, length = config['data']['size'], config['model']['text'].get('length', 77)
  assert shapes['image'][0] == (side, side, 3) and shapes['tokens'][0] == (length,)
  system = systems.get(config['system'])
  assert system is stable_diffusion.SYSTEM
  system.complete(config['model'])


def test_the_tiny_tower_has_the_words_of_the_drawn_scenes():
  tokens, _ = words.make(world.words())
  assert sd.get_config('tiny').model.text.vocabulary == len(tokens)
