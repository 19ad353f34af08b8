"""Blended Diffusion by an exemplar, with weights that `convert` joined, through the doors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from exedit import blended_diffusion, contrastive, convert, latent_diffusion, systems
from exedit import stable_diffusion as by_text
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.training.config import read_config
from exedit.weights import find
from exedit.weights.layouts import own
from tests import small, small_text
from tests.networks import with_random_weights
from tests.systems.test_third_system import open_sample_door

CLIP = dict(width=16, layers=1, heads=2, mlp=32, patch=4, image_size=8)
TEXT = dict(small_text.MODEL['text'], vocabulary=9)
HOW = dict(steps=3, sampler='ddim', views=2)


def quiet(*args, **kwargs):
  convert.convert(*map(str, args), say=lambda line: None, **kwargs)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with weights of Stable Diffusion, of CLIP, and of both joined."""
  path = tmp_path_factory.mktemp('blended')
  small_text.export(path, by_text.SYSTEM, mult=(1,), attention_levels=(0,))
  model = dict(clip=CLIP, text=TEXT, dim=6)
  built = with_random_weights(lambda: contrastive.build(**model, rngs=nnx.Rngs(0)), scale=0.5)
  arrays = {n: np.asarray(a) for n, a in parameters.flatten(built)[1].items()}
  arrays['clip.patch_embedding.kernel'] = (
    8 * arrays['clip.patch_embedding.kernel']
  )  # so that vectors are not nearly the same
  own.write(path / 'clip', dict(system='clip', model=model, data=dict(size=8)), arrays, step=3)
  quiet(path / 'weights', path / 'joined', clip=str(path / 'clip'))
  return path


@pytest.fixture(scope='module')
def model(folder):
  return systems.load(find.weights(folder / 'joined'))


@pytest.fixture
def files(tmp_path):
  """The files of a photo, of a mask, whose left half is white, and of an exemplar."""
  random = np.random.default_rng(0)
  for name, size in dict(photo=(16, 24, 3), exemplar=(10, 14, 3)).items():
    Image.fromarray(random.integers(0, 256, size, np.uint8)).save(tmp_path / f'{name}.png')
  half = np.broadcast_to(np.uint8((np.arange(24) < 12) * 255), (16, 24))
  Image.fromarray(half).save(tmp_path / 'mask.png')
  paths = dict(image='photo', mask='mask', exemplar='exemplar')
  return {name: tmp_path / f'{stem}.png' for name, stem in paths.items()}


def pixels(path):
  return np.asarray(Image.open(path))


# Weights


def test_joined_weights_are_those_of_both(folder):
  joined, base, clip = (find.weights(folder / name) for name in ('joined', 'weights', 'clip'))
  assert joined.kind == 'blended_diffusion' and joined.step == base.step
  for name, tensor in joined.tensors.items():
    expected = base.tensors[name] if name in base.tensors else clip.tensors[name]
    np.testing.assert_array_equal(tensor.read(), expected.read())
  assert joined.tensors.keys() - base.tensors.keys() == {
    name for name in clip.tensors if name.split('.')[0] in ('clip', 'image_projection')
  }
  assert joined.config['edit'] == dict(steps=3, scale=2.0)  # the sampler is the system's
  assert joined.tokenizer_digest() == base.tokenizer_digest()
  complete = blended_diffusion.complete(joined.config['model'])
  assert complete['clip'] == CLIP and complete['dim'] == 6
  assert blended_diffusion.picture_size({}) == 224
  quiet(folder / 'joined', folder / 'again')
  assert find.weights(folder / 'again').kind == 'blended_diffusion'


def test_the_published_sizes():
  _, shapes = latent_diffusion.abstract(blended_diffusion.build, {})
  count = lambda part: sum(a.size for n, a in shapes.items() if n.startswith(f'{part}.'))
  assert count('unet') == 859_520_964 and count('clip') == 303_179_776
  assert count('image_projection') == 1024 * 768


def test_what_cannot_be_joined_is_refused(folder, tmp_path):
  pbe, sd, clip = small.export(tmp_path / 'pbe'), folder / 'weights', folder / 'clip'
  for base, tower, how, says in (
    (pbe, clip, {}, 'pbe holds weights of paint_by_example: CLIP joins those of stable_diffusion'),
    (sd, pbe, {}, 'pbe holds weights of paint_by_example, which has no image_projection but'),
    (sd, sd, {}, 'holds weights of stable_diffusion, which has no image tower but'),
    (sd, tmp_path / 'no', {}, 'no does not exist'),
    (sd, clip, dict(layout='diffusers'), "'blended_diffusion'.* only --layout=exedit can hold it"),
  ):
    with pytest.raises(UserError, match=says):
      quiet(base, tmp_path / 'out', clip=str(tower), **how)
  assert not (tmp_path / 'out').exists()


