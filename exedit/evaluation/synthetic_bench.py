"""The benchmark of held-out synthetic edits: it tests if an edit shows the exemplar's subject.

Every edit is made twice, with its own exemplar and with the exemplar of another edit. Each result
is compared inside the mask with several drawn truths, and one of them shows the right subject.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from exedit import images, systems
from exedit.editing.engine import Engine, Work
from exedit.evaluation import make_edits
from exedit.evaluation.coco_ee import writable_folder
from exedit.input_pipeline import synthetic
from exedit.metrics import confidence, pixels
from exedit.runtime import compilation, files, progress, settings, versions
from exedit.runtime.errors import UserError
from exedit.weights import find

SHOWN = 12  # rows of the picture
COLUMNS = ('source', 'hole', 'exemplar', 'result', 'truth', 'other one', 'its result')


def main(
  output: str | None, weights: str | None, pictures: str | None, config: dict[str, Any]
) -> None:
  """Evaluate weights with the settings of a config.

  Raises:
    UserError: as `evaluate`, and for unknown keys of the config.
  """
  if pictures:
    raise UserError('--images goes with --config=configs/coco_ee.py: this benchmark is drawn')
  if not weights:
    raise UserError('--weights is missing: name the folder of a run, or one such as weights/tiny')
  compilation.cache_compiled()
  settings.check(config, evaluate, 'config')
  evaluate(weights, output, **config)


def evaluate(
  weights: str,
  output: str | None = None,
  *,
  edits: int = 256,
  seed: int = 0,
  truths: int = 10,
  batch_size: int = 32,
  steps: int | None = None,
  scale: float | None = None,
  sampler: str | None = None,
  guidance_interval: str | None = None,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score weights on `edits` held-out synthetic edits; write results.json and grid.png.

  Edit number i and its noise depend only on (seed, i), not on the batch size. By default `output`
  is the folder `evaluation` in the folder of the weights. For `steps`, `scale`, `sampler` and
  `guidance_interval`, None means the weights' own settings.

  Returns:
    The contents of results.json.
  Raises:
    UserError: for settings or weights that cannot be used, before any computation.
  """
  found = find.weights(weights)
  system = systems.editing(found)
  how = dict(steps=steps, scale=scale, sampler=sampler, guidance_interval=guidance_interval)
  sampling = make_edits.edit_settings(found, **how)
  if output is None and not os.path.isdir(weights):
    raise UserError(f'--output is missing: {weights} is not a folder that could hold the results')
  output = writable_folder(output or os.path.join(weights, 'evaluation'))
  _check(edits=(edits, 2), truths=(truths, 2), batch_size=(batch_size, 1), seed=(seed, 0))
  drawing = dict(drawn_like(system, found.config), seed=seed, truths=truths)
  size = system.picture_size(found.config['model'])
  engine = Engine(system, systems.load(found), jax.local_devices()[:1])
  with progress.bar(what='drawing', total=3 * edits, unit='edit') as bar:
    bench = []
    for edit in synthetic.bench(edits, **drawing):
      bench.append(edit)
      bar.update()
    others = derangement(edits, seed)
    passes = {}
    for name, order in (('own', np.arange(edits)), ('shuffled', others)):
      bar.set_description(name)
      passes[name] = repaint(engine, bench, order, seed, batch_size, size, sampling, bar.update)
  scores = {name: score(result, bench) for name, result in passes.items()}
  per_edit = [
    dict(answer=int(edit['answer']), shuffled_exemplar_of=int(others[i]))
    | {name: {k: values[i].tolist() for k, values in s.items()} for name, s in scores.items()}
    for i, edit in enumerate(bench)
  ]
  results = dict(
    benchmark=dict(edits=edits, batch_size=batch_size, **drawing),
    sampling=make_edits.to_record(found, sampling),
    **make_edits.saved(found, sampling),
    weights=dict(path=weights, step=found.step, sha256=found.digest()),
    versions=versions.versions(),
    chance=1 / truths,
    **{name: summary(s) for name, s in scores.items()},
    edits=per_edit,
  )
  say(table(results))
  os.makedirs(output, exist_ok=True)
  sheet = images.grid(_rows(bench, others, passes), COLUMNS)
  files.write_json(os.path.join(output, 'results.json'), results)  # it marks the folder as ours
  picture = images.save(sheet, os.path.join(output, 'grid.png'))
  say(f'{picture} and results.json beside it')
  return results


def drawn_like(system: systems.System, config: Mapping[str, Any]) -> dict[str, int]:
  """Return the arguments of `synthetic.bench` that draw pictures like the training data."""
  own = {**system.data.defaults(), **config['data']}
  names = ['size', 'exemplar_size']
  scenes = config.get('synthetic') or {}
  names += ['exemplar_pad'] if scenes else []  # it is in pixels of drawn scenes
  drawing = {name: own[name] for name in names if name in own}
  if 'size' in scenes:
    drawing['scene_size'] = scenes['size']
  return drawing


