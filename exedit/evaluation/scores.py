"""The metrics of an evaluation, named for what they are: from vectors to a score per edit.

The mean of a metric's scores is its value; a Frechet distance is the mean of its contributions.
Grey pixels of a mask count neither as repainted region nor as background.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit import images
from exedit.evaluation import cache as caches
from exedit.evaluation import features, preprocess, vectors
from exedit.evaluation.bench import Reader, Scored
from exedit.evaluation.cache import Cache
from exedit.evaluation.features import Features
from exedit.evaluation.instruments import Instruments, Real, square
from exedit.evaluation.vectors import Column, Job
from exedit.metrics import confidence, copy_paste, frechet, pixels
from exedit.metrics import quality_score as quality
from exedit.metrics.features import cosines
from exedit.runtime.errors import UserError, one_line

VERSION = '1'  # of what is cached: a change of the computation here is a change of this
PUBLISHED = dict(clip='clip_b32', dino='dino_s16', inception='inception', lpips='lpips_alex')

Values = tuple[Float[np.ndarray, ' n'], dict[int, str]]  # a score per edit, or why there is none


@dataclasses.dataclass(frozen=True)
class Metric:
  """Scores of the edits in their order, NaN with the reason in `whys` where there is none.

  basis: names all that the scores depend on besides the pictures; only scores of one basis compare.
  missing: why there is no score at all, or ''. least: what the value cannot be below.
  """

  name: str
  better: str  # 'higher' or 'lower'
  about: str
  scores: Float[np.ndarray, ' n']
  whys: dict[int, str]
  basis: str
  missing: str = ''
  least: float = -np.inf

  def summary(self) -> dict[str, Any]:
    """Value, 95 % interval and n, and in `note` what is to be known about them."""
    defined = self.scores[np.isfinite(self.scores)]
    found = dict(better=self.better, about=self.about, n=len(defined), basis=self.basis)
    found |= dict(value=None, low=None, high=None, note=self.note())
    if len(defined) > 1:
      interval = confidence.mean_interval(defined)
      low = max(interval.low, self.least)
      found |= dict(value=interval.value, low=low, high=interval.high)
    elif len(defined):
      found |= dict(value=float(defined[0]), note='one edit has no interval')
    return found

  def note(self) -> str:
    """Why scores are missing, in one line, or ''."""
    if self.missing or not self.whys:
      return self.missing
    first = next(iter(self.whys.values()))
    if len(self.whys) == len(self.scores):
      return f'undefined for every edit; the first: {first}'
    return f'undefined for {len(self.whys)} of {len(self.scores)} edits; the first: {first}'


@dataclasses.dataclass(frozen=True)
class Plan:
  """A metric before it is computed: the vectors that it takes, and what makes scores of them.

  `score` raises ValueError where all edits together have none.
  """

  name: str
  better: str
  about: str
  columns: tuple[Column, ...] = ()
  score: Callable[[], Values] = lambda: (np.zeros(0), {})
  basis: str = ''
  missing: str = ''
  least: float = -np.inf


class Scorer:
  """All metrics of the same pictures."""

  def __init__(
    self, cache: Cache | None, scored: Sequence[Scored], reader: Reader, tools: Instruments
  ):
    self.cache, self.scored, self.reader, self.tools = cache, scored, reader, tools

  def metrics(self) -> Iterator[Metric]:
    """Every metric; the vectors that the cache lacks are computed here."""
    none = np.full(len(self.scored), np.nan)
    for plan in self.plans():
      of = (plan.name, plan.better, plan.about)
      if plan.missing:
        yield Metric(*of, none, {}, '', plan.missing)
        continue
      for column in plan.columns:
        vectors.fill(self.cached, column)
      try:
        yield Metric(*of, *plan.score(), plan.basis, least=plan.least)
      except ValueError as error:
        yield Metric(*of, none, {}, '', f'undefined: {one_line(error)}')

  def columns(self) -> list[Column]:
    """All vectors that the metrics are made from."""
    return [column for plan in self.plans() for column in plan.columns]

  @property
  def cached(self) -> Cache:
    """The cache; only the first of several processes has one."""
    assert self.cache is not None
    return self.cache

  def plans(self) -> Iterator[Plan]:
    """Every metric, those without a network or file included: `missing` says what to get."""
    yield from self.through_clip()
    yield self.distance('inception')
    yield from self.backgrounds()
    for role in ('clip', 'dino'):
      yield self.identity(role)
    yield self.by_pixels('copy_paste', 'lower', COPY_PASTE, _copy_paste, 'exemplar')

  def through_clip(self) -> Iterator[Plan]:
    """The paper's three (facts 6.2 to 6.4)."""
    yield self.distance('clip')
    clip, gmm = self.tools.networks.get('clip'), self.tools.gmm
    about = 'log-likelihood of the CLIP features under a mixture of real ones; 100 is best'
    of = (_named('quality_score', 'clip', clip), 'higher', about)
    if clip is None or gmm is None:
      yield Plan(*of, missing=_get('clip') if clip is None else NO_GMM)
    else:
      whole = self.whole(clip)
      score = functools.partial(self.mapped, whole, lambda x: quality.quality_scores(x, gmm))
      yield Plan(*of, (whole,), score, _basis(of[0], clip.digest, self.tools.gmm_sha256))
    about = '100 x cosine of the CLIP features of the region, cut as published, and the exemplar'
    of = (_named('clip_score', 'clip', clip), 'higher', about)
    if clip is None:
      yield Plan(*of, missing=_get('clip'))
    else:
      pair = self.regions(clip, published=True), self.exemplars(clip, 'squash')
      score = functools.partial(self.cosines, *pair, times=100.0)
      yield Plan(*of, pair, score, _basis(of[0], clip.digest))

  def distance(self, role: str) -> Plan:
    """Frechet distance to the real images over one network's features."""
    network, real = self.tools.networks.get(role), self.tools.real
    kind = 'CLIP' if role == 'clip' else 'Inception pool3'
    about = f'Frechet distance of the {kind} features to those of the real images; depends on n'
    of = (f'fid_{network.name if network else PUBLISHED[role]}', 'lower', about)
    if network is None or real is None:
      return Plan(*of, missing=_get(role) if network is None else NO_REAL)
    theirs, ours = self.real(network, real), self.whole(network)

    def score():
      reference = self.moments(theirs)
      add = frechet.contribution(self.moments(ours), reference.mean, reference.covariance)
      return self.mapped(ours, add)

    basis = _basis(of[0], network.digest, real.digest)
    return Plan(*of, (theirs, ours), score, basis, least=0.0)

  def backgrounds(self) -> Iterator[Plan]:
    """What became of the pixels outside the mask."""
    for name, (better, about, function) in BACKGROUND.items():
      yield self.by_pixels(f'background_{name}', better, about, function, 'source')
    about = 'LPIPS to the source over the pixels outside the mask, the inside held equal'
    network = self.tools.networks.get('lpips')
    of = (f'background_{network.name if network else PUBLISHED["lpips"]}', 'lower', about)
    if network is None:
      yield Plan(*of, missing=_get('lpips'))
      return
    column = self.column(
      network.name,
      [
        _key('lpips', network.digest, item.sha256, item.edit.sha256['source'], _mask(item))
        for item in self.scored
      ],
      [Job(item.path, functools.partial(self._outside, item, network)) for item in self.scored],
      lambda triples: (piece[:, None] for piece in network.stream_within(triples)),
    )
    score = functools.partial(self.mapped, column, _first)
    yield Plan(*of, (column,), score, _basis(of[0], network.digest))

  def identity(self, role: str) -> Plan:
    """Cosine of the masked region's features and the exemplar's, each in the network's own view."""
    network = self.tools.networks.get(role)
    kind = 'CLIP' if role == 'clip' else 'DINO'
    about = f'cosine of the {kind} features of the region, whole and undistorted, and the exemplar'
    of = (_named(f'{role}_i', role, network), 'higher', about)
    if network is None:
      return Plan(*of, missing=_get(role))
    pair = self.regions(network, published=False), self.exemplars(network, 'whole')
    return Plan(*of, pair, functools.partial(self.cosines, *pair), _basis(of[0], network.digest))

  def by_pixels(self, name: str, better: str, about: str, function: Callable, other: str) -> Plan:
    """A metric that needs no network: `function` of the edit's pictures, on the host."""
    column = self.column(
      name,
      [_key(name, '', item.sha256, item.edit.sha256[other], _mask(item)) for item in self.scored],
      [
        Job(item.path, lambda item=item: np.array([function(**self.reader(item))]))
        for item in self.scored
      ],
      lambda rows: (row[None] for row in rows),
    )
    score = functools.partial(self.mapped, column, _first)
    return Plan(name, better, about, (column,), score, _basis(name))

  # vectors

  def whole(self, network: Features) -> Column:
    """The whole results' features."""
    return self.embedded(
      network,
      'whole',
      [item.sha256 for item in self.scored],
      [Job(item.path, functools.partial(self.reader.result, item)) for item in self.scored],
      network.prepare,
    )

  def real(self, network: Features, real: Real) -> Column:
    """The real images' features."""
    read = lambda path: square(images.read(path), real.side)
    return self.embedded(
      network,
      'whole' if real.side is None else f'whole of {real.side}',
      real.sha256,
      [Job(path, functools.partial(read, path)) for path in real.paths],
      network.prepare,
    )

  def exemplars(self, network: Features, view: str) -> Column:
    """The exemplars' features: 'whole' (the network's own view) or 'squash'."""
    squash = functools.partial(preprocess.squash, size=network.size)
    return self.embedded(
      network,
      view,
      [item.edit.sha256['exemplar'] for item in self.scored],
      [Job(i.edit.name, lambda i=i: self.reader(i)['exemplar']) for i in self.scored],
      squash if view == 'squash' else network.prepare,
    )

  def regions(self, network: Features, *, published: bool) -> Column:
    """The repainted regions' features: as the CLIP score cuts and looks, or whole."""

    def prepared(item):
      pictures = self.reader(item)
      result, mask = pictures['result'], pictures['mask']
      if published:
        return preprocess.score_region(result, mask == 255, network.size)
      return network.prepare(result[pixels.box(mask >= 128, published=False)])

    return self.embedded(
      network,
      'score_region' if published else 'region',
      [item.sha256 + _mask(item) for item in self.scored],
      [Job(item.path, functools.partial(prepared, item)) for item in self.scored],
      lambda image: image,
    )

  def embedded(
    self,
    network: Features,
    view: str,
    sha256s: Sequence[str],
    pictures: Sequence[Job],
    prepare: Callable[[Any], Any],
  ) -> Column:
    """Pictures, each with its hash, under this network and this way to look at them."""
    return self.column(
      f'{network.name}, {view}',
      [_key(view, network.digest, sha256) for sha256 in sha256s],
      [Job(job.name, lambda job=job: prepare(job.prepare())) for job in pictures],
      network.stream,
    )

  def column(self, what: str, keys: Sequence[str], jobs: Sequence[Job], run: Callable) -> Column:
    return Column(what, keys, dict(zip(keys, jobs, strict=True)), run)

  def _outside(self, item, network):
    pictures, smallest = self.reader(item), network.smallest
    if min(item.edit.size) < smallest:
      raise ValueError(f'LPIPS needs pictures of at least {smallest} x {smallest} pixels')
    if (pictures['mask'] > 0).all():
      raise ValueError('the mask covers the whole picture: there is no background to score')
    source, hole = pictures['source'], pictures['mask'][..., None] > 0
    # The network looks far: what the hole holds must not count as a change beside it.
    return np.where(hole, source, pictures['result']), source, ~hole[..., 0]

  # from vectors to scores, in bounded memory

  def moments(self, column: Column) -> frechet.Moments:
    """Mean and scatter of these vectors."""
    pieces = (
      frechet.Moments.of(np.stack([vector for vector, _ in rows if vector is not None]))
      for rows in self.cached.rows(column.keys)
    )
    return functools.reduce(frechet.Moments.merge, pieces)

  def mapped(self, column: Column, function: Callable[[np.ndarray], np.ndarray]) -> Values:
    """A score per vector."""
    return self._scores([self.cached.rows(column.keys)], function)

  def cosines(self, a: Column, b: Column, times: float = 1.0) -> Values:
    """The cosine of each pair of vectors."""
    rows = [self.cached.rows(column.keys) for column in (a, b)]
    return self._scores(rows, lambda x, y: times * cosines(x, y))

  def _scores(self, columns, function):
    scores, whys = [], {}
    for pieces in zip(*columns, strict=True):
      values = np.full(len(pieces[0]), np.nan)
      for i, row in enumerate(zip(*pieces, strict=True)):
        if why := next((why for vector, why in row if vector is None), ''):
          at = sum(map(len, scores)) + i
          whys[at] = f'{self.scored[at].edit.name}: {why}'
        else:
          values[i] = 0.0
      good = np.flatnonzero(np.isfinite(values))
      if len(good):
        try:
          values[good] = function(*(np.stack([piece[i][0] for i in good]) for piece in pieces))
        except ValueError as error:
          raise UserError(one_line(error)) from error
      scores.append(values)
    return np.concatenate(scores), whys


