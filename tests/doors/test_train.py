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
from exedit.training import checkpoint, log, loop, prefetch, sharding
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
    'data.json',
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
    (dict(steps=0), 'config.steps is 0: it must be from 1'),
    (dict(save_every=0), 'config.save_every is 0'),
    (dict(accumulate=0), 'config.accumulate is 0: it must be at least 1'),
    (dict(edit_every=-1), 'config.edit_every is -1: it must be at least 0'),
    (dict(checkpoint=dict(keep=0)), 'config.checkpoint.keep is 0'),
    (dict(checkpoint=dict(keep_every=0)), 'config.checkpoint.keep_every is 0'),
    (dict(optimizer=dict(lr=float('nan'))), 'config.optimizer.lr is nan: it must be a finite'),
    (dict(optimizer=dict(lr=-1.0)), 'config.optimizer.lr is -1.0: it must be at least'),
    (dict(optimizer=dict(lr='1e-3')), "config.optimizer.lr is '1e-3': it must be a number"),
    (dict(optimizer=dict(b2=1.0)), 'config.optimizer.b2 is 1.0: it must be from 0 to'),
    (dict(optimizer=dict(clip=0.0)), 'config.optimizer.clip is 0.0'),
    (dict(optimizer=dict(lr_multipliers={'unet': -1.0})), 'lr_multipliers.unet is -1.0'),
    (dict(ema=dict(decay=float('inf'))), 'config.ema.decay is inf'),
    (dict(seed=-1), 'config.seed is -1: it must be from 0 to 4294967295'),
    (dict(steps=1.5), 'config.steps is 1.5: it must be a whole number'),
    (dict(batch_size=None), 'config.batch_size is None: it must be a whole number'),
    (dict(optimizer=3), 'config.optimizer is 3: it must be a group of settings'),
    (dict(trainable='('), "config.trainable is '\\(', no regular expression"),
    (dict(synthetic=dict(scenes=0)), 'scenes=0: must be at least 1'),
    (dict(data=dict(root='x', zoom=float('nan'))), 'config.data.zoom is nan'),
    (dict(data=dict(root='x', extend=2)), 'data.extend is 2: it must be from 0 to 1'),
    (dict(data=dict(root='x', blur_kernels=(0,))), 'data.blur_kernels is'),
    (dict(data=dict(root='x', workers=-1)), 'data.workers is -1'),
    (dict(data=dict(root='x', sise=3)), "data.sise is not a setting: did you mean 'size'"),
    (dict(bench='coco_ee'), 'this config is of a benchmark, which exedit.evaluate takes: name one'),
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
    (
      'model',
      dict(unet=dict(heads=5, channels=8)),
      r'unet.heads is 5: it must divide .*\[8, 16, 32\]',
    ),
    ('model', dict(unet=dict(heads=0)), 'unet.heads is 0: it must be at least 1'),
    ('model', dict(unet=dict(groups=3, channels=8)), 'groups is 3: it must divide the channels'),
    ('model', dict(unet=dict(channels=7, groups=1)), 'unet.channels is 7.* it must be even'),
    (
      'model',
      dict(unet=dict(channels=8.5)),
      'config.model.unet.channels is 8.5: it must be a whole',
    ),
    ('model', dict(unet=dict(mult=())), 'unet.mult is'),
    ('model', dict(unet=dict(attention='flash')), "config.model.unet.attention is 'flash'"),
    ('model', dict(unet=dict(attention_levels=1)), 'unet.attention_levels is 1: it must be a list'),
    ('model', dict(clip=dict(width=8, heads=0)), 'CLIP.heads is 0'),
    ('model', dict(conditioner=dict(layers=0)), 'conditioner.layers is 0'),
    ('model', dict(context_dim=-1), 'unet.context_dim is -1'),
    (
      'model',
      dict(schedule=dict(beta_start='x')),
      'schedule.beta_start is .x.: it must be a number',
    ),
    ('model', dict(autoencoder=dict(kind='space_to_depth', patch=0)), 'autoencoder.patch is 0'),
    ('model', dict(autoencoder=dict(kind='space_to_depth', scale=0.0)), 'autoencoder.scale is 0'),
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


