"""The evaluation of a benchmark in COCOEE's layout: make the edits, score them, show them."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exedit import systems
from exedit.evaluation import bench, bench_edits, instruments, report, scores, vectors
from exedit.evaluation.cache import Cache, default_folder
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime import files, processes, settings, versions
from exedit.runtime.errors import UserError, heard
from exedit.weights import find
from exedit.weights.found import Weights

PRECISIONS = ('float32', 'bfloat16')
NETWORKS = ('clip_b32', 'clip', 'inception', 'lpips', 'dino_s16', 'dino')
RESULTS, SHARES = 'results.json', 'shares'
FORMAT = 'exedit bench 1'


def evaluate(
  output: str | None,
  *,
  weights: str | None = None,
  pictures: str | None = None,
  data: Mapping[str, Any],
  features: Mapping[str, str | None],
  reference: Mapping[str, Any],
  gmm: str | None = None,
  cache: str | None = None,
  seed: int = 42,
  batch_size: int | None = None,
  steps: int | None = None,
  scale: float | None = None,
  sampler: str | None = None,
  precision: str | None = None,
  paste: bool = True,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score weights, or pictures that exist, on a benchmark; writes results.json and index.html.

  What was done before is not done again: edits lie in output/results, features in the cache. With
  several processes each makes its share of the edits and of the features, and the first one, whose
  cache it is, writes the scores; `output` must be a folder that all see.

  Args:
    weights: whatever `find.weights` knows; or
    pictures: folder of {id:012d}.png, one for every edit.
    data: root of the benchmark. reference: root of the real images, or None.
    features: paths by the names in NETWORKS, None where there is none.
    gmm: the quality score's mixture (exedit.gmm). cache: folder of the features.
    seed, batch_size, steps, scale, sampler, precision, paste: of the edits (bench_edits.sample).
  Returns:
    What results.json holds; of another process than the first: {}.
  Raises:
    UserError: for whatever cannot be used, before anything is computed where that can be known.
  """
  output = _check(output, weights, pictures, data, features, reference, seed, batch_size, precision)
  found, asked = None, {}
  if weights is not None:
    found = find.weights(weights)
    asked = systems.edit_settings(
      systems.of(found), found.config, found.where, steps=steps, scale=scale, sampler=sampler
    )
    asked.pop('mask_resize', None)
    asked |= dict(seed=seed, paste=paste, precision=precision or own_precision(found))
  edits_of = Bench(data['root'], exemplar_size=None)
  edits = bench.survey(edits_of)
  tools = _instruments(edits, features, reference, gmm)
  made: dict[str, Any] = dict(pictures=pictures)
  if found is not None:
    made = make(found, edits_of.root, edits, output, asked, batch_size, say)
  folder = pictures or bench_edits.folder(output)
  scored = bench.results(edits, folder)
  if others := bench.strangers(edits, folder):
    say(f'{folder}: {len(others)} pictures are of no edit and are not scored, as {others[0]}')
  reader = bench.Reader(edits_of)
  shares = os.path.join(output, SHARES)
  if jax.process_index():
    vectors.share_out(None, scores.Scorer(None, scored, reader, tools).columns(), shares)
    processes.wait_for_others('scored')  # who leaves would take the first one with it
    return {}
  with Cache(cache or default_folder()) as kept:
    scorer = scores.Scorer(kept, scored, reader, tools)
    if jax.process_count() > 1 or os.path.isdir(shares):
      vectors.share_out(kept, scorer.columns(), shares)
    metrics = list(scorer.metrics())
  benchmark = dict(root=edits_of.root, edits=len(edits), sha256=bench.digest(edits))
  results = dict(
    format=FORMAT,
    benchmark=benchmark,
    **made,
    networks={role: _named(network, features) for role, network in tools.networks.items()},
    reference=_reference(tools),
    gmm=dict(path=gmm, sha256=tools.gmm_sha256) if gmm else None,
    versions=versions.versions(),
    metrics={metric.name: metric.summary() for metric in metrics},
    edits=_per_edit(scored, metrics),
  )
  say(report.table(results))
  os.makedirs(output, exist_ok=True)
  page = report.write(output, results, scored, reader)
  files.write_json(os.path.join(output, RESULTS), results)
  say(f'{page} and {RESULTS} beside it')
  processes.wait_for_others('scored')
  return results