def _key(view, digest, *sha256s):
  return caches.key(VERSION, view, digest, *sha256s)


def _basis(name, *sha256s):
  return caches.key(VERSION, name, *sha256s)


def _mask(item):
  return item.edit.sha256['mask']


def _first(rows):
  return rows[:, 0].astype(np.float64)


def _named(metric, role, network):
  """The metric's name, with the network's where it is not the paper's."""
  if network is None or network.name == PUBLISHED[role]:
    return metric
  return f'{metric}_{network.name}'


def _get(role):
  """What to get, and which setting it is for."""
  setting = 'lpips' if role == 'lpips' else PUBLISHED[role]
  return f'config.features.{setting} is not set; get {features.needed(PUBLISHED[role])}'


NO_GMM = 'config.gmm is not set: python -m exedit.gmm makes the file from the published mixture'
NO_REAL = 'config.reference.root is not set: a folder of real images (the paper: COCO test2017)'


# Metrics over pixels


def _copy_paste(result, mask, exemplar, **_):
  region = pixels.box(mask >= 128, published=False)
  return copy_paste.copy_paste_score(result[region], exemplar, (mask >= 128)[region])


def _outside(function):
  return lambda result, source, mask, **_: function(result, source, mask > 0)


COPY_PASTE = 'correlation of the fine detail of the region and the exemplar; 1 is a verbatim paste'
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
