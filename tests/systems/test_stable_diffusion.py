"""Stable Diffusion through the doors: pictures of texts, lists, replay; texts that are refused."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from configs import sd
from exedit import convert, latent_diffusion, stable_diffusion, systems
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.layouts import own
from tests import released, vocabulary
from tests.networks import with_random_weights
from tests.refusals import refusal
from tests.systems.test_third_system import open_sample_door

MODEL = dict(
  autoencoder=dict(kind='space_to_depth', patch=4),
  unet=dict(
    channels=8, mult=(1, 2), layers=1, attention_levels=(0, 1), heads=2, groups=4, remat='none'
  ),
  text=dict(length=12, width=16, layers=1, heads=2, mlp=32),
  context_dim=16,
)
EDIT = dict(steps=3, scale=2.0, sampler='ddim')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A folder with small random weights and their tokenizer."""
  folder = tmp_path_factory.mktemp('sd')
  size = vocabulary.write(folder / 'words')
  model = dict(MODEL, text=dict(MODEL['text'], vocabulary=size))
  built = with_random_weights(lambda: stable_diffusion.build(**model, rngs=nnx.Rngs(0)))
  config = dict(system='stable_diffusion', model=model, data=dict(size=16), edit=EDIT)
  arrays = {n: np.asarray(a) for n, a in parameters.flatten(built)[1].items()}
  own.write(folder / 'weights', config, arrays, step=5, tokenizer=folder / 'words')
  return str(folder / 'weights')


def pixels(path):
  return np.asarray(Image.open(path))


def test_the_published_recipe_and_its_sizes():
  config = sd.get_config()
  _, shapes = latent_diffusion.abstract(stable_diffusion.build, config.model.to_dict())
  trained, frozen = parameters.split_trainable(shapes, config.trainable)
  count = lambda found, part: sum(a.size for n, a in found.items() if n.startswith(f'{part}.'))
  assert {n.split('.')[0] for n in trained} == {'unet'} and count(trained, 'unet') == 859_520_964
  assert count(frozen, 'text') == 123_060_480 and count(frozen, 'autoencoder') == 83_653_863
  optimizer = config.optimizer
  assert (optimizer.lr, optimizer.warmup, optimizer.schedule) == (1e-4, 10_000, 'constant')
  assert (config.batch_size, config.model.p_drop, config.data.size) == (2048, 0.1, 512)
  assert set(sd.get_config('tiny')) == set(config)
  with pytest.raises(ValueError, match="no variant 'huge'; use full or tiny"):
    sd.get_config('huge')


def test_a_text_becomes_a_picture_that_replays(weights, tmp_path, capsys):
  output = tmp_path / 'new' / 'out.png'
  open_sample_door(weights=weights, prompt='a red ball', output=output, seed=4)
  recipe = json.loads(output.with_suffix('.json').read_text())
  assert recipe['inputs']['prompt']['text'] == 'a red ball'
  assert pixels(output).shape == (16, 16, 3)
  open_sample_door(replay=output)
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')


def test_rows_of_a_list_do_not_depend_on_each_other(weights, tmp_path, capsys):
  rows = ['prompt,negative_prompt,seed,output', 'a red ball,,1,a.png', 'a star,,1,b.png']
  rows += ['a red ball,a blue photo,1,c.png', 'red ' * 30 + ',,1,d.png']
  (tmp_path / 'list.csv').write_text('\n'.join(rows))
  open_sample_door(weights=weights, edits=tmp_path / 'list.csv', output=tmp_path)
  said = capsys.readouterr()
  assert "prompt is too long for the text tower, which does not see its end: 'red red" in (
    said.out + said.err
  )
  alone = tmp_path / 'alone.png'
  open_sample_door(weights=weights, prompt='a red ball', seed=1, output=alone)
  a, b, c = (pixels(tmp_path / f'{name}.png').astype(int) for name in 'abc')
  assert np.abs(a - pixels(alone)).max() <= 1
  assert (a != b).any() and (a != c).any()