def test_nothing_is_trained():
  given = dict(system='blended_diffusion', steps=1, batch_size=1, data=dict(root='x'), model={})
  with pytest.raises(UserError, match="'blended_diffusion', which only edits") as stop:
    read_config(given)
  able = str(stop.value).partition('train one of ')[2]
  assert able.startswith('paint_by_example') and 'blended_diffusion' not in able


# Edits


def test_a_list_and_a_replay(folder, files, tmp_path, capsys):
  """The settings of HOW, so that both tests of edits share a program."""
  how = dict(HOW, match='none', zoom='off')
  rows = [dict(files), dict(files, prompt='a red ball')]
  lines = [
    json.dumps(dict(row, output=f'{i}.png', **how), default=str) for i, row in enumerate(rows)
  ]
  (tmp_path / 'list.jsonl').write_text('\n'.join(lines))
  open_sample_door(weights=folder / 'joined', edits=tmp_path / 'list.jsonl', output=tmp_path)
  source, *made = (pixels(path) for path in [files['image'], *sorted(tmp_path.glob('?.png'))])
  for picture in made:
    np.testing.assert_array_equal(picture[:, 12:], source[:, 12:])
    assert (picture[:, :12] != source[:, :12]).any()
  assert (made[0] != made[1]).any()
  recipe = json.loads((tmp_path / '0.json').read_text())
  told = recipe['settings']
  assert (told['clip_scale'], told['views'], told['strength']) == (100, 2, 0.75)
  assert [*recipe['inputs']] == ['image', 'mask', 'exemplar']
  capsys.readouterr()
  open_sample_door(replay=tmp_path / '0.png')
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')


def arrays(count=1):
  random = np.random.default_rng(1)
  draw = lambda *size: jnp.asarray(random.uniform(-1, 1, (count, *size, 3)), jnp.float32)
  mask = np.broadcast_to(np.arange(24)[:, None] < 12, (count, 16, 24, 1))
  return draw(16, 24), jnp.asarray(mask, jnp.float32), draw(8, 8)


def test_more_guidance_brings_the_hole_nearer_to_the_exemplar(model):
  source, mask, exemplar = arrays()
  how = dict(key=jax.random.key(0), steps=3, sampler='ddim', strength=0.75)
  made, near = {}, []
  for scale in (0.0, 1000.0, 3000.0):
    given = model, source, mask, exemplar
    made[scale] = blended_diffusion.edit(*given, clip_scale=scale, views=2, **how)
    np.testing.assert_array_equal(made[scale][:, :, 12:], source[:, :, 12:])
    hole = jax.image.resize(made[scale][:, :, :12], exemplar.shape, 'linear')
    near.append(float((model.vectors(hole) * model.vectors(exemplar)).sum()))
  assert near[2] > near[1] > near[0] and 1 - near[2] < 0.5 * (1 - near[0])
  plain = by_text.edit(model, source, mask, model.empty(1), scale=1.0, **how)
  np.testing.assert_allclose(made[0.0], plain, atol=1e-5)
  with pytest.raises(ValueError, match='1 exemplars for 2 sources'):
    blended_diffusion.edit(model, source.repeat(2, 0), mask, exemplar, **how)


def test_the_guidance_depends_on_no_other_of_the_batch(model):
  _, mask, exemplar = arrays(2)
  keys = jax.random.split(jax.random.key(2), 2)
  x = jax.random.normal(jax.random.key(3), (2, 4, 6, 48))
  graphdef, params = nnx.split(model)

  @jax.jit
  def call(params, x, mask, exemplar, keys):
    own = nnx.merge(graphdef, params)
    given = own, own.vectors(exemplar), mask, keys, 100.0, 3
    return blended_diffusion.guided(lambda x, t: 0.3 * x, *given)(x, jnp.full(len(x), 500))

  own = x, mask.at[1, :, 6:].set(0), exemplar, keys
  found = call(params, *own)
  swapped = call(params, *(array[::-1] for array in own))
  np.testing.assert_allclose(swapped[::-1], found, atol=1e-5)
  changed = call(params, x, *own[1:3], keys[jnp.array([0, 0])])
  np.testing.assert_allclose(changed[0], found[0], atol=1e-5)
  assert np.abs(changed[1] - found[1]).max() > 1e-4  # its copies are others
  assert np.abs(found[1, :, 2:] - 0.3 * x[1, :, 2:]).max() < 1e-6  # no gradient outside the hole
  assert np.abs(found[0, :, 2:3] - 0.3 * x[0, :, 2:3]).max() > 1e-4


def test_vectors_that_are_equal_or_opposite_have_a_finite_gradient():
  one = jnp.array([[[0.6, 0.8]]])
  far = jax.value_and_grad(lambda x, other: blended_diffusion.distance(x, other).sum())
  for other in (one, -one):
    value, gradient = far(one, other)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(value, 0 if other is one else np.pi**2 / 2, rtol=1e-2, atol=1e-6)
