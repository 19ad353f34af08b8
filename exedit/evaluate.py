"""A benchmark in, one table out: does the edit show the exemplar's subject?

  python -m exedit.evaluate --config=configs/synthetic_bench.py --weights=weights/tiny
  python -m exedit.evaluate --config=configs/coco_ee.py --weights=... --output=DIR
  python -m exedit.evaluate --config=configs/coco_ee.py --images=PICTURES --output=DIR
  python -m exedit.evaluate --compare a/results.json b/results.json --output=PAGE

The first needs no photograph: every held-out edit is made twice, with its own exemplar and with
another edit's. The repainted region is compared with ten drawn truths, the right subject and nine
others in the same place. The others score a benchmark in COCOEE's layout with weights or with any
system's pictures (evaluate_bench.py), and test the difference of two such results (compare.py).
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from exedit import images, systems
from exedit import paint_by_example as pbe
from exedit.evaluation import compare, compare_page, evaluate_bench
from exedit.input_pipeline import synthetic
from exedit.metrics import confidence, pixels
from exedit.runtime import compilation, doors, files, processes, settings, versions
from exedit.runtime.errors import UserError
from exedit.weights import find

SHOWN = 12  # rows of the picture
COLUMNS = ('source', 'hole', 'exemplar', 'result', 'truth', 'other one', 'its result')


@dataclasses.dataclass(frozen=True)
class Score:
  """What one pass over the edits came to, per edit and in the order of the benchmark."""

  distances: Float[np.ndarray, 'n k']
  identified: Bool[np.ndarray, ' n']
  psnr: Float[np.ndarray, ' n']
  untouched: Bool[np.ndarray, ' n']

  def summary(self) -> dict[str, Any]:
    n, hits = len(self.identified), int(self.identified.sum())
    low, high = confidence.wilson(hits, n)
    return dict(
      identification=hits / n,
      interval=[low, high],
      n=n,
      psnr=float(self.psnr.mean()),
      untouched=int(self.untouched.sum()),
    )


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
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Score weights on `edits` held-out synthetic edits; writes results.json and grid.png.

  Edit number i and its noise are functions of (seed, i), whatever the batch size. `output` is by
  default the folder `evaluation` in that of the weights. `steps`, `scale` and `sampler` are the
  weights' own where None.

  Returns:
    What results.json holds.
  Raises:
    UserError: for settings or weights that cannot be used, before anything is computed.
  """
  found = find.weights(weights)
  config = found.config
  sampling = systems.edit_settings(
    systems.of(found), config, found.where, steps=steps, scale=scale, sampler=sampler
  )
  sampling.pop('mask_resize', None)
  if output is None and not os.path.isdir(weights):
    raise UserError(f'--output is missing: {weights} is no folder to put the results beside')
  output = evaluate_bench.writable_folder(output or os.path.join(weights, 'evaluation'))
  _check(edits=(edits, 2), truths=(truths, 2), batch_size=(batch_size, 1), seed=(seed, 0))
  drawing = dict(drawn_like(systems.of(found), config), seed=seed, truths=truths)
  model = pbe.load(found)

  every = 0.1 if sys.stderr.isatty() else 10
  with tqdm(total=3 * edits, unit='edit', desc='drawing', mininterval=every) as bar:
    bench = []
    for edit in synthetic.bench(edits, **drawing):
      bench.append(edit)
      bar.update()
    others = derangement(edits, seed)
    passes = {}
    for name, order in (('own', np.arange(edits)), ('shuffled', others)):
      bar.set_description(name)
      passes[name] = repaint(
        model, bench, order, seed, min(batch_size, edits), bar.update, **sampling
      )
  scores = {name: score(pixels, bench) for name, pixels in passes.items()}
  benchmark = dict(edits=edits, batch_size=batch_size, **drawing)
  results = dict(
    benchmark=benchmark,
    sampling=sampling,
    weights=dict(path=weights, step=found.step, sha256=found.digest()),
    versions=versions.versions(),
    chance=1 / truths,
    **{name: s.summary() for name, s in scores.items()},
    edits=_per_edit(bench, others, scores),
  )
  say(table(results))
  os.makedirs(output, exist_ok=True)
  sheet = images.grid(_rows(bench, others, passes), COLUMNS)
  picture = images.save(sheet, os.path.join(output, 'grid.png'))
  files.write_json(os.path.join(output, 'results.json'), results)
  say(f'{picture} and results.json beside it')
  return results


def drawn_like(system: systems.System, config: Mapping[str, Any]) -> dict[str, int]:
  """Arguments of `synthetic.bench`: pictures drawn like those the weights were trained on."""
  names = ('size', 'exemplar_size')
  drawing = {name: systems.trained_on(system, config, name) for name in names}
  if config.get('synthetic'):  # weights of photographs know nothing of a scene's own pixels
    drawing['exemplar_pad'] = systems.trained_on(system, config, 'exemplar_pad')
    if 'size' in config['synthetic']:
      drawing['scene_size'] = config['synthetic']['size']
  return drawing


def derangement(n: int, seed: int) -> np.ndarray:
  """Whose exemplar each edit gets in the control: one random cycle, so never its own [n]."""
  cycle = np.random.default_rng([seed, n]).permutation(n)
  order = np.empty(n, np.int64)
  order[cycle] = np.roll(cycle, 1)
  return order


