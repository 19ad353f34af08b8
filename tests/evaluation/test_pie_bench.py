"""PIE-Bench: every score against its formula, pasting, results as other programs leave them."""

import shutil

import numpy as np
import pytest
from PIL import Image

from exedit import evaluate, images, stable_diffusion
from exedit.evaluation import compare, networks, pie_bench, published, vectors
from exedit.input_pipeline import pie_bench as reader
from exedit.metrics import pixels
from exedit.metrics.features import clip_scores
from exedit.runtime.errors import explain
from exedit.weights import find
from tests import judges, pie, small_text, vocabulary

NETS = dict(dino=judges.VIT, lpips='lpips_alex', clip=judges.CLIP)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  root = tmp_path_factory.mktemp('pie')
  pie.write(root / 'bench')
  pie.changed(root / 'bench', root / 'results')
  return root


@pytest.fixture(scope='module')
def files(world):
  return judges.write(world / 'networks', seed=1, words=vocabulary.WORDS)  # similarities above 0


@pytest.fixture(scope='module')
def found(world, files):
  """The results with all networks, which are not the published ones."""
  return score(world, 'scores', features=files)


def score(world, output, results='results', features=(), **more):
  return pie_bench.evaluate(
    str(world / output),
    data=dict(root=str(world / 'bench')),
    features=dict(features),
    cache=str(world / 'cache'),
    **{'pictures': str(world / results), 'say': lambda line: None, **more},
  )


def refusal(call, *args, **given):
  """The one line with which a call refuses its arguments."""
  with pytest.raises(Exception) as caught:
    call(*args, **given)
  line = explain(caught.value)
  assert line is not None and len(line) < 400, caught.value
  return line


def of(found, name, network=None):
  """A metric's score of each edit."""
  name = f'{name}_{NETS[network]}' if network else name
  return [edit['metrics'][name] for edit in found['edits']]


def test_every_score_is_its_formula(world, files, found):
  own = reader.Bench(world / 'bench')
  edits = [own[i] for i in range(3)]
  results = [images.read(str(world / 'results' / path)) for path in pie.PATHS]
  sources = [edit['source'] for edit in edits]
  structure = networks.load_structure('dino', files['dino'])
  expected = structure(zip(results, sources))
  np.testing.assert_allclose(of(found, 'structure_distance', 'dino'), expected, rtol=1e-4)
  outside = [(edit['mask'] == 0)[..., None] for edit in edits]
  assert of(found, 'mse_unedit_part')[1] is None and not outside[1].any()
  lpips = networks.load_lpips('lpips', files['lpips'])
  for i in (0, 2):
    frames = tuple(np.where(outside[i], x, np.uint8(0)) for x in (sources[i], results[i]))
    error = ((frames[0] / 255 - frames[1] / 255) ** 2).mean()
    np.testing.assert_allclose(of(found, 'mse_unedit_part')[i], error)
    np.testing.assert_allclose(of(found, 'psnr_unedit_part')[i], -10 * np.log10(error))
    np.testing.assert_allclose(of(found, 'ssim_unedit_part')[i], pixels.frame_ssim(*frames))
    np.testing.assert_allclose(
      of(found, 'lpips_unedit_part', 'lpips')[i], lpips([frames])[0], rtol=1e-4
    )
  clip, texts = (load('clip', files['clip']) for load in (networks.load, networks.load_texts))
  said = texts([edit['target'] for edit in edits])
  regions = [np.where(keep, np.uint8(0), x) for keep, x in zip(outside, results)]
  for name, shown in [('', results), ('_edit_part', regions)]:
    values = of(found, f'clip_similarity_target_image{name}', 'clip')
    np.testing.assert_allclose(values, clip_scores(clip(shown), said), atol=1e-3)
  assert np.ptp(of(found, 'clip_similarity_target_image', 'clip')) > 0.1


def test_a_region_that_leaves_nothing_has_no_background(found):
  metric = found['metrics']['psnr_unedit_part']
  assert metric['n'] == 2 and 'undefined for 1 of 3 edits' in metric['note']
  assert 'the region is the whole picture' in metric['note']
  assert found['metrics'][f'structure_distance_{judges.VIT}']['n'] == 3


def test_with_a_pasted_background_only_the_region_differs(found):
  assert of(found, 'pasted_mse_unedit_part') == [0, None, 0]
  assert of(found, 'pasted_ssim_unedit_part') == [1, None, 1]
  assert of(found, 'pasted_lpips_unedit_part', 'lpips') == [0, None, 0]
  metric = found['metrics']['pasted_psnr_unedit_part']
  assert metric['value'] is None and 'its PSNR is infinite' in metric['note']
  for name, network in [('structure_distance', 'dino'), ('clip_similarity_target_image', 'clip')]:
    plain, pasted = of(found, name, network), of(found, f'pasted_{name}', network)
    np.testing.assert_allclose(plain[1], pasted[1], rtol=1e-4)  # there is nothing to paste
    assert all(abs(plain[i] - pasted[i]) > 1e-6 for i in (0, 2))


