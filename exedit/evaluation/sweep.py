"""The evaluation of Custom-Edit (arXiv 2305.15779, figure 4): how methods trade the source's look
for the reference's, over their strengths.

It scores the edits of a list, made by any program: 100 x the cosine of CLIP features of an edit and
its source, its references (the mean) and its prompt, and of DINO features of it and its references.
"""

import csv
import dataclasses
import io
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit import images
from exedit.evaluation import networks, pages, plot, published, resources, scorer, vectors
from exedit.evaluation.coco_ee import writable_folder
from exedit.evaluation.columns import VERSION
from exedit.metrics import confidence, tradeoff
from exedit.metrics.features import cosines
from exedit.runtime import compilation, files, lists, settings, versions
from exedit.runtime.errors import UserError

NETWORKS = ('clip_b32', 'clip', 'dino_s16', 'dino')
LOADERS: Mapping[str, Callable] = dict(
  clip=lambda name, path: (networks.load(name, path), networks.load_texts(name, path)),
  dino=networks.load,
)
NEEDED = ('method', 'strength', 'image', 'references', 'output')  # columns of the list
FORMAT, CURVES, FIGURE = 'exedit sweep 1', 'curves.csv', 'figure.svg'
SCORES = dict(
  source='similarity to the source, CLIP',
  reference='similarity to the references, CLIP',
  text='similarity to the target prompt, CLIP',
  identity='similarity to the references, DINO',
)
WORD = re.compile(r'<[^<>\s]+>')  # a learned word, which CLIP does not know


@dataclasses.dataclass(frozen=True)
class Edit:
  """One edit of the list; `references` are the paths of the pictures of the concept."""

  method: str
  strength: float
  id: str
  image: str
  output: str
  references: tuple[str, ...]
  target: str


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
  means = [_point(*key, rows, scores) for key, rows in _groups(found).items()]
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
  files.write_text(os.path.join(output, CURVES), as_csv(means))
  files.write_text(os.path.join(output, FIGURE), figure(means))
  page = write_page(output, results)
  rows = _rows(results['points']), _compared_rows(results['comparisons'])
  for columns, table in zip((POINTS, COMPARED), rows):
    say('\n'.join([*pages.text_table(columns, table), '']))
  say(f'{page}, {CURVES}, {FIGURE} and results.json beside it')
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


# The list


def read(path: str) -> list[Edit]:
  """The edits of a list, in its order.

  Raises:
    UserError: for a list that cannot be read, a row that cannot be used, and methods whose
      strengths do not have the same edits.
  """
  rows, base = lists.read(path, NEEDED, NEEDED)
  found = []
  for where, row in rows:
    if isinstance(row, UserError):
      raise UserError(f'{path} {where}: {row}')
    try:
      found.append(_edit(row, base))
    except ValueError as error:
      raise UserError(f'{path} {where}: {error}') from None
  for (method, strength), own in _groups(found).items():
    ids = [found[i].id for i in own]
    if len({*ids}) < len(ids):
      raise UserError(
        f'{path}: {method} at strength {strength:g} has two edits of one source, references and'
        ' prompt: tell them apart by a column id'
      )
  for method, groups in itertools.groupby(_groups(found).items(), key=lambda group: group[0][0]):
    ids = {strength: {found[i].id for i in own} for (_, strength), own in groups}
    first, *rest = ids
    for other in rest:
      if lost := ids[first] ^ ids[other]:
        raise UserError(
          f'{path}: {method} has {len(ids[first])} edits at strength {first:g} and'
          f' {len(ids[other])} at {other:g}, {len(lost)} of them without a partner: each strength'
          ' needs the same edits'
        )
  return found


def _edit(row, base):
  cells = {name: str(row.get(name, '') or '').strip() for name in (*NEEDED, 'target', 'id')}
  cells['strength'] = str(row.get('strength', '')).strip()  # 0 is a strength
  if missing := [name for name in NEEDED if not cells[name]]:
    raise ValueError(f'it has no {missing[0]}: a row needs {", ".join(NEEDED)}')
  try:
    strength = float(cells['strength'])
  except ValueError:
    raise ValueError(f'strength is {cells["strength"]!r:.40}: it must be a number') from None
  image, output, folder = (
    os.path.join(base, cells[name]) for name in ('image', 'output', 'references')
  )
  for file in (image, output):
    if not os.path.isfile(file):
      raise ValueError(f'{file} does not exist')
  target = ' '.join(WORD.sub(' ', cells['target']).split())
  own = cells['id'] or ' | '.join((cells['image'], cells['references'], cells['target']))
  pictures = tuple(resources.image_files(folder, 'its references'))
  return Edit(cells['method'], strength, own, image, output, pictures, target)