@pytest.mark.parametrize(
  'prompt, says',
  [
    (' ', 'prompt is empty: say what the picture shows'),
    ('a красный мяч', "prompt: the vocabulary of these weights cannot spell 'красный', 'мяч'"),
    ('a ☃', "prompt: the vocabulary of these weights cannot spell '☃'"),
    ('a \x07', r'prompt: .*control character \(U\+0007\)'),
  ],
)
def test_texts_that_cannot_be_used_are_refused(weights, tmp_path, capsys, prompt, says):
  with pytest.raises(SystemExit):
    open_sample_door(weights=weights, prompt=prompt, output=tmp_path / 'a.png')
  assert re.search(says, capsys.readouterr().err)
  assert not list(tmp_path.iterdir())


def test_an_empty_negative_text_and_faults_of_a_list_are_refused(weights, tmp_path, capsys):
  given = dict(weights=weights, prompt='a star', output=tmp_path / 'a.png')
  said = refusal(capsys, open_sample_door, **given, negative_prompt=' ')
  assert said.endswith('negative_prompt is empty: leave it out')
  rows = ['prompt,output', 'a star,a.png', '球,b.png', 'a \x07,c.png']
  (tmp_path / 'list.csv').write_text('\n'.join(rows))
  with pytest.raises(SystemExit):
    open_sample_door(weights=weights, edits=tmp_path / 'list.csv', output=tmp_path)
  said = capsys.readouterr().err
  assert "cannot spell '球'" in said and 'control character (U+0007)' in said
  assert [path.name for path in tmp_path.iterdir()] == ['list.csv']


def test_a_text_tower_of_another_width_is_one_line_at_the_door(weights, tmp_path, capsys):
  shutil.copytree(weights, tmp_path / 'wide')
  released.change_json(
    tmp_path / 'wide' / 'config.json', model=dict(find.config(weights)['model'], context_dim=24)
  )
  said = refusal(
    capsys, open_sample_door, weights=tmp_path / 'wide', prompt='a star', output=tmp_path / 'a.png'
  )
  assert 'the text tower gives vectors of 16 numbers and the UNet takes 24' in said


def test_weights_without_a_tokenizer_and_other_widths_are_refused(weights, tmp_path):
  shutil.copytree(weights, tmp_path / 'bare')
  shutil.rmtree(tmp_path / 'bare' / 'tokenizer')
  with pytest.raises(UserError, match='bare has no tokenizer: put vocab.json and merges.txt'):
    stable_diffusion.tokenizer(find.weights(tmp_path / 'bare'))
  with pytest.raises(ValueError, match='gives vectors of 16 numbers and the UNet takes 24'):
    nnx.eval_shape(lambda: stable_diffusion.build(**dict(MODEL, context_dim=24), rngs=nnx.Rngs(0)))


def test_conversion_keeps_the_tokenizer(weights, tmp_path):
  convert.convert(weights, str(tmp_path / 'copy'), say=lambda line: None)
  first, second = find.weights(weights), find.weights(tmp_path / 'copy')
  assert second.kind == 'stable_diffusion' and first.tensors.keys() == second.tensors.keys()
  text = 'a blue star'
  spelt = [stable_diffusion.tokenizer(found)(text) for found in (first, second)]
  np.testing.assert_array_equal(*spelt)


def test_the_loss_learns_texts_and_drops_them_by_id(weights):
  model = systems.load(find.weights(weights))
  spell = stable_diffusion.tokenizer(find.weights(weights))
  random = np.random.default_rng(0)
  batch = dict(
    image=jnp.asarray(random.integers(0, 256, (4, 16, 16, 3), np.uint8)),
    tokens=jnp.stack([spell(text) for text in ('red ball', 'blue star', 'a ball', 'of red')]),
    id=jnp.arange(4),
  )
  graph, params = nnx.split(model)

  @jax.jit
  def run(params, batch):
    return stable_diffusion.loss(nnx.merge(graph, params), batch, jax.random.key(1))

  mean, found = run(params, batch)
  turned = {name: rows[::-1] for name, rows in batch.items()}
  np.testing.assert_allclose(
    run(params, turned)[1]['per_example'], found['per_example'][::-1], rtol=1e-5
  )
  other = dict(batch, tokens=batch['tokens'][::-1])
  assert np.abs(run(params, other)[1]['per_example'] - found['per_example']).max() > 1e-6
  np.testing.assert_allclose(mean, found['per_example'].mean(), rtol=1e-6)
