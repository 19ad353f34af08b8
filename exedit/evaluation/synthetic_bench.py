"""The benchmark of held-out synthetic edits: it tests if an edit shows the exemplar's subject.

Every edit is made twice, with its own exemplar and with the exemplar of another edit. Each result
is compared inside the mask with several drawn truths, and one of them shows the right subject. A
system that makes pictures of texts gets held-out captions instead, its own and another's.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from exedit import images, systems
from exedit.concepts import files as concepts
from exedit.editing.engine import Engine, Work
from exedit.evaluation import drawn_text, make_edits
from exedit.evaluation.coco_ee import writable_folder
from exedit.input_pipeline import synthetic
from exedit.metrics import confidence, pixels
from exedit.runtime import compilation, files, progress, settings, versions
from exedit.runtime.errors import UserError
from exedit.weights.found import Weights

SHOWN = 12  # rows of the picture
COLUMNS = ('source', 'hole', 'exemplar', 'result', 'truth', 'other one', 'its result')
DIFFER = dict(
  look='subject, pattern and colours', shape='the subject alone', pattern='the pattern alone'
)
DIFFER['text'] = DIFFER['look']
TEXT_COLUMNS = ('a drawing of it', 'result', "of another's")


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
  kind: str = 'look',
  edits: int = 256,
  seed: int = 0,
  truths: int | None = None,
  batch_size: int = 32,
  steps: int | None = None,
  scale: float | None = None,
  sampler: str | None = None,
  guidance_interval: str | None = None,
  concept: str | None = None,
  force: bool = False,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score weights on `edits` held-out synthetic edits; write results.json and grid.png.

  Edit number i and its noise depend only on (seed, i), not on the batch size. By default `output`
  is the folder `evaluation` in the folder of the weights. For `steps`, `scale`, `sampler` and
  `guidance_interval`, None means the weights' own settings. `kind` says how the truths differ and
  `truths` how many there are (`synthetic.KINDS`, `synthetic.count_of`); kind 'text' is for systems
  that need a text alone. `concept` and `force`: see `concepts.files.weights`.

  Returns:
    The contents of results.json.
  Raises:
    UserError: for settings or weights that cannot be used, before any computation.
  """
  found = concepts.weights(weights, concept, force=force)
  system = systems.editing(found)
  drawing = drawn_like(system, found.config)
  truths = synthetic.count_of(kind, truths, drawing.get('version', 1))
  chosen = _text_settings if kind == 'text' else make_edits.edit_settings
  sampling = chosen(
    found, steps=steps, scale=scale, sampler=sampler, guidance_interval=guidance_interval
  )
  if output is None and not os.path.isdir(weights):
    raise UserError(f'--output is missing: {weights} is not a folder that could hold the results')
  output = writable_folder(output or os.path.join(weights, 'evaluation'))
  _check(edits=(edits, 2), batch_size=(batch_size, 1), seed=(seed, 0))
  drawing |= dict(seed=seed, truths=truths) | (dict(kind=kind) if kind != 'look' else {})
  read = _texts(system, found) if kind == 'text' else _edits(system, found)
  engine = Engine(system, systems.load(found), jax.local_devices()[:1])
  with progress.bar(what='drawing', total=3 * edits, unit='edit') as bar:
    bench = []
    for edit in _drawn(edits, drawing):
      bench.append(edit)
      bar.update()
    others = derangement(edits, seed)
    passes = {}
    for name, order in (('own', np.arange(edits)), ('shuffled', others)):
      bar.set_description(name)
      passes[name] = make(engine, bench, order, seed, batch_size, read, sampling, bar.update)
  score = drawn_text.score if kind == 'text' else score_edits
  scores = {name: score(result, bench) for name, result in passes.items()}
  per_edit = [
    dict(answer=int(edit['answer']), shuffled_exemplar_of=int(others[i]))
    | {name: {k: values[i].tolist() for k, values in s.items()} for name, s in scores.items()}
    for i, edit in enumerate(bench)
  ]
  results = dict(
    benchmark=dict(edits=edits, batch_size=batch_size, **drawing),
    sampling=make_edits.to_record(found, sampling),
    **make_edits.saved(found, sampling, photo=kind != 'text'),
    weights=make_edits.named(found),
    versions=versions.versions(),
    chance=1 / truths,
    **{name: summary(s) for name, s in scores.items()},
    edits=per_edit,
  )
  say(table(results))
  os.makedirs(output, exist_ok=True)
  rows, columns = (_text_rows, TEXT_COLUMNS) if kind == 'text' else (_rows, COLUMNS)
  sheet = images.grid(rows(bench, others, passes), columns, cell=192)
  files.write_json(os.path.join(output, 'results.json'), results)  # it marks the folder as ours
  picture = images.save(sheet, os.path.join(output, 'grid.png'))
  say(f'{picture} and results.json beside it')
  return results


def _drawn(edits: int, drawing: Mapping[str, Any]) -> Iterator[dict]:
  """Draw the benchmark: `synthetic.bench`, or `synthetic.texts`."""
  if drawing.get('kind') != 'text':
    return synthetic.bench(edits, **drawing)
  taken = ('seed', 'size', 'truths', 'scene_size')
  return synthetic.texts(edits, **{name: drawing[name] for name in taken if name in drawing})


def drawn_like(system: systems.System, config: Mapping[str, Any]) -> dict[str, int]:
  """Return the arguments of `synthetic.bench` that draw pictures like the training data."""
  own = {**system.data.defaults(), **config['data']}
  names = ['size', 'exemplar_size']
  scenes = config.get('synthetic') or {}
  names += ['exemplar_pad'] if scenes else []  # it is in pixels of drawn scenes
  drawing = {name: own[name] for name in names if name in own}
  if 'size' in scenes:
    drawing['scene_size'] = scenes['size']
  if scenes.get('version', 1) != 1:
    drawing['version'] = scenes['version']
  return drawing