def _groups(edits: Sequence[Edit]) -> dict[tuple[str, float], list[int]]:
  """The positions of the edits of each method and strength, ordered by their ids."""
  found: dict[tuple[str, float], list[int]] = {}
  for i in sorted(range(len(edits)), key=lambda i: edits[i].id):
    found.setdefault((edits[i].method, edits[i].strength), []).append(i)
  first = {edit.method: i for i, edit in reversed([*enumerate(edits)])}
  return dict(sorted(found.items(), key=lambda pair: (first[pair[0][0]], pair[0][1])))


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
  for (method, _), own in _groups(edits).items():
    rows.setdefault(method, []).append(own)
  grid = lambda name, own: np.float64(scores[name])[np.array(own).T]  # [n k]
  return {
    method: (
      [edits[i].id for i in own[0]],
      tradeoff.Curve(grid('source', own), grid('reference', own)),
    )
    for method, own in rows.items()
  }


def _point(method, strength, own, scores):
  """The means of one method at one strength, with intervals."""
  found = dict(method=method, strength=strength, n=len(own))
  for name, values in scores.items():
    taken = np.float64(values[own])
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
    both = [_taken(*curves[m], shared) for m in (one, other)]
    ids = shared
    if not shared:
      raise ValueError('the two have no edit in common')
  for curve, method in zip(both, (one, other)):
    reach = curve.reach()
    if low < reach[0] - 1e-9 or high > reach[1] + 1e-9:
      raise ValueError(f'{method} reaches only {reach[0]:.4g} to {reach[1]:.4g}')
  found = tradeoff.estimate(statistic, *both)
  return dict(value=found.value, low=found.low, high=found.high, n=len(ids), note='')


def _taken(ids, curve, shared):
  rows = [ids.index(i) for i in shared]
  return tradeoff.Curve(curve.x[rows], curve.y[rows])


# What is written

POINTS = ('method', 'strength', 'n', *SCORES, '')
COMPARED = ('similarity to the references', 'method', 'against', 'value', '95 % interval', 'n', '')


def as_csv(points: Sequence[Mapping[str, Any]]) -> str:
  """One row per method and strength: each score's mean and the ends of its interval."""
  table = io.StringIO()
  write = csv.writer(table, lineterminator='\n').writerow
  parts = ('value', 'low', 'high')
  write(
    ['method', 'strength', 'n', *(f'{n}_{p}'.removesuffix('_value') for n in SCORES for p in parts)]
  )
  for point in points:
    cells = [point.get(name, {}).get(part) for name in SCORES for part in parts]
    numbers = ['' if value is None else f'{value:.6g}' for value in cells]
    write([point['method'], f'{point["strength"]:g}', point['n'], *numbers])
  return table.getvalue()


def figure(points: Sequence[Mapping[str, Any]]) -> str:
  """The paper's figure 4 with these points, and with its own points dashed."""
  ours: dict[str, list[plot.Point]] = {}
  for point in points:
    x, y = point['source'], point['reference']
    ends = lambda score: () if score['low'] is None else (score['low'], score['high'])
    place = plot.Point(x['value'], y['value'], ends(x), ends(y))
    ours.setdefault(point['method'], []).append(place)
  theirs = {
    f'{name} (paper)': [plot.Point(*xy) for xy in curve]
    for name, curve in published.FIGURE_4.items()
  }
  return plot.svg(ours, theirs, SCORES['source'], SCORES['reference'])


def write_page(output: str, results: Mapping[str, Any]) -> str:
  """Write index.html; returns its path."""
  plotted = f'<img src="{FIGURE}" alt="the curves" style="width:100%;height:auto">'
  theirs = [
    (name, *(f'{x:g}, {y:g}' for x, y in curve), '') for name, curve in published.FIGURE_4.items()
  ]
  sections = [
    pages.Section('Figure', 'Points are means, with 95 % intervals.', {'': [plotted]}),
    pages.Section(
      'Compared',
      'Intervals resample the edits.',
      {},
      COMPARED,
      _compared_rows(results['comparisons']),
    ),
    pages.Section(
      "The paper's points",
      'Source, reference; read off figure 4 of arXiv 2305.15779, +-0.2.',
      {},
      ('method', *(f'point {i}' for i in range(1, 5)), ''),
      theirs,
    ),
  ]
  head = [f'{results["benchmark"]["edits"]} edits of {results["benchmark"]["root"]}']
  return pages.write(output, 'Custom-Edit', head, POINTS, _rows(results['points']), sections)


def _rows(points):
  cell = lambda score: '-' if score is None else pages.number(score['value']) + _interval(score)
  return [
    (p['method'], f'{p["strength"]:g}', str(p['n']), *(cell(p.get(n)) for n in SCORES), '')
    for p in points
  ]


def _compared_rows(comparisons):
  return [
    (
      c['what'],
      c['method'],
      c['against'],
      '-'
      if c['value'] is None
      else (f'{c["value"]:+.3g}' if c['against'] else f'{c["value"]:.4g}'),
      _interval(c).strip(' []'),
      str(c['n']),
      c['note'],
    )
    for c in comparisons
  ]


def _interval(score):
  return '' if score['low'] is None else f' [{score["low"]:.4g}, {score["high"]:.4g}]'
