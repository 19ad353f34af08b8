"""The evaluation of a benchmark in COCOEE's layout: made once, scored once, refused in one line."""

import inspect
import json
import os
import re
import shutil

import numpy as np
import pytest
from absl import flags
from PIL import Image

from configs import coco_ee
from exedit import evaluate
from exedit.evaluation import bench as reading
from exedit.evaluation import bench_edits, evaluate_bench, features
from exedit.input_pipeline.coco_ee import bench as packing
from exedit.input_pipeline.coco_ee import references
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.metrics import quality_score
from exedit.runtime import doors
from tests import bench, evaluations, judges
from tests.doors.test_doors import knock
from tests.evaluations import CHEAP, SIZE, arrays, refuse, score

SPOILED = (
  *('doubled ids', 'no ids', 'missing source', 'empty mask', 'mask of another size'),
  'damaged source',
)


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with evaluations.quickly():
    yield


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return evaluations.world(tmp_path_factory.mktemp('world'))


@pytest.fixture
def settings(world, tmp_path):
  return evaluations.arguments(world, tmp_path / 'cache')


@pytest.fixture(scope='module')
def scored(world, tmp_path_factory):
  """The evaluation of the small weights: (its folder, its results), with a cache beside it."""
  place = tmp_path_factory.mktemp('scored')
  given = evaluations.arguments(world, place / 'cache')
  return place, score(str(place / 'out'), weights=str(world / 'weights'), **given, **CHEAP)


@pytest.fixture
def edited(scored, settings, tmp_path):
  """A copy of it for one test: (folder, results)."""
  shutil.copytree(scored[0] / 'out', tmp_path / 'edited')
  shutil.copytree(scored[0] / 'cache', settings['cache'])
  return str(tmp_path / 'edited'), scored[1]


def numbers(results):
  return results['metrics'], results['edits']


# What is written


def test_an_evaluation_from_weights_to_the_page(edited, world):
  output, results = edited
  names = ['index.html', 'page', 'results', 'results.json', 'sampling.json']
  assert sorted(os.listdir(output)) == names
  with open(f'{output}/results.json') as file:
    assert json.load(file) == json.loads(json.dumps(results))
  assert results['benchmark']['edits'] == 4 and len(results['benchmark']['sha256']) == 64
  assert results['sampling'] == dict(CHEAP, scale=2.0, seed=42, paste=True, precision='float32')
  assert results['weights']['step'] == 12 and len(results['weights']['sha256']) == 64
  assert results['networks']['clip']['name'] == judges.CLIP
  assert [edit['id'] for edit in results['edits']] == list(bench.IDS)  # in the published order
  clip = f'_{judges.CLIP}'
  computed = {name for name, metric in results['metrics'].items() if metric['n'] == 4}
  assert computed == {
    *(f'fid{clip}', f'quality_score{clip}', f'clip_score{clip}', f'clip_i{clip}'),
    *(f'background_{name}' for name in ('exactness', 'psnr', 'ssim', 'lpips_alex')),
    *(f'dino_i_{judges.VIT}', 'copy_paste'),
  }
  missing = results['metrics']['fid_inception']
  assert missing['value'] is None and 'pt_inception-2015-12-05' in missing['note']
  for name in computed:
    metric = results['metrics'][name]
    assert metric['low'] <= metric['value'] <= metric['high'], name
  source = np.asarray(Image.open(world / 'bench' / 'GT_4' / f'{17:012d}_GT.png'))
  hole = np.asarray(Image.open(world / 'bench' / 'Mask_bbox_4' / f'{17:012d}_mask.png')) > 0
  result = np.asarray(Image.open(f'{bench_edits.folder(output)}/{17:012d}.png'))
  np.testing.assert_array_equal(result[~hole], source[~hole])
  assert (result[hole] != source[hole]).any()


def test_a_second_run_computes_nothing_and_gives_the_same_numbers(
  edited, world, settings, monkeypatch
):
  output, before = edited

  def called(*_, **__):
    raise AssertionError('computed again')

  monkeypatch.setattr(features, 'run_batches', called)
  monkeypatch.setattr(bench_edits.pbe, 'load', called)
  weights = str(world / 'weights')
  after = score(output, weights=weights, **settings, **CHEAP)
  assert numbers(after) == numbers(before)
  # The cache is by content: the same pictures elsewhere, by another name of the door.
  moved = f'{output}/../moved'
  shutil.copytree(bench_edits.folder(output), moved)
  again = score(f'{output}/../two', pictures=moved, **settings)
  assert numbers(again) == numbers(before) and again['pictures'] == moved
  monkeypatch.undo()
  monkeypatch.setattr(features, 'run_batches', called)
  with pytest.raises(AssertionError, match='computed again'):  # and that it would be noticed
    score(f'{output}/../three', pictures=moved, **dict(settings, cache=f'{output}/../empty'))


