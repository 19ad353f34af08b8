"""CLIP as a system: its loss by hand, and its towers in the other systems."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit import contrastive, paint_by_example, sample, stable_diffusion, systems
from exedit.runtime.errors import UserError
from exedit.training.given import given_weights
from exedit.weights import find
from tests import captions, on_devices, runs, small
from tests.networks import keys, with_random_weights
from tests.refusals import refusal
from tests.systems.test_stable_diffusion import MODEL as BY_TEXT

CLIP = dict(width=16, layers=1, heads=2, mlp=32, patch=8, image_size=16)
TEXT = BY_TEXT['text']
TINY = on_devices.SYSTEMS['clip'][1]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a training of two steps, and the number of its tokens."""
  folder = tmp_path_factory.mktemp('clip')
  count = captions.write(folder)
  runs.train(
    folder / 'run',
    system='clip',
    steps=2,
    batch_size=4,
    log_every=1,
    edit_every=2,
    trainable='.*',
    compile_cache=False,
    data=dict(root=str(folder), split='train', size=16, threads=1),
    model=dict(clip=CLIP, text=TEXT | dict(vocabulary=count), dim=8),
    optimizer=dict(lr=1e-3, warmup=1),
    edit=dict(count=3),
  )
  return folder / 'run', count


def test_the_loss_is_the_written_sum():
  """Rows 0, 5 and 6 have equal texts, which are not told from each other."""
  model = with_random_weights(lambda: contrastive.build(**TINY, rngs=keys()), scale=0.5)
  model.logit_scale[...] = jnp.log(20.0)
  batch, (graphdef, params) = on_devices.batch(7), nnx.split(model)
  same = (batch['tokens'][:, None] == batch['tokens'][None]).all(-1)
  assert same.sum() == 7 + 6

  @jax.jit
  def call(params, batch):
    model = nnx.merge(graphdef, params)
    vectors = model.images(contrastive.as_signed(batch['image'])), model.texts(batch['tokens'])
    return vectors, contrastive.loss(model, batch, jax.random.key(0))

  (image, text), (value, aux) = call(params, batch)
  np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-5)
  similar = 20 * np.asarray(image) @ np.asarray(text).T
  similar[same & ~np.eye(7, dtype=bool)] = -np.inf
  each = []
  for i in range(7):
    rows = [np.log(np.exp(part).sum()) - part[i] for part in (similar[i], similar[:, i])]
    each.append(np.mean(rows))
  np.testing.assert_allclose(aux['per_example'], each, rtol=1e-4)
  np.testing.assert_allclose(value, np.mean(each), rtol=1e-4)
  np.testing.assert_array_equal(aux['accuracy'], similar.argmax(1) == np.arange(7))
  assert 0 < np.mean(aux['accuracy']) < 1


def test_a_texts_vector_is_that_of_its_first_end_token():
  model = with_random_weights(lambda: contrastive.build(**TINY, rngs=keys()), scale=0.5)
  texts = jax.jit(lambda tokens: model.texts(tokens))
  one, same, other = texts(jnp.array([[5, 1, 6, 6, 6], [5, 1, 6, 2, 3], [5, 2, 6, 6, 6]]))
  np.testing.assert_allclose(one, same, rtol=1e-5)  # it does not see what follows
  assert np.abs(one - other).max() > 1e-3


def test_the_scale_stops_at_100_and_can_come_back():
  assert jax.value_and_grad(contrastive.bounded)(3.0) == (3.0, 1.0)
  up, down = (jax.grad(lambda x, s=s: s * contrastive.bounded(x))(5.0) for s in (-1.0, 1.0))
  np.testing.assert_allclose(jnp.exp(contrastive.bounded(jnp.float32(5))), 100, rtol=1e-5)
  assert (up, down) == (0.0, 1.0)


def test_a_run_logs_how_often_texts_are_found(run, capsys):
  lines = [json.loads(line) for line in (run[0] / 'metrics.jsonl').read_text().splitlines()]
  assert len(lines) == 2 and (run[0] / 'samples' / '2.png').exists()
  assert 0 <= lines[0]['accuracy'] <= 1
  np.testing.assert_allclose(lines[0]['similarity_scale'], 1 / 0.07, rtol=1e-4)
  said = refusal(
    capsys, sample.run, ['sample', f'--weights={run[0]}', '--prompt=a', '--output=c.png']
  )
  assert 'holds weights of clip, which edits nothing' in said


def taken(system, model, run, **more):
  given = given_weights(systems.get(system), dict(model=model, init_clip=str(run), **more))
  own = find.weights(str(run)).tensors
  for name, tensor in given.items():
    np.testing.assert_array_equal(tensor.read(), own[name].read())
  return {*given}


def test_each_system_takes_its_tower(run):
  folder, count = run
  by_text = BY_TEXT | dict(text=TEXT | dict(vocabulary=count))
  by_picture = small.MODEL | dict(clip=CLIP)
  _, pbe = paint_by_example.abstract(by_picture)
  found = taken('paint_by_example', by_picture, folder)
  assert found == {name for name in pbe if name.startswith('clip.')}
  found = taken('stable_diffusion', by_text, folder, init_parts='text')
  assert found and {name.split('.')[0] for name in found} == {'text'}
  assert taken('stable_diffusion_inpainting', by_text, folder) == found
  own = find.config(str(folder))['model']
  found = taken('clip', own, folder)
  assert {name.split('.')[0] for name in found} == {'clip', 'text'}
  found = taken('clip', own, folder, init_parts='clip')
  assert {name.split('.')[0] for name in found} == {'clip'}
  config = dict(data=dict(root=str(folder.parent)), model=by_text, init_clip=str(folder))
  read = stable_diffusion.data_settings(config, str(folder.parent / 'none'))
  assert read['tokenizer'] == str(folder / 'tokenizer')


def test_a_training_starts_from_its_own_weights(run):
  folder = str(run[0])
  own, model = find.weights(folder).tensors, find.config(folder)['model']
  found = given_weights(contrastive.SYSTEM, dict(init_from=folder, model=model))
  assert found.keys() == own.keys() and 'logit_scale' in found
  with pytest.raises(UserError, match='another architecture: dim is 8 there and 9 in config.model'):
    given_weights(contrastive.SYSTEM, dict(init_from=folder, model=model | dict(dim=9)))
  with pytest.raises(UserError, match='run has its own image tower: leave out --config.init_clip'):
    given_weights(contrastive.SYSTEM, dict(init_from=folder, init_clip=folder, model=model))


@pytest.mark.parametrize(
  'system, model, says',
  [
    ('paint_by_example', small.MODEL, 'another architecture: clip.patch is 8 there and 4 in'),
    ('stable_diffusion', BY_TEXT, 'another architecture: text.vocabulary is .* in config.model'),
    ('autoencoder', {}, 'autoencoder has no tower of CLIP: leave it out'),
  ],
)
def test_other_towers_are_refused(run, system, model, says):
  with pytest.raises(UserError, match=says):
    taken(system, model, run[0])


def test_weights_without_a_tower_are_refused(tmp_path):
  with pytest.raises(
    UserError, match='a holds weights of paint_by_example, which has no text tower'
  ):
    find.clip_tower(small.export(tmp_path / 'a'), part='text')
