"""The evaluation of Custom-Edit (arXiv 2305.15779, figure 4): how methods trade the source's look
for the reference's, over their strengths.

It scores the edits of a list, made by any program: 100 x the cosine of CLIP features of an edit and
its source, its references (the mean) and its prompt, and of DINO features of it and its references.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit import images
from exedit.evaluation import networks, resources, scorer, sweep_report, vectors
from exedit.evaluation.coco_ee import writable_folder
from exedit.evaluation.columns import VERSION
from exedit.evaluation.sweep_list import Edit, groups, read
from exedit.metrics import confidence, tradeoff
from exedit.metrics.features import cosines
from exedit.runtime import compilation, files, settings, versions
from exedit.runtime.errors import UserError

NETWORKS = ('clip_b32', 'clip', 'dino_s16', 'dino')
LOADERS: Mapping[str, Callable] = dict(
  clip=lambda name, path: (networks.load(name, path), networks.load_texts(name, path)),
  dino=networks.load,
)
FORMAT, CURVES = 'exedit sweep 1', 'curves.csv'


def evaluate(
  output: str | None,
  *,
  edits: str,
  features: Mapping[str, str | None],
  at: float | None = None,
  low: float | None = None,
  high: float | None = None,
  cache: str | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score the edits of a list; write results.json, curves.csv, figure.svg and index.html.

  A repeated call computes no vector again: they stay in the cache.

  Args:
    output: the folder of the scores.
    edits: a .csv or .jsonl with NEEDED, and perhaps `target` (the prompt) and `id` (equal for
      edits of the same source, references, prompt and noise). `references` names a folder.
    features: paths of the networks by the names in NETWORKS. A CLIP is needed.
    at: similarity to the source at which methods are compared; None: the middle of what all reach.
    low, high: the range over which they are; None: what all reach.
    cache: folder of the vectors; None: one in the user's cache folder.
  Returns:
    The contents of results.json.
  Raises:
    UserError: for anything that cannot be used, before any computation if possible.
  """
  if not output:
    raise UserError('--output is missing: name a folder for the scores')
  settings.check_names(features, NETWORKS, 'config.features')
  found = read(edits)
  writable_folder(output)
  given = resources.networks(features, LOADERS)
  if 'clip' not in given:
    raise UserError(scorer.how_to_get('clip_b32', 'clip_b32'))
  scores = score(found, given, cache or vectors.default_folder())
  curves = by_method(found, scores)
  means = [_point(*key, rows, scores) for key, rows in groups(found).items()]
  ends = _range(curves, low, high)
  middle = sum(ends) / 2 if at is None and ends else at
  digests = {role: getattr(n, 'digest', None) or n[1].digest for role, n in given.items()}
  results = dict(
    format=FORMAT,
    benchmark=dict(root=edits, edits=len(found)),
    networks=digests,
    points=means,
    comparisons=compared(curves, middle, ends),
    edits=[
      dict(dataclasses.asdict(e), **{name: float(s[i]) for name, s in scores.items()})
      for i, e in enumerate(found)
    ],
    versions=versions.versions(),
  )
  files.write_json(os.path.join(output, 'results.json'), results)
  files.write_text(os.path.join(output, CURVES), sweep_report.as_csv(means))
  files.write_text(os.path.join(output, sweep_report.FIGURE), sweep_report.figure(means))
  page = sweep_report.write_page(output, results)
  say(sweep_report.table(results))
  say(f'{page}, {CURVES}, {sweep_report.FIGURE} and results.json beside it')
  return results


def main(
  output: str | None, weights: str | None, pictures: str | None, config: dict[str, Any]
) -> None:
  """Evaluate with the settings of a config.

  Raises:
    UserError: as `evaluate`, and for keys of the config that are unknown or missing.
  """
  if weights is not None or pictures is not None:
    raise UserError('the edits are those of config.edits: leave out --weights and --images')
  compilation.cache_compiled()
  settings.check(config, evaluate, 'config')
  settings.check_complete(config, evaluate, 'config')
  evaluate(output, **config)


# Scores


def score(
  edits: Sequence[Edit], given: Mapping[str, Any], cache: str
) -> dict[str, Float[np.ndarray, ' n']]:
  """The scores of each edit by the names in SCORES, as far as networks and prompts are there."""
  clip, texts = given['clip']
  places = {path: i for i, path in enumerate(dict.fromkeys(p for e in edits for p in _files(e)))}
  hashes = [files.sha256(path) for path in places]
  seen = _features(clip, [*places], hashes, cache)
  of = lambda field: seen[[places[getattr(edit, field)] for edit in edits]]
  scores = dict(source=100 * cosines(of('output'), of('image')))
  scores['reference'] = _nearness(seen, edits, places)
  if all(edit.target for edit in edits):
    said = [edit.target for edit in edits]
    keys = [vectors.digest(text) for text in said]
    digest = vectors.digest(VERSION, 'target', texts.digest)
    load = lambda i: texts.prepare(said[i])
    column = vectors.Column(f'{texts.name}, prompts', digest, keys, said, load, texts.stream)
    scores['text'] = 100 * cosines(of('output'), _filled(column, cache))
  if 'dino' in given:
    scores['identity'] = _nearness(
      _features(given['dino'], [*places], hashes, cache), edits, places
    )
  return scores