def test_a_short_cosine_has_a_short_warm_up_and_says_so(settings, tmp_path, capsys):
  optimizer = dict(lr=1e-2, warmup=100, schedule='cosine')
  runs.train(tmp_path / 'a', **{**settings, 'steps': 2, 'optimizer': optimizer})
  words = 'config.steps is 2 and config.optimizer.warmup 100: the warm-up takes 0 steps, a tenth'
  assert words in capsys.readouterr().out
  assert [line['lr'] for line in lines(tmp_path / 'a')] == pytest.approx([1e-2, 5e-3])
  optimizer['schedule'] = 'constant'
  runs.train(tmp_path / 'b', **{**settings, 'steps': 1, 'optimizer': optimizer})
  assert 'the run ends before its learning rate is reached' in capsys.readouterr().out


def test_a_folder_with_other_files_is_no_workdir(settings, tmp_path):
  (tmp_path / 'notes.log').write_text('')  # where `tee` writes what the run says
  (tmp_path / 'photo.jpg').write_text('')
  with pytest.raises(UserError, match='is no workdir of a run and holds photo.jpg: name an empty'):
    runs.train(tmp_path, **settings)
  (tmp_path / 'photo.jpg').rename(tmp_path / 'config.json')
  (tmp_path / 'config.json').write_text('{"mine": 1}')
  with pytest.raises(UserError, match='holds config.json'):
    runs.train(tmp_path, **settings)
  exported = dict(settings, exported=dict(step=3))
  (tmp_path / 'config.json').write_text(json.dumps(exported))
  with pytest.raises(UserError, match='holds exported weights: name a new --workdir'):
    runs.train(tmp_path, **settings)
  (tmp_path / 'config.json').unlink()
  inside = {**settings['data'], 'root': str(tmp_path / 'data')}
  for steps in (1, 2):
    runs.train(tmp_path, **{**settings, 'steps': steps, 'data': inside})


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


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(model=dict(width=32)), 'model.width 64 -> 32'),
    (dict(model=dict(explode=(0, 1))), r'model.explode \[0, 0\] -> \[0, 1\]'),
    (dict(data=dict(mask_jitter=1, size=12)), 'data.size 16 -> 12, .*data.mask_jitter 5 -> 1'),
    (dict(data=dict(split='validation')), 'data.split train -> validation'),
    (dict(seed=8), 'seed 7 -> 8'),
    (dict(trainable='unet|clip'), r'trainable unet -> unet\|clip'),
    (dict(system='paint_by_example', model=dict(unet={})), 'system toy -> paint_by_example'),
  ],
)
def test_another_model_or_other_data_are_refused_on_going_on(
  settings, tmp_path, capsys, change, words
):
  runs.train(tmp_path, **{**settings, 'steps': 1})
  before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file() and p.name != 'lock'}
  data = {**settings['data'], **change.get('data', {})}
  for steps in (1, 2):  # at the end of the run, and before it
    wanted = {**settings, 'steps': steps, 'edit': {}, **change, 'data': data}
    with pytest.raises(UserError, match=f'begun with other settings.*{words}.*--allow_changes'):
      runs.train(tmp_path, **wanted)
  assert before == {p: p.read_bytes() for p in before}


def test_changes_that_are_allowed_are_made_and_said(settings, tmp_path, capsys):
  runs.train(tmp_path, **{**settings, 'steps': 1})
  data = {**settings['data'], 'mask_jitter': 1}
  runs.train(tmp_path, allow_changes=True, **{**settings, 'steps': 2, 'data': data})
  assert 'going on from step 1, with other settings than before: data.mask_jitter 5 -> 1' in (
    capsys.readouterr().out
  )
  with pytest.raises(checkpoint.CheckpointError, match='written with other settings'):
    model = dict(width=32)
    runs.train(
      tmp_path, allow_changes=True, **{**settings, 'steps': 3, 'data': data, 'model': model}
    )


def test_changed_settings_are_said_on_going_on(settings, tmp_path, capsys):
  runs.train(tmp_path, **settings)
  other = {**settings, 'optimizer': dict(lr=1e-3, warmup=2)}
  runs.train(tmp_path, **other)
  said = capsys.readouterr().out
  assert 'step 6 of 6 and was trained with other settings (optimizer.lr 0.01 -> 0.001)' in said
  assert 'nothing to do' not in said
  runs.train(tmp_path, **{**other, 'steps': 7})
  words = 'going on from step 6, with other settings than before: '
  assert words + 'steps 6 -> 7, optimizer.lr 0.01 -> 0.001\n' in capsys.readouterr().out