def test_a_packed_benchmark_is_the_same_benchmark(world, edited, settings, tmp_path):
  packing.pack(str(world / 'bench'), str(tmp_path / 'packed'), shards=2)
  results = score(
    str(tmp_path / 'scored'),
    pictures=bench_edits.folder(edited[0]),
    **dict(settings, data=dict(root=str(tmp_path / 'packed'))),
  )
  assert results['benchmark']['sha256'] == edited[1]['benchmark']['sha256']
  assert numbers(results) == numbers(edited[1])


# References that need no training


def test_gaming_the_clip_score_shows(world, settings, tmp_path):
  """A verbatim paste has the highest copy-paste score, the repeated source none of it."""
  found = {}
  for kind in ('copy_paste', 'source'):
    references.write(str(world / 'bench'), kind, str(tmp_path / kind))
    pictures = str(tmp_path / kind)
    results = score(str(tmp_path / 'o' / kind), pictures=pictures, **settings)
    found[kind] = {name: metric['value'] for name, metric in results['metrics'].items()}
    assert found[kind]['background_exactness'] == 1
    assert found[kind]['background_lpips_alex'] < 1e-12 and found[kind]['background_psnr'] == 100
  assert found['copy_paste']['copy_paste'] > 0.85 > found['source']['copy_paste']
  name = f'clip_i_{judges.CLIP}'
  assert found['copy_paste'][name] > found['source'][name]


# Bad input


def damaged(world, tmp_path):
  root = tmp_path / 'bench'
  shutil.copytree(world / 'bench', root)
  return root


def spoil(root, what):
  """Spoil a copy of the benchmark or its pictures; returns what the line must say."""
  mask, source = root / 'Mask_bbox_4' / f'{283:012d}_mask.png', root / 'GT_4' / f'{283:012d}_GT.png'
  if what == 'doubled ids':
    bench.save_ids(root, [*bench.IDS[:3], bench.IDS[0]])
    return 'occur more than once'
  if what == 'no ids':
    bench.save_ids(root, np.zeros(0, np.int64))
    return 'holds no id'
  if what == 'missing source':
    source.unlink()
    return f'lacks 1 of 4 files, the first is {source.name}'
  if what == 'empty mask':
    Image.new('L', (SIZE, SIZE)).save(mask)
    return f'{mask.name} is empty'
  if what == 'mask of another size':
    Image.new('L', (9, SIZE), 255).save(mask)
    return f'{mask.name} is 9x40 .*, .*40x40'
  if what == 'damaged source':
    source.write_bytes(source.read_bytes()[:99])
    return f'{source.name}: not a readable image'
  raise ValueError(what)


@pytest.mark.parametrize('what', SPOILED)
def test_a_damaged_benchmark_is_one_line(what, world, settings, tmp_path):
  root = damaged(world, tmp_path)
  says = spoil(root, what)
  line = refuse(
    str(tmp_path / 'out'),
    weights=str(world / 'weights'),
    **dict(settings, data=dict(root=str(root))),
  )
  assert re.search(says, line), line
  assert not (tmp_path / 'out').exists()


@pytest.fixture
def repeated(world, tmp_path):
  """A folder of pictures to spoil."""
  references.write(str(world / 'bench'), 'source', str(tmp_path / 'repeated'))
  return tmp_path / 'repeated'


def test_pictures_that_cannot_be_scored_are_one_line(repeated, settings, tmp_path):
  path = repeated / f'{283:012d}.png'
  line = lambda: refuse(str(tmp_path / 'out'), pictures=str(repeated), **settings)
  Image.new('RGB', (41, 40)).save(path)
  assert f'{path} is 41 x 40 pixels (width x height) but its source 40 x 40' in line()
  path.write_bytes(b'no picture')
  assert f'{path} is not a readable picture' in line()
  path.unlink()
  assert f'lacks 1 of 4 pictures, the first is {path.name}' in line()
  assert 'is not a folder' in refuse(
    str(tmp_path / 'out'), pictures=str(tmp_path / 'no'), **settings
  )
  assert not (tmp_path / 'out').exists()


