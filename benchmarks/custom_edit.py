"""Seconds and memory of learning a concept and of an edit with it: exedit and diffusers.

  python -m benchmarks.custom_edit --output=custom_edit.json          # a GPU: full size, 512x512
  python -m benchmarks.custom_edit --width=quarter --size=256         # a CPU
  python -m benchmarks.custom_edit --width=tiny --size=32 --inversion=3
  python -m benchmarks.custom_edit --count                            # full size, runs nothing

A customising step is that of diffusers' train_custom_diffusion: a picture of the concept and one of
the prior for each of `--batch` examples, the autoencoder's encode, the text tower, the UNet, and
AdamW of the keys and values of the cross-attentions and of the new word's row. diffusers' side
(custom_edit_diffusers.py) takes its own processors for it. The inversion is DDIM of `--inversion`
steps after the encode, diffusers' by DDIMInverseScheduler; exedit's also keeps the maps of the
words. The edit is Prompt-to-Prompt at guidance 7.5 from a kept inversion, for which diffusers has
no class. Each system loads the same random weights, in a process of its own for the step and for
the edit, in turns; the fastest of `--steps` steps, the second edit and the best of `--rounds` turns
count. `--count` traces these programs and counts their floating-point work and their arrays.
"""

import functools
import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, networks, train_step
from exedit import custom_edit, latent_diffusion, stable_diffusion, text_editing
from exedit.concepts.concept import ROWS
from exedit.configs import custom_edit as recipe
from exedit.editing import prompts
from exedit.models import parameters
from exedit.runtime import compilation
from exedit.runtime.doors import Flag
from exedit.training import flops
from exedit.training.sharding import batch_sharding
from exedit.training.step import Program, make_program
from exedit.weights import find
from exedit.weights.formats.tensor import to_dtype

PARTS = ('step', 'edit')  # each in a process of its own
TIMES = ('step', 'inversion', 'edit')
SCALE = 7.5
FLAGS = (
  Flag('width', 'full', 'of the networks', [*networks.WIDTHS]),
  Flag('size', 512, 'height and width of the pictures', least=8),
  Flag('batch', 4, 'examples in a step, each with a picture of the prior', least=1),
  Flag('precision', '', 'by default bfloat16 on a GPU, else float32', ['', 'float32', 'bfloat16']),
  Flag('steps', 3, 'timed steps; the fastest counts', least=1),
  Flag('inversion', 50, 'steps of an inversion and of an edit', least=1),
  Flag('rounds', 1, 'turns of each system; the fastest counts', least=1),
  Flag('count', False, 'count only: runs nothing, and needs no memory for weights'),
  Flag('only', '', 'some of exedit,diffusers'),
  Flag('weights', '', 'a diffusers pipeline, or the folder to keep the random one in'),
)


