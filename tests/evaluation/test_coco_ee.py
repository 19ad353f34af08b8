"""The evaluation of a benchmark in COCOEE's layout: computed once, refused in one line."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from exedit import systems
from exedit.evaluation import benchmark, coco_ee, make_edits, networks
from exedit.input_pipeline.coco_ee import bench as packing
from exedit.input_pipeline.coco_ee import references
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.metrics import quality_score
from exedit.runtime.errors import UserError
from tests import bench, evaluations, judges
from tests.evaluations import CHEAP, SIZE, arrays, refuse, score
from tests.pictures import strew


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
  return place, score(place / 'out', weights=str(world / 'weights'), **given, **CHEAP)


@pytest.fixture
def edited(scored, settings, tmp_path):
  """A copy of it for one test: (folder, results)."""
  shutil.copytree(scored[0] / 'out', tmp_path / 'edited')
  shutil.copytree(scored[0] / 'cache', settings['cache'])
  return str(tmp_path / 'edited'), scored[1]


@pytest.fixture
def repeated(world, tmp_path):
  """A folder of pictures to spoil."""
  references.write(str(world / 'bench'), 'source', str(tmp_path / 'repeated'))
  return tmp_path / 'repeated'


def numbers(results):
  return results['metrics'], results['edits']


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
  result = np.asarray(Image.open(f'{make_edits.folder(output)}/{17:012d}.png'))
  np.testing.assert_array_equal(result[~hole], source[~hole])
  assert (result[hole] != source[hole]).any()


def test_a_second_run_computes_nothing_and_gives_the_same_numbers(
  edited, world, settings, monkeypatch
):
  output, before = edited

  def called(*_, **__):
    raise AssertionError('computed again')

  monkeypatch.setattr(networks, 'run_batches', called)
  monkeypatch.setattr(systems, 'load', called)
  after = score(output, weights=str(world / 'weights'), **settings, **CHEAP)
  assert numbers(after) == numbers(before)
  # The cache is by content: the same pictures in another folder.
  moved = f'{output}/../moved'
  shutil.copytree(make_edits.folder(output), moved)
  again = score(f'{output}/../two', pictures=moved, **settings)
  assert numbers(again) == numbers(before) and again['pictures'] == moved
  with pytest.raises(AssertionError, match='computed again'):  # and the test would notice it
    score(f'{output}/../three', pictures=moved, **dict(settings, cache=f'{output}/../empty'))


def test_a_packed_benchmark_is_the_same_benchmark(world, edited, settings, tmp_path):
  packing.pack(str(world / 'bench'), str(tmp_path / 'packed'), shards=2)
  given = dict(settings, data=dict(root=str(tmp_path / 'packed')))
  results = score(tmp_path / 'scored', pictures=make_edits.folder(edited[0]), **given)
  assert results['benchmark']['sha256'] == edited[1]['benchmark']['sha256']
  assert numbers(results) == numbers(edited[1])


def test_gaming_the_clip_score_shows(world, settings, tmp_path):
  """A verbatim paste has the highest copy-paste score, the repeated source the lowest."""
  found = {}
  for kind in ('copy_paste', 'source'):
    references.write(str(world / 'bench'), kind, str(tmp_path / kind))
    results = score(tmp_path / 'o' / kind, pictures=str(tmp_path / kind), **settings)
    found[kind] = {name: metric['value'] for name, metric in results['metrics'].items()}
    assert found[kind]['background_exactness'] == 1
    assert found[kind]['background_lpips_alex'] < 1e-12 and found[kind]['background_psnr'] == 100
  assert found['copy_paste']['copy_paste'] > 0.85 > found['source']['copy_paste']
  name = f'clip_i_{judges.CLIP}'
  assert found['copy_paste'][name] > found['source'][name]


# Bad input


def test_a_damaged_benchmark_is_one_line(world, settings, tmp_path):
  root = shutil.copytree(world / 'bench', tmp_path / 'bench')
  mask = root / 'Mask_bbox_4' / f'{283:012d}_mask.png'
  Image.new('L', (9, SIZE), 255).save(mask)
  given = dict(settings, data=dict(root=str(root)))
  line = refuse(str(tmp_path / 'out'), weights=str(world / 'weights'), **given)
  assert line.startswith(f'{mask.name}: ') and 'it is 9x40, the source 40x40' in line
  assert not (tmp_path / 'out').exists()


def test_pictures_that_cannot_be_scored_are_one_line(repeated, settings, tmp_path):
  path = repeated / f'{283:012d}.png'
  line = lambda: refuse(str(tmp_path / 'out'), pictures=str(repeated), **settings)
  Image.new('RGB', (41, 40)).save(path)
  assert f'{path} is 41 x 40 pixels (width x height) but its source 40 x 40' in line()
  path.write_bytes(b'no picture')
  assert f'{path} is not an image' in line()
  path.unlink()
  assert f'lacks 1 of 4 pictures, the first is {path.name}' in line()
  nowhere = str(tmp_path / 'no')
  assert 'is not a folder' in refuse(str(tmp_path / 'out'), pictures=nowhere, **settings)
  assert not (tmp_path / 'out').exists()


def test_unusable_settings_are_one_line(world, repeated, settings, tmp_path):
  (tmp_path / 'file').write_text('')
  out, weights = str(tmp_path / 'out'), str(world / 'weights')
  wide = quality_score.GMM(np.ones(1), np.zeros((1, 5)), np.eye(5)[None])
  np.savez(tmp_path / 'wide.npz', **arrays(wide))
  clip = settings['features']['clip']
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
    (dict(features=dict(clip_b32=clip)), 'not clip_b32'),
    (dict(features=dict(clip=clip, clip_b32='x')), 'two networks of the kind clip'),
    (dict(reference=dict(root=str(tmp_path / 'no'))), 'is not a folder'),
    (dict(reference=dict(root=str(tmp_path))), 'holds no image'),
    (dict(gmm=str(tmp_path / 'file')), 'contains no mixture'),
    (dict(gmm=str(tmp_path / 'wide.npz')), 'width 5, but those of clip_64x2p8s32 have 12'),
    (dict(cache=str(tmp_path / 'file')), 'config.cache'),
  ]:
    given = dict(settings, pictures=str(repeated)) | change
    assert says in refuse(out, **given), change
  assert 'is not a folder' in refuse(str(tmp_path / 'file'), **settings, pictures=str(repeated))
  assert '--output is missing' in refuse(None, **settings, pictures=str(repeated))


def test_pictures_of_no_edit_are_reported(repeated, settings, tmp_path):
  Image.new('RGB', (3, 3)).save(repeated / 'other.png')
  strew(repeated)
  said = []
  given = dict(settings, say=said.append, features={})
  score(tmp_path / 'out', pictures=str(repeated), **given)
  assert any('1 pictures belong to no edit' in line and 'other.png' in line for line in said)


def test_the_digest_of_a_benchmark_is_of_its_bytes(world, tmp_path):
  root = shutil.copytree(world / 'bench', tmp_path / 'bench')
  digest = lambda folder: benchmark.digest(benchmark.survey(Bench(str(folder))))
  assert digest(root) == digest(world / 'bench')
  bench.mask((4, 6, 14, 19), SIZE).save(root / 'Mask_bbox_4' / f'{bench.IDS[0]:012d}_mask.png')
  assert digest(root) != digest(world / 'bench')


@pytest.mark.parametrize('name', ['index.html', 'results.json', 'grid.png', 'page'])
def test_somebody_elses_files_of_our_names_are_not_replaced(tmp_path, name):
  (tmp_path / name).write_text('mine')
  with pytest.raises(UserError, match=f'{name} was not written by an evaluation: name another'):
    coco_ee.writable_folder(str(tmp_path))
  assert (tmp_path / name).read_text() == 'mine'
  if name not in coco_ee.MARKS:  # an evaluation that has ended leaves it
    (tmp_path / 'results.json').write_text('{"benchmark": 1}')
    assert coco_ee.writable_folder(str(tmp_path)) == str(tmp_path)
