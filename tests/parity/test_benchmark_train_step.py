"""benchmarks.train_step measures both systems, and its ablations compute the same loss."""

import json

import jax
import numpy as np
import pytest

from benchmarks import harness, networks
from benchmarks import train_step as benchmark

pytestmark = pytest.mark.quick
pytest.importorskip('torch')
pytest.importorskip('diffusers')


def door(*flags):
  argv = ['benchmark', '--width=tiny', '--size=16', '--steps=1', *flags]
  harness.door(benchmark.main, benchmark.FLAGS, benchmark.__doc__, argv=argv)


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  folder = tmp_path_factory.mktemp('weights')
  networks.write_weights('tiny', folder)
  path = folder / 'report.json'
  door('--feed', '--ablations', f'--weights={folder}', f'--output={path}')
  return json.loads(path.read_text())


def test_the_door_reports(report):
  rows = {row['system']: row for row in report['systems']}
  assert set(rows) == {'exedit', 'pytorch'}
  for row in rows.values():
    assert row['images_per_second'] == 2 / row['step'] and row['first'] > row['step'] > 0
    assert set(row['parts']) == set(benchmark.PARTS) and row['peak_bytes'] > 1e8
    assert 0 < row['mfu'] < 1
    assert row['trained'] == rows['exedit']['trained']
  ours = rows['exedit']
  assert sum(ours['parts'].values()) == pytest.approx(ours['step'])
  assert 0 <= ours['waited'] < 1 and ours['flops'] > 1e6
  assert report['machine']['jax'] == jax.__version__ and report['settings']['steps'] == 1


def test_every_ablation_computes_the_same_loss(report):
  losses = report['ablations']['losses']
  assert set(losses) == set(benchmark.ABLATIONS)
  np.testing.assert_allclose(list(losses.values()), losses['as it is'], rtol=1e-5)
  assert set(report['ablations']['seconds']) == set(benchmark.ABLATIONS)
