"""The evaluation of PIE-Bench, or another benchmark in its layout: of weights or of results."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from exedit.concepts import files as concepts
from exedit.editing import edit_files
from exedit.evaluation import (
  benchmark,
  make_edits,
  pages,
  published,
  resources,
  score_pictures,
)
from exedit.evaluation.coco_ee import writable_folder
from exedit.evaluation.pie_scores import LOADERS, PASTED, PieScorer
from exedit.evaluation.resources import Resources
from exedit.input_pipeline import pie_bench
from exedit.runtime import compilation, files, processes, settings
from exedit.runtime.errors import UserError

LIST = 'edits.csv'  # in the folder of the scores: the edits that weights have to make
NETWORKS = ('dino_b8', 'dino', 'lpips_squeeze', 'lpips', 'clip_l14', 'clip')
# The columns of the papers' table: our metric, its factor there, the heading.
COLUMNS = (
  ('structure_distance', 1e3, 'structure distance x1e3'),
  ('psnr_unedit_part', 1, 'PSNR'),
  ('lpips_unedit_part', 1e3, 'LPIPS x1e3'),
  ('mse_unedit_part', 1e4, 'MSE x1e4'),
  ('ssim_unedit_part', 1e2, 'SSIM x1e2'),
  ('clip_similarity_target_image', 1, 'CLIP, whole'),
  ('clip_similarity_target_image_edit_part', 1, 'CLIP, edited'),
)
HEADINGS = [heading for _, _, heading in COLUMNS]


def evaluate(
  output: str | None,
  *,
  weights: str | None = None,
  pictures: str | None = None,
  data: Mapping[str, Any],
  features: Mapping[str, str | None],
  edit: Mapping[str, Any] = MappingProxyType({}),
  concept: str | None = None,
  force: bool = False,
  cache: str | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score weights, or the results of any method; write results.json and index.html.

  A repeated call makes no edit and computes no vector again: they stay in output/results and in the
  cache. Several processes share both; process 0 computes the scores.

  Args:
    output: the folder of the scores.
    weights: of a system that edits photos from one text to another, to make the edits; or
    pictures: the folder of the results: each lies where its source lies below annotation_images, as
      .jpg or .png, alone or as the last picture of a row.
    data: root of the benchmark, and the name of its mapping file.
    features: paths of the networks by the names in NETWORKS; None for those not given.
    edit: settings of the edits that weights make, as `sample` has them; None: the default.
    concept, force: see `concepts.files.weights`.
    cache: folder of the vectors; see `coco_ee.evaluate`.
  Returns:
    The contents of results.json in process 0, {} in the others.
  Raises:
    UserError: for anything that cannot be used, before any computation if possible.
  """
  if not output:
    raise UserError('--output is missing: name a folder for the scores')
  if (weights is None) == (pictures is None):
    raise UserError(
      'give either --weights, to make the edits, or --images, the folder of results of any method'
    )
  how = {name: value for name, value in edit.items() if value is not None}
  if weights is None and (how or concept):
    name = f'config.edit.{next(iter(how))}' if how else 'concept'
    raise UserError(f'--images has the edits already, so {name} has no use: leave it out')
  settings.check_names(data, ('root', 'mapping'), 'config.data')
  settings.check_names(features, NETWORKS, 'config.features')
  if 'root' not in data:
    raise UserError('config.data.root is not set, and it has no default')
  writable_folder(output)
  about = dict(
    root=data['root'], layout='pie_bench', mapping=data.get('mapping', pie_bench.MAPPING)
  )
  bench = benchmark.PIE_BENCH.open(about)
  edits = benchmark.survey(bench)
  if pictures is not None:
    benchmark.results(edits, pictures, benchmark.PIE_BENCH)  # before networks are fetched
  paths = {name.split('_')[0]: path for name, path in features.items() if path}
  found = resources.networks(features, LOADERS)
  if 'clip' in found:
    (found['clip'], found['texts']), paths['texts'] = found['clip'], paths['clip']
  given = Resources(found, paths=paths)
  made: dict[str, Any] = dict(pictures=pictures)
  if weights is not None:
    made = _make(weights, bench, output, how, dict(concept=concept, force=force), say)
  types = [bench[edit.position]['type'] for edit in edits]
  return score_pictures.score(
    bench,
    benchmark.PIE_BENCH,
    about,
    edits,
    output,
    made,
    functools.partial(PieScorer, resources=given),
    given,
    cache,
    say,
    more=lambda summary: dict(tables=[beside_published(summary), by_type(summary, types)]),
  )


def _make(
  weights: str,
  bench: pie_bench.Bench,
  output: str,
  edit: Mapping[str, Any],
  words: Mapping[str, Any],
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Make the missing edits; return the entries of results.json about them.

  words: concept and force, see `concepts.files.weights`.
  """
  os.makedirs(output, exist_ok=True)
  listed = os.path.join(output, LIST)
  files.write_text(listed, bench.table(make_edits.folder(output)))
  with processes.together(patient=True):
    edit_files.edit_list(weights, listed, say=say, **words, **edit)
  processes.wait_for_others('made')
  return dict(weights=make_edits.named(concepts.weights(weights, **words)), sampling=dict(edit))


def main(
  output: str | None, weights: str | None, pictures: str | None, config: dict[str, Any]
) -> None:
  """Evaluate with the settings of a config; only process 0 prints.

  Raises:
    UserError: as `evaluate`, and for keys of the config that are unknown or missing.
  """
  processes.join_processes()
  compilation.cache_compiled()
  settings.check(config, evaluate, 'config')
  settings.check_complete(config, evaluate, 'config')
  say = (lambda line: None) if jax.process_index() else print
  evaluate(output, weights=weights, pictures=pictures, say=say, **config)


def beside_published(summary: Mapping[str, Any]) -> dict[str, Any]:
  """The scores in the units of the papers' table, with and without pasting, and that table."""
  value = lambda name: (summary['metrics'].get(name) or {}).get('value')
  ours = [
    [
      who,
      *(_cell(value(_given(start, name)), factor) for name, factor, _ in COLUMNS),
      'these results',
    ]
    for who, start in (('yours', ''), ('yours, background pasted', PASTED))
  ]
  theirs = [
    [row.method, *(f'{x:.2f}' for x in row[1:-1]), row.source] for row in published.PIE_BENCH
  ]
  return dict(
    title='Beside published results',
    about='Theirs are of all 700 edits, with Stable Diffusion 1.x; yours of the metrics above.',
    columns=['method', *HEADINGS, 'source'],
    rows=ours + theirs,
  )


def by_type(summary: Mapping[str, Any], types: Sequence[str]) -> dict[str, Any]:
  """The means of each type of edit, in the units of the papers' table."""
  rows = []
  for kind in sorted({*types}):
    scores = [edit['metrics'] for edit, own in zip(summary['edits'], types) if own == kind]
    cells = [_mean([s.get(name) for s in scores], factor) for name, factor, _ in COLUMNS]
    rows.append([f'{kind}. {pie_bench.TYPES[kind]}', *cells, str(len(scores))])
  return dict(title='By type of edit', about='', columns=['type', *HEADINGS, 'edits'], rows=rows)


def _given(start, name):
  return name if name.endswith('edit_part') and name.startswith('clip') else start + name


def _mean(scores, factor):
  known = [score for score in scores if score is not None]
  return _cell(float(np.mean(known)) if known else None, factor)


def _cell(value, factor):
  return '-' if value is None else pages.number(value * factor)