def test_settings_that_cannot_be_are_one_line(world, repeated, settings, tmp_path):
  (tmp_path / 'file').write_text('')
  out, weights = str(tmp_path / 'out'), str(world / 'weights')
  wide = quality_score.GMM(np.ones(1), np.zeros((1, 5)), np.ones((1, 5)), 'diag')
  np.savez(tmp_path / 'wide.npz', **arrays(wide))
  for change, says in [
    (dict(pictures=None), 'either --weights'),
    (dict(weights=weights), 'either --weights'),
    (dict(pictures=None, weights=weights, steps=0), 'steps is 0'),
    (dict(pictures=None, weights=weights, batch_size=0), 'batch_size is 0'),
    (dict(pictures=None, weights=weights, precision='float8'), 'precision is float8'),
    (dict(pictures=None, weights=str(tmp_path / 'no')), 'no does not exist'),
    (dict(seed=-1), 'seed is -1'),
    (dict(data=dict(root=str(tmp_path / 'no'))), 'is not a folder'),
    (dict(data=dict(rot='x')), "did you mean 'root'"),
    (dict(features=dict(clop='x')), "did you mean 'clip'"),
    (dict(features=dict(clip_b32=settings['features']['clip'])), 'not clip_b32'),
    (
      dict(features=dict(clip=settings['features']['clip'], clip_b32='x')),
      'two networks of the kind clip',
    ),
    (dict(reference=dict(root=str(tmp_path / 'no'))), 'is not a folder'),
    (dict(reference=dict(root=str(tmp_path))), 'holds no image'),
    (dict(gmm=str(tmp_path / 'file')), 'holds no mixture'),
    (dict(gmm=str(tmp_path / 'wide.npz')), 'width 5, but those of clip_64x2p8s32 have 12'),
    (dict(cache=str(tmp_path / 'file')), 'config.cache'),
  ]:
    given = dict(settings, pictures=str(repeated)) | change
    assert says in refuse(out, **given), change
  assert 'is a file' in refuse(str(tmp_path / 'file'), **settings, pictures=str(repeated))
  assert '--output is missing' in refuse(None, **settings, pictures=str(repeated))


# The door


def test_the_config_s_keys_are_arguments():
  config = coco_ee.get_config().to_dict()
  known = inspect.signature(evaluate_bench.evaluate).parameters
  assert set(config) <= set(known)
  assert set(config['features']) == set(evaluate_bench.NETWORKS)


def test_the_door_scores_pictures_and_compares(repeated, world, tmp_path, monkeypatch, capsys):
  def open_door(*argv):
    monkeypatch.setattr(flags, 'FLAGS', flags.FlagValues())
    evaluate.define_flags()
    words = evaluate.compare.joined(['door', *argv])
    monkeypatch.setattr('sys.argv', words)
    doors.door(evaluate.main)(doors.door(doors.parse)(words))
    return capsys.readouterr().out

  config = ('--config=configs/coco_ee.py', f'--config.data.root={world}/bench')
  config += (f'--config.cache={tmp_path}/cache', f'--images={repeated}')
  said = open_door(*config, f'--output={tmp_path}/a')
  assert 'background_exactness' in said and 'fid_clip_b32' in said
  assert 'config.features.clip_b32 is not set; get OpenAI' in said
  results = f'{tmp_path}/a/results.json'
  assert 'no difference shown' in open_door('--compare', results, results)
  good = dict(config='configs/coco_ee.py', images=repeated, output=tmp_path / 'b')
  assert 'is not a folder' in knock(
    evaluate, good | {'config.data.root': tmp_path / 'none'}, monkeypatch, capsys
  )
  assert '--compare takes two' in knock(evaluate, dict(compare=results), monkeypatch, capsys)
  synthetic = dict(config='configs/synthetic_bench.py', images=repeated)
  assert '--images goes with' in knock(evaluate, synthetic, monkeypatch, capsys)
  assert not (tmp_path / 'b').exists()


def test_strangers_are_told(repeated, world, settings, tmp_path):
  Image.new('RGB', (3, 3)).save(repeated / 'other.png')
  said = []
  given = dict(settings, say=said.append, features={})
  score(str(tmp_path / 'out'), pictures=str(repeated), **given)
  assert any('1 pictures are of no edit' in line and 'other.png' in line for line in said)


def test_a_survey_is_of_the_bytes(world, tmp_path):
  root = damaged(world, tmp_path)
  same = reading.digest(reading.survey(Bench(str(root))))
  assert same == reading.digest(reading.survey(Bench(str(world / 'bench'))))
  bench.mask((4, 6, 14, 19), SIZE).save(root / 'Mask_bbox_4' / f'{bench.IDS[0]:012d}_mask.png')
  assert reading.digest(reading.survey(Bench(str(root)))) != same