def _files(edit):
  return (edit.image, edit.output, *edit.references)


def _features(network, paths, hashes, cache):
  digest = vectors.digest(VERSION, 'whole', network.digest)  # as those of other benchmarks
  load = lambda i: network.prepare(images.read(paths[i]))
  column = vectors.Column(f'{network.name}, whole', digest, hashes, paths, load, network.stream)
  return _filled(column, cache)


def _filled(column, cache):
  store = vectors.Store(cache, column)
  vectors.fill(store, column)
  found, reasons = store.read(column.keys)
  for i, why in reasons.items():
    raise UserError(f'{column.names[i]}: {why}')
  return found


def _nearness(seen, edits, places):
  """100 x the mean cosine of each edit's features and those of its references."""
  pairs = [(e.output, path) for e in edits for path in e.references]
  first, second = (seen[[places[path] for path in column]] for column in zip(*pairs))
  ends = np.cumsum([len(edit.references) for edit in edits])[:-1]
  return np.array([100 * part.mean() for part in np.split(cosines(first, second), ends)])


def by_method(
  edits: Sequence[Edit], scores: Mapping[str, Float[np.ndarray, ' n']]
) -> dict[str, tuple[list[str], tradeoff.Curve]]:
  """Each method's ids and its curve of source (x) and reference (y) over its strengths."""
  rows: dict[str, list[list[int]]] = {}
  for (method, _), own in groups(edits).items():
    rows.setdefault(method, []).append(own)
  grid = lambda name, own: scores[name].astype(np.float64)[np.array(own).T]  # [n k]
  return {
    method: (
      [edits[i].id for i in own[0]],
      tradeoff.Curve(grid('source', own), grid('reference', own)),
    )
    for method, own in rows.items()
  }


def _point(method, strength, own, scores):
  """The means of one method at one strength, with intervals."""
  found: dict[str, Any] = dict(method=method, strength=strength, n=len(own))
  for name, values in scores.items():
    taken = values[own].astype(np.float64)
    several = len(own) > 1
    mean = confidence.mean_interval(taken) if several else None
    found[name] = dict(
      value=float(taken.mean()),
      low=mean.low if mean else None,
      high=mean.high if mean else None,
    )
  return found


def _range(curves, low, high):
  """The range of similarities to the source over which methods are compared, or ()."""
  reaches = [curve.reach() for _, curve in curves.values()]
  common = max(r[0] for r in reaches), min(r[1] for r in reaches)
  ends = common[0] if low is None else low, common[1] if high is None else high
  if low is not None and high is not None and low >= high:
    raise UserError(f'low is {low:g} and high {high:g}: low must be less')
  return ends if ends[0] < ends[1] else ()


def compared(
  curves: Mapping[str, tuple[list[str], tradeoff.Curve]], at: float | None, ends: Sequence[float]
) -> list[dict[str, Any]]:
  """The similarity to the references of each method, and of each pair the paired difference.

  At a fixed similarity to the source, and as the mean over a range of it, where all methods reach
  that. A pair counts the edits that both have.
  """
  asked = []
  if at is not None:
    asked.append((f'at source {at:.4g}', tradeoff.value_at(at), (at, at)))
  if ends:
    name = f'mean over source {ends[0]:.4g} to {ends[1]:.4g}'
    asked.append((name, tradeoff.height(*ends), ends))
  found = []
  for what, statistic, (low, high) in asked:
    for one, other in [(m, '') for m in curves] + [*itertools.combinations(curves, 2)]:
      row = dict(what=what, method=one, against=other)
      try:
        found.append(row | _estimated(statistic, curves, one, other, low, high))
      except ValueError as error:
        found.append(row | dict(value=None, low=None, high=None, n=0, note=str(error)))
  return found


def _estimated(statistic, curves, one, other, low, high):
  ids, both = curves[one][0], [curves[m][1] for m in (one, other) if m]
  if other:
    shared = [i for i in ids if i in {*curves[other][0]}]
    both = [_taken(curves[m][0], curves[m][1], shared) for m in (one, other)]
    ids = shared
    if not shared:
      raise ValueError('the two have no edit in common')
  for curve, method in zip(both, (one, other)):
    reach = curve.reach()
    if low < reach[0] - 1e-9 or high > reach[1] + 1e-9:
      raise ValueError(f'{method} reaches only {reach[0]:.4g} to {reach[1]:.4g}')
  found = tradeoff.estimate(statistic, both[0], both[1] if other else None)
  return dict(value=found.value, low=found.low, high=found.high, n=len(ids), note='')


def _taken(ids, curve, shared):
  rows = [ids.index(i) for i in shared]
  return tradeoff.Curve(curve.x[rows], curve.y[rows])
