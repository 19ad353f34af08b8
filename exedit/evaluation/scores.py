"""The metrics of a benchmark in COCOEE's layout, named after what they measure.

A Fréchet distance is the mean of contributions.
Grey pixels of a mask count neither as the repainted region nor as the background.
"""

from collections.abc import Sequence

import numpy as np

from exedit.evaluation import scorer
from exedit.evaluation.benchmark import Reader, Scored
from exedit.evaluation.columns import Columns
from exedit.evaluation.resources import Resources
from exedit.evaluation.scorer import Plan, basis_of, only
from exedit.evaluation.vectors import Column
from exedit.metrics import copy_paste, frechet, pixels, quality_score
from exedit.metrics.features import cosines

PUBLISHED = dict(clip='clip_b32', dino='dino_s16', inception='inception', lpips='lpips_alex')
NO_GMM = 'config.gmm is not set: python -m exedit.gmm makes the file from the published mixture'
NO_REAL = 'config.reference.root is not set: a folder of real images (the paper: COCO test2017)'


class Scorer(scorer.Scorer):
  """Computes the metrics of a benchmark in COCOEE's layout."""

  def __init__(self, folder: str, scored: Sequence[Scored], reader: Reader, resources: Resources):
    super().__init__(folder, scored)
    self.resources, self.columns = resources, Columns(scored, reader)

  def plans(self) -> list[Plan]:
    return [
      self._distance('clip'),
      self._quality_score(),
      self._clip_score(),
      self._distance('inception'),
      *(self._by_pixels(f'background_{name}', *row) for name, row in BACKGROUND.items()),
      self._background_distance(),
      self._identity('clip'),
      self._identity('dino'),
      self._by_pixels('copy_paste', 'lower', ABOUT_COPY_PASTE, _copy_paste, 'exemplar'),
    ]

  def _distance(self, role):
    """The Fréchet distance to the real images over the features of one network."""
    network, real = self.resources.networks.get(role), self.resources.real
    kind = 'CLIP' if role == 'clip' else 'Inception pool3'
    about = f'Frechet distance of the {kind} features to those of the real images; depends on n'
    of = (f'fid_{network.name if network else PUBLISHED[role]}', 'lower', about)
    if network is None or real is None:
      return Plan(*of, missing=_get(role) if network is None else NO_REAL)
    theirs, ours = self.columns.real(network, real), self.columns.whole(network)

    def score():
      reference = self._moments(theirs)
      add = frechet.contribution(self._moments(ours), reference.mean, reference.covariance)
      return self.mapped(add, ours)

    basis = basis_of(of[0], network.digest, real.digest)
    return Plan(*of, (theirs, ours), score, basis, least=0.0)

  def _quality_score(self):
    clip, gmm = self.resources.networks.get('clip'), self.resources.gmm
    about = 'log-likelihood of the CLIP features under a mixture of real ones; 100 is best'
    of = (_named('quality_score', 'clip', clip), 'higher', about)
    if clip is None or gmm is None:
      return Plan(*of, missing=_get('clip') if clip is None else NO_GMM)
    basis = basis_of(of[0], clip.digest, self.resources.gmm_sha256)
    return self.plan(
      of, lambda x: quality_score.quality_scores(x, gmm), basis, self.columns.whole(clip)
    )

  def _clip_score(self):
    clip = self.resources.networks.get('clip')
    about = '100 x cosine of the CLIP features of the region, cut as published, and the exemplar'
    of = (_named('clip_score', 'clip', clip), 'higher', about)
    if clip is None:
      return Plan(*of, missing=_get('clip'))
    pair = self.columns.regions(clip, published=True), self.columns.exemplars(clip, squashed=True)
    return self.plan(of, lambda x, y: 100.0 * cosines(x, y), basis_of(of[0], clip.digest), *pair)

  def _identity(self, role):
    """The cosine of the region's and the exemplar's features, each in the network's own view."""
    network = self.resources.networks.get(role)
    kind = 'CLIP' if role == 'clip' else 'DINO'
    about = f'cosine of the {kind} features of the region, whole and undistorted, and the exemplar'
    of = (_named(f'{role}_i', role, network), 'higher', about)
    if network is None:
      return Plan(*of, missing=_get(role))
    regions = self.columns.regions(network, published=False)
    exemplars = self.columns.exemplars(network, squashed=False)
    return self.plan(of, cosines, basis_of(of[0], network.digest), regions, exemplars)

  def _background_distance(self):
    about = 'LPIPS to the source over the pixels outside the mask; the inside is made equal'
    network = self.resources.networks.get('lpips')
    of = (f'background_{network.name if network else PUBLISHED["lpips"]}', 'lower', about)
    if network is None:
      return Plan(*of, missing=_get('lpips'))
    column = self.columns.background_distance(network)
    return self.plan(of, only, basis_of(of[0], network.digest), column)

  def _by_pixels(self, name, better, about, function, other='source'):
    """A metric without a network: `function` of the pictures of each edit."""
    column = self.columns.by_pixels(name, function, other)
    return self.plan((name, better, about), only, basis_of(name), column)

  def _moments(self, column: Column) -> frechet.Moments:
    found, reasons = self.store(column).read(column.keys)
    return frechet.Moments.of(np.delete(found, [*reasons], 0))


def _named(metric, role, network):
  return scorer.named(metric, network, PUBLISHED[role])


def _get(role):
  return scorer.how_to_get('lpips' if role == 'lpips' else PUBLISHED[role], PUBLISHED[role])


# Metrics over pixels


def _copy_paste(result, mask, exemplar, **_):
  region = pixels.box(mask >= 128, published=False)
  return copy_paste.copy_paste_score(result[region], exemplar, (mask >= 128)[region])


def _outside(function):
  return lambda result, source, mask, **_: function(result, source, mask > 0)


ABOUT_COPY_PASTE = (
  'correlation of the fine detail of the region and the exemplar; 1 is a verbatim paste'
)
BACKGROUND = dict(
  exactness=(
    'higher',
    "share of the pixels outside the mask that are the source's own bytes",
    _outside(pixels.background_exactness),
  ),
  psnr=(
    'higher',
    'dB to the source outside the mask, at most 100',
    _outside(pixels.background_psnr),
  ),
  ssim=('higher', 'SSIM to the source outside the mask', _outside(pixels.background_ssim)),
)
