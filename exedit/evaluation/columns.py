"""The columns of vectors behind the metrics: which pictures a network is shown, and how."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exedit import images
from exedit.evaluation import preprocessing, vectors
from exedit.evaluation.benchmark import Reader, Scored
from exedit.evaluation.networks import Features, PerceptualDistance
from exedit.evaluation.resources import Real
from exedit.evaluation.vectors import Column, Job
from exedit.metrics import pixels

VERSION = '1'  # change it when a computation below changes: it is part of every digest


@dataclasses.dataclass(frozen=True)
class Columns:
  """Makes the columns of one set of pictures."""

  scored: Sequence[Scored]
  reader: Reader

  def whole(self, network: Features) -> Column:
    """The features of the whole results."""
    return _embedded(
      network,
      'whole',
      [item.sha256 for item in self.scored],
      [Job(item.path, functools.partial(self.reader.result, item)) for item in self.scored],
      network.prepare,
    )

  def real(self, network: Features, real: Real) -> Column:
    """The features of the real images."""
    read = lambda path: preprocessing.square(images.read(path), real.side)
    return _embedded(
      network,
      'whole' if real.side is None else f'whole of {real.side}',
      real.sha256,
      [Job(path, functools.partial(read, path)) for path in real.paths],
      network.prepare,
    )

  def exemplars(self, network: Features, *, squashed: bool) -> Column:
    """The features of the exemplars, squashed to a square or in the network's own preprocessing."""
    squash = functools.partial(preprocessing.squash, size=network.size)
    return _embedded(
      network,
      'squash' if squashed else 'whole',
      [item.edit.sha256['exemplar'] for item in self.scored],
      [Job(i.edit.name, lambda i=i: self.reader(i)['exemplar']) for i in self.scored],
      squash if squashed else network.prepare,
    )

  def regions(self, network: Features, *, published: bool) -> Column:
    """The features of the repainted regions, in the CLIP score's published crop or whole."""

    def prepared(item):
      pictures = self.reader(item)
      result, mask = pictures['result'], pictures['mask']
      if published:
        return preprocessing.score_region(result, mask == 255, network.size)
      return network.prepare(result[pixels.box(mask >= 128, published=False)])

    return _embedded(
      network,
      'score_region' if published else 'region',
      [item.sha256 + item.edit.sha256['mask'] for item in self.scored],
      [Job(item.path, functools.partial(prepared, item)) for item in self.scored],
      lambda image: image,
    )

  def background_distance(self, network: PerceptualDistance) -> Column:
    """LPIPS between results and sources outside the masks."""

    def prepared(item):
      smallest = network.smallest
      if min(item.edit.size) < smallest:
        raise ValueError(f'LPIPS needs pictures of at least {smallest} x {smallest} pixels')
      pictures = self.reader(item)
      source, hole = pictures['source'], pictures['mask'][..., None] > 0
      if hole.all():
        raise ValueError('the mask covers the whole picture: there is no background to score')
      # Fill the hole with the source, because the network's receptive field reaches into it.
      return np.where(hole, source, pictures['result']), source, ~hole[..., 0]

    return _column(
      network.name,
      ['lpips', network.digest],
      self._keys('source'),
      [Job(item.path, functools.partial(prepared, item)) for item in self.scored],
      lambda triples: (piece[:, None] for piece in network.within(triples)),
    )

  def by_pixels(self, name: str, function: Callable[..., float], other: str) -> Column:
    """A number per edit: function(source=, mask=, exemplar=, result=), computed on the host.

    other: the picture on which it depends besides the mask and the result.
    """
    return _column(
      name,
      [name, ''],
      self._keys(other),
      [Job(i.path, lambda i=i: np.array([function(**self.reader(i))])) for i in self.scored],
      lambda rows: (row[None] for row in rows),
    )

  def _keys(self, other):
    return [
      vectors.digest(item.sha256, item.edit.sha256[other], item.edit.sha256['mask'])
      for item in self.scored
    ]


def _embedded(
  network: Features,
  view: str,
  keys: Sequence[str],
  pictures: Sequence[Job],
  prepare: Callable[[Any], Any],
) -> Column:
  jobs = [Job(job.name, lambda job=job: prepare(job.prepare())) for job in pictures]
  return _column(f'{network.name}, {view}', [view, network.digest], keys, jobs, network.stream)


def _column(what, parts, keys, jobs, run):
  by_key = dict(zip(keys, jobs, strict=True))
  return Column(what, vectors.digest(VERSION, *parts), keys, by_key, run)
