"""benchmarks.startup runs the start of a real training up to its first step."""

import json

import pytest

from benchmarks import harness
from benchmarks import startup as benchmark


def test_the_stages_add_up_and_the_second_start_compiles_less(tmp_path, capsys):
  path = tmp_path / 'report.json'
  argv = ['benchmark', '--config=tests/benchmarks/test_startup.py:small', f'--output={path}']
  harness.door(benchmark.main, benchmark.FLAGS, benchmark.__doc__, argv=argv)
  starts = json.loads(path.read_text())['starts']
  for run in starts.values():
    assert set(run) == {*benchmark.STAGES, 'total'}
    assert run['total'] == pytest.approx(sum(run[stage] for stage in benchmark.STAGES))
    assert all(seconds > 0 for seconds in run.values())
  assert starts['warm']['compile'] < starts['cold']['compile']
  assert 'warm cache' in capsys.readouterr().out


def get_config(variant):
  """configs/pbe.py:tiny with very small networks."""
  from configs import pbe

  assert variant == 'small'
  config = pbe.get_config('tiny')
  config.model.unet.update(channels=16, mult=(1,), attention_levels=(0,), heads=2)
  config.model.clip.update(width=32, layers=1, heads=2, mlp=32)
  config.update(batch_size=4)
  return config
