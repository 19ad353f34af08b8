"""The benchmark of the start runs the real `train` up to its first step, and adds up."""

import json

import pytest

from benchmarks import startup as benchmark
from exedit.runtime import doors


def door(*flags):
  doors.call(benchmark.main, benchmark._flags(), benchmark.__doc__, ['benchmark', *flags])


def test_the_stages_add_up_and_the_second_start_compiles_less(tmp_path, capsys):
  path = tmp_path / 'report.json'
  config = '--config=tests/benchmarks/test_startup.py:small'
  door(config, f'--output={path}')
  report = json.loads(path.read_text())
  for run in report['starts'].values():
    assert set(run) == {*benchmark.STAGES, 'total'}
    assert run['total'] == pytest.approx(sum(run[stage] for stage in benchmark.STAGES))
    assert all(seconds > 0 for seconds in run.values())
  assert report['starts']['warm']['compile'] < report['starts']['cold']['compile']
  found = report['imports']
  assert 0 < found['own'] < found['whole'] and len(found['slowest']) == 5
  assert 'warm cache' in capsys.readouterr().out


@pytest.mark.parametrize('flag', ['--rounds=0', '--size=-1', '--configs=x'])
def test_bad_flags_are_one_line(flag, capsys):
  with pytest.raises(SystemExit, match='2'):
    door(flag)
  assert len(capsys.readouterr().err.strip().splitlines()) == 1


def get_config(variant):
  """configs/pbe.py:tiny with the smallest networks there are."""
  from configs import pbe

  assert variant == 'small'
  config = pbe.get_config('tiny')
  config.model.unet.update(channels=16, mult=(1,), attention_levels=(0,), heads=2)
  config.model.clip.update(width=32, layers=1, heads=2, mlp=32)
  config.update(batch_size=4)
  return config
