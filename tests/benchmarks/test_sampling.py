"""The benchmark's door reports what it measured, and its variants are one and the same function."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from benchmarks import sampling as benchmark
from exedit import paint_by_example as pbe
from exedit.planning import topology
from exedit.runtime import doors
from tests import small

TORCH = bool(importlib.util.find_spec('torch') and importlib.util.find_spec('diffusers'))


def door(*flags):
  argv = ['benchmark', '--width=tiny', '--size=16', '--steps=2', *flags]
  doors.call(benchmark.main, benchmark._flags(), benchmark.__doc__, argv)


@pytest.fixture(scope='module', autouse=True)
def quickly():
  """Here and in the processes that the benchmark starts."""
  with pytest.MonkeyPatch.context() as patch, small.compiled_quickly():
    patch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights')
  benchmark.write_weights('tiny', path)
  return str(path)


def test_every_variant_predicts_the_same(folder):
  model = benchmark.load(folder, 'float32')
  given = {name: jax.numpy.asarray(a) for name, a in benchmark.arrays('tiny', 16, 2).items()}
  expected = benchmark.evaluation(model, given)[0]()
  assert float(abs(expected).max()) > 0.1
  for name in benchmark.SHORTCUTS:
    eps = benchmark.evaluation(model, given, name)[0]()
    np.testing.assert_allclose(eps, expected, atol=1e-5 * float(abs(expected).max()), err_msg=name)


def test_all_widths_are_models_that_diffusers_knows():
  for settings in benchmark.WIDTHS.values():
    complete = pbe.complete(settings)
    pbe.abstract(complete)
    assert complete['conditioner']['layers'] == (complete['clip']['layers'] + 1) // 5


def test_the_door_reports(folder, tmp_path, capsys):
  path = tmp_path / 'report.json'
  door('--batch=1', '--shortcut_rounds=1', f'--weights={folder}', f'--output={path}')
  report = json.loads(path.read_text())
  rows = {row['system']: row for row in report['systems']}
  assert set(rows) == ({'exedit', 'diffusers'} if TORCH else {'exedit'})
  for row in rows.values():
    assert row['batch'] == 1 and row['steps_per_second'] == 2 / row['edit']
    assert 0 < row['evaluation'] < row['first_edit'] and row['peak_bytes'] > 1e8
  assert rows['exedit']['edit_ratio'] == 1
  assert {*benchmark.SHORTCUTS} < set(report['shortcuts']['seconds'])
  assert report['machine']['jax'] == jax.__version__ and report['settings']['steps'] == 2
  assert 'steps/s' in capsys.readouterr().out


def test_the_plan_is_the_sum_of_its_parts(tmp_path, monkeypatch):
  monkeypatch.setattr(topology, 'compiler', lambda: None)  # test_plan.py asks the TPU's
  path = tmp_path / 'plan.json'
  door('--batch=2', '--precision=bfloat16', '--plan', f'--output={path}')
  found = json.loads(path.read_text())['plan']['batch 2']['cpu']
  parts = ('weights', 'inputs', 'outputs', 'temporaries')
  assert found['together'] == sum(found[part] for part in parts)
  _, shapes = pbe.abstract(benchmark.WIDTHS['tiny'])
  size = lambda kernel: sum(a.size for n, a in shapes.items() if n.endswith('.kernel') == kernel)
  assert found['weights'] == 2 * size(True) + 4 * size(False)
  assert found['temporaries'] > 0


@pytest.mark.parametrize('flag', ['--batch=one', '--batch=0', '--steps=0', '--width=huge'])
def test_bad_flags_are_one_line(flag, capsys):
  with pytest.raises(SystemExit, match='2'):
    door(flag)
  assert len(capsys.readouterr().err.strip().splitlines()) == 1
