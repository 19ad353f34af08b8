import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1

from exedit.models import parameters
from exedit.runtime import checksums
from exedit.runtime.errors import UserError
from exedit.training import checkpoint, optimizer, sharding, state
from exedit.training.checkpoint import CheckpointError, Checkpoints
from exedit.weights.formats import run
from tests import disks, toy

# What Orbax leaves behind of a restore that failed is not our affair.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def make_state(step, width=32, ema=True, tx=None):
  _, params = parameters.flatten(toy.build(width=width, rngs=nnx.Rngs(step)))
  now = state.create(params, tx or optimizer.make_optimizer(), ema=ema)
  return dataclasses.replace(now, step=jnp.int32(step))


def saved(workdir, *steps, **settings):
  checkpoints = Checkpoints(workdir, **settings)
  for step in steps:
    checkpoints.save(step, make_state(step))
  checkpoints.close()
  return workdir / 'checkpoints'


def restored(workdir, like=None):
  lines = []
  result = Checkpoints(workdir, say=lines.append).restore(like or make_state(0))
  return result, lines


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def flip_a_bit(path, at=0.5):
  data = bytearray(path.read_bytes())
  data[int(len(data) * at)] ^= 4
  path.write_bytes(data)


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
  saved(tmp_path, 5)
  result, lines = restored(tmp_path)
  assert_same(result, make_state(5))
  assert type(result) is state.TrainState and type(result.params) is dict and lines == []
  assert restored(tmp_path / 'empty') == (None, [])


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_orbaxs_newer_interface_reads_and_writes_the_same_state(tmp_path):
  """`orbax.checkpoint.v1`, as other programs call it; ours read what it wrote."""
  path, want = saved(tmp_path, 5) / '5', make_state(5)
  assert_same(checksums.named(v1.load(path)), checksums.named(want))
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), want)
  back = v1.load(path, shapes)
  assert type(back) is state.TrainState
  assert_same(back, want)
  shutil.rmtree(path / 'state')
  v1.save(tmp_path / 'other', want)
  (tmp_path / 'other' / 'state').rename(path / 'state')
  assert_same(restored(tmp_path)[0], want)
  checkpoint.save_frozen(tmp_path, {})
  assert_same(run.restore_params(tmp_path)[0], want.ema)


def test_saving_copies_before_the_state_is_donated(tmp_path):
  """On CPU a host array may be a view of the device's: the next step must not write into it."""
  now = {f'w{i}': jnp.full((64, 1024), i, jnp.float32) for i in range(8)}
  now = state.create(now, optimizer.make_optimizer(), ema=True)
  expected = jax.tree.map(np.array, now)
  advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, now)
  for _ in range(5):
    now = advance(now)
  checkpoints.close()
  assert_same(Checkpoints(tmp_path).restore(now), expected)


def test_only_the_newest_and_the_milestones_stay(tmp_path):
  folder = saved(tmp_path, 2, 4, 6, 8, 10, keep=2, keep_every=4)
  assert sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) == [4, 8, 10]


def test_no_damage_of_any_file_goes_unseen(tmp_path):
  """A bit of any file is flipped, or the file is gone, or the folder of the arrays is.

  The state is right to the bit (Orbax keeps some bytes twice), or the checkpoint is refused, set
  aside, and the previous one used. Some flipped bits Orbax alone would not notice.
  """
  checkpoints = Checkpoints(tmp_path)
  expected = {step: make_state(step, width=2048) for step in (1, 2)}  # Orbax checks small arrays
  for step, now in expected.items():
    checkpoints.save(step, now)
  checkpoints.close()
  newest, good = tmp_path / 'checkpoints/2', tmp_path / 'good'
  shutil.copytree(newest, good)
  names = [str(path.relative_to(good)) for path in good.rglob('*') if path.is_file()]
  cases = [
    (name, at)
    for name in names
    for at in (0.3, 0.7, None)
    if at is None or (good / name).stat().st_size
  ]
  refused = {}
  for name, at in [*cases, ('state', None)]:
    shutil.rmtree(newest, ignore_errors=True)
    shutil.copytree(good, newest)
    path = newest / name
    flip_a_bit(path, at) if at else shutil.rmtree(path) if path.is_dir() else path.unlink()
    result, lines = restored(tmp_path, expected[1])
    assert_same(result, expected[1 if lines else 2])
    if lines:
      (refused[name, at],) = lines
      assert lines[0].startswith('checkpoint 2 is damaged (') and '\n' not in lines[0]
      assert lines[0].endswith('): using checkpoint 1 instead')
      assert not newest.exists() and (tmp_path / 'damaged_checkpoints/2').is_dir()
  assert any('checksum of ' in line for line in refused.values())
  assert {('digest/metadata', 0.3), ('digest/metadata', None), ('state', None)} <= {*refused}
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(2, expected[2])  # the run goes on and comes to step 2 again
  checkpoints.close()
  assert_same(restored(tmp_path, expected[1])[0], expected[2])


def test_when_all_are_damaged_it_says_so_and_touches_nothing(tmp_path):
  folder = saved(tmp_path, 1, 2)
  for path in folder.glob('**/d/*'):
    flip_a_bit(path)
  with pytest.raises(CheckpointError, match='none of the 2 checkpoints .* can be read'):
    restored(tmp_path)
  assert (folder / '1').is_dir() and (folder / '2').is_dir()


