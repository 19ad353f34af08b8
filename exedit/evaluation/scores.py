"""The metrics of an evaluation, named after what they measure: from vectors to one score per edit.

The value of a metric is the mean of its scores. A Fréchet distance is the mean of contributions.
Grey pixels of a mask count neither as the repainted region nor as the background.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit.evaluation import networks, vectors
from exedit.evaluation.benchmark import Reader, Scored
from exedit.evaluation.columns import VERSION, Columns
from exedit.evaluation.resources import Resources
from exedit.evaluation.vectors import Column, Store
from exedit.metrics import confidence, copy_paste, frechet, pixels, quality_score
from exedit.metrics.features import cosines
from exedit.runtime.errors import UserError, one_line

PUBLISHED = dict(clip='clip_b32', dino='dino_s16', inception='inception', lpips='lpips_alex')
NO_GMM = 'config.gmm is not set: python -m exedit.gmm makes the file from the published mixture'
NO_REAL = 'config.reference.root is not set: a folder of real images (the paper: COCO test2017)'

Values = tuple[Float[np.ndarray, ' n'], dict[int, str]]  # scores; the reasons of the NaN among them


@dataclasses.dataclass(frozen=True)
class Plan:
  """A metric before its computation.

  columns: the vectors that it needs. score: computes the scores from them; it raises ValueError if
  the set of edits as a whole has none. basis: names everything besides the pictures on which the
  scores depend, because only scores of one basis can be compared. missing: the resource that is not
  given, and how to get it, or ''. least: the lowest possible value.
  """

  name: str
  better: str  # 'higher' or 'lower'
  about: str
  columns: tuple[Column, ...] = ()
  score: Callable[[], Values] = lambda: (np.zeros(0), {})
  basis: str = ''
  missing: str = ''
  least: float = -np.inf


@dataclasses.dataclass(frozen=True)
class Metric:
  """The scores of a plan in the order of the edits: NaN, with a reason, if an edit has no score."""

  plan: Plan
  scores: Float[np.ndarray, ' n']
  reasons: dict[int, str]
  missing: str = ''  # why there is no score at all

  def summary(self) -> dict[str, Any]:
    """Return the value, its 95 % interval, n, and a note about missing scores."""
    defined = self.scores[np.isfinite(self.scores)]
    basis = '' if self.missing else self.plan.basis
    found = dict(better=self.plan.better, about=self.plan.about, n=len(defined), basis=basis)
    found |= dict(value=None, low=None, high=None, note=self.note())
    if len(defined) > 1:
      interval = confidence.mean_interval(defined)
      low = max(interval.low, self.plan.least)
      found |= dict(value=interval.value, low=low, high=interval.high)
    elif len(defined):
      found |= dict(value=float(defined[0]), note='one edit has no interval')
    return found

  def note(self) -> str:
    """Say in one line why scores are missing, or return ''."""
    if self.missing or not self.reasons:
      return self.missing
    first = next(iter(self.reasons.values()))
    if len(self.reasons) == len(self.scores):
      return f'undefined for every edit; the first: {first}'
    return f'undefined for {len(self.reasons)} of {len(self.scores)} edits; the first: {first}'


class Scorer:
  """Computes all metrics of one set of pictures; the vectors are kept in a folder."""

  def __init__(self, folder: str, scored: Sequence[Scored], reader: Reader, resources: Resources):
    self.folder, self.scored, self.resources = folder, scored, resources
    self.columns = Columns(scored, reader)
    self._stores: dict[str, Store] = {}

  def metrics(self) -> Iterator[Metric]:
    """Yield every metric, and compute the vectors that the folder lacks."""
    none = np.full(len(self.scored), np.nan)
    for plan in self.plans():
      if plan.missing:
        yield Metric(plan, none, {}, plan.missing)
        continue
      for column in plan.columns:
        vectors.fill(self._store(column), column)
      try:
        yield Metric(plan, *plan.score())
      except ValueError as error:
        yield Metric(plan, none, {}, f'undefined: {one_line(error)}')

  def summary(self) -> dict[str, Any]:
    """Return the entries of results.json about all metrics and every edit."""
    metrics = list(self.metrics())
    plain = lambda score: float(score) if np.isfinite(score) else None
    edits = [
      dict(
        id=item.edit.id,
        sha256=item.sha256,
        metrics={m.plan.name: plain(m.scores[i]) for m in metrics if not m.missing},
      )
      for i, item in enumerate(self.scored)
    ]
    return dict(metrics={m.plan.name: m.summary() for m in metrics}, edits=edits)

  def plans(self) -> list[Plan]:
    """Every metric; `missing` is set for those whose network or file is not given."""
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
      return self._mapped(add, ours)

    basis = _basis(of[0], network.digest, real.digest)
    return Plan(*of, (theirs, ours), score, basis, least=0.0)

  def _quality_score(self):
    clip, gmm = self.resources.networks.get('clip'), self.resources.gmm
    about = 'log-likelihood of the CLIP features under a mixture of real ones; 100 is best'
    of = (_named('quality_score', 'clip', clip), 'higher', about)
    if clip is None or gmm is None:
      return Plan(*of, missing=_get('clip') if clip is None else NO_GMM)
    basis = _basis(of[0], clip.digest, self.resources.gmm_sha256)
    return self._plan(
      of, lambda x: quality_score.quality_scores(x, gmm), basis, self.columns.whole(clip)
    )

  def _clip_score(self):
    clip = self.resources.networks.get('clip')
    about = '100 x cosine of the CLIP features of the region, cut as published, and the exemplar'
    of = (_named('clip_score', 'clip', clip), 'higher', about)
    if clip is None:
      return Plan(*of, missing=_get('clip'))
    pair = self.columns.regions(clip, published=True), self.columns.exemplars(clip, squashed=True)
    return self._plan(of, lambda x, y: 100.0 * cosines(x, y), _basis(of[0], clip.digest), *pair)

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
    return self._plan(of, cosines, _basis(of[0], network.digest), regions, exemplars)

  def _background_distance(self):
    about = 'LPIPS to the source over the pixels outside the mask; the inside is made equal'
    network = self.resources.networks.get('lpips')
    of = (f'background_{network.name if network else PUBLISHED["lpips"]}', 'lower', about)
    if network is None:
      return Plan(*of, missing=_get('lpips'))
    column = self.columns.background_distance(network)
    return self._plan(of, _first, _basis(of[0], network.digest), column)

  def _by_pixels(self, name, better, about, function, other='source'):
    """A metric without a network: `function` of the pictures of each edit."""
    column = self.columns.by_pixels(name, function, other)
    return self._plan((name, better, about), _first, _basis(name), column)

  # From vectors to scores

  def _plan(self, of: tuple[str, str, str], function, basis: str, *columns: Column) -> Plan:
    """A metric whose scores are a function of the rows of some columns."""
    return Plan(*of, columns, functools.partial(self._mapped, function, *columns), basis)

  def _store(self, column: Column) -> Store:
    if column.digest not in self._stores:
      self._stores[column.digest] = Store(self.folder, column)
    return self._stores[column.digest]

  def _moments(self, column: Column) -> frechet.Moments:
    found, reasons = self._store(column).read(column.keys)
    return frechet.Moments.of(np.delete(found, [*reasons], 0))

  def _mapped(self, function: Callable[..., np.ndarray], *columns: Column) -> Values:
    """Apply a function to the rows of the columns; NaN for an edit that lacks one of its rows."""
    found = [self._store(column).read(column.keys) for column in columns]
    whys = {i: why for _, reasons in reversed(found) for i, why in reasons.items()}
    scores, good = np.full(len(self.scored), np.nan), np.ones(len(self.scored), bool)
    good[[*whys]] = False
    if good.any():
      try:
        scores[good] = function(*(rows[good] for rows, _ in found))
      except ValueError as error:
        raise UserError(one_line(error)) from error
    return scores, {i: f'{self.scored[i].edit.name}: {whys[i]}' for i in sorted(whys)}


def _basis(name, *sha256s):
  return vectors.digest(VERSION, name, *sha256s)


def _first(rows):
  return rows[:, 0].astype(np.float64)


def _named(metric, role, network):
  """The metric's name, with the network's name unless it is the paper's network."""
  if network is None or network.name == PUBLISHED[role]:
    return metric
  return f'{metric}_{network.name}'


def _get(role):
  """Say which setting a network belongs to and which files to get."""
  setting = 'lpips' if role == 'lpips' else PUBLISHED[role]
  return f'config.features.{setting} is not set; get {networks.needed(PUBLISHED[role])}'


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
