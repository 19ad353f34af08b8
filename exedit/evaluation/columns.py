"""The columns of vectors behind the metrics: which pictures a network is shown, and how."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from exedit import images
from exedit.evaluation import preprocessing, vectors
from exedit.evaluation.benchmark import Reader, Scored
from exedit.evaluation.networks import Features, PerceptualDistance
from exedit.evaluation.resources import Real
from exedit.evaluation.vectors import Column
from exedit.metrics import pixels

VERSION = '1'  # change it when a computation below changes: it is part of every digest


@dataclasses.dataclass(frozen=True)
class Columns:
  """Makes the columns of one set of pictures."""

  scored: Sequence[Scored]
  reader: Reader

  def whole(self, network: Features) -> Column:
    """The features of the whole results."""
    load = lambda i: network.prepare(self.reader.result(self.scored[i]))
    return self._features(network, 'whole', [item.sha256 for item in self.scored], load)

  def real(self, network: Features, real: Real) -> Column:
    """The features of the real images."""
    view = 'whole' if real.side is None else f'whole of {real.side}'
    square = lambda path: preprocessing.square(images.read(path), real.side)
    return Column(
      f'{network.name}, real images',
      vectors.digest(VERSION, view, network.digest),
      real.sha256,
      real.paths,
      lambda i: network.prepare(square(real.paths[i])),
      network.stream,
    )

  def exemplars(self, network: Features, *, squashed: bool) -> Column:
    """The features of the exemplars, squashed to a square or in the network's own preprocessing."""

    def load(i):
      exemplar = self._pictures(i)['exemplar']
      return preprocessing.squash(exemplar, network.size) if squashed else network.prepare(exemplar)

    keys = [item.edit.sha256['exemplar'] for item in self.scored]
    return self._features(network, 'squash' if squashed else 'whole', keys, load)

  def regions(self, network: Features, *, published: bool) -> Column:
    """The features of the repainted regions, in the CLIP score's published crop or whole."""

    def load(i):
      pictures = self._pictures(i)
      result, mask = pictures['result'], pictures['mask']
      if published:
        return preprocessing.score_region(result, mask == 255, network.size)
      return network.prepare(result[pixels.box(mask >= 128, published=False)])

    keys = [item.sha256 + item.edit.sha256['mask'] for item in self.scored]
    return self._features(network, 'score_region' if published else 'region', keys, load)

  def background_distance(self, network: PerceptualDistance) -> Column:
    """LPIPS between results and sources outside the masks."""

    def load(i):
      smallest = network.smallest
      if min(self.scored[i].edit.size) < smallest:
        raise ValueError(f'LPIPS needs pictures of at least {smallest} x {smallest} pixels')
      pictures = self._pictures(i)
      source, hole = pictures['source'], pictures['mask'][..., None] > 0
      if hole.all():
        raise ValueError('the mask covers the whole picture: there is no background to score')
      # Fill the hole with the source, because the network's receptive field reaches into it.
      return np.where(hole, source, pictures['result']), source, ~hole[..., 0]

    run = lambda triples: (piece[:, None] for piece in network.within(triples))
    return self._numbers(network.name, ['lpips', network.digest], 'source', load, run)

  def by_pixels(self, name: str, function: Callable[..., float], other: str) -> Column:
    """A number per edit: function(source=, mask=, exemplar=, result=), computed on the host.

    other: the picture on which it depends besides the mask and the result.
    """
    load = lambda i: np.array([[function(**self._pictures(i))]])
    return self._numbers(name, [name, ''], other, load, lambda rows: rows)

  def _pictures(self, i):
    return self.reader(self.scored[i])

  def _features(self, network, view, keys, load):
    digest = vectors.digest(VERSION, view, network.digest)
    return self._column(f'{network.name}, {view}', digest, keys, load, network.stream)

  def _numbers(self, name, parts, other, load, run):
    keys = [
      vectors.digest(item.sha256, item.edit.sha256[other], item.edit.sha256['mask'])
      for item in self.scored
    ]
    return self._column(name, vectors.digest(VERSION, *parts), keys, load, run)

  def _column(self, what, digest, keys, load, run):
    return Column(what, digest, keys, [item.path for item in self.scored], load, run)
