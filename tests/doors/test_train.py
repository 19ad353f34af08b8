import dataclasses
import fcntl
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pbe
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.training import checkpoint, log, prefetch, sharding
from exedit.training.initial import place
from exedit.training.step import make_program
from exedit.weights.formats import run
from tests import disks, on_devices, runs, toy, toy_config
from tests.runs import at_line, digests, end, export, lines, start


@pytest.fixture(scope='session')
def root(tmp_path_factory):
  return str(tmp_path_factory.mktemp('synthetic'))


@pytest.fixture
def settings(root, monkeypatch):
  """The toy's settings for a run in this process."""
  return {**toy_config.get_config(root).to_dict(), 'steps': 6, 'compile_cache': False}


# A run as people start it, killed and told to stop


def test_a_killed_and_stopped_run_ends_as_the_uninterrupted_one(root, tmp_path):
  """SIGKILL at some moment, then SIGTERM, then to the end: every number is the same to the bit.

  The later starts also run executables from the compile cache that the first one filled.
  """
  whole, torn, cache = tmp_path / 'whole', tmp_path / 'torn', tmp_path / 'cache'
  output = end(start(root, whole, cache))
  assert 'done: 90 steps' in output and any(cache.iterdir())

  process = start(root, torn, cache)
  at_line(torn, 20)
  process.send_signal(signal.SIGKILL)
  end(process, -signal.SIGKILL)
  assert not (torn / 'checkpoints' / '90').exists()

  process = start(root, torn, cache)
  at_line(torn, 50)
  process.send_signal(signal.SIGTERM)
  output = end(process, 0)
  assert 'going on from step' in output and 'stopped and saved at step' in output
  stopped = int(output.split('stopped and saved at step ')[1].split()[0])
  assert 50 <= stopped < 90 and len(lines(torn)) == stopped
  assert (torn / 'checkpoints' / str(stopped)).is_dir()

  assert f'going on from step {stopped}\n' in end(start(root, torn, cache))
  assert lines(torn) == lines(whole) and len(lines(whole)) == 90
  assert digests(torn, 90) == digests(whole, 90)
  sheets = [(folder / 'samples' / '60.png').read_bytes() for folder in (whole, torn)]
  assert sheets[0] == sheets[1]

  assert 'nothing to do' in end(start(root, torn, cache))


def test_a_wrong_key_is_one_line_and_nothing_is_written(root, tmp_path):
  process = start(root, tmp_path / 'run', tmp_path / 'cache', '--config.optimizr.lr=1')
  output = end(process, 2)
  assert output.startswith('error: ') and output.count('\n') == 1
  assert 'optimizr' in output and 'optimizer' in output
  assert not (tmp_path / 'run').exists()


# The run in this process


def test_the_workdir_holds_what_the_run_was(settings, tmp_path):
  runs.train(tmp_path, **{**settings, 'edit_every': 3})
  names = {p.name for p in tmp_path.iterdir()}
  assert names == {
    'config.json',
    'versions.json',
    'parameters.txt',
    'metrics.jsonl',
    'lock',
    'tb',
    'checkpoints',
    'frozen.safetensors',
    'samples',
  }
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['optimizer']['lr'] == 1e-2 and config['init_from'] is None  # defaults included
  versions = json.loads((tmp_path / 'versions.json').read_text())
  assert versions['jax'] == jax.__version__ and versions['devices'] == jax.device_count()
  assert 'unet.0.kernel' in (tmp_path / 'parameters.txt').read_text()
  assert sorted(p.name for p in (tmp_path / 'samples').iterdir()) == ['3.png', '6.png']
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['4', '6']
  params, step = run.restore_params(tmp_path)
  assert step == 6 and {'unet.0.kernel', 'clip.kernel'} <= set(params)


def test_the_loss_falls(settings, tmp_path):
  runs.train(tmp_path, **{**settings, 'steps': 60, 'save_every': 60})
  losses = [line['loss'] for line in lines(tmp_path)]
  assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_frozen_parameters_stay_and_trainable_ones_move(settings, tmp_path):
  runs.train(tmp_path, **settings)
  key = jax.random.fold_in(jax.random.key(settings['seed']), 2**32 - 1)
  _, first = parameters.flatten(toy.build(rngs=nnx.Rngs(key)))
  last, _ = run.restore_params(tmp_path, 'params')
  np.testing.assert_allclose(last['clip.kernel'], first['clip.kernel'], rtol=1e-6)
  assert np.abs(last['unet.0.kernel'] - first['unet.0.kernel']).max() > 1e-3
  assert not any(name.startswith('params/clip') for name in digests(tmp_path, 6))


