"""PIE-Bench's metrics, as the published code computes them and under the names that it gives them.

Source: evaluation/matrics_calculator.py of cure-lab/PnPInversion, commit 07f97f4, with torchmetrics
1.2. Those of the part that is not edited compare whole frames in which the edited region is black.
`pasted_...` is the metric of the result with the source's own bytes outside the region.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from exedit.evaluation import networks, scorer, vectors
from exedit.evaluation.benchmark import Reader, Scored
from exedit.evaluation.columns import VERSION, Columns
from exedit.evaluation.resources import Resources
from exedit.evaluation.scorer import Plan, basis_of, only
from exedit.evaluation.vectors import Column
from exedit.metrics import pixels
from exedit.metrics.features import clip_scores

PUBLISHED = dict(dino='dino_b8', lpips='lpips_squeeze', clip='clip_l14')
LOADERS: Mapping[str, Callable] = dict(
  dino=networks.load_structure,
  lpips=networks.load_lpips,
  clip=lambda name, path: (networks.load(name, path), networks.load_texts(name, path)),
)
PASTED = 'pasted_'
FRAMES = dict(
  psnr=('higher', 'dB; infinite for equal backgrounds, which do not count', pixels.frame_psnr),
  mse=('lower', 'mean squared error of pixels from 0 to 1', pixels.frame_mse),
  ssim=('higher', 'SSIM', pixels.frame_ssim),
)


class PieColumns(Columns):
  """The columns of an evaluation on PIE-Bench."""

  def structure(self, network: networks.StructureDistance, pasted: bool) -> Column:
    """The structure distance of the results to their sources."""

    def load(i):
      edit = self._pictures(i)
      return network.prepare(shown(edit, pasted)), network.prepare(edit['source'])

    run = lambda pairs: (piece[:, None] for piece in network.stream(pairs))
    parts = ['structure', network.digest, str(pasted)]
    return self._numbers(f'structure, {network.name}', parts, 'source', load, run)

  def background(self, network: networks.PerceptualDistance, pasted: bool) -> Column:
    """LPIPS of the frames in which the region is black."""

    def load(i):
      if min(self.scored[i].edit.size) < network.smallest:
        raise ValueError(f'LPIPS needs pictures of at least {network.smallest} pixels per side')
      return frames(self._pictures(i), pasted)

    run = lambda pairs: (piece[:, None] for piece in network.stream(pairs))
    return self._numbers(network.name, ['frames', network.digest, str(pasted)], 'source', load, run)

  def frame(self, name: str, function: Callable[..., float], pasted: bool) -> Column:
    """A number of the frames in which the region is black."""
    load = lambda i: np.array([[function(*frames(self._pictures(i), pasted))]])
    return self._numbers(name, [f'frame {name}', str(pasted)], 'source', load, lambda rows: rows)

  def results(self, network: networks.Features, pasted: bool) -> Column:
    """The features of the results."""
    load = lambda i: network.prepare(shown(self._pictures(i), pasted))
    others = ('source', 'mask') if pasted else ()
    keys = [
      vectors.digest(item.sha256, *(item.edit.sha256[kind] for kind in others))
      for item in self.scored
    ]
    return self._features(network, 'pasted frame' if pasted else 'frame', keys, load)

  def edited(self, network: networks.Features) -> Column:
    """The features of the results in which all but the region is black."""

    def load(i):
      edit = self._pictures(i)
      return network.prepare(edit['result'] * (edit['mask'] > 0)[..., None].astype(np.uint8))

    keys = [vectors.digest(item.sha256, item.edit.sha256['mask']) for item in self.scored]
    return self._features(network, 'region of the frame', keys, load)

  def targets(self, texts: networks.Texts) -> Column:
    """The features of the prompts of the results."""
    load = lambda i: texts.prepare(self._pictures(i)['target'])
    keys = [item.edit.sha256['words'] for item in self.scored]
    digest = vectors.digest(VERSION, 'target', texts.digest)
    return self._column(f'{texts.name}, prompts', digest, keys, load, texts.stream)


def shown(edit: Mapping, pasted: bool) -> np.ndarray:
  """The result, with the source's own bytes outside the region if `pasted`."""
  if not pasted:
    return edit['result']
  return np.where(edit['mask'][..., None] > 0, edit['result'], edit['source'])


def frames(edit: Mapping, pasted: bool) -> tuple[np.ndarray, np.ndarray]:
  """The source and the result with a black region.

  Raises:
    ValueError: if nothing is left; the published code gives nan.
  """
  outside = edit['mask'] == 0
  if not outside.any():
    raise ValueError('the region is the whole picture: there is no background to score')
  keep = outside[..., None].astype(np.uint8)
  return edit['source'] * keep, shown(edit, pasted) * keep


class PieScorer(scorer.Scorer):
  """Computes the metrics of a benchmark in PIE-Bench's layout, of the results and pasted."""

  def __init__(self, folder: str, scored: Sequence[Scored], reader: Reader, resources: Resources):
    super().__init__(folder, scored)
    self.networks, self.columns = resources.networks, PieColumns(scored, reader)

  def plans(self) -> list[Plan]:
    return [plan for pasted in (False, True) for plan in self._plans(pasted)]

  def _plans(self, pasted: bool) -> list[Plan]:
    start, where = (PASTED, 'of the pasted result: ') if pasted else ('', '')
    found = [
      self._structure(start, where, pasted),
      self._background(start, where, pasted),
      *(self._frame(start, where, pasted, name) for name in FRAMES),
      self._similarity('', 'the whole result', start, where, pasted),
    ]
    if not pasted:  # what is pasted lies outside the part
      found.append(self._similarity('_edit_part', 'its region', start, where, pasted))
    return found

  def _structure(self, start, where, pasted):
    network = self.networks.get('dino')
    about = f'{where}MSE of the self-similarities of the last keys of DINO to those of the source'
    of = (scorer.named(f'{start}structure_distance', network, PUBLISHED['dino']), 'lower', about)
    if network is None:
      return Plan(*of, missing=_get('dino'))
    column = self.columns.structure(network, pasted)
    return self.plan(of, only, basis_of(of[0], network.digest), column)

  def _background(self, start, where, pasted):
    network = self.networks.get('lpips')
    about = f'{where}LPIPS to the source with a black region'
    of = (scorer.named(f'{start}lpips_unedit_part', network, PUBLISHED['lpips']), 'lower', about)
    if network is None:
      return Plan(*of, missing=_get('lpips'))
    column = self.columns.background(network, pasted)
    return self.plan(of, only, basis_of(of[0], network.digest), column)

  def _frame(self, start, where, pasted, name):
    better, about, function = FRAMES[name]
    of = (f'{start}{name}_unedit_part', better, f'{where}{about} to the source, black region')
    return self.plan(of, only, basis_of(of[0]), self.columns.frame(name, function, pasted))

  def _similarity(self, end, what, start, where, pasted):
    network, texts = (self.networks.get(role) for role in ('clip', 'texts'))
    about = f'{where}100 x cosine of the CLIP features of {what} and its prompt, at least 0'
    name = f'{start}clip_similarity_target_image{end}'
    of = (scorer.named(name, network, PUBLISHED['clip']), 'higher', about)
    if network is None or texts is None:
      return Plan(*of, missing=_get('clip'))
    column = self.columns.edited(network) if end else self.columns.results(network, pasted)
    basis = basis_of(of[0], network.digest, texts.digest)
    return self.plan(of, clip_scores, basis, column, self.columns.targets(texts))


def _get(role):
  return scorer.how_to_get(PUBLISHED[role], PUBLISHED[role])
