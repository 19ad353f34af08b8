"""The autoencoder as a system: its loss by hand, and its weights as a part of other systems."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit import autoencoder_kl, latent_diffusion, paint_by_example, sample, systems
from exedit.runtime.errors import UserError
from exedit.training.given import given_weights
from exedit.weights import find
from tests import captions, on_devices, runs, small
from tests.networks import jitted, keys, with_random_weights
from tests.refusals import refusal

NETWORK = dict(kind='kl', fold=4, channels=8, mult=(1,), layers=1, groups=4, scale=1.0)
MODEL = dict(autoencoder=NETWORK, edges=0.5, kl=0.1)
REFUSED = 'run holds weights of autoencoder, with the parts autoencoder:'
EDITOR = small.MODEL | dict(autoencoder=NETWORK)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a training of two steps."""
  folder = tmp_path_factory.mktemp('autoencoder')
  captions.write(folder)  # without boxes
  runs.train(
    folder / 'run',
    system='autoencoder',
    steps=2,
    batch_size=4,
    log_every=1,
    edit_every=2,
    trainable='autoencoder',
    compile_cache=False,
    data=dict(root=str(folder), split='train', size=16, threads=1),
    model=MODEL,
    optimizer=dict(lr=1e-3, warmup=1),
    edit=dict(count=2),
  )
  return folder / 'run'


def test_the_loss_is_the_written_sum():
  model = with_random_weights(lambda: autoencoder_kl.build(**MODEL, rngs=keys()))
  batch = on_devices.batch(3)
  graphdef, params = nnx.split(model)
  call = jax.jit(lambda p, b: autoencoder_kl.loss(nnx.merge(graphdef, p), b, jax.random.key(5)))
  value, aux = call(params, batch)
  image, network = batch['image'] / np.float32(127.5) - 1, model.autoencoder
  (own,) = latent_diffusion.example_keys(jax.random.key(5), jnp.asarray(batch['id']), 1)
  mean, logvar = np.split(np.asarray(jitted(network, 'moments')(image)), 2, -1)
  z = mean + np.exp(logvar / 2) * np.asarray(latent_diffusion.normal(own, (4, 4, 4)))
  error = np.asarray(jitted(network, 'decode')(z)) - image
  pixels = np.abs(error).mean((1, 2, 3))
  steps = [np.abs(np.diff(error, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)]
  kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum((1, 2, 3)) / image[0].size
  each = pixels + 0.5 * sum(steps) + 0.1 * kl
  m, v = z.mean((0, 1, 2)), z.var((0, 1, 2))
  spread = 0.5 * (m**2 + v - 1 - np.log(v)).mean()
  np.testing.assert_allclose(aux['per_example'], each, rtol=1e-4)
  np.testing.assert_allclose(value, each.mean() + 1e-2 * spread, rtol=1e-4)
  psnr = -10 * np.log10((error**2).mean((1, 2, 3)) / 4)
  np.testing.assert_allclose(aux['psnr'], psnr, rtol=1e-4)


@pytest.mark.parametrize(
  'given, says',
  [
    (dict(autoencoder=dict(kind='space_to_depth')), "'space_to_depth': only 'kl' has parameters"),
    (dict(kl=-1.0), 'kl is -1.0: a part of the loss has a weight of at least 0'),
    (dict(autoencoder=dict(fold=0)), 'autoencoder.fold is 0: it must be at least 1'),
  ],
)
def test_settings_that_train_nothing_are_refused(given, says):
  with pytest.raises(ValueError, match=says):
    nnx.eval_shape(lambda: autoencoder_kl.build(**given, rngs=keys()))


def test_a_run_logs_what_the_latents_are(run):
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert len(lines) == 2 and (run / 'samples' / '2.png').exists()
  for name in ('psnr', 'kl', 'latents_std'):
    assert lines[0][name] > 0
  assert 'loss_by_timestep' not in lines[0]


def test_these_weights_edit_nothing(run, capsys, tmp_path):
  flags = [f'--weights={run}', '--image=a.png', '--mask=b.png', '--output=c.png']
  said = refusal(capsys, sample.run, ['sample', *flags])
  assert 'holds weights of autoencoder, which edits nothing' in said
  assert '--config.init_from; to edit, name weights of paint_by_example' in said


def given(run, model=EDITOR, **changes):
  system = systems.get('paint_by_example')
  how = dict(init_from=str(run), init_parts='autoencoder', model=model)
  return given_weights(system, how | changes)


def test_another_system_takes_the_autoencoder(run):
  """A part of the same name and settings, as the run saved it."""
  own = find.weights(str(run)).tensors
  found = given(run)
  _, shapes = paint_by_example.abstract(EDITOR)
  assert found.keys() == {name for name in shapes if name.startswith('autoencoder.')}
  for name, tensor in found.items():
    np.testing.assert_array_equal(tensor.read(), own[name].read())


def test_a_training_starts_from_its_own_weights(run):
  how = dict(init_from=str(run), model=MODEL | dict(kl=0.2))  # a weight of the loss may change
  found = given_weights(autoencoder_kl.SYSTEM, how)
  assert found.keys() == find.weights(str(run)).tensors.keys()
  defaults = autoencoder_kl.complete({})
  assert (defaults['kl'], defaults['spread'], defaults['edges']) == (1e-6, 1e-2, 0)


def test_a_source_of_which_nothing_is_left_is_refused(run):
  one = next(iter(find.weights(str(run)).tensors.values()))
  tower = lambda init_from, init_clip, model: {'clip.a': one}
  both = lambda init_from, init_clip, model: {'unet.a': one, 'clip.a': one}
  editor = paint_by_example.SYSTEM
  for changes, parts, flag, more in (
    (dict(start=tower), 'autoencoder', 'init_clip', 'clip'),
    (dict(start=both, starts_from=('autoencoder',)), 'clip', 'init_from', 'unet'),
  ):
    system = dataclasses.replace(editor, **changes)
    how = dict(init_from=str(run), init_clip='x', init_parts=parts, model=EDITOR)
    says = rf"init_parts is '{parts}', which takes nothing from --config.{flag}: .*{parts}.{more}'"
    with pytest.raises(UserError, match=says):
      given_weights(system, how)


@pytest.mark.parametrize(
  'changes, says',
  [
    (dict(init_parts=''), f'{REFUSED} name those that paint_by_example has too as --config'),
    (dict(init_parts='unet'), f'{REFUSED} name those'),
    (
      dict(model=EDITOR | dict(autoencoder=NETWORK | dict(scale=0.5))),
      'another architecture: autoencoder.scale is 1.0 there and 0.5 in config.model',
    ),
    (
      dict(model=EDITOR | dict(autoencoder=NETWORK | dict(fold=2))),
      'another architecture: autoencoder.fold is 4 there and 2 in config.model',
    ),
  ],
)
def test_other_parts_are_refused(run, changes, says):
  with pytest.raises(UserError, match=says):
    given(run, **changes)