def test_bad_steps_are_skipped_counted_and_survived(settings, tmp_path):
  bad = dict(width=64, explode=(16, 32))  # the third and the fourth step of eight
  runs.train(tmp_path, **{**settings, 'model': bad, 'save_every': 1})
  written = lines(tmp_path)
  assert [line['skipped'] for line in written] == [0, 0, 1, 2, 2, 2]
  assert [line['in_a_row'] for line in written] == [0, 0, 1, 2, 0, 0]
  assert [line['loss'] is None for line in written] == [False, False, True, True, False, False]


def test_too_many_bad_steps_end_the_run(settings, tmp_path):
  bad = dict(width=64, explode=(16, 1000))
  with pytest.raises(log.NotFinite, match='in 3 steps in a row, up to step 5'):
    runs.train(tmp_path, **{**settings, 'model': bad, 'steps': 50})


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(batch_size=9, accumulate=2), 'batch_size 9 cannot be divided .* use batch_size 8 or 10'),
    (dict(model=dict(widht=3)), "config.model.widht is not a setting: did you mean 'width'"),
    (dict(optimizer=dict(lrr=3)), "config.optimizer.lrr is not a setting: did you mean 'lr'"),
    (dict(ema=dict(decya=0.9)), "config.ema.decya is not a setting: did you mean 'decay'"),
    (dict(mesh=dict(fdsp=2)), "config.mesh.fdsp is not a setting: did you mean 'fsdp'"),
    (dict(checkpoint=dict(kep=2)), "config.checkpoint.kep is not a setting: did you mean 'keep'"),
    (dict(edit=dict(scael=2)), "config.edit.scael is not a setting: did you mean 'scale'"),
    (dict(synthetic=dict(scense=2)), "config.synthetic.scense .* did you mean 'scenes'"),
    (dict(optimizer=dict(lr_multipliers={'clip': 2.0})), 'match no trained parameter'),
    (dict(optimizer=dict(decay_exclude='(')), 'missing \\)'),
    (dict(trainable='unt'), 'matches no parameter; the parts are clip, unet'),
    (dict(system='paint_by_exemple'), "system is 'paint_by_exemple'; use one of paint_by_example"),
    (dict(data=dict(size=16)), 'data.root is not set'),
    (dict(steps=0), 'config.steps is 0; it must be at least 1'),
    (dict(save_every=0), 'config.save_every is 0'),
    (dict(accumulate=0), 'config.accumulate is 0; it must be at least 1'),
    (dict(edit_every=-1), 'config.edit_every is -1; it must be at least 0'),
    (dict(checkpoint=dict(keep=0)), 'config.checkpoint.keep is 0'),
  ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(settings, tmp_path, change, words):
  workdir = tmp_path / 'run'
  with pytest.raises(UserError, match=words):
    runs.train(workdir, **{**settings, **change})
  assert not workdir.exists()


@pytest.mark.parametrize(
  'group, change, words',
  [
    ('data', dict(size=20), 'multiples of 2, not 5 x 5'),
    ('data', dict(size=18), 'multiple'),
    ('data', dict(exemplar_size=24), '32'),
    ('model', dict(dtype='int8'), "dtype is 'int8'; use one of float32"),
    ('model', dict(autoencoder=dict(kind='vq')), "autoencoder.kind is 'vq'; use one of kl"),
    ('model', dict(p_drop=20.0), 'p_drop is 20'),
    ('edit', dict(sampler='euler'), "sampler is 'euler': use one of plms"),
    ('edit', dict(steps=1000), 'steps is 1000: it must be between 1 and 999'),
  ],
)
def test_what_the_real_model_cannot_do_is_said_before_anything_is_written(
  settings, tmp_path, group, change, words
):
  config = pbe.get_config('tiny').to_dict()
  config['synthetic'] = settings['synthetic']
  config['edit_every'] = 0
  config['data']['root'] = settings['data']['root']
  config['model']['unet'] |= dict(channels=8, heads=1, attention_levels=())
  config[group] |= change
  with pytest.raises(UserError, match=words):
    runs.train(tmp_path / 'run', **config)
  assert not (tmp_path / 'run').exists()


def test_a_workdir_that_cannot_be_written_is_one_line(settings, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r'cannot write to the workdir .*/file/run \(Not a directory'):
    runs.train(tmp_path / 'file' / 'run', **settings)
  with pytest.raises(UserError, match='s3://bucket/run cannot be a workdir: checkpoints go to'):
    runs.train('s3://bucket/run', **settings)


