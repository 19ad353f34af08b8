"""Latents instead of pixels: the same loss, a resumed encoding, and what is refused."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import pbe as recipe
from exedit import paint_by_example as pbe
from exedit import systems
from exedit.input_pipeline import (
  latent_shards,
  loader,
  open_images,
  show,
  synthetic,
  tf_example,
  tfrecord,
)
from exedit.input_pipeline.errors import DataError
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.training import encode_latents, latent_encoder
from exedit.weights.layouts import own
from tests import released, runs
from tests.runs import ROOT, end, free_port, lines

SCENES = dict(scenes=20, val_scenes=4, seed=0, shards=3, size=64)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  root = tmp_path_factory.mktemp('photos')
  synthetic.ensure(str(root), **SCENES)
  return str(root)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights') / 'w'
  own.write(path, released.config(), released.params(), step=1)
  return str(path)


@pytest.fixture
def config(photos, weights):
  """A training with a real autoencoder, small."""
  config = recipe.get_config('tiny').to_dict()
  data = dict(root=photos, split='train', size=32, exemplar_size=32, threads=1)
  little = dict(model=json.loads(json.dumps(released.SMALL)), data=data, init_from=weights)
  plan = dict(steps=3, batch_size=4, log_every=1, save_every=2, edit_every=0, synthetic=None)
  little |= dict(optimizer=dict(lr=1e-3))
  return {**config, **little, **plan, 'trainable': 'unet|conditioner', 'compile_cache': False}


@pytest.fixture(scope='module')
def whole(photos, weights, tmp_path_factory):
  """Encoded in float32, two draws of each photo."""
  config = dict(data=dict(root=photos, size=32, exemplar_size=32, extend=0.3), seed=0)
  config |= dict(system='paint_by_example', model=json.loads(json.dumps(released.SMALL)))
  config |= dict(init_from=weights)
  output = tmp_path_factory.mktemp('encoded') / 'whole'
  encode_latents.encode(config, str(output), draws=2, dtype='float32', batch_size=7)
  return str(output)


def test_the_loss_is_that_of_the_pictures_themselves(photos, whole, weights):
  """Examples made again from the photos, by the rule in the docstring of `cropped`."""
  rows = next(
    loader.batches(
      whole, 'train', 6, shuffle=False, augment=False, size=32, exemplar_size=32, extend=0.3
    )
  )
  assert set(rows) == {'mask', 'exemplar', 'moments', 'id', 'corrupt'}
  source = tfrecord.Source(tfrecord.shard_paths(photos, 'train')[:1])
  again = [
    open_images.make_example(
      tf_example.parse_example(source[i]),
      np.random.default_rng([0, 0, i, k]),
      **dict(size=32, exemplar_size=32, augment=False, extend=0.3),
    )
    for i in range(3)
    for k in range(2)
  ]
  again = {name: np.stack([example[name] for example in again]) for name in again[0]}
  for name in ('mask', 'exemplar'):
    np.testing.assert_array_equal(rows[name], again[name])
  again |= dict(id=rows['id'], corrupt=rows['corrupt'])
  graph, params = parameters.flatten(pbe.load(weights))

  @jax.jit
  def loss(batch):
    return pbe.loss(parameters.merge(graph, params), batch, jax.random.key(3))[1]['per_example']

  np.testing.assert_allclose(loss(rows), loss(again), rtol=1e-5)
  assert not np.allclose(loss({**again, 'image': again['image'][::-1]}), loss(rows))


def test_half_precision_is_close(config, whole, tmp_path):
  config['data']['extend'] = 0.3
  encode_latents.encode(config, str(tmp_path / 'half'), draws=2)
  settings = dict(shuffle=False, augment=False, size=32, exemplar_size=32, extend=0.3)
  rows = [next(loader.batches(str(r), 'train', 8, **settings)) for r in (whole, tmp_path / 'half')]
  assert [str(r['moments'].dtype) for r in rows] == ['float32', 'float16']
  np.testing.assert_allclose(rows[1]['moments'], rows[0]['moments'], rtol=1e-3, atol=1e-3)


def test_what_was_stopped_goes_on_and_nothing_is_made_twice(config, tmp_path, monkeypatch):
  whole, torn, said = tmp_path / 'whole', tmp_path / 'torn', []
  encode_latents.encode(config, str(whole))
  write, count = tfrecord.write_shard, []

  def stop(path, records):
    count.append(os.path.basename(path))
    if len([name for name in count if 'train' in name]) == 2:
      raise KeyboardInterrupt
    return write(path, records)

  monkeypatch.setattr(tfrecord, 'write_shard', stop)
  with pytest.raises(KeyboardInterrupt):
    encode_latents.encode(config, str(torn))
  with pytest.raises(DataError, match='holds 1 of the 3 shards'):
    next(loader.batches(str(torn), 'train', 2, size=32, exemplar_size=32))
  monkeypatch.setattr(tfrecord, 'write_shard', lambda *a: count.append('') or write(*a))
  before = len(count)
  (torn / '.synthetic-train.tfrecord-00001-of-00003.12345.0.tmp').write_bytes(
    b'of a killed process'
  )
  encode_latents.encode(config, str(torn), say=said.append)
  assert said == ['1 of 3 shards are there already'] and len(count) - before == 2
  assert sorted(os.listdir(torn)) == sorted(os.listdir(whole))
  for name in os.listdir(whole):
    if not name.endswith('.npy'):  # an index knows its file's time
      assert (torn / name).read_bytes() == (whole / name).read_bytes(), name


def test_damage_is_said_and_left_out(config, photos, tmp_path):
  """A photo that cannot be decoded, and a record of the validation split with a wrong checksum."""
  shutil.copytree(photos, tmp_path / 'photos', ignore=shutil.ignore_patterns('*-train.*'))
  (path, *_) = tfrecord.shard_paths(photos, 'train')
  source = tfrecord.Source([path])
  records = [source[i] for i in range(len(source))]
  bad = tf_example.parse_example(records[1])
  records[1] = tf_example.serialize_example({**bad, 'image': [b'no picture']})
  tfrecord.write_shard(f'{tmp_path}/photos/synthetic-train.tfrecord-00000-of-00001', records)
  (path,) = tfrecord.shard_paths(str(tmp_path / 'photos'), 'validation')
  with open(path, 'r+b') as file:
    file.seek(100)
    file.write(b'\xff')
  config['data']['root'], said = str(tmp_path / 'photos'), []
  encode_latents.encode(config, str(tmp_path / 'out'), say=said.append)
  for split, count in (('train', len(records) - 1), ('validation', 3)):
    made = tfrecord.Source(tfrecord.shard_paths(str(tmp_path / 'out'), split))
    assert len(made) == count
  assert len(said) == 2 and 'corrupt record' in said[0] and 'left out' in said[1]
  synthetic.ensure(str(tmp_path / 'others'), **{**SCENES, 'seed': 1})
  config['data']['root'] = str(tmp_path / 'others')
  with pytest.raises(UserError, match='was begun with other settings: source '):
    encode_latents.encode(config, str(tmp_path / 'out'))


def test_data_of_other_weights_or_settings_are_one_line(config, whole, photos, tmp_path):
  other = tmp_path / 'other'
  own.write(other, released.config(), released.params(seed=1), step=1)
  config['data'] |= dict(root=whole, extend=0.3)
  with pytest.raises(UserError, match='was encoded with another autoencoder .* start from the'):
    runs.train(tmp_path / 'a', **{**config, 'init_from': str(other)})
  assert not (tmp_path / 'a' / 'frozen.safetensors').exists()
  with pytest.raises(UserError, match='holds latents, so the autoencoder cannot train'):
    runs.train(tmp_path / 'b', **{**config, 'trainable': 'unet|autoencoder'})
  config['data'] |= dict(extend=0.2)
  with pytest.raises(UserError, match=r'was encoded with data.extend=0.3, not 0.2: leave that'):
    runs.train(tmp_path / 'c', **config)
  with pytest.raises(UserError, match='is encoded already: config.data.root must name the photos'):
    encode_latents.encode(config, str(tmp_path / 'd'))
  with pytest.raises(UserError, match='was begun with other settings: draws 2 -> 1'):
    encode_latents.encode(
      {**config, 'data': {**config['data'], 'root': photos, 'extend': 0.3}}, whole
    )
  before = sorted(os.listdir(whole))
  with pytest.raises(DataError, match='holds latents and no pictures'):
    shown = dict(config, synthetic=SCENES, data={**config['data'], 'extend': 0.3})
    show.main(ConfigDict(shown), str(tmp_path / 'sheet.png'), '', 2)
  with pytest.raises(DataError, match='holds latents that exedit.encode has made'):
    synthetic.ensure(whole, **SCENES)
  assert sorted(os.listdir(whole)) == before
  del config['data']['extend']  # what a config leaves out is its default
  with pytest.raises(UserError, match=r'was encoded with data.extend=0.3, not 0.4'):
    runs.train(tmp_path / 'e', **config)


def test_a_training_runs_on_latents_and_has_pictures_to_edit(config, tmp_path):
  """Its weights are stored in half precision, but its encoder is named by its own precision."""
  half = tmp_path / 'half'
  own.write(half, released.config(), released.params(), step=1, dtype='float16')
  config |= dict(init_from=str(half))
  encode_latents.encode(config, str(tmp_path / 'latents'))
  config['data'] |= dict(root=str(tmp_path / 'latents'))
  assert loader.held_out(2, **config['data'])['image'].shape == (2, 32, 32, 3)
  now = runs.train(tmp_path / 'run', **config)
  assert int(now.step) == 3 and len(lines(tmp_path / 'run')) == 3


@pytest.mark.parametrize(
  'change, more, words',
  [
    (dict(init_from=None), {}, 'config.init_from is not set: latents belong to'),
    ({}, dict(draws=0), '--draws is 0: it must be at least 1'),
    ({}, dict(dtype='int8'), '--dtype is int8: use one of float16, float32'),
    (dict(data=dict(size=0)), {}, 'data.size is 0: it must be at least 1'),
    (dict(init_parts='unet'), {}, "config.init_parts is 'unet', so that the training's"),
    (dict(data={}), {}, 'data.root is not set'),
  ],
)
def test_what_cannot_be_encoded_is_one_line(config, tmp_path, change, more, words):
  with pytest.raises(UserError, match=words):
    encode_latents.encode({**config, **change}, str(tmp_path / 'out'), **more)
  assert not (tmp_path / 'out').exists()


def test_a_folder_with_other_files_and_a_system_without_latents_are_refused(config, tmp_path):
  another = '.photos-train.tfrecord-00000-of-00001.1.0.tmp'  # another program writes it
  for name in ('mine.txt', another):
    (tmp_path / name).write_text('mine')
  with pytest.raises(UserError, match='holds files already: name an empty folder'):
    encode_latents.encode(config, str(tmp_path))
  other = dataclasses.replace(pbe.SYSTEM, name='pixels', moments=None)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(systems._registered, 'pixels', other)
    with pytest.raises(UserError, match='pixels does not train on latents'):
      encode_latents.encode({**config, 'system': 'pixels'}, str(tmp_path))
  assert sorted(os.listdir(tmp_path)) == [another, 'mine.txt']


def test_a_record_that_is_not_whole_is_no_example():
  good = latent_shards.record(
    latent_shards.pictures(np.zeros((4, 4), np.uint8), np.zeros((2, 2, 3), np.uint8)),
    np.zeros((2, 2, 2, 8), np.float16),
    b'name',
  )
  features = tf_example.parse_example(good)
  how = dict(augment=False, affine_jitter=50, blur_kernels=(3,))
  rng = np.random.default_rng(0)
  assert latent_shards.make_example(features, rng, **how)['moments'].shape == (2, 2, 2, 8)
  for name, value in (
    ('latents/shape', np.array([2, 2, 2, 9])),
    ('latents/dtype', [b'object']),
    ('mask', [b'no picture']),
    ('mask', [b'']),
    ('exemplar', []),
  ):
    with pytest.raises(DataError, match='no encoded example'):
      latent_shards.make_example({**features, name: value}, rng, **how)


def test_an_autoencoder_without_parameters_needs_no_weights(photos):
  config = recipe.get_config('tiny').to_dict()
  graph, params = latent_encoder.load({**config, 'init_from': None}, 32)
  assert params == {}
  one = latent_encoder.identity(config, {})
  changed = {**config['model'], 'autoencoder': {**config['model']['autoencoder'], 'scale': 3.0}}
  assert latent_encoder.identity({**config, 'model': changed}, {}) != one


def test_two_processes_share_the_shards_and_wait_for_each_other(tmp_path):
  """As people start them; three shards, so that one of the two is done first."""
  one, two = tmp_path / 'one', tmp_path / 'two'

  def start(output, *place):
    command = [sys.executable, '-m', 'exedit.encode', '--config=configs/pbe.py:tiny', *place]
    few = [f'--config.synthetic.{name}' for name in ('scenes=20', 'val_scenes=4', 'shards=3')]
    given = (f'--config.data.root={tmp_path}/photos', f'--output={output}')
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([*command, *few, *given], cwd=ROOT, **pipe)

  address = f'--coordinator=localhost:{free_port()}'
  both = [start(two, address, '--num_processes=2', f'--process_id={i}') for i in range(2)]
  outputs = [end(process) for process in [*both, start(one)]]
  assert [f'train on it with --config.data.root={two}' in text for text in outputs] == [
    True,
    False,
    False,
  ]
  assert sorted(os.listdir(two)) == sorted(os.listdir(one))
  for name in os.listdir(one):
    if not name.endswith('.npy'):
      assert (two / name).read_bytes() == (one / name).read_bytes(), name