def derangement(n: int, seed: int) -> np.ndarray:
  """Draw whose exemplar each edit gets in the control [n]: one random cycle, so never its own."""
  cycle = np.random.default_rng([seed, n]).permutation(n)
  order = np.empty(n, np.int64)
  order[cycle] = np.roll(cycle, 1)
  return order


def repaint(
  engine: Engine,
  bench: Sequence[dict],
  exemplar_of: np.ndarray,
  seed: int,
  batch_size: int,
  exemplar_size: int,
  settings: Mapping[str, Any],
  done: Callable[[int], Any] = lambda n: None,
) -> UInt8[np.ndarray, 'n h w 3']:
  """Make edit i of the benchmark with the exemplar of edit `exemplar_of[i]`, for all i.

  Args:
    exemplar_size: the side in pixels at which the network takes exemplars; 0: it takes none.
    settings: of `System.edit`.
    done: called with the number of edits after each batch.
  """

  def read(i):
    exemplar = bench[int(exemplar_of[i])]['exemplar']
    if exemplar_size:
      exemplar = images.to_uint8(images.squash(images.from_uint8(exemplar), exemplar_size))
    source, mask = bench[i]['source'], np.where(bench[i]['mask'] > 127, np.uint8(255), np.uint8(0))
    arrays = make_edits.network_inputs(engine.system, source, mask, exemplar)
    return arrays, dict(source=source, mask=mask)

  write = lambda result: make_edits.finished(result.raw, result.kept)
  key = lambda i: jax.random.fold_in(jax.random.key(seed), i)
  works = [Work(i, edit['mask'].shape, settings) for i, edit in enumerate(bench)]
  pictures = []
  for made in engine.run(engine.batches(works, batch_size), read, write, key=key):
    pictures += made
    done(len(made))
  return np.stack(pictures)


def score(results: UInt8[np.ndarray, 'n h w 3'], bench: Sequence[dict]) -> dict[str, np.ndarray]:
  """Score the results, as the bytes of their files, against the truths of the benchmark.

  Returns:
    For each edit whether it was identified, its PSNR in dB, whether the pixels outside the mask are
    untouched, and its distances to the truths [n k].
  """
  mask = np.stack([edit['mask'] for edit in bench]) > 127
  answer = np.array([edit['answer'] for edit in bench])
  source = np.stack([edit['source'] for edit in bench])
  d = pixels.distances(results, np.stack([edit['truths'] for edit in bench]), mask)
  return dict(
    identified=pixels.identified(d, answer),
    psnr=pixels.psnr(d[np.arange(len(d)), answer]),
    untouched=((results == source).all(-1) | mask).all((1, 2)),
    distances=d,
  )


def summary(scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Summarise the scores of one pass over the edits."""
  n, hits = len(scores['identified']), int(scores['identified'].sum())
  return dict(
    identification=hits / n,
    interval=list(confidence.wilson(hits, n)),
    n=n,
    psnr=float(scores['psnr'].mean()),
    untouched=int(scores['untouched'].sum()),
  )


def table(results: dict[str, Any]) -> str:
  """Return the summary as text."""
  b, s, w = (results[name] for name in ('benchmark', 'sampling', 'weights'))
  own, shuffled = results['own'], results['shuffled']

  def row(name, cell):
    return f'{name:<24}{cell(own):<24}{cell(shuffled):<24}'

  def share(x):
    return f'{x["identification"]:.3f} [{x["interval"][0]:.3f}, {x["interval"][1]:.3f}]'

  lines = [
    f'{b["edits"]} held-out synthetic edits at {b["size"]} px, seed {b["seed"]}',
    f'{w["path"]} at step {w["step"]} (sha256 {w["sha256"][:12]})',
    ', '.join(f'{name} {value}' for name, value in s.items()),
    *filter(None, [results.get('evaluations')]),
    '',
    f'{"":<24}{"its own exemplar":<24}{"that of another":<24}',
    row('identification', share) + f'chance {results["chance"]:.3f}',
    row('PSNR in the mask', lambda x: f'{x["psnr"]:.2f} dB'),
    row('outside it unchanged', lambda x: f'{x["untouched"]} of {x["n"]}'),
  ]
  return '\n'.join(line.rstrip() for line in lines)


def _rows(bench, others, passes):
  """Yield the rows of the picture, in the order of COLUMNS."""
  for i, edit in enumerate(bench[:SHOWN]):
    hole = np.where(edit['mask'][..., None] > 127, np.uint8(128), edit['source'])
    truth = edit['truths'][edit['answer']]
    other = bench[others[i]]['exemplar']
    own, shuffled = passes['own'][i], passes['shuffled'][i]
    yield [edit['source'], hole, edit['exemplar'], own, truth, other, shuffled]


def _check(**bounds):
  for name, (value, least) in bounds.items():
    if value < least:
      raise UserError(f'{name} is {value}: it must be at least {least}')