def test_a_workdir_that_is_only_read_or_another_runs_is_one_line(settings, tmp_path):
  with disks.tmpfs(tmp_path / 'disk', 2**20) as disk:
    disks.only_read(disk)
    with pytest.raises(UserError, match=r'cannot write to the workdir .*Read-only file system'):
      runs.train(disk / 'run', **settings)
  held = tmp_path / 'held'
  held.mkdir()
  with open(held / 'lock', 'w') as file:
    json.dump(dict(host='elsewhere', pid=7, since='noon'), file)
    file.flush()
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='at work in .*held .process 7 on elsewhere, since noon'):
      runs.train(held, **settings)
  assert [p.name for p in held.iterdir()] == ['lock']
  runs.train(held, **{**settings, 'steps': 1})


def test_another_model_in_the_same_workdir_is_refused(settings, tmp_path):
  runs.train(tmp_path, **settings)
  before = (tmp_path / 'config.json').read_text()
  with pytest.raises(checkpoint.CheckpointError, match='written with other settings'):
    runs.train(tmp_path, **{**settings, 'model': dict(width=32), 'steps': 9})
  assert (tmp_path / 'config.json').read_text() == before


def test_changed_settings_are_said_on_going_on(settings, tmp_path, capsys):
  runs.train(tmp_path, **settings)
  runs.train(tmp_path, **{**settings, 'steps': 7, 'optimizer': dict(lr=1e-3, warmup=2)})
  words = 'going on from step 6, with other settings than before: '
  assert words + 'steps 6 -> 7, optimizer.lr 0.01 -> 0.001\n' in capsys.readouterr().out


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(settings, tmp_path, capsys):
  runs.train(tmp_path, **settings)
  expected = lines(tmp_path), digests(tmp_path, 6)
  (tmp_path / 'checkpoints' / '6' / 'digest' / 'metadata').write_text('')
  runs.train(tmp_path, **settings)
  output = capsys.readouterr().out
  assert 'checkpoint 6 is damaged' in output and 'using checkpoint 4 instead' in output
  assert (lines(tmp_path), digests(tmp_path, 6)) == expected


def test_starts_from_given_weights(settings, tmp_path, capsys):
  path, params = export(tmp_path / 'given')
  still = {**settings, 'steps': 1, 'optimizer': dict(lr=1e-9)}
  now = runs.train(tmp_path / 'a', **{**still, 'init_from': path})
  for trained in (now.params, now.ema):
    np.testing.assert_allclose(trained['unet.0.kernel'], params['unet.0.kernel'], atol=1e-6)
  frozen = checkpoint.load_frozen(tmp_path / 'a')
  np.testing.assert_array_equal(frozen['clip.kernel'], params['clip.kernel'])
  assert f'from {path}: unet 707, clip 12; random: nothing\n' in capsys.readouterr().out
  config = json.loads((tmp_path / 'a' / 'config.json').read_text())
  assert config['init_from'] == path and config['init_clip'] is None

  with pytest.raises(
    UserError, match='given holds another model .unet.0.bias: there .64,., in the'
  ):
    runs.train(tmp_path / 'b', **{**still, 'init_from': path, 'model': dict(width=32)})
  shutil.rmtree(path)  # going on needs it no more
  runs.train(tmp_path / 'a', **{**still, 'init_from': path, 'steps': 2})
  with pytest.raises(UserError, match='given does not exist'):
    runs.train(tmp_path / 'c', **{**still, 'init_from': path})
  assert not (tmp_path / 'c').exists()


def test_what_is_not_given_is_drawn_as_ever(settings, tmp_path, capsys):
  still = {**settings, 'steps': 1, 'optimizer': dict(lr=1e-9)}
  drawn = runs.train(tmp_path / 'a', **still)
  assert (
    'random and frozen, because config.init_from is not set: clip 12' in capsys.readouterr().out
  )
  path, params = export(tmp_path / 'given', part='unet.0.')
  now = runs.train(tmp_path / 'b', **{**still, 'init_from': path})
  assert f'from {path}: unet 512; random: unet 195, clip 12\n' in capsys.readouterr().out
  np.testing.assert_allclose(now.params['unet.0.kernel'], params['unet.0.kernel'], atol=1e-6)
  np.testing.assert_allclose(now.params['unet.1.kernel'], drawn.params['unet.1.kernel'], atol=1e-6)
  one, other = (checkpoint.load_frozen(tmp_path / name)['clip.kernel'] for name in 'ab')
  np.testing.assert_allclose(one, other, rtol=1e-6)


