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
from exedit import convert, latent_diffusion, stable_diffusion, stable_diffusion_inpainting, systems
from exedit.editing import jobs
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.training.given import given_weights
from exedit.weights import find
from tests import released, vocabulary
from tests.networks import keys
from tests.refusals import refusal
from tests.small_text import MODEL, export
from tests.systems.test_third_system import open_sample_door


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return export(tmp_path_factory.mktemp('sd'), stable_diffusion.SYSTEM)


@pytest.fixture(scope='module')
def inpainting(tmp_path_factory):
  return export(tmp_path_factory.mktemp('inpainting'), stable_diffusion_inpainting.SYSTEM)


@pytest.fixture
def photo(tmp_path):
  """The files of a photo and of a mask, whose left half is white."""
  colours = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
  Image.fromarray(colours).save(tmp_path / 'photo.png')
  half = np.arange(24) < 12
  Image.fromarray(np.broadcast_to(np.uint8(half * 255), (16, 24))).save(tmp_path / 'mask.png')
  return dict(image=tmp_path / 'photo.png', mask=tmp_path / 'mask.png')


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
  _, shapes = latent_diffusion.abstract(stable_diffusion_inpainting.build, {})
  assert count(shapes, 'unet') == 859_535_364


def test_a_text_becomes_a_picture_that_replays(weights, tmp_path, capsys):
  output = tmp_path / 'new' / 'out.png'
  open_sample_door(weights=weights, prompt='a red ball', output=output, seed=4)
  recipe = json.loads(output.with_suffix('.json').read_text())
  assert recipe['inputs']['prompt']['text'] == 'a red ball'
  assert pixels(output).shape == (16, 16, 3)
  open_sample_door(replay=output)
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')
  shutil.copytree(weights, tmp_path / 'others')
  vocabulary.write(tmp_path / 'others' / 'tokenizer', vocabulary.WORDS[::-1])
  said = refusal(capsys, open_sample_door, replay=output, weights=tmp_path / 'others')
  assert 'others holds other weights or another tokenizer' in said


def test_rows_of_a_list_do_not_depend_on_each_other(weights, tmp_path, capsys):
  rows = ['prompt,negative_prompt,seed,output', 'a red ball,,1,a.png', 'a star,,1,b.png']
  rows += ['a red ball,a blue photo,1,c.png', 'red ' * 30 + ',,1,d.png']
  (tmp_path / 'list.csv').write_text('\n'.join(rows))
  open_sample_door(weights=weights, edits=tmp_path / 'list.csv', output=tmp_path)
  said = capsys.readouterr()
  assert "prompt is too long for the text tower, which does not see its end: 'red red" in (
    said.out + said.err
  )
  assert 'is repainted' not in said.out + said.err
  alone = tmp_path / 'alone.png'
  open_sample_door(weights=weights, prompt='a red ball', seed=1, output=alone)
  a, b, c = (pixels(tmp_path / f'{name}.png').astype(int) for name in 'abc')
  assert np.abs(a - pixels(alone)).max() <= 1
  assert (a != b).any() and (a != c).any()


def test_a_photo_changes_by_strength_and_a_mask_keeps_the_rest(weights, photo, tmp_path, capsys):
  rows = [dict(photo, prompt='a red ball', strength=strength) for strength in (0.4, 1)]
  rows += [dict(image=photo['image'], prompt='a red ball', strength=0.4)]
  lines = [json.dumps(dict(row, output=f'{i}.png'), default=str) for i, row in enumerate(rows)]
  (tmp_path / 'list.jsonl').write_text('\n'.join(lines))
  open_sample_door(weights=weights, edits=tmp_path / 'list.jsonl', output=tmp_path)
  source, *made = (pixels(path) for path in [photo['image'], *sorted(tmp_path.glob('?.png'))])
  for picture in made[:2]:
    np.testing.assert_array_equal(picture[:, 12:], source[:, 12:])
  assert (made[2][:, 12:] != source[:, 12:]).any()
  assert (made[0] != made[1]).any()
  open_sample_door(replay=tmp_path / '2.png')
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')


def test_the_inpainting_model_repaints_the_hole_by_the_text(inpainting, photo, tmp_path):
  made = []
  for prompt in ('a red ball', 'a blue star'):
    output = tmp_path / f'{prompt}.png'
    open_sample_door(weights=inpainting, **photo, prompt=prompt, output=output, match='none')
    made.append(pixels(output))
  for picture in made:
    np.testing.assert_array_equal(picture[:, 12:], pixels(photo['image'])[:, 12:])
  assert (made[0] != made[1]).any()


@pytest.mark.parametrize('column, told', [(5, True), (4, False)])
def test_a_mask_between_the_latents_is_told(weights, photo, tmp_path, column, told):
  line = np.zeros((16, 24), np.uint8)
  line[:, column] = 255
  Image.fromarray(line).save(photo['mask'])
  given = {name: str(path) for name, path in dict(photo, prompt='a star').items()}
  found, system = find.weights(weights), stable_diffusion.SYSTEM
  edit = jobs.Edit(given, str(tmp_path / 'out.png'), system.settings(zoom='off'))
  job = jobs.check(edit, system, 16, grid=system.mask_grid(found.config['model']))
  assert any('the mask is so thin' in note for note in job.notes) == told