def repaint(
  model: pbe.PaintByExample,
  bench: Sequence[dict],
  exemplar_of: np.ndarray,
  seed: int,
  batch_size: int,
  done: Callable[[int], Any] = lambda n: None,
  **sampling: Any,
) -> UInt8[np.ndarray, 'n h w 3']:
  """Edit i of the benchmark with the exemplar of edit `exemplar_of[i]`, in equal batches.

  The last batch is filled up with repetitions, so that one compiled function serves all.
  """
  results = []
  for start in range(0, len(bench), batch_size):
    index = np.minimum(np.arange(start, start + batch_size), len(bench) - 1)
    edits = [bench[i] for i in index]
    result = pbe.edit(
      model,
      _floats(edit['source'] for edit in edits),
      jnp.asarray(np.stack([edit['mask'] for edit in edits])[..., None] > 127, jnp.float32),
      _floats(bench[int(exemplar_of[i])]['exemplar'] for i in index),
      jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index),
      **sampling,
    )
    count = min(batch_size, len(bench) - start)
    results.append(images.to_uint8(result)[:count])
    done(count)
  return np.concatenate(results)


def score(results: UInt8[np.ndarray, 'n h w 3'], bench: Sequence[dict]) -> Score:
  """The results, as the bytes that would be saved, against the benchmark's truths."""
  mask = np.stack([edit['mask'] for edit in bench]) > 127
  answer = np.array([edit['answer'] for edit in bench])
  source = np.stack([edit['source'] for edit in bench])
  d = pixels.distances(results, np.stack([edit['truths'] for edit in bench]), mask)
  return Score(
    distances=d,
    identified=pixels.identified(d, answer),
    psnr=pixels.psnr(d[np.arange(len(d)), answer]),
    untouched=((results == source).all(-1) | mask).all((1, 2)),
  )


def table(results: dict[str, Any]) -> str:
  """The summary for a person."""
  b, s, w = (results[name] for name in ('benchmark', 'sampling', 'weights'))
  own, shuffled = results['own'], results['shuffled']

  def row(name, cell):
    return f'{name:<24}{cell(own):<24}{cell(shuffled):<24}'

  def share(x):
    return f'{x["identification"]:.3f} [{x["interval"][0]:.3f}, {x["interval"][1]:.3f}]'

  lines = [
    f'{b["edits"]} held-out synthetic edits at {b["size"]} px, seed {b["seed"]}',
    f'{w["path"]} at step {w["step"]} (sha256 {w["sha256"][:12]})',
    f'{s["sampler"]}, {s["steps"]} steps, scale {s["scale"]:g}',
    '',
    f'{"":<24}{"its own exemplar":<24}{"that of another":<24}',
    row('identification', share) + f'chance {results["chance"]:.3f}',
    row('PSNR in the mask', lambda x: f'{x["psnr"]:.2f} dB'),
    row('outside it unchanged', lambda x: f'{x["untouched"]} of {x["n"]}'),
  ]
  return '\n'.join(line.rstrip() for line in lines)


def _floats(pixels):
  return jnp.asarray(images.from_uint8(np.stack(list(pixels))))


def _rows(bench, others, passes):
  """The picture's rows, in the order of COLUMNS."""
  for i, edit in enumerate(bench[:SHOWN]):
    hole = np.where(edit['mask'][..., None] > 127, np.uint8(128), edit['source'])
    truth = edit['truths'][edit['answer']]
    other = bench[others[i]]['exemplar']
    own, shuffled = passes['own'][i], passes['shuffled'][i]
    yield [edit['source'], hole, edit['exemplar'], own, truth, other, shuffled]


def _per_edit(bench, others, scores):
  rows = []
  for i, edit in enumerate(bench):
    row: dict[str, Any] = dict(answer=int(edit['answer']), shuffled_exemplar_of=int(others[i]))
    for name, s in scores.items():
      row[name] = dict(
        identified=bool(s.identified[i]),
        psnr=float(s.psnr[i]),
        untouched=bool(s.untouched[i]),
        distances=s.distances[i].tolist(),
      )
    rows.append(row)
  return rows


def _check(**bounds):
  for name, (value, least) in bounds.items():
    if value < least:
      raise UserError(f'{name} is {value}: it must be at least {least}')


def define_flags() -> None:
  """`--config` holds the benchmark's settings, the others say what to score and where to write."""
  values = flags.FLAGS
  how = 'the benchmark, configs/synthetic_bench.py or configs/coco_ee.py'
  doors.define_config(how)
  flags.DEFINE_string('weights', None, "training run's folder or an exported one", values)
  flags.DEFINE_string('images', None, 'score {id:012d}.png of this folder instead', values)
  flags.DEFINE_multi_string('compare', None, 'two results.json of one benchmark', values)
  flags.DEFINE_string('output', None, "folder (default: the weights', /evaluation)", values)


def main(_: list[str]) -> None:
  """Open the door: a benchmark in, one table out."""
  values = flags.FLAGS
  if values.compare is not None:
    if len(values.compare) != 2 or values.config or values.weights or values.images:
      raise UserError(
        '--compare takes two results.json, and --output for a page, and no other flag'
      )
    found = compare.compare(*values.compare)
    print(compare.table(found))
    if values.output:
      print(compare_page.write(evaluate_bench.writable_folder(values.output), found))
    return
  if values.config is None:
    raise UserError('--config is missing: use --config=configs/synthetic_bench.py')
  config = values.config.to_dict()
  if 'data' in config:
    processes.join_processes()
    compilation.cache_compiled()
    settings.check(config, evaluate_bench.evaluate, 'config')
    evaluate_bench.main(values.output, values.weights, values.images, config)
    return
  if values.images:
    raise UserError('--images goes with --config=configs/coco_ee.py: this benchmark is drawn')
  if not values.weights:
    raise UserError('--weights is missing: name the folder of a run, or one such as weights/tiny')
  compilation.cache_compiled()
  settings.check(config, evaluate, 'config')
  evaluate(values.weights, values.output, **config)


if __name__ == '__main__':
  sys.argv = compare.joined(sys.argv)
  define_flags()
  doors.run(main)
