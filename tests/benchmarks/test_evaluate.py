"""The benchmark's workers measure what its door prints, on files that the evaluation takes."""

import pytest

from benchmarks import evaluate as benchmark
from exedit.evaluation import networks
from exedit.input_pipeline.coco_ee import validation
from exedit.runtime import doors
from tests import small


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with small.loaded_once():
    yield


def test_the_workers_measure(tmp_path):
  root = tmp_path / 'bench'
  benchmark.write_bench(root, 3, 32)
  found = validation.validate(str(root), 32)
  assert found['edits'] == 3 and not found['faults']
  small.export(tmp_path / 'weights')
  found = benchmark.edits(dict(weights=str(tmp_path / 'weights'), bench=str(root), rounds=1))
  assert 0 < found['seconds'] and found['peak_bytes'] > 1e8 and found['settings']['steps'] > 0
  benchmark.write_inception(tmp_path / 'inception.safetensors')
  network = networks.load('inception', tmp_path / 'inception.safetensors')
  assert (network.name, network.dim) == ('inception', benchmark.DIM)


def test_the_table_has_every_part():
  row = dict(system='exedit', features=4.0, network=2.0, distance=5.0, value=1.5, peak_bytes=9e8)
  other = dict(row, system='pytorch-fid', features=8.0, versions=dict(torch='2'))
  settings = dict(sampler='ddim', steps=20)
  report = dict(
    settings=dict(pictures=64, batch=32),
    machine=dict(cores=2),
    features=dict(rows=[row, other], apart=4e-7, pictures=64),
    edits=dict(count=64, seconds=5.0, first=9.0, size=32, settings=settings),
  )
  text = benchmark.table(report)
  ours, theirs = (line.split() for line in text.splitlines()[1:3])
  assert ours == ['exedit', '16.00', '16.00', '5.00', '900.00']
  assert theirs[:2] == ['pytorch-fid', '8.00'] and theirs[-2:] == ['torch', '2']
  assert '12.80 edits/s' in text and 'cores 2' in text and '4.0e-07' in text


def test_without_the_package_there_is_no_peer(tmp_path, monkeypatch):
  monkeypatch.setattr(benchmark.importlib.util, 'find_spec', lambda name: None)
  assert benchmark.peers('') == benchmark.peers(str(tmp_path)) == []
  (tmp_path / 'pytorch_fid').mkdir()
  assert benchmark.peers(str(tmp_path)) == ['pytorch-fid']


@pytest.mark.parametrize('flag', ['--rounds=few', '--pictures=0', '--parts=edit'])
def test_bad_flags_are_one_line(flag, capsys):
  with pytest.raises(SystemExit, match='2'):
    doors.call(benchmark.main, benchmark.FLAGS, benchmark.__doc__, ['benchmark', flag])
  assert len(capsys.readouterr().err.strip().splitlines()) == 1
