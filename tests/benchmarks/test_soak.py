"""benchmarks.soak kills a training, and it finds what a kill could spoil."""

import re
import shutil
import subprocess
import sys

import pytest

from benchmarks import soak


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(soak, killed run, undisturbed run) of tests/toy.py, with two kills."""
  lines = []
  folder = tmp_path_factory.mktemp('soak')
  run = soak.Soak(folder, 'tests.toy', 'tests/toy_soak_config.py', 0, lines.append)
  whole = run.whole()
  run.waiting = [('checkpoint write', 'SIGKILL'), ('data-worker start', 'SIGTERM to the group')]
  return run, run.round('round', 2), whole


def test_a_killed_run_ends_as_the_undisturbed_one(run):
  """SIGTERM while a data worker starts, then SIGKILL while a checkpoint is written."""
  run, killed, whole = run
  run.compare(killed, whole)
  assert run.faults == []
  assert [(k['moment'], k['signal'], k['status']) for k in run.kills] == [
    ('data-worker start', 'SIGTERM to the group', 0),
    ('checkpoint write', 'SIGKILL', -9),
  ]
  assert re.search(r'^goodput .*: productive', killed.words(), re.M)


def other_loss(start):
  path = start.workdir / 'metrics.jsonl'
  path.write_text(path.read_text().replace('"loss": 0.', '"loss": 1.', 1))


def other_parameters(start):
  newest = start.workdir / 'checkpoints' / '60' / 'digest' / 'metadata'
  newest.write_text(newest.read_text().replace('"digest": ', '"digest": 1', 1))


def temporary_file(start):
  (start.workdir / 'checkpoints' / '63.orbax-checkpoint-tmp').mkdir()


@pytest.mark.parametrize(
  'spoil, words',
  [
    (other_loss, 'logged numbers differ'),
    (other_parameters, 'parameters or optimizer state differ'),
    (temporary_file, 'left behind: .*63.orbax-checkpoint-tmp'),
  ],
)
def test_spoiled_results_are_found(run, tmp_path, spoil, words):
  run, _, whole = run
  other = soak.Soak(run.folder, run.module, run.config, 0, lambda line: None)
  start = soak.dataclasses.replace(whole, workdir=tmp_path / 'run', data=tmp_path / 'data')
  shutil.copytree(whole.workdir, start.workdir)
  shutil.copytree(whole.data, start.data)
  spoil(start)
  other.compare(start, whole)
  assert len(other.faults) >= 1
  assert any(re.search(words, fault) for fault in other.faults), other.faults


def test_a_process_that_is_left_is_found(run, monkeypatch):
  run, _, whole = run
  other = soak.Soak(run.folder, run.module, run.config, 0, lambda line: None)
  monkeypatch.setattr(soak, 'PATIENCE_AFTER', 0.2)
  left = subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(60)'], env={soak.MARK: other.mark}
  )
  other.no_processes(whole)
  assert left.wait(10) == -9 and 'left processes behind' in other.faults[0]