def main(
  output: str | None, weights: str | None, pictures: str | None, config: dict[str, Any]
) -> None:
  """The door's part: a config's keys are the arguments, and only the first process speaks."""
  settings.check_complete(config, evaluate, 'config')
  say = (lambda line: None) if jax.process_index() else print
  try:
    with heard():
      evaluate(output, weights=weights, pictures=pictures, say=say, **config)
  except KeyboardInterrupt:
    print('\nstopped; the same command goes on where it stopped', file=sys.stderr)
    sys.exit(130)


def make(
  found: find.Weights,
  root: str,
  edits: Sequence[bench.Edit],
  output: str,
  asked: dict[str, Any],
  batch_size: int | None,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Make the edits that are not there yet; returns what results.json says about them.

  asked: all keyword arguments of `bench_edits.sample` but batch_size and say.
  """
  digest = found.digest()
  if not jax.process_index():
    made_with = dict(asked, weights=digest, benchmark=bench.digest(edits))
    bench_edits.claim(output, made_with)
  processes.wait_for_others('claimed')
  seen = Bench(root, exemplar_size(found))
  bench_edits.sample(found, seen, edits, output, batch_size=batch_size, say=say, **asked)
  processes.wait_for_others('made')
  return dict(weights=dict(path=found.where, step=found.step, sha256=digest), sampling=asked)


def own_precision(found: find.Weights) -> str:
  """What the weights' networks compute in where nothing else is asked for."""
  return found.config['model'].get('dtype', PRECISIONS[0])


def exemplar_size(found: Weights) -> int:
  """The side in pixels at which the weights' network sees an exemplar."""
  return systems.of(found).picture_size(found.config['model'])


def _instruments(edits, features, reference, gmm):
  networks = instruments.networks(features)
  found, digest = instruments.mixture(gmm, networks.get('clip')) if gmm else (None, '')
  root = reference.get('root')
  real = instruments.real_images(root, edits) if root else None
  return instruments.Instruments(networks, found, digest, real)


def _check(output, weights, pictures, data, features, reference, seed, batch_size, precision):
  """The output's folder; UserError for settings that cannot be."""
  if not output:
    raise UserError('--output is missing: name a folder for the results')
  if (weights is None) == (pictures is None):
    raise UserError('give either --weights, to make the edits, or --images, a folder that has them')
  for path, group, known in (
    ('data', data, ['root']),
    ('reference', reference, ['root']),
    ('features', features, NETWORKS),
  ):
    for name in group:
      if name not in known:
        raise UserError(settings.unknown(f'config.{path}.{name}', known))
  if 'root' not in data:
    raise UserError('config.data.root is not set, and it has no default')
  if not 0 <= seed < 2**31:
    raise UserError(f'seed is {seed}: it must be between 0 and {2**31 - 1}')
  if batch_size is not None and batch_size < 1:
    raise UserError(f'batch_size is {batch_size}: it must be at least 1')
  if precision not in (None, *PRECISIONS):
    raise UserError(f'precision is {precision}: use one of {", ".join(PRECISIONS)}')
  return writable_folder(output)


def writable_folder(path: str) -> str:
  """The folder, if it can be made and written to."""
  existing = os.path.abspath(path)
  while not os.path.exists(existing):
    existing = os.path.dirname(existing)
  if not os.path.isdir(existing):
    raise UserError(f'cannot write to the folder {path}: {existing} is a file')
  if not os.access(existing, os.W_OK):
    raise UserError(f'cannot write to the folder {path}: {existing} is not yours to write to')
  return path


def _named(network, paths):
  path = next(p for name, p in paths.items() if p and network.name.startswith(name.split('_')[0]))
  return dict(name=network.name, path=path, sha256=network.digest)


def _reference(tools):
  if tools.real is None:
    return None
  real = tools.real
  return dict(root=real.root, images=len(real.paths), side=real.side, sha256=real.digest)


def _per_edit(scored, metrics):
  plain = lambda x: float(x) if np.isfinite(x) else None
  return [
    dict(
      id=item.edit.id,
      sha256=item.sha256,
      metrics={metric.name: plain(metric.scores[i]) for metric in metrics if not metric.missing},
    )
    for i, item in enumerate(scored)
  ]