def test_a_second_evaluation_computes_nothing(world, files, found, monkeypatch):
  monkeypatch.setattr(
    vectors,
    'fill',
    lambda store, column, only=None: (
      pytest.fail('a vector is missing') if store.missing(column.keys) else None
    ),
  )
  again = score(world, 'scores', features=files)
  assert again == found


def test_the_published_table_is_beside_ours(world):
  said = []
  found = score(world, 'plain', say=said.append)
  text = '\n'.join(said)
  rows = {row[0]: row for row in found['tables'][0]['rows']}
  assert len(rows) == 2 + len(published.PIE_BENCH)
  mse = found['metrics']['mse_unedit_part']['value']
  assert float(rows['yours'][4]) == pytest.approx(1e4 * mse, rel=1e-3)
  assert rows['yours, background pasted'][4:6] == ['0', '100']
  assert rows['Direct + P2P'][1:] == [
    '11.65', '27.22', '54.55', '32.86', '84.76', '25.02', '22.10', 'arXiv 2310.01506'
  ]  # fmt: skip
  assert [row[0] for row in found['tables'][1]['rows']] == [
    '0. random', '1. change an object', '8. change the background'
  ]  # fmt: skip
  assert 'Direct + P2P' in text and 'config.features.dino_b8 is not set; get DINO ViT-B/8' in text
  page = (world / 'plain' / 'index.html').read_text()
  assert 'Direct + P2P' in page and '111000000001_result.png' in page


def test_results_may_be_the_last_picture_of_a_row_and_have_another_ending(world, tmp_path):
  for path in pie.PATHS:
    pixels_of = images.read(str(world / 'results' / path))
    row = np.concatenate([pixels_of[::-1], pixels_of * 0, 255 - pixels_of, pixels_of], 1)
    place = (tmp_path / path).with_suffix('.jpg')
    place.parent.mkdir(parents=True)
    Image.fromarray(row).save(place, format='PNG')  # without loss
  found, plain = score(world, 'row', tmp_path), score(world, 'plain')
  assert of(found, 'mse_unedit_part') == of(plain, 'mse_unedit_part')
  shutil.copy(world / 'results' / pie.PATHS[0], tmp_path / pie.PATHS[0])
  assert 'are results of one edit: remove one' in refusal(score, world, 'row', tmp_path)


def test_two_methods_are_compared_edit_by_edit(world, tmp_path):
  pie.changed(world / 'bench', world / 'better', amount=2)
  score(world, 'plain')
  score(world, 'scores of better', 'better')
  paths = [str(world / name / 'results.json') for name in ('scores of better', 'plain')]
  comparison = compare.compare(*paths)
  metric = comparison['metrics']['psnr_unedit_part']
  assert metric['n'] == 2 and metric['difference'] > 5 and metric['better'] == 'higher'
  page = compare.write(str(tmp_path), comparison)
  assert '000000000000_second.png' in open(page).read()
  assert (tmp_path / 'page' / '823000000002_source.png').exists()


def test_weights_make_the_edits_once(world, tmp_path):
  weights = small_text.export(tmp_path, stable_diffusion.SYSTEM)
  edit, said = dict(strength=0.8, blend='none', steps=None), []

  def call():
    said.clear()
    how = dict(pictures=None, weights=weights, edit=edit, say=said.append)
    return score(world, tmp_path / 'scores', **how), ' '.join(said)

  found, text = call()
  assert found['weights']['sha256'] == find.weights(weights).digest()
  assert found['sampling'] == dict(strength=0.8, blend='none') and '3 edits: ' in text
  for path in pie.PATHS:
    folders = tmp_path / 'scores' / 'results', world / 'bench' / reader.PICTURES
    made, source = (images.read(str(folder / path)) for folder in folders)
    assert made.shape == source.shape and (made != source).any()
  again, text = call()
  assert '3 of 3 edits are finished already' in text and again == found


def test_what_cannot_be_scored_is_refused(world, tmp_path):
  config = dict(bench='pie_bench', data=dict(root=str(world / 'bench')), features={})
  none = dict(weights=None, images=None, compare=None, output=None, words=[])
  call = lambda **flags: refusal(evaluate.main, config, **(none | flags))
  both = dict(weights='w', images=str(world / 'results'))
  for given in ({}, both):
    assert 'give either --weights, to make the edits, or' in call(output=str(tmp_path), **given)
  assert 'so concept has no use' in call(
    output=str(tmp_path), images=str(world / 'results'), concept='c'
  )
  assert 'lacks 3 of 3 pictures, the first is 0_random' in call(
    output=str(tmp_path / 'x'), images=str(tmp_path)
  )
  config['features'] = dict(inception='x')
  assert 'config.features.inception' in call(output=str(tmp_path), images=str(world / 'results'))
  pie.save(tmp_path / 'small', 1, size=32)
  config['features'] = {}
  assert 'is 32 x 32 pixels' in call(output=str(tmp_path / 'x'), images=str(tmp_path / 'small'))
  assert not (tmp_path / 'x').exists()
