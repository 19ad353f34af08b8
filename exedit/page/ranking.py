"""Ranks candidates: how much the repainted regions look like their exemplars, by CLIP."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from exedit import images
from exedit.evaluation import networks
from exedit.metrics.features import cosines
from exedit.metrics.pixels import box
from exedit.systems import System


class Ranking:
  """The score `clip_i` of the evaluation: the cosine of CLIP's features of region and exemplar.

  clip: CLIP's weights, see `networks.load`.
  """

  name = 'clip_i'

  def __init__(self, clip: str):
    self.network = networks.load('clip', clip)

  def score(
    self, result: Path, regions: Sequence[Mapping[str, str]], system: System
  ) -> float | None:
    """The mean score of the regions of a result that have a mask and an exemplar; None: of none.

    regions: the names of their files, beside the result, by input.
    """
    names = {entry.kind: entry.name for entry in system.inputs_of('mask', 'picture')}
    pairs, made = [], images.read(result)
    for region in regions:
      files = [region.get(names.get(kind, '')) for kind in ('mask', 'picture')]
      if all(files):
        hole, exemplar = (result.parent / str(name) for name in files)
        inside = box(images.read_mask(hole), published=False)
        pairs += [made[inside], images.read(exemplar)]
    if not pairs:
      return None
    found = self.network(pairs)
    return float(np.mean(cosines(found[::2], found[1::2])))