def test_given_weights_are_taken_over_and_not_copied(tmp_path):
  program = make(ema=dict(decay=0.0))
  path, params = export(tmp_path / 'given', width=64)
  given = place(toy.start(path, None, {}), {**program.state.params, **program.frozen}, path)
  now, frozen = program.init(jax.random.key(0), given)
  assert all(array.is_deleted() for array in given.values())
  for name, array in {**now.params, **frozen}.items():
    np.testing.assert_array_equal(array, params[name])


# The step


def make(accumulate=1, **changes):
  settings = dict(
    system=toy.SYSTEM,
    model={},
    optimizer=dict(lr=1e-2, warmup=0),
    ema=dict(decay=0.9),
    mesh={},
    trainable='unet',
    batch_size=16,
    accumulate=accumulate,
    seed=0,
    steps=10,
  )
  return make_program(**{**settings, **changes})


def rows(program, batch):
  return prefetch.to_devices(sharding.batch_sharding(program.mesh))(batch)


def test_accumulation_changes_nothing():
  results = []
  for accumulate in (1, 4):
    program = make(accumulate)
    now, frozen = program.init(jax.random.key(0))
    for _ in range(3):
      now, metrics = program.step(now, frozen, rows(program, on_devices.batch(16)))
    results.append((now.params, now.ema, metrics))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *results)


def test_the_first_decays_of_the_average_are_litemas():
  """(1 + n) / (10 + n) in update n, counted from 1; a skipped step is no update."""
  program = make(ema=dict(decay=0.9999))
  now, frozen = program.init(jax.random.key(0))
  for step, skipped, decay in ((0, 0, 2 / 11), (1, 0, 3 / 12), (2, 0, 4 / 13), (9, 4, 7 / 16)):
    counts = dict(now.counts, skipped=jnp.int32(skipped))
    now = dataclasses.replace(now, step=jnp.int32(step), counts=counts)
    old = {name: np.asarray(array) for name, array in now.ema.items()}
    now, _ = program.step(now, frozen, rows(program, on_devices.batch(16)))
    for name, array in now.params.items():
      expected = decay * old[name] + (1 - decay) * np.asarray(array)
      np.testing.assert_allclose(now.ema[name], expected, rtol=1e-6, atol=1e-8)
      assert np.abs(old[name] - array).max() > 1e-4  # another decay would give another average


def test_an_examples_place_in_the_batch_does_not_matter():
  program = make()
  batch = on_devices.batch(16)
  order = np.random.default_rng(0).permutation(16)
  losses = []
  for b in (batch, {name: a[order] for name, a in batch.items()}):
    now, frozen = program.init(jax.random.key(0))
    losses.append(program.step(now, frozen, rows(program, b))[1]['loss'])
  np.testing.assert_allclose(*losses, rtol=1e-6)


def test_randomness_is_a_function_of_seed_and_step():
  batch = on_devices.batch(16)

  def losses(seed, steps):
    program = make(seed=seed)
    for step in steps:
      now, frozen = program.init(jax.random.key(0))
      now = dataclasses.replace(now, step=jnp.int32(step))
      yield float(program.step(now, frozen, rows(program, batch))[1]['loss'])

  third, again, fourth = losses(0, (3, 3, 4))
  (other,) = losses(1, (3,))
  assert third == again and len({third, fourth, other}) == 3


def test_metrics_of_a_step():
  program = make()
  now, frozen = program.init(jax.random.key(0))
  batch = on_devices.batch(16)
  batch['corrupt'][:3] = 1
  now, metrics = program.step(now, frozen, rows(program, batch))
  assert int(metrics['corrupt']) == 3 and int(now.step) == 1
  assert int(metrics['bucket_count'].sum()) == 16
  np.testing.assert_allclose(metrics['bucket_sum'].sum() / 16, metrics['loss'], rtol=1e-6)
  np.testing.assert_allclose(metrics['lr'], 1e-2)


def test_the_programs_shapes_say_where_everything_lies():
  program = make()
  now, frozen = program.init(jax.random.key(0))
  jax.tree.map(
    lambda a, s: (a.shape, a.dtype, a.sharding) == (s.shape, s.dtype, s.sharding) or pytest.fail(),
    (now, frozen),
    (program.state, program.frozen),
  )
  assert program.flops(on_devices.batch(16)) > 0