def test_a_run_of_an_older_program_goes_on(settings, tmp_path, capsys):
  """Its config.json has fewer keys, and data.json is missing."""
  runs.train(tmp_path, **{**settings, 'steps': 1})
  kept = ('steps', 'batch_size', 'data', 'seed', 'optimizer')
  old = {name: settings[name] for name in kept} | dict(model={}, trainable='unet')
  (tmp_path / 'config.json').write_text(json.dumps(old))
  (tmp_path / 'data.json').unlink()
  runs.train(tmp_path, **{**settings, 'steps': 2})
  assert 'going on from step 1' in capsys.readouterr().out and len(lines(tmp_path)) == 2


def test_the_same_data_may_lie_elsewhere_and_others_are_refused(settings, tmp_path, capsys):
  runs.train(tmp_path / 'run', **{**settings, 'steps': 1})
  at = lambda root: {**settings['data'], 'root': str(root)}
  there = shutil.copytree(settings['data']['root'], tmp_path / 'copy')
  runs.train(tmp_path / 'run', **{**settings, 'steps': 2, 'data': at(there)})
  assert 'data.root' in capsys.readouterr().out
  scenes = dict(scenes=20, val_scenes=4, shards=1)
  others = {**settings, 'steps': 3, 'data': at(tmp_path / 'others'), 'synthetic': scenes}
  with pytest.raises(UserError, match=r'copy -> .*others \(records 32 -> 20, digest'):
    runs.train(tmp_path / 'run', **others)
  runs.train(tmp_path / 'run', allow_changes=True, **others)


def test_another_batch_size_goes_on_behind_the_examples_that_were_seen(
  settings, tmp_path, monkeypatch, capsys
):
  """Three starts with three sizes read the stream once, as one run with one size reads it."""
  seen, batches = [], loop.batches

  def spy(config, data, start):
    read: list[list[int]] = []
    if config.batch_size > 1:  # one example is read for its shape
      seen.append(read)
    for batch in batches(config, data, start):
      read.append(batch['id'].tolist())
      yield batch

  monkeypatch.setattr(loop, 'batches', spy)
  for steps, size in ((3, 8), (5, 16), (6, 16), (8, 8)):
    runs.train(tmp_path, **{**settings, 'steps': steps, 'batch_size': size})
  read = [sum(batches[:n], []) for batches, n in zip(seen, (3, 2, 1, 2))]
  assert sum(read, []) == [*range(3 * 8 + 3 * 16 + 2 * 8)]
  assert json.loads((tmp_path / 'data.json').read_text())['batches'] == [[0, 8], [3, 16], [6, 8]]
  assert '72 examples of the data are seen' in capsys.readouterr().out


def test_before_the_first_step_a_run_says_what_it_reads(settings, tmp_path, capsys):
  root = tmp_path / 'mine'
  shutil.copytree(settings['data']['root'], root)
  (root / 'manifest.json').unlink()
  before = {p.name for p in root.iterdir()}
  mine = {**settings, 'steps': 1, 'data': {**settings['data'], 'root': str(root)}}
  runs.train(tmp_path / 'a', **mine)
  words = f'data: {root}, split train, 32 records: existing shards; no scenes were drawn\n'
  assert words in capsys.readouterr().out
  runs.train(tmp_path / 'b', **{**settings, 'steps': 1})
  assert '32 records: scenes drawn by input_pipeline.synthetic\n' in capsys.readouterr().out
  assert {p.name for p in root.iterdir()} - before <= {f'{name}.idx.npy' for name in before}
  photos = tmp_path / 'photos'
  photos.mkdir()
  (photos / 'IMG_1.jpg').write_text('')
  mine['data']['root'] = str(photos)
  with pytest.raises(UserError, match='photos holds IMG_1.jpg, which was not made by'):
    runs.train(tmp_path / 'c', **mine)
  with pytest.raises(UserError, match='photos. holds no .*tfrecord'):
    runs.train(tmp_path / 'c', **{**mine, 'synthetic': None})
  assert [p.name for p in photos.iterdir()] == ['IMG_1.jpg'] and not (tmp_path / 'c').exists()


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