def model_of(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of the model that learns one word, as diffusers' script trains it."""
  found = networks.settings_of(spec['width'], stable_diffusion)
  found['text']['new'] = 1
  how = dict(prior='pictures', normalisation='diffusers', dtype=spec['precision'])
  return found | how


def program_of(spec: Mapping[str, Any]) -> Program:
  """The step of Custom Diffusion, with the published settings."""
  config = recipe.full().to_dict()
  return make_program(
    custom_edit.SYSTEM,
    model=model_of(spec),
    optimizer=config['optimizer'],
    ema=config['ema'],
    mesh={},
    trainable=config['trainable'],
    batch_size=spec['batch'],
    accumulate=1,
    seed=0,
    steps=config['steps'],
  )


def batch_of(spec: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A batch with the shapes and types of the pipeline; diffusers takes the same."""
  random = np.random.default_rng(0)
  b, size, settings = spec['batch'], spec['size'], networks.settings_of(*_sd(spec))
  side = size // latent_diffusion.factor(settings['autoencoder'])
  text = settings['text']
  prior = random.integers(0, text['vocabulary'], (b, text['length']), np.int32)
  prior[:, 0] = text['vocabulary'] - 2  # the start of a text
  tokens = prior.copy()
  tokens[:, 3] = text['vocabulary']  # the new word
  pixels = lambda: random.integers(0, 256, (b, size, size, 3), np.uint8)
  return dict(
    image=pixels(),
    prior_image=pixels(),
    mask=np.full((b, side, side), 255, np.uint8),
    tokens=tokens,
    prior_tokens=prior,
    id=np.arange(b, dtype=np.int32),
    corrupt=np.zeros(b, np.int32),
  )


def _sd(spec):
  return spec['width'], stable_diffusion


# Measured


def step(spec: Mapping[str, Any]) -> dict[str, float]:
  """The fastest customising step after the first, and the memory."""
  compilation.keep_memory()  # as exedit.train does
  program = program_of(spec)
  row = np.zeros((1, program.state.params[ROWS].shape[1]), np.float32)
  tensors = custom_edit.start(spec['folder'], None, model_of(spec)) | to_dtype({ROWS: row}, None)
  state, frozen = train_step.filled(program, lambda _: tensors)
  rows = np.load(spec['inputs']).items()
  batch = {name: jax.device_put(a, batch_sharding(program.mesh)) for name, a in rows}
  call = program.step.lower(state, frozen, batch).compile()
  seconds = []
  for _ in range(spec['steps'] + 1):

    def run():
      nonlocal state
      state, metrics = call(state, frozen, batch)
      return state, metrics

    seconds.append(harness.seconds(run, jax.block_until_ready))
  trained = sum(a.size for a in program.state.params.values())
  return dict(step=min(seconds[1:]), trained=trained, peak_bytes=peak())


def edit(spec: Mapping[str, Any]) -> dict[str, float]:
  """The second inversion and the second edit, and the memory."""
  given = find.weights(spec['folder'])
  model = latent_diffusion.load(stable_diffusion.build, given, spec['precision'])
  source, *rest = edit_inputs(spec)
  invert = functools.partial(inverted, model, source, *rest, steps=spec['inversion'])
  known = invert()
  change = functools.partial(changed, model, known, *rest)
  jax.block_until_ready(change())
  runs = dict(inversion=invert, edit=change)
  times = {name: harness.seconds(run, jax.block_until_ready) for name, run in runs.items()}
  return dict(times, peak_bytes=peak())


def edit_inputs(spec: Mapping[str, Any]) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
  """A photo, its text and the target as tokens, and the tables of the edit."""
  text = networks.settings_of(*_sd(spec))['text']
  start, end, ball = text['vocabulary'] - 2, text['vocabulary'] - 1, 7
  numbers = dict(a=5, red=6, ball=ball, star=8)

  def spell(said: str) -> np.ndarray:
    row = np.full(text['length'], end, np.int32)
    ids = [start, *(numbers[word] for word in said.split())]
    row[: len(ids)] = ids
    return row

  prompt, target = 'a red ball', 'a red star'
  settings = stable_diffusion.SYSTEM.settings(steps=spec['inversion'])
  inputs = dict(image='photo', prompt=prompt, target=target)
  arrays, _ = prompts.together(inputs, settings, spell)
  fields = {n.removeprefix(prompts.PREFIX): jnp.asarray(a)[None] for n, a in arrays.items()}
  shape = 1, spec['size'], spec['size'], 3
  source = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, shape), jnp.float32)
  tokens = (jnp.asarray(spell(said))[None] for said in (prompt, target))
  return source, *tokens, text_editing.Tables(**fields)


def inverted(model, source, tokens, target, tables, *, steps: int):
  """The inversion of the photo."""
  return text_editing.invert(model, source, tokens, steps=steps)


def changed(model, known, tokens, target, tables):
  """The photo under its target."""
  return text_editing.change(model, known, tokens, target, tables, scale=SCALE)[0]


def peak() -> int:
  """The peak memory of the device, or on a CPU that of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('peak_bytes_in_use', harness.peak_bytes())


# Counted


def counted(spec: Mapping[str, Any]) -> dict[str, float]:
  """Floating-point work of a step, an inversion and an edit, and bytes of weights and state."""
  program = program_of(spec)
  batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batch_of(spec).items()}
  bytes_of = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
  settings = networks.settings_of(*_sd(spec)) | dict(dtype=spec['precision'])
  graph, shapes = latent_diffusion.abstract(stable_diffusion.build, settings)
  source, *rest = edit_inputs(spec)

  def work(function):
    call = lambda params: function(parameters.merge(graph, params))
    return flops.count(jax.make_jaxpr(call)(shapes).jaxpr)

  invert = lambda model: inverted(model, source, *rest, steps=spec['inversion'])
  both = work(lambda model: changed(model, invert(model), *rest))
  inversion = work(invert)
  return dict(
    step=program.flops(batch),
    inversion=inversion,
    edit=both - inversion,
    frozen_bytes=bytes_of(program.frozen),
    state_bytes=bytes_of(program.state),
    concept_bytes=bytes_of(program.state.params),
  )


# The door

WORKERS = {'exedit': lambda spec: dict(step=step, edit=edit)[spec['part']](spec)}


def main(
  output: str, width: str, size: int, batch: int, precision: str, steps: int, inversion: int,
  rounds: int, count: bool, only: str, weights: str,
) -> None:  # fmt: skip
  """Measures or counts, prints the table and writes the JSON."""
  precision = precision or ('bfloat16' if jax.default_backend() == 'gpu' else 'float32')
  spec: dict[str, Any] = dict(width=width, size=size, batch=batch, precision=precision)
  spec |= dict(steps=steps, inversion=inversion)
  report: dict[str, Any] = dict(settings=spec | dict(rounds=rounds), machine=harness.machine())
  if count:
    report['counted'] = counted(spec)
  else:
    with tempfile.TemporaryDirectory() as temporary:
      spec |= dict(folder=weights or temporary)
      networks.write_weights(width, spec['folder'], stable_diffusion)
      report['systems'] = compare(spec, rounds, only.split(',') if only else systems())
  harness.finish(report, lines(report), output)


def systems() -> list[str]:
  """The systems that can run here."""
  there = all(map(importlib.util.find_spec, ('diffusers', 'torch', 'transformers')))
  return ['exedit', *(['diffusers'] if there else [])]


def compare(
  spec: Mapping[str, Any],
  rounds: int,
  names: list[str],
  measured: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
  """One row per system: the fastest times and the highest peaks of all rounds.

  A ratio is that to exedit's time in the same run; without exedit there is none.
  """
  measured = measured or in_own_process
  turns: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for _ in range(rounds):
    for part in PARTS:
      for name in names:
        found = measured(dict(spec, system=name, part=part))
        turns.setdefault((name, part), []).append(found)
  rows: list[dict[str, Any]] = []
  for name in names:
    row: dict[str, Any] = dict(system=name)
    for part in PARTS:
      found = turns[name, part]
      row |= {f'{part}_peak_bytes': max(f['peak_bytes'] for f in found)}
      row |= {key: min(f[key] for f in found) for key in found[0] if key != 'peak_bytes'}
    rows.append(row)
  ours = next((row for row in rows if row['system'] == 'exedit'), {})
  for row in rows:
    row |= {f'{key}_ratio': row[key] / ours[key] for key in TIMES if key in row and key in ours}
  return rows


def in_own_process(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The measurements of a worker, with the shared inputs and without cached programs."""
  theirs, cache = 'benchmarks.custom_edit_diffusers', dict(JAX_ENABLE_COMPILATION_CACHE='false')
  return harness.measured(spec, WORKERS, 'benchmarks.custom_edit', theirs, batch_of(spec), **cache)


def lines(report: Mapping[str, Any]) -> Iterator[str]:
  """The table of the report."""
  if 'counted' in report:
    found = report['counted']
    for key in TIMES:
      yield f'{key}: {found[key] / 1e12:.3f} TFLOP'
    sizes = ((key.removesuffix('_bytes'), found[key]) for key in found if key.endswith('_bytes'))
    yield ', '.join(f'{name} {size / 1e9:.3f} GB' for name, size in sizes)
    return
  columns = ('system', 's/step', 's/inversion', 's/edit', 'GB, step', 'GB, edit')
  ratios = tuple(f'{key} ratio' for key in TIMES[:2])

  def cells(row):
    yield from (format(row[key], '.3f') if key in row else '-' for key in TIMES)
    yield from (format(row[f'{part}_peak_bytes'] / 1e9, '.2f') for part in PARTS)
    shown = (row.get(f'{key}_ratio') for key in TIMES[:2])
    yield from ('-' if value is None else format(value, '.2f') for value in shown)

  rows = [(row['system'], [*cells(row)]) for row in report['systems']]
  yield from harness.table((*columns, *ratios), rows)


if __name__ == '__main__':
  harness.door(main, FLAGS, __doc__, WORKERS)
