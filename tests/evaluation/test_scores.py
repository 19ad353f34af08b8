"""The metrics of an evaluation against their formulas, computed here from the pictures directly."""

import functools
import os
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from exedit import images
from exedit.evaluation import benchmark, networks, preprocessing, resources, scores
from exedit.evaluation.networks import Features
from exedit.input_pipeline.coco_ee import references
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.metrics import confidence, copy_paste, frechet, pixels, quality_score
from exedit.metrics.features import cosines
from exedit.runtime.errors import UserError
from tests import bench, judges

SIZE = 48
PERFECT = (('exactness', 1), ('psnr', 100), ('ssim', 1), ('lpips_alex', 0))


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  return resources.networks(judges.write(tmp_path_factory.mktemp('networks') / 'n'))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A benchmark of six edits, pasted exemplars as results, and real images."""
  root = tmp_path_factory.mktemp('world')
  bench.write(root / 'bench', ids=(9, 4, 7, 1, 12, 3), size=SIZE)
  references.write(str(root / 'bench'), 'copy_paste', str(root / 'pasted'))
  (root / 'real').mkdir()
  for k in range(5):
    bench.picture(300 + k, (60 + k, 50)).save(root / 'real' / f'{k}.png')
  return root


class Given:
  """Everything that a Scorer takes, and the metrics by name."""

  def __init__(self, world, folder, pictures='pasted', **tools: Any):
    self.bench = Bench(str(world / 'bench'), exemplar_size=None)
    self.edits = benchmark.survey(self.bench)
    self.scored = benchmark.results(self.edits, str(world / pictures))
    self.reader = benchmark.Reader(self.bench)
    real = resources.real_images(str(world / 'real'), self.edits)
    self.tools = resources.Resources(**(dict(networks={}, real=real) | tools))
    self.folder = str(folder)

  def metrics(self):
    scorer = scores.Scorer(self.folder, self.scored, self.reader, self.tools)
    return {metric.plan.name: metric for metric in scorer.metrics()}

  def pictures(self):
    return [self.reader(item) for item in self.scored]


def boxed(p):
  return p['result'][pixels.box(p['mask'] >= 128, published=False)]


def test_every_metric_is_its_formula(world, loaded, tmp_path):
  means = np.random.default_rng(0).normal(size=(2, judges.DIM))
  factors = np.stack([0.4 * np.eye(judges.DIM)] * 2)
  mixture = quality_score.GMM(np.array([0.4, 0.6]), means, factors)
  given = Given(world, tmp_path, networks=loaded, gmm=mixture, gmm_sha256='g')
  found, clip, pictures = given.metrics(), loaded['clip'], given.pictures()
  results = clip([p['result'] for p in pictures])
  names = [os.path.join(world / 'real', name) for name in sorted(os.listdir(world / 'real'))]
  real = clip([preprocessing.square(images.read(name), SIZE) for name in names])
  fid = found[f'fid_{judges.CLIP}'].summary()
  np.testing.assert_allclose(fid['value'], frechet.frechet_distance(results, real), rtol=1e-4)
  expected = quality_score.quality_scores(results, mixture)
  np.testing.assert_allclose(found[f'quality_score_{judges.CLIP}'].scores, expected, rtol=1e-4)
  regions = clip.embed(
    preprocessing.score_region(p['result'], p['mask'] == 255, clip.size) for p in pictures
  )
  exemplars = clip.embed(preprocessing.squash(p['exemplar'], clip.size) for p in pictures)
  metric = found[f'clip_score_{judges.CLIP}']
  np.testing.assert_allclose(metric.scores, 100 * cosines(regions, exemplars), rtol=1e-4)
  summary, interval = metric.summary(), confidence.mean_interval(metric.scores)
  assert (summary['value'], summary['low'], summary['high'], summary['n']) == (
    *(interval.value, interval.low, interval.high, 6),
  )
  for role, name in (('clip', judges.CLIP), ('dino', judges.VIT)):
    network = loaded[role]
    expected = cosines(
      network(boxed(p) for p in pictures), network(p['exemplar'] for p in pictures)
    )
    np.testing.assert_allclose(found[f'{role}_i_{name}'].scores, expected, rtol=1e-4)
  expected = [copy_paste.copy_paste_score(boxed(p), p['exemplar']) for p in pictures]
  np.testing.assert_allclose(found['copy_paste'].scores, expected)


def test_the_hole_does_not_count_as_background(world, loaded, tmp_path):
  """LPIPS and SSIM of an untouched background are perfect; one changed pixel shows."""
  given = Given(world, tmp_path / 'cache', networks=dict(lpips=loaded['lpips']))
  found = given.metrics()
  for name, perfect in PERFECT:
    np.testing.assert_allclose(found[f'background_{name}'].scores, perfect, atol=1e-12)
  changed = tmp_path / 'changed'
  shutil.copytree(world / 'pasted', changed)
  item = given.scored[2]
  picture = np.array(Image.open(item.path))
  picture[-9, 12] = 255 - picture[-9, 12]
  Image.fromarray(picture).save(changed / item.edit.name)
  given.scored = benchmark.results(given.edits, str(changed))
  found = given.metrics()
  for name, perfect in PERFECT:
    values = found[f'background_{name}'].scores
    assert abs(values[2] - perfect) > 1e-6
    np.testing.assert_allclose(np.delete(values, 2), perfect, atol=1e-12)


def test_inception_through_its_own_view(world, tmp_path):
  """Any network that is called inception gives fid_inception; this one reads a few colours."""
  look = functools.partial(preprocessing.stretch, size=9)
  network = Features(
    'inception', 6, 9, 'd' * 64, look, lambda x: jnp.asarray(x[:, 2:4, 4].reshape(len(x), 6))
  )
  given = Given(world, tmp_path, networks=dict(inception=network))
  metric = given.metrics()['fid_inception']
  assert given.tools.real is not None
  real = [preprocessing.square(images.read(p), SIZE) for p in given.tools.real.paths]
  expected = frechet.frechet_distance(
    network([p['result'] for p in given.pictures()]), network(real)
  )
  np.testing.assert_allclose(metric.summary()['value'], expected, rtol=1e-5)
  assert metric.summary()['n'] == 6 and metric.plan.better == 'lower'


def test_without_resources_the_notes_say_what_to_get(world, loaded, tmp_path):
  found = Given(world, tmp_path, real=None).metrics()
  expected = dict(
    fid_clip_b32='config.features.clip_b32 is not set; get OpenAI',
    quality_score='config.features.clip_b32 is not set',
    clip_score='openai/clip-vit-base-patch32',
    fid_inception='pt_inception-2015-12-05-6726825d.pth',
    background_lpips_alex='config.features.lpips is not set',
    clip_i='openai/clip-vit-base-patch32',
    dino_i='config.features.dino_s16 is not set; get DINO',
  )
  for name, says in expected.items():
    summary = found[name].summary()
    assert says in summary['note'] and summary['value'] is None and summary['n'] == 0
  assert {name for name, m in found.items() if m.summary()['n'] == 6} == {
    *('background_exactness', 'background_psnr', 'background_ssim', 'copy_paste')
  }
  found = Given(world, tmp_path, networks=dict(clip=loaded['clip']), real=None).metrics()
  assert 'python -m exedit.gmm' in found[f'quality_score_{judges.CLIP}'].missing
  assert 'config.reference.root' in found[f'fid_{judges.CLIP}'].missing


def test_one_image_has_no_frechet_distance(world, loaded, tmp_path):
  given = Given(world, tmp_path, networks=dict(clip=loaded['clip']))
  given.scored = given.scored[:1]
  found = given.metrics()
  fid = found[f'fid_{judges.CLIP}'].summary()
  assert fid['value'] is None and 'undefined: 1 image has no covariance' in fid['note']
  one = found[f'clip_score_{judges.CLIP}'].summary()
  assert one['n'] == 1 and one['low'] is None and one['note'] == 'one edit has no interval'


def test_edits_where_a_metric_is_undefined_are_counted_and_named(world, loaded, tmp_path):
  """A mask that is not a rectangle has no published crop, but every other metric."""
  for name in ('bench', 'pasted', 'real'):
    shutil.copytree(world / name, tmp_path / name)
  path = tmp_path / 'bench' / 'Mask_bbox_6' / f'{4:012d}_mask.png'
  mask = np.array(Image.open(path))
  mask[0, 0] = 0
  Image.fromarray(mask).save(path)
  given = Given(tmp_path, tmp_path / 'cache', networks=dict(clip=loaded['clip']))
  for _ in range(2):  # from the networks, and from the disk
    found = given.metrics()
    metric = found[f'clip_score_{judges.CLIP}']
    assert np.flatnonzero(np.isnan(metric.scores)).tolist() == [1]
    summary = metric.summary()
    assert summary['n'] == 5 and summary['value'] == pytest.approx(np.nanmean(metric.scores))
    assert summary['note'].startswith('undefined for 1 of 6 edits; the first: ')
    assert f'{4:012d}.png: the mask is not a rectangle' in summary['note']
    assert found[f'clip_i_{judges.CLIP}'].summary()['n'] == 6


def test_equal_pictures_are_scored_each(world, tmp_path):
  """One vector serves two edits with equal pictures, and each has its score."""
  given = Given(world, tmp_path)
  given.scored = [given.scored[0], given.scored[0], given.scored[1]]
  values = given.metrics()['copy_paste'].scores
  assert len(values) == 3 and values[0] == values[1] != values[2]


def test_the_vectors_of_two_networks_are_never_mixed(world, loaded, tmp_path):
  other = resources.networks(
    {k: v for k, v in judges.write(tmp_path / 'other', seed=1).items() if k == 'clip'}
  )
  name = f'clip_score_{judges.CLIP}'
  given = Given(world, tmp_path / 'cache', networks=dict(clip=loaded['clip']))
  first = given.metrics()[name]
  given.tools = resources.Resources(other, real=given.tools.real)
  second = given.metrics()[name]
  alone = Given(world, tmp_path / 'fresh', networks=other).metrics()[name]
  np.testing.assert_array_equal(second.scores, alone.scores)
  assert np.abs(second.scores - first.scores).min() > 1e-3
  assert first.plan.basis != second.plan.basis == alone.plan.basis


def replaced(clip, batch):
  return Features(clip.name, clip.dim, clip.size, clip.digest, clip.prepare, batch)


def test_features_that_are_not_finite_are_named_and_not_kept(world, loaded, tmp_path):
  clip = loaded['clip']
  spoilt = replaced(clip, lambda x: clip.batch(x).at[0].set(np.nan))
  given = Given(world, tmp_path, networks=dict(clip=spoilt))
  with pytest.raises(UserError, match='png is not finite') as caught:
    given.metrics()
  assert '\n' not in str(caught.value)
  given.tools = resources.Resources(dict(clip=clip), real=given.tools.real)
  assert np.isfinite(given.metrics()[f'fid_{judges.CLIP}'].scores).all()


def test_an_interrupted_run_computes_the_rest(world, loaded, tmp_path, monkeypatch):
  counted = []

  def network(stop):
    def batch(x):
      if len(counted) == stop:
        raise KeyboardInterrupt
      counted.append(len(x))
      return loaded['clip'].batch(x)

    return replaced(loaded['clip'], batch)

  def stream(self, prepared):
    return networks.run_batches(self.batch, ((image,) for image in prepared), 1)

  monkeypatch.setattr(Features, 'stream', stream)
  given = Given(world, tmp_path, networks=dict(clip=network(4)), real=None)
  with pytest.raises(KeyboardInterrupt):
    given.metrics()
  given.tools = resources.Resources(dict(clip=network(-1)))
  given.metrics()
  # 6 regions, 6 squashed exemplars, 6 whole regions and 6 whole exemplars. The one that was in the
  # network when the run was stopped is computed again.
  assert 24 <= sum(counted) <= 25


def test_the_set_of_real_images_is_named_by_its_contents(world, tmp_path):
  edits = benchmark.survey(Bench(str(world / 'bench')))
  first = resources.real_images(str(world / 'real'), edits)
  shutil.copytree(world / 'real', tmp_path / 'real')
  os.rename(tmp_path / 'real' / '0.png', tmp_path / 'real' / 'z.png')
  assert resources.real_images(str(tmp_path / 'real'), edits).digest == first.digest
  os.remove(tmp_path / 'real' / '1.png')
  assert resources.real_images(str(tmp_path / 'real'), edits).digest != first.digest
