"""The door of the evaluation: it runs the benchmark that the config names, or compares results."""

import inspect

import pytest

from configs import coco_ee as coco_ee_config
from configs import custom_edit_sweep as sweep_config
from configs import pie_bench as pie_config
from configs import synthetic_bench as synthetic_config
from exedit import evaluate
from exedit.evaluation import coco_ee, pie_bench, sweep, synthetic_bench
from exedit.input_pipeline.coco_ee import references
from tests import bench
from tests.doors.test_doors import knock


@pytest.fixture
def door(capsys):
  """The door in this process: flags -> its stdout."""

  def run(*argv):
    evaluate.run(['door', *map(str, argv)])
    return capsys.readouterr().out

  return run


@pytest.mark.parametrize(
  'config, benchmark', [(coco_ee_config, coco_ee), (synthetic_config, synthetic_bench)]
)
def test_the_keys_of_the_configs_are_arguments(config, benchmark):
  config = config.get_config().to_dict()
  older = {name: value for name, value in config.items() if name != 'bench'}
  assert evaluate.bench_of(config) == evaluate.bench_of(older)
  assert benchmark.__name__.rpartition('.')[2].startswith(evaluate.bench_of(older))
  assert set(config) <= set(inspect.signature(benchmark.evaluate).parameters)
  assert set(config.get('features', coco_ee.NETWORKS)) == set(coco_ee.NETWORKS)


@pytest.mark.parametrize('config, benchmark', [(pie_config, pie_bench), (sweep_config, sweep)])
def test_the_keys_of_the_configs_for_edits_by_text_are_arguments(config, benchmark):
  config = config.get_config().to_dict()
  assert f'exedit.evaluation.{evaluate.bench_of(config)}'.endswith(
    benchmark.__name__.split('.')[-1]
  )
  assert set(config) <= set(inspect.signature(benchmark.evaluate).parameters)
  assert set(config['features']) == set(benchmark.NETWORKS)


def test_pictures_are_scored_and_compared(door, tmp_path, monkeypatch, capsys):
  bench.write(tmp_path / 'bench', size=40)
  references.write(str(tmp_path / 'bench'), 'source', str(tmp_path / 'repeated'))
  config = ('--config=configs/coco_ee.py', f'--config.data.root={tmp_path}/bench')
  config += (f'--config.cache={tmp_path}/cache', f'--images={tmp_path}/repeated')
  said = door(*config, f'--output={tmp_path}/a')
  assert 'background_exactness' in said and 'fid_clip_b32' in said
  assert 'config.features.clip_b32 is not set; get OpenAI' in said
  results = f'{tmp_path}/a/results.json'
  for words in (
    ['--compare', results, results, f'--output={tmp_path}/page'],
    [f'--compare={results}', f'--compare={results}', f'--output={tmp_path}/page'],
  ):
    said = door(*words)
    assert 'no difference shown' in said and f'{tmp_path}/page/index.html' in said
  given = dict(config='configs/coco_ee.py', images=tmp_path / 'repeated', output=tmp_path / 'b')
  line = knock(evaluate, given | {'config.data.root': tmp_path / 'none'}, monkeypatch, capsys)
  assert 'is not a folder' in line and not (tmp_path / 'b').exists()


def test_flags_that_do_not_fit_are_one_line(tmp_path, monkeypatch, capsys):
  (tmp_path / 'other.py').write_text(
    'import ml_collections\n'
    'def get_config():\n'
    '  return ml_collections.ConfigDict(dict(bench="other"))\n'
  )
  synthetic = dict(config='configs/synthetic_bench.py', weights='w')
  for given, says in [
    (dict(compare='a.json'), '--compare takes two results.json, and 1 are given'),
    (synthetic | dict(compare='a.json'), '--compare takes no other flag than --output'),
    (dict(synthetic, images='x'), '--images goes with'),
    (dict(config=tmp_path / 'other.py'), "set bench='coco_ee' for a benchmark in COCOEE's layout"),
  ]:
    assert says in knock(evaluate, given, monkeypatch, capsys)