def test_a_mask_without_a_photo_is_refused(weights, photo, tmp_path, capsys):
  with pytest.raises(SystemExit):
    open_sample_door(weights=weights, mask=photo['mask'], prompt='a', output=tmp_path / 'out.png')
  assert 'mask is given without a photo' in capsys.readouterr().err


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


@pytest.mark.parametrize(
  'prompt, says',
  [
    (' ', 'prompt is empty: say what the picture shows'),
    ('a \x07', 'has a control character'),
  ],
)
def test_texts_are_checked_before_weights_are_fetched(tmp_path, capsys, monkeypatch, prompt, says):
  monkeypatch.setattr(find, 'weights', lambda *_, **__: pytest.fail('the weights were fetched'))
  given = dict(weights='somebody/weights', output=tmp_path / 'a.png')
  assert says in refusal(capsys, open_sample_door, **given, prompt=prompt)
  (tmp_path / 'list.jsonl').write_text(json.dumps(dict(prompt=prompt, output='a.png')))
  assert says in refusal(capsys, open_sample_door, **given, edits=tmp_path / 'list.jsonl')
  (tmp_path / 'list.jsonl').write_text('{"prompt": "a star"}')
  said = refusal(capsys, open_sample_door, **given, edits=tmp_path / 'list.jsonl')
  assert 'it has no output: name the file to write in a column output' in said


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
    nnx.eval_shape(lambda: stable_diffusion.build(**dict(MODEL, context_dim=24), rngs=keys()))


def test_conversion_keeps_the_tokenizer(weights, tmp_path):
  convert.convert(weights, str(tmp_path / 'copy'), say=lambda line: None)
  first, second = find.weights(weights), find.weights(tmp_path / 'copy')
  assert second.kind == 'stable_diffusion' and first.tensors.keys() == second.tensors.keys()
  text = 'a blue star'
  spelt = [stable_diffusion.tokenizer(found)(text) for found in (first, second)]
  np.testing.assert_array_equal(*spelt)


@pytest.mark.parametrize('name', ['weights', 'inpainting'])
def test_a_training_starts_from_its_own_weights(name, request):
  found = find.weights(request.getfixturevalue(name))
  model, system = found.config['model'], systems.of(found)
  start = lambda **changes: given_weights(
    system, dict(init_from=found.where, model=model | changes)
  )
  assert start().keys() == found.tensors.keys()
  for changes, says in (
    (dict(schedule=dict(prediction='v')), 'schedule.prediction is eps there and v'),
    (dict(unet=dict(model['unet'], heads=4)), 'unet.heads is 2 there and 4'),
  ):
    with pytest.raises(UserError, match=f'of another architecture: {says} in config.model'):
      start(**changes)


@pytest.mark.parametrize('name', ['weights', 'inpainting'])
def test_the_loss_learns_texts_and_drops_them_by_id(name, request):
  found = find.weights(request.getfixturevalue(name))
  model, system = systems.load(found), systems.of(found)
  spell = stable_diffusion.tokenizer(found)
  random = np.random.default_rng(0)
  batch = dict(
    image=jnp.asarray(random.integers(0, 256, (4, 16, 16, 3), np.uint8)),
    tokens=jnp.stack([spell(text) for text in ('red ball', 'blue star', 'a ball', 'of red')]),
    id=jnp.arange(4),
  )
  graph, params = nnx.split(model)

  @jax.jit
  def run(params, batch, p_drop=0.0):
    model = nnx.merge(graph, params)
    object.__setattr__(model, 'p_drop', p_drop)
    return system.loss(model, batch, jax.random.key(1))

  mean, found = run(params, batch)
  turned = {name: rows[::-1] for name, rows in batch.items()}
  np.testing.assert_allclose(
    run(params, turned)[1]['per_example'], found['per_example'][::-1], rtol=1e-5
  )
  other = dict(batch, tokens=batch['tokens'][::-1])
  each = lambda batch, share: np.asarray(run(params, batch, share)[1]['per_example'])
  with_text, dropped, some = (
    np.abs(each(other, share) - each(batch, share)) > 1e-6 for share in (0.0, 1.0, 0.5)
  )
  assert with_text.all() and not dropped.any() and 0 < some.sum() < 4
  np.testing.assert_allclose(
    each(batch, 0.5), np.where(some, each(batch, 0.0), each(batch, 1.0)), rtol=1e-6
  )
  np.testing.assert_allclose(mean, found['per_example'].mean(), rtol=1e-6)


def test_a_quarter_of_the_drawn_masks_is_whole_and_the_others_are_rectangles():
  keys = jax.random.split(jax.random.key(0), 2000)
  masks = np.asarray(stable_diffusion_inpainting.draw_masks(keys, (8, 12)))[..., 0]
  whole = masks.all((1, 2))
  np.testing.assert_allclose(whole.mean(), 0.25, atol=0.04)
  for mask in masks[~whole][:50]:
    np.testing.assert_array_equal(mask, np.outer(mask.any(1), mask.any(0)))
  assert 0.05 < masks[~whole].mean() < 0.25  # two uniform corners cover a ninth