def test_another_model_or_optimizer_is_refused_by_name_not_as_damage(tmp_path):
  folder = saved(tmp_path, 1)
  with pytest.raises(CheckpointError, match=r'other settings \(ema/unet.0.bias: there \(32,\), h'):
    restored(tmp_path, make_state(0, width=64))
  with pytest.raises(CheckpointError, match='opt_state/0/count: there .*, here absent'):
    restored(tmp_path, make_state(0, tx=optimizer.make_optimizer('sgd')))
  assert (folder / '1').is_dir()


def test_a_leftover_of_a_killed_save_is_removed(tmp_path):
  folder = saved(tmp_path, 1)
  shutil.copytree(folder / '1', folder / '2.orbax-checkpoint-tmp')
  checkpoints = Checkpoints(tmp_path)
  assert_same(checkpoints.restore(make_state(0)), make_state(1))
  checkpoints.close()
  assert not (folder / '2.orbax-checkpoint-tmp').exists()


def test_restores_as_the_target_lies(tmp_path):
  saved(tmp_path, 1)
  mesh = sharding.make_mesh()
  like = make_state(0)
  like = jax.tree.map(
    lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
    like,
    sharding.shardings(like, mesh),
  )
  result, _ = restored(tmp_path, like)
  assert all(a.sharding.mesh == mesh for a in jax.tree.leaves(result))


def test_no_space_is_said_before_anything_is_written(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path)
  usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
  with pytest.raises(UserError, match=r'no space left for .*: it takes .* MB and 1.0 MB are free'):
    checkpoints.save(1, make_state(1))
  assert list((tmp_path / 'checkpoints').iterdir()) == []


def test_a_disk_that_is_really_full_is_said_and_can_be_freed(tmp_path, monkeypatch):
  with disks.tmpfs(tmp_path / 'disk', 2**21) as disk:
    checkpoints = Checkpoints(disk)
    checkpoints.save(1, make_state(1, width=1024))
    checkpoints.wait()
    monkeypatch.setattr(checkpoints, 'require_space', lambda state: None)  # it fills up meanwhile
    filler = disk / 'filler'
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - 2**16))
    with pytest.raises(UserError, match='no space left for .* free some, keep fewer'):
      checkpoints.save(2, make_state(2, width=1024))
      checkpoints.wait()
    assert [p.name for p in (disk / 'checkpoints').iterdir()] == ['1']
    filler.unlink()
    saved(disk, 2)
    checkpoints = Checkpoints(disk)
    checkpoints.save(3, make_state(3, width=1024))
    checkpoints.close()
    assert_same(restored(disk, make_state(0, width=1024))[0], make_state(3, width=1024))


def test_the_newest_step_counts_and_not_the_time_of_writing(tmp_path):
  folder = saved(tmp_path, 1, 2)
  for path in (folder / '2', *(folder / '2').rglob('*')):
    os.utime(path, (1e9, 1e9))  # a clock that was set back
  assert_same(restored(tmp_path)[0], make_state(2))


def with_frozen(workdir):
  checkpoint.save_frozen(workdir, {'vae.kernel': jnp.arange(6.0).reshape(2, 3)})


def test_restore_params_gives_what_was_asked_for_and_the_frozen_ones(tmp_path):
  state = make_state(2)
  states = [state, dataclasses.replace(state, ema={n: a + 1 for n, a in state.params.items()})]
  states.append(make_state(2, ema=False))
  for i, state in enumerate(states):
    workdir = tmp_path / str(i)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(2, state)
    checkpoints.close()
    with_frozen(workdir)
    for which, expected in (('ema', state.ema or state.params), ('params', state.params)):
      params, step = run.restore_params(workdir, which)
      assert step == 2 and all(isinstance(a, np.ndarray) for a in params.values())
      np.testing.assert_array_equal(params.pop('vae.kernel'), np.arange(6).reshape(2, 3))
      assert_same(params, expected)


def test_restore_params_falls_back_and_says_so(tmp_path):
  folder = saved(tmp_path, 1, 2)
  with_frozen(tmp_path)
  (folder / '2' / 'digest' / 'metadata').write_text('')
  lines = []
  _, step = run.restore_params(tmp_path, say=lines.append)
  assert step == 1 and len(lines) == 1 and lines[0].startswith('checkpoint 2 is damaged')
  assert (folder / '2').is_dir()  # a reader moves nothing


def test_restore_params_without_checkpoints_is_one_clear_line(tmp_path):
  with pytest.raises(CheckpointError, match='holds no checkpoints: train there first'):
    run.restore_params(tmp_path)
  with pytest.raises(CheckpointError, match='holds no checkpoints'):
    run.restore_params(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match="which is 'both'"):
    run.restore_params(tmp_path, 'both')


def test_frozen_parameters_are_verified(tmp_path):
  with pytest.raises(CheckpointError, match='frozen.safetensors is missing'):
    checkpoint.load_frozen(tmp_path)
  with_frozen(tmp_path)
  path = tmp_path / 'frozen.safetensors'
  assert os.listdir(tmp_path) == ['frozen.safetensors']
  flip_a_bit(path, 0.95)
  with pytest.raises(CheckpointError, match=r'damaged \(checksum of vae.kernel\)'):
    checkpoint.load_frozen(tmp_path)
  path.write_bytes(path.read_bytes()[:20])
  with pytest.raises(CheckpointError, match='frozen.safetensors is damaged'):
    checkpoint.load_frozen(tmp_path)


def test_tidying_removes_what_the_next_save_would(tmp_path):
  saved(tmp_path, 1, 2, 3, 4, 5, keep=5)
  checkpoints = Checkpoints(tmp_path, keep=2, keep_every=2)
  checkpoints.tidy()
  checkpoints.close()
  assert sorted(os.listdir(tmp_path / 'checkpoints')) == ['2', '4', '5']