def derangement(n: int, seed: int) -> np.ndarray:
  """Draw whose exemplar each edit gets in the control [n]: one random cycle, so never its own."""
  cycle = np.random.default_rng([seed, n]).permutation(n)
  order = np.empty(n, np.int64)
  order[cycle] = np.roll(cycle, 1)
  return order


def make(
  engine: Engine,
  bench: Sequence[dict],
  condition_of: np.ndarray,
  seed: int,
  batch_size: int,
  read: Callable[[dict, dict], tuple[Mapping[str, np.ndarray], Any]],
  settings: Mapping[str, Any],
  done: Callable[[int], Any] = lambda n: None,
) -> UInt8[np.ndarray, 'n h w 3']:
  """Make edit i of the benchmark with the exemplar or text of edit `condition_of[i]`, for all i.

  Args:
    read: of an edit, and of the one whose exemplar or text it gets, the arrays of `System.edit` and
      what the result needs.
    settings: of `System.edit`.
    done: called with the number of edits after each batch.
  """

  def write(result):
    if result.kept is None:
      return images.to_uint8(result.raw)
    return make_edits.finished(result.raw, result.kept)

  key = lambda i: jax.random.fold_in(jax.random.key(seed), i)
  size = bench[0]['truth' if 'truth' in bench[0] else 'source'].shape[:2]
  works = [Work(i, size, settings) for i in range(len(bench))]
  of = lambda i: read(bench[i], bench[int(condition_of[i])])
  pictures = []
  for made in engine.run(engine.batches(works, batch_size), of, write, key=key):
    pictures += made
    done(len(made))
  return np.stack(pictures)


def _edits(system: systems.System, found: Weights) -> Callable[[dict, dict], tuple]:
  """Return how `make` reads an edit of a picture."""
  side = system.picture_size(found.config['model'])  # 0: the network takes no exemplar

  def read(edit, other):
    exemplar = other['exemplar']
    if side:
      exemplar = images.to_uint8(images.squash(images.from_uint8(exemplar), side))
    source, mask = edit['source'], np.where(edit['mask'] > 127, np.uint8(255), np.uint8(0))
    arrays = make_edits.network_inputs(system, source, mask, exemplar)
    return arrays, dict(source=source, mask=mask)

  return read


def _texts(system: systems.System, found: Weights) -> Callable[[dict, dict], tuple]:
  """Return how `make` reads a text."""
  assert system.tokenizer is not None  # it has a text input
  tokens, name = system.tokenizer(found), system.inputs_of('text')[0].name
  return lambda edit, other: ({name: tokens(other['caption'])}, None)


def _text_settings(found: Weights, **given: Any) -> dict[str, Any]:
  """Return the settings of `System.edit` as `make_edits.edit_settings`, for pictures of texts.

  Raises:
    UserError: for a setting that is not allowed, and for a system that needs more than a text.
  """
  system = systems.of(found)
  if [entry.kind for entry in system.inputs if entry.required] != ['text']:
    raise UserError(
      f'{found.where} are weights of {system.name}, which makes no picture of a text alone: kind '
      "'text' needs a system that does"
    )
  known = systems.network_settings(system.settings())
  if unknown := [name for name, value in given.items() if value is not None and name not in known]:
    raise UserError(f'{system.name} has no setting {unknown[0]}: leave it out')
  return systems.edit_settings(system, found.config, found.where, **given)


def score_edits(
  results: UInt8[np.ndarray, 'n h w 3'], bench: Sequence[dict]
) -> dict[str, np.ndarray]:
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
  found = dict(identification=hits / n, interval=list(confidence.wilson(hits, n)), n=n)
  if 'psnr' in scores:  # a picture of a text has no truth in its place
    found |= dict(psnr=float(scores['psnr'].mean()), untouched=int(scores['untouched'].sum()))
  return found


def table(results: dict[str, Any]) -> str:
  """Return the summary as text."""
  b, s, w = (results[name] for name in ('benchmark', 'sampling', 'weights'))
  own, shuffled = results['own'], results['shuffled']

  def row(name, cell):
    return f'{name:<24}{cell(own):<24}{cell(shuffled):<24}'

  def share(x):
    return f'{x["identification"]:.3f} [{x["interval"][0]:.3f}, {x["interval"][1]:.3f}]'

  kind = b.get('kind', 'look')
  condition = 'text' if kind == 'text' else 'exemplar'
  lines = [
    f'{b["edits"]} held-out synthetic edits at {b["size"]} px, seed {b["seed"]}',
    f'{b["truths"]} truths that differ in {DIFFER[kind]}',
    f'{w["path"]} at step {w["step"]} (sha256 {w["sha256"][:12]})',
    ', '.join(f'{name} {value}' for name, value in s.items()),
    *filter(None, [results.get('evaluations')]),
    '',
    f'{"":<24}{f"its own {condition}":<24}{"that of another":<24}',
    row('identification', share) + f'chance {results["chance"]:.3f}',
  ]
  if kind != 'text':
    lines += [
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


def _text_rows(bench, others, passes):
  """Yield the rows of the picture of texts, in the order of TEXT_COLUMNS."""
  for i, edit in enumerate(bench[:SHOWN]):
    yield [edit['truth'], passes['own'][i], passes['shuffled'][i]]


def _check(**bounds):
  for name, (value, least) in bounds.items():
    if value < least:
      raise UserError(f'{name} is {value}: it must be at least {least}')
