"""The evaluation of PIE-Bench, or another benchmark in its layout: scores a folder of results."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exedit.evaluation import benchmark, pages, published, resources, score_pictures
from exedit.evaluation.coco_ee import writable_folder
from exedit.evaluation.pie_scores import LOADERS, PASTED, PieScorer
from exedit.evaluation.resources import Resources
from exedit.input_pipeline import pie_bench
from exedit.runtime import compilation, processes, settings
from exedit.runtime.errors import UserError

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
  pictures: str | None = None,
  data: Mapping[str, Any],
  features: Mapping[str, str | None],
  cache: str | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score the results of any method; write results.json and index.html.

  A repeated call computes no vector again: they stay in the cache. Several processes share the
  vectors; process 0 computes the scores.

  Args:
    output: the folder of the scores.
    pictures: the folder of the results: each lies where its source lies below annotation_images, as
      .jpg or .png, alone or as the last picture of a row.
    data: root of the benchmark, and the name of its mapping file.
    features: paths of the networks by the names in NETWORKS; None for those not given.
    cache: folder of the vectors; see `coco_ee.evaluate`.
  Returns:
    The contents of results.json in process 0, {} in the others.
  Raises:
    UserError: for anything that cannot be used, before any computation if possible.
  """
  if not output:
    raise UserError('--output is missing: name a folder for the scores')
  if pictures is None:
    raise UserError('--images is missing: name the folder of the results, made by any method')
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
  benchmark.results(edits, pictures, benchmark.PIE_BENCH)  # before networks are fetched
  paths = {name.split('_')[0]: path for name, path in features.items() if path}
  found = resources.networks(features, LOADERS)
  if 'clip' in found:
    (found['clip'], found['texts']), paths['texts'] = found['clip'], paths['clip']
  given = Resources(found, paths=paths)
  types = [bench[edit.position]['type'] for edit in edits]
  return score_pictures.score(
    bench,
    benchmark.PIE_BENCH,
    about,
    edits,
    output,
    dict(pictures=pictures),
    functools.partial(PieScorer, resources=given),
    given,
    cache,
    say,
    more=lambda summary: dict(tables=[beside_published(summary), by_type(summary, types)]),
  )


def main(
  output: str | None, weights: str | None, pictures: str | None, config: dict[str, Any]
) -> None:
  """Evaluate with the settings of a config; only process 0 prints.

  Raises:
    UserError: as `evaluate`, and for keys of the config that are unknown or missing.
  """
  if weights is not None:
    raise UserError('--weights makes no edits of PIE-Bench: give their folder with --images')
  processes.join_processes()
  compilation.cache_compiled()
  settings.check(config, evaluate, 'config')
  settings.check_complete(config, evaluate, 'config')
  say = (lambda line: None) if jax.process_index() else print
  evaluate(output, pictures=pictures, say=say, **config)


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
