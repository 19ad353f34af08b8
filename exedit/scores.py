"""The metrics of an evaluation, named for what they are: features once, then a score per edit.

The mean of a metric's scores is its value; a Frechet distance is the mean of its contributions.
Grey pixels of a mask count neither as repainted region nor as background.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from exedit import cache as caches
from exedit import features, images, preprocess
from exedit.bench import EVERY, Reader, Scored
from exedit.cache import Cache
from exedit.errors import UserError, one_line
from exedit.features import Features
from exedit.instruments import Instruments, Real, square
from exedit.metrics import background, clip_score, confidence, copy_paste, frechet
from exedit.metrics import quality_score as quality
from input_pipeline.errors import DataError

VERSION = '1'  # of what is cached: a change of the computation here is a change of this
PUBLISHED = dict(clip='clip_b32', dino='dino_s16', inception='inception', lpips='lpips_alex')
AT_ONCE = 64  # vectors: no more are lost by a kill


@dataclasses.dataclass(frozen=True)
class Metric:
  """Scores of the edits in their order, NaN with the reason in `whys` where there is none.

  basis: names all that the scores depend on besides the pictures; only scores of one basis compare.
  missing: why there is no score at all, or ''.
  """

  name: str
  better: str  # 'higher' or 'lower'
  about: str
  scores: Float[np.ndarray, ' n']
  whys: dict[int, str]
  basis: str
  missing: str = ''

  def summary(self) -> dict[str, Any]:
    """Value, 95 % interval and n, and in `note` what is to be known about them."""
    defined = self.scores[np.isfinite(self.scores)]
    found = dict(better=self.better, about=self.about, n=len(defined), basis=self.basis)
    found |= dict(value=None, low=None, high=None, note=self.note())
    if len(defined) > 1:
      interval = confidence.mean_interval(defined)
      found |= dict(value=interval.value, low=interval.low, high=interval.high)
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


# Vectors, computed where they are not cached


@dataclasses.dataclass(frozen=True)
class Job:
  """One vector: what it is of, for messages, and its input; that raises ValueError for none."""

  name: str
  prepare: Callable[[], Any]


def fill(
  cache: Cache,
  jobs: Mapping[str, Job],
  run: Callable[[Iterator[Any]], Iterable[Float[np.ndarray, 'b d']]],
  what: str,
) -> None:
  """Compute and keep the vectors that the cache lacks, a batch at a time.

  Raises:
    UserError: for one that is not finite, and for pictures that cannot be read.
  """
  missing = cache.missing(jobs)
  if not missing:
    return
  asked: collections.deque[str] = collections.deque()

  def inputs():
    for key, (value, why) in features.in_parallel(lambda k: (k, _attempt(jobs[k])), missing):
      if why:
        cache.put(key, None, why)
        bar.update()
      else:
        asked.append(key)
        yield value

  with tqdm(desc=what, total=len(missing), mininterval=EVERY, leave=False) as bar:
    done = 0
    for piece in run(inputs()):
      for vector in piece:
        key = asked.popleft()
        if not np.isfinite(vector).all():
          raise UserError(
            f'{what}: what it gives for {jobs[key].name} is not finite; are its weights sound?'
          )
        cache.put(key, vector)
      bar.update(len(piece))
      done += len(piece)
      if done >= AT_ONCE:
        cache.commit()
        done = 0
  cache.commit()


def _attempt(job):
  try:
    return job.prepare(), ''
  except DataError:
    raise
  except ValueError as error:
    return None, one_line(error)


class Scorer:
  """All metrics of the same pictures."""

  def __init__(self, cache: Cache, scored: Sequence[Scored], reader: Reader, tools: Instruments):
    self.cache, self.scored, self.reader, self.tools = cache, scored, reader, tools

  def metrics(self) -> Iterator[Metric]:
    """Every metric, those without a network or file included: `missing` says what to get."""
    yield from self.through_clip()
    yield self.distance('inception')
    yield from self.backgrounds()
    for role in ('clip', 'dino'):
      yield self.identity(role)
    yield self.by_pixels('copy_paste', 'lower', COPY_PASTE, _copy_paste, 'exemplar')

  def through_clip(self) -> Iterator[Metric]:
    """The paper's three (facts 6.2 to 6.4)."""
    yield self.distance('clip')
    about = 'log-likelihood of the CLIP features under a mixture of real ones; 100 is best'
    clip, gmm = self.tools.networks.get('clip'), self.tools.gmm
    name = _named('quality_score', 'clip', clip)
    if clip is None or gmm is None:
      missing = _get('clip') if clip is None else NO_GMM
      yield self.nothing(name, 'higher', about, missing)
    else:
      keys = self.whole(clip)
      scores = self.mapped(keys, lambda rows: quality.quality_scores(rows, gmm))
      yield self.metric(name, 'higher', about, *scores, clip.digest, self.tools.gmm_sha256)
    about = '100 x cosine of the CLIP features of the region, cut as published, and the exemplar'
    name = _named('clip_score', 'clip', clip)
    if clip is None:
      yield self.nothing(name, 'higher', about, _get('clip'))
    else:
      scores = self.cosines(self.regions(clip, published=True), self.exemplars(clip, 'squash'))
      yield self.metric(name, 'higher', about, 100 * scores[0], scores[1], clip.digest)

  def distance(self, role: str) -> Metric:
    """Frechet distance to the real images over one network's features."""
    network, real = self.tools.networks.get(role), self.tools.real
    name = f'fid_{network.name if network else PUBLISHED[role]}'
    of = 'CLIP' if role == 'clip' else 'Inception pool3'
    about = f'Frechet distance of the {of} features to those of the real images; depends on n'
    if network is None or real is None:
      return self.nothing(name, 'lower', about, _get(role) if network is None else NO_REAL)
    keys = self.whole(network)
    try:
      reference, ours = self.moments(self.real(network, real)), self.moments(keys)
      mean, covariance = reference.mean, reference.covariance
      of_rows = frechet.contribution(ours, mean, covariance)
    except ValueError as error:
      return self.nothing(name, 'lower', about, f'undefined: {one_line(error)}')
    scores = self.mapped(keys, of_rows)
    return self.metric(name, 'lower', about, *scores, network.digest, real.digest)

  def backgrounds(self) -> Iterator[Metric]:
    """What became of the pixels outside the mask."""
    for name, (better, about, function) in BACKGROUND.items():
      yield self.by_pixels(f'background_{name}', better, about, function, 'source')
    about = 'LPIPS to the source over the pixels outside the mask, the inside held equal'
    network = self.tools.networks.get('lpips')
    name = f'background_{network.name if network else PUBLISHED["lpips"]}'
    if network is None:
      yield self.nothing(name, 'lower', about, _get('lpips'))
      return
    keys = [
      _key('lpips', network.digest, item.sha256, item.edit.sha256['source'], _mask(item))
      for item in self.scored
    ]
    jobs = {
      key: Job(item.path, functools.partial(self._outside, item, network.smallest))
      for key, item in zip(keys, self.scored, strict=True)
    }
    fill(self.cache, jobs, functools.partial(_distances, network), network.name)
    yield self.metric(name, 'lower', about, *self.mapped(keys, _first), network.digest)

  def identity(self, role: str) -> Metric:
    """Cosine of the masked region's features and the exemplar's, each in the network's own view."""
    network = self.tools.networks.get(role)
    name = _named(f'{role}_i', role, network)
    of = 'CLIP' if role == 'clip' else 'DINO'
    about = f'cosine of the {of} features of the region, whole and undistorted, and the exemplar'
    if network is None:
      return self.nothing(name, 'higher', about, _get(role))
    scores = self.cosines(self.regions(network, published=False), self.exemplars(network, 'whole'))
    return self.metric(name, 'higher', about, *scores, network.digest)

  def by_pixels(self, name: str, better: str, about: str, function: Callable, other: str) -> Metric:
    """A metric that needs no network: `function` of the edit's pictures, on the host."""
    keys = [
      _key(name, '', item.sha256, item.edit.sha256[other], _mask(item)) for item in self.scored
    ]
    jobs = {
      key: Job(item.path, lambda item=item: np.array([function(**self.reader(item))]))
      for key, item in zip(keys, self.scored, strict=True)
    }
    fill(self.cache, jobs, lambda rows: (row[None] for row in rows), name)
    return self.metric(name, better, about, *self.mapped(keys, _first))

  # vectors

  def whole(self, network: Features) -> list[str]:
    """The keys of the whole results' features."""
    return self.embed(
      network,
      'whole',
      [(item.sha256, Job(item.path, lambda item=item: self._result(item))) for item in self.scored],
      network.prepare,
    )

  def real(self, network: Features, real: Real) -> list[str]:
    """The keys of the real images' features."""
    read = lambda path: square(images.read(path), real.side)
    pictures = [
      (sha256, Job(path, functools.partial(read, path)))
      for path, sha256 in zip(real.paths, real.sha256, strict=True)
    ]
    return self.embed(
      network, 'whole' if real.side is None else f'whole of {real.side}', pictures, network.prepare
    )

  def exemplars(self, network: Features, view: str) -> list[str]:
    """The keys of the exemplars' features: 'whole' (the network's own view) or 'squash'."""
    look = functools.partial(preprocess.squash, size=network.size)
    return self.embed(
      network,
      view,
      [
        (item.edit.sha256['exemplar'], Job(item.edit.name, lambda item=item: self._exemplar(item)))
        for item in self.scored
      ],
      look if view == 'squash' else network.prepare,
    )

  def regions(self, network: Features, *, published: bool) -> list[str]:
    """The keys of the repainted regions' features: as the CLIP score cuts and looks, or whole."""

    def prepared(item):
      pictures = self.reader(item)
      result, mask = pictures['result'], pictures['mask']
      if published:
        return preprocess.score_region(result, mask == 255, network.size)
      return network.prepare(result[clip_score.box(mask >= 128, published=False)])

    return self.embed(
      network,
      'score_region' if published else 'region',
      [
        (item.sha256 + _mask(item), Job(item.path, functools.partial(prepared, item)))
        for item in self.scored
      ],
      lambda image: image,
    )

  def embed(
    self,
    network: Features,
    view: str,
    pictures: Sequence[tuple[str, Job]],
    prepare: Callable[[Any], Any],
  ) -> list[str]:
    """The keys of (hash, picture) pairs under this network and this way to look at them."""
    keys = [_key(view, network.digest, sha256) for sha256, _ in pictures]
    jobs = {
      key: Job(job.name, lambda job=job: prepare(job.prepare()))
      for key, (_, job) in zip(keys, pictures, strict=True)
    }
    fill(self.cache, jobs, network.stream, f'{network.name}, {view}')
    return keys

  def _result(self, item):
    return self.reader.result(item)

  def _exemplar(self, item):
    return self.reader(item)['exemplar']

  def _outside(self, item, smallest):
    pictures = self.reader(item)
    if min(item.edit.size) < smallest:
      raise ValueError(f'LPIPS needs pictures of at least {smallest} x {smallest} pixels')
    if (pictures['mask'] > 0).all():
      raise ValueError('the mask covers the whole picture: there is no background to score')
    source, hole = pictures['source'], pictures['mask'][..., None] > 0
    # The network looks far: what the hole holds must not count as a change beside it.
    return np.where(hole, source, pictures['result']), source, ~hole[..., 0]

  # from vectors to scores, in bounded memory

  def moments(self, keys: Sequence[str]) -> frechet.Moments:
    """Mean and scatter of these vectors."""
    pieces = (
      frechet.Moments.of(np.stack([vector for vector, _ in rows if vector is not None]))
      for rows in self.cache.rows(keys)
    )
    return functools.reduce(frechet.Moments.merge, pieces)

  def mapped(
    self, keys: Sequence[str], function: Callable[[np.ndarray], np.ndarray]
  ) -> tuple[np.ndarray, dict[int, str]]:
    """(a score per vector, the reasons where there is none)."""
    return self._scores([self.cache.rows(keys)], function)

  def cosines(self, a: Sequence[str], b: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """(the cosine of each pair of vectors, the reasons where there is none)."""
    return self._scores([self.cache.rows(a), self.cache.rows(b)], clip_score.cosines)

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

  # metrics

  def metric(self, name, better, about, scores, whys, *basis: str) -> Metric:
    return Metric(name, better, about, scores, whys, caches.key(VERSION, name, *basis))

  def nothing(self, name: str, better: str, about: str, missing: str) -> Metric:
    """A metric that cannot be computed, and why."""
    none = np.full(len(self.scored), np.nan)
    return Metric(name, better, about, none, {}, '', missing)


def _key(view, digest, *sha256s):
  return caches.key(VERSION, view, digest, *sha256s)


def _mask(item):
  return item.edit.sha256['mask']


def _first(rows):
  return rows[:, 0].astype(np.float64)


def _distances(network, triples):
  """LPIPS of the triples, in pieces."""
  waiting = []
  for triple in triples:
    waiting.append(triple)
    if len(waiting) == AT_ONCE:
      yield network.within(waiting)[:, None]
      waiting = []
  if waiting:
    yield network.within(waiting)[:, None]


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
  region = clip_score.box(mask >= 128, published=False)
  return copy_paste.copy_paste_score(result[region], exemplar, (mask >= 128)[region])


def _outside(function):
  return lambda result, source, mask, **_: function(result, source, mask > 0)


COPY_PASTE = 'correlation of the fine detail of the region and the exemplar; 1 is a verbatim paste'
BACKGROUND = dict(
  exactness=(
    'higher',
    "share of the pixels outside the mask that are the source's own bytes",
    _outside(background.exactness),
  ),
  psnr=('higher', 'dB to the source outside the mask, at most 100', _outside(background.psnr)),
  ssim=('higher', 'SSIM to the source outside the mask', _outside(background.ssim)),
)
