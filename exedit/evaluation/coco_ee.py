"""The evaluation of a benchmark in COCOEE's layout: makes the edits, scores them, shows them."""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from exedit import systems
from exedit.concepts import files as concepts
from exedit.evaluation import benchmark, make_edits, pages, resources, score_pictures, scores
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime import compilation, files, processes, settings
from exedit.runtime.errors import UserError
from exedit.weights.found import Weights

PRECISIONS = ('float32', 'bfloat16')
NETWORKS = ('clip_b32', 'clip', 'inception', 'lpips', 'dino_s16', 'dino')
RESULTS = score_pictures.RESULTS
# What the beginning of an evaluation's file holds, by name.
MARKS = {RESULTS: b'"benchmark"', pages.PAGE: b'p.head {'}
UNMARKED = (
  pages.PICTURES,
  'grid.png',
  'curves.csv',
  'figure.svg',
)  # what is written after one of them
CATEGORY = '{category}'  # the prompt of a category, by default


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
  spacing: str | None = None,
  mask_resize: str | None = None,
  guidance_interval: str | None = None,
  strength: float | None = None,
  clip_scale: float | None = None,
  views: int | None = None,
  prompts: str | None = None,
  prompt: str = CATEGORY,
  precision: str | None = None,
  paste: bool = True,
  truncate: bool = False,
  concept: str | None = None,
  force: bool = False,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score weights, or existing pictures, on a benchmark; write results.json and index.html.

  A repeated call repeats no edit and no vector: they stay in output/results and in the cache.
  Several processes share both; process 0 scores. They need an `output` that all of them see.

  Args:
    output: the folder of the results.
    weights: any weights that `find.weights` accepts, to make the edits; or
    pictures: a folder with {id:012d}.png for every edit.
    data: root of the benchmark. reference: root of the real images, or None.
    features: paths of the networks by the names in NETWORKS; None for those not given.
    gmm: the quality score's mixture (made by exedit.gmm).
    cache: folder of the vectors. None: one in the user's cache folder, or output/features if there
      are several processes.
    steps, ..., views: the settings of the edits, see `make_edits.edit_settings`.
    prompts: list of the edits' prompts or categories, for a system with texts. prompt: of a
      category. See `make_edits.read_prompts`.
    seed, batch_size, precision, paste, truncate: see `make_edits.make_missing`.
    concept, force: see `concepts.files.weights`.
  Returns:
    The contents of results.json in process 0, {} in the others.
  Raises:
    UserError: for anything that cannot be used, before any computation if possible.
  """
  output = _checked(output, weights, pictures, data, features, reference)
  if concept and weights is None:
    raise UserError(f'concept is {concept}, but --images has the edits already: leave it out')
  _check_prompts(prompts, prompt, pictures)
  _check_sampling(seed, batch_size, precision)
  bench = Bench(data['root'], exemplar_size=None)
  edits = benchmark.survey(bench)  # before weights are fetched
  said = make_edits.read_prompts(prompts, prompt, (e.id for e in edits)) if prompts else {}
  found = concepts.weights(weights, concept, force=force) if weights is not None else None
  how = dict(
    steps=steps, scale=scale, sampler=sampler, spacing=spacing, mask_resize=mask_resize,
    guidance_interval=guidance_interval, strength=strength, clip_scale=clip_scale, views=views,
  )  # fmt: skip
  sampling = make_edits.edit_settings(found, bool(prompts), **how) if found is not None else {}
  given = resources.load(features, gmm, reference.get('root'), edits)
  made: dict[str, Any] = dict(pictures=pictures)
  if found is not None:
    precision = precision or found.config['model'].get('dtype', PRECISIONS[0])
    kept = dict(seed=seed, paste=paste, precision=precision)
    kept |= dict(truncate=True) if truncate else {}  # older results do not have the name
    made = _make(found, bench.root, edits, output, sampling, kept, batch_size, said, say)
  scorer_of = functools.partial(scores.Scorer, resources=given)
  about = dict(root=bench.root)
  return score_pictures.score(
    bench, benchmark.COCO_EE, about, edits, output, made, scorer_of, given, cache, say
  )


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


def _make(
  found: Weights,
  root: str,
  edits: Sequence[benchmark.Edit],
  output: str,
  sampling: dict[str, Any],
  options: dict[str, Any],
  batch_size: int | None,
  prompts: Mapping[int, str],
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Make the missing edits; return the entries of results.json about them."""
  texts = make_edits.text_inputs(found, prompts, say)  # its faults must come before the claim
  weights = dict(sha256=found.digest())
  if words := found.tokenizer_digest():
    weights |= dict(tokenizer=words)
  recorded = make_edits.to_record(found, sampling) | options | make_edits.scaled(found, edits)
  if prompts:
    told = ''.join(f'{number} {text}\n' for number, text in prompts.items())
    recorded['prompts'] = hashlib.sha256(told.encode()).hexdigest()[:12]
  if not jax.process_index():
    made_with = dict(recorded, weights=weights['sha256'], benchmark=benchmark.digest(edits))
    made_with |= dict(tokenizer=words) if words else {}
    make_edits.claim(output, made_with)
  processes.wait_for_others('claimed')
  exemplar_size = systems.of(found).picture_size(found.config['model'])
  bench = Bench(root, exemplar_size or None)
  options = dict(options, batch_size=batch_size, texts=texts, say=say)
  make_edits.make_missing(found, bench, edits, output, **options, settings=sampling)
  processes.wait_for_others('made')
  weights = make_edits.named(found) | weights
  return dict(weights=weights, sampling=recorded, **make_edits.saved(found, sampling))


def _checked(output, weights, pictures, data, features, reference):
  """Return the folder of the results; raise UserError for paths and groups that do not fit."""
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
  return writable_folder(output)


def _check_prompts(prompts, prompt, pictures):
  """Raises UserError for prompts without edits to make, and a template without prompts."""
  if prompts and pictures is not None:
    raise UserError(f'prompts is {prompts}, but --images has the edits already: leave it out')
  if prompt != CATEGORY and not prompts:
    raise UserError(
      f'prompt is {prompt!r:.60}, but config.prompts names no list with categories: name one, or '
      'leave it out'
    )


def _check_sampling(seed, batch_size, precision):
  if not 0 <= seed < 2**31:
    raise UserError(f'seed is {seed}: it must be between 0 and {2**31 - 1}')
  if batch_size is not None and batch_size < 1:
    raise UserError(f'batch_size is {batch_size}: it must be at least 1')
  if precision not in (None, *PRECISIONS):
    raise UserError(f'precision is {precision}: use one of {", ".join(PRECISIONS)}')


def writable_folder(path: str) -> str:
  """Returns the folder; UserError unless files can be written there.

  A folder with somebody else's files of our names is refused, because they would be replaced.
  Pictures are ours if one of the marked files is there.
  """
  files.check_folder(path)
  there = [name for name in (*MARKS, *UNMARKED) if os.path.lexists(os.path.join(path, name))]
  ours = any(name in MARKS for name in there)
  for name in there:
    file = os.path.join(path, name)
    if MARKS[name] not in files.head(file) if name in MARKS else not ours:
      raise UserError(f'{file} was not written by an evaluation: name another --output')
  return path
