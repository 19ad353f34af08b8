"""benchmarks.custom_edit: what it measures and counts, and ratios of one run alone."""

import json

import numpy as np
import pytest

from benchmarks import custom_edit as benchmark
from benchmarks import harness, networks
from exedit import stable_diffusion

SPEC = dict(width='tiny', size=16, batch=1, precision='float32', steps=1, inversion=2)


@pytest.fixture(scope='module')
def spec(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights')
  networks.write_weights('tiny', folder / 'w', stable_diffusion)
  np.savez(folder / 'inputs.npz', allow_pickle=False, **benchmark.batch_of(SPEC))
  return dict(SPEC, folder=str(folder / 'w'), inputs=str(folder / 'inputs.npz'))


def test_a_step_and_an_edit_are_measured(spec):
  worker = benchmark.WORKERS['exedit']
  found = [worker(dict(spec, part=part)) for part in benchmark.PARTS]
  assert [found[0].keys(), found[1].keys()] == [
    {'step', 'trained', 'peak_bytes'}, {'inversion', 'edit', 'peak_bytes'}
  ]  # fmt: skip
  assert all(value > 0 for part in found for value in part.values())


def test_work_and_arrays_are_counted_without_running(tmp_path, capsys):
  flags = ['--width=tiny', '--size=16', '--batch=1', '--inversion=2', '--count']
  path = tmp_path / 'report.json'
  argv = ['benchmark', *flags, f'--output={path}']
  harness.door(benchmark.main, benchmark.FLAGS, benchmark.__doc__, benchmark.WORKERS, argv)
  found = json.loads(path.read_text())['counted']
  assert found['edit'] > found['inversion'] > 0 and found['step'] > 0
  assert 3 * found['concept_bytes'] <= found['state_bytes'] < 3 * found['concept_bytes'] + 1000
  assert 'TFLOP' in capsys.readouterr().out


def test_a_ratio_needs_both_sides_in_one_run():
  def measured(spec):
    times = dict(step=dict(step=2.0), edit=dict(inversion=4.0, edit=8.0))[spec['part']]
    own = spec['system'] == 'exedit'
    return {n: t if own else 3 * t for n, t in times.items() if own or n != 'edit'} | dict(
      peak_bytes=1e9
    )

  rows = benchmark.compare(SPEC, 2, ['exedit', 'diffusers'], measured)
  assert rows[1]['step_ratio'] == rows[1]['inversion_ratio'] == 3 and 'edit' not in rows[1]
  _, first, second = benchmark.lines(dict(systems=rows))
  assert first.split()[-2:] == ['1.00', '1.00'] and second.split()[-2:] == ['3.00', '3.00']
  [alone] = benchmark.compare(SPEC, 1, ['diffusers'], measured)
  assert not [key for key in alone if 'ratio' in key]
  assert [*benchmark.lines(dict(systems=[alone]))][1].split()[-2:] == ['-', '-']
