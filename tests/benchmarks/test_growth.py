"""The benchmark of growth measures what it says, on a few devices, shards, images and edits."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import growth as benchmark
from exedit.runtime import doors
from tests import ROOT


def door(*flags):
  argv = ['benchmark', '--rounds=1', *flags]
  doors.call(benchmark.main, benchmark._flags(), benchmark.__doc__, argv)


def test_the_door_reports(tmp_path, capsys):
  path = tmp_path / 'report.json'
  few = ('--shards=2,5', '--records=20', '--images=10,20', '--edits=2,3')
  door(*few, '--only=shards,images,edits', f'--output={path}')
  report = json.loads(path.read_text())
  assert [row['shards'] for row in report['shards']] == [2, 5]
  assert [row['images'] for row in report['images']] == [10, 20]
  small, large = report['images']
  assert large['shard_bytes'] == 2 * small['shard_bytes']
  assert large['index_bytes'] - small['index_bytes'] == 10 * 16
  assert [row['edits'] for row in report['edits']] == [2, 3]
  assert 'first index' in capsys.readouterr().out and 'devices' not in report


def test_fsdp_splits_the_state(tmp_path):
  """In a process of its own: the number of devices is fixed once JAX has started."""
  path = tmp_path / 'report.json'
  flags = '--only=devices --devices=2 --size=16 --batch=4 --rounds=1'.split()
  command = [sys.executable, '-m', 'benchmarks.growth', *flags, f'--output={path}']
  env = os.environ | dict(JAX_DISABLE_MOST_OPTIMIZATIONS='1')
  subprocess.run(command, check=True, cwd=ROOT, env=env)
  whole, split = json.loads(path.read_text())['devices']
  assert (whole['sharding'], split['sharding']) == ('data', 'fsdp')
  # Most arrays of the tiny width are below mesh.MIN_ELEMENTS, and stay whole.
  assert 0.4 * whole['state_bytes'] < split['state_bytes'] < 0.97 * whole['state_bytes']
  assert whole['argument_bytes'] > split['argument_bytes'] and split['step'] > 0


@pytest.mark.parametrize('flag', ['--only=all', '--shards=many', '--rounds=0', '--devices=1000'])
def test_bad_flags_are_one_line(flag, capsys):
  with pytest.raises(SystemExit, match='2'):
    door('--only=devices', flag) if flag.startswith('--devices') else door('--only=shards', flag)
  assert len(capsys.readouterr().err.strip().splitlines()) == 1
