"""The benchmark's workers measure what its door prints, on files that the evaluation takes."""

import pytest

from benchmarks import evaluate as benchmark
from benchmarks import evaluate_pytorch_fid as peer
from exedit.evaluation import networks
from exedit.input_pipeline.coco_ee import validation
from exedit.runtime import doors
from tests import small


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with small.quickly():
    yield


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  root = tmp_path_factory.mktemp('drawn') / 'bench'
  benchmark.write_bench(root, 3, 32)
  return root


def test_what_it_draws_is_a_benchmark_without_faults(drawn):
  found = validation.validate(str(drawn), 32)
  assert found['edits'] == 3 and not found['faults']


def test_its_weights_are_in_the_published_layout(tmp_path):
  benchmark.write_inception(tmp_path / 'weights.safetensors')
  network = networks.load('inception', tmp_path / 'weights.safetensors')
  assert (network.name, network.dim) == ('inception', benchmark.DIM)


def test_the_workers_measure(drawn, tmp_path):
  small.export(tmp_path / 'weights')
  spec = dict(weights=str(tmp_path / 'weights'), bench=str(drawn), rounds=1)
  found = benchmark.edits(spec)
  assert 0 < found['seconds'] and found['peak_bytes'] > 1e8 and found['steps'] > 0
  benchmark.write_clip(tmp_path / 'clip.safetensors')
  (drawn / 'pictures').mkdir()
  for i in range(3):
    name = drawn / 'pictures' / f'{i:012d}.png'
    name.write_bytes((drawn / 'GT_3' / f'{i:012d}_GT.png').read_bytes())
  spec = dict(weights=str(tmp_path / 'clip.safetensors'), few=str(drawn), all=str(drawn))
  found = benchmark.memory(spec)
  assert 1e8 < found['few'] <= found['all']


def test_the_fastest_round_counts():
  times = iter([0.02, 0.0, 0.01])

  def call():
    peer.time.sleep(next(times))
    return 'the last'

  seconds, result = peer.best(call, 3)
  assert seconds < 0.01 and result == 'the last'


def test_the_table_has_every_part():
  row = dict(system='exedit', features=4.0, network=2.0, distance=5.0, value=1.5, peak_bytes=9e8)
  other = dict(row, system='pytorch-fid', features=8.0, versions=dict(torch='2'))
  report = dict(
    settings=dict(pictures=64, batch=32),
    machine=dict(cores=2),
    features=dict(rows=[dict(row, versions={}), other], apart=4e-7),
    edits=dict(count=64, seconds=5.0, first=9.0, size=32, sampler='ddim', steps=20),
    memory=[dict(count=200, few=3e8, all=3.5e8)],
  )
  text = benchmark.table(report)
  ours, theirs = (line.split() for line in text.splitlines()[1:3])
  assert ours == ['exedit', '16.00', '16.00', '5.00', '900.00']
  assert theirs[:2] == ['pytorch-fid', '8.00'] and theirs[-2:] == ['torch', '2']
  assert '12.80 edits/s' in text and '350.0' in text and 'cores 2' in text and '4.0e-07' in text


def test_without_the_package_there_is_no_peer(tmp_path, monkeypatch):
  monkeypatch.setattr(benchmark.importlib.util, 'find_spec', lambda name: None)
  assert benchmark.peers('') == benchmark.peers(str(tmp_path)) == []
  (tmp_path / 'pytorch_fid').mkdir()
  assert benchmark.peers(str(tmp_path)) == ['pytorch-fid']


@pytest.mark.parametrize('flag', ['--memory=few', '--memory=0', '--pictures=0', '--parts=edit'])
def test_bad_flags_are_one_line(flag, capsys):
  with pytest.raises(SystemExit, match='2'):
    doors.call(benchmark.main, benchmark._flags(), benchmark.__doc__, ['benchmark', flag])
  assert len(capsys.readouterr().err.strip().splitlines()) == 1
