"""Seconds, steps per second and memory of an edit: exedit and diffusers with the same weights.

  python -m benchmarks.sampling --output=sampling.json                 # full size, 512x512, PLMS 50
  python -m benchmarks.sampling --width=tiny --size=32 --steps=3 --batch=1
  python -m benchmarks.sampling --plan --precision=bfloat16            # memory, without running

Each system loads the same random weights in a process of its own, in turns. An edit includes both
encoders, PLMS with guidance 5 and the decoder; `--steps` steps are steps + 1 evaluations of the
guided network. The second edit is timed; the first edit's additional time is the compilation.
`evaluation` is one guided prediction, timed alone. On a GPU diffusers runs eagerly and through
torch.compile. The second table removes exedit's shortcuts one at a time. `--plan` asks the compiler
for the memory of an edit, here and on a TPU v5e chip if libtpu is installed. Nothing is
extrapolated: steps per second are those of the steps that ran.
"""

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import harness, networks
from exedit import paint_by_example as pbe
from exedit.diffusion import guidance
from exedit.models import kernels, parameters
from exedit.planning import topology
from exedit.runtime import compilation
from exedit.runtime.doors import Flag

SCALE = 5.0
EDIT: dict[str, Any] = dict(scale=SCALE, sampler='plms', paste=False, mask_resize='nearest')
FLAGS = (
  Flag('width', 'full', 'of the networks', [*networks.WIDTHS]),
  Flag('size', 512, 'height and width of the source', least=1),
  Flag('steps', 50, 'steps of PLMS', least=1),
  Flag('batch', '1,4', 'numbers of edits at once'),
  Flag('precision', 'float32', 'of the networks', ['float32', 'bfloat16']),
  Flag('rounds', 1, 'turns of each system; the fastest counts', least=1),
  Flag('shortcut_rounds', 3, 'turns of each shortcut; 0: no such table', least=0),
  Flag('compiled', False, 'torch.compile on a CPU too'),
  Flag('plan', False, 'only ask the compiler for memory'),
  Flag('weights', '', 'a diffusers pipeline, or the folder to keep the random one in'),
)


def load(spec: Mapping[str, Any]) -> pbe.PaintByExample:
  """The model of a worker."""
  precision = spec['precision']
  return pbe.load(spec['folder'], dtype=None if precision == 'float32' else precision)


def exedit(spec: Mapping[str, Any]) -> dict[str, float]:
  """Times and memory of exedit."""
  from benchmarks import sampling_diffusers

  start = time.perf_counter()
  model = load(spec)
  loaded = time.perf_counter() - start
  given = {name: jnp.asarray(a) for name, a in np.load(spec['inputs']).items()}

  def edit():
    return pbe.edit(model, key=jax.random.key(0), steps=spec['steps'], **given, **EDIT)

  found = sampling_diffusers.timed(edit, evaluation(model, given)[0], jax.block_until_ready)
  stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
  peak = stats.get('peak_bytes_in_use', harness.peak_bytes())
  return dict(load=loaded, **found, peak_bytes=peak)


def compiler_options() -> dict[str, Any]:
  """The compiler options of `pbe.edit` here."""
  return compilation.compiler_options(jax.default_backend())


# One evaluation of the network, with one of exedit's shortcuts removed.

SHORTCUTS = {
  'as it is': '',
  'cross-attentions in full': 'constants of the one-token context',
  "still channels' conv_in again": 'conv_in of the still channels, once per edit',
  'both halves from the start': 'one stem for both halves of guidance',
  'none of these three': 'all three above',
  'all logits at once': 'attention in parts',
  "XLA's own choice of library": 'Eigen on CPUs',
}


def evaluation(model, given, name='as it is') -> tuple[Callable[[], jax.Array], Any]:
  """One guided prediction and its compiled program, without the shortcut of this name."""
  graphdef, params = nnx.split(model)
  still = jnp.concatenate([given['posterior_noise'], given['noise'][..., :1]], -1)
  context = jax.jit(lambda p: nnx.merge(graphdef, p).context(given['exemplar']))(params)
  both = guidance.doubled(context, model.conditioner.null[...])
  prepared = jax.jit(lambda p: nnx.merge(graphdef, p).unet.prepare(still, both))(params)
  twice = lambda a: jnp.concatenate([a, a])
  if name in ('cross-attentions in full', 'none of these three'):
    prepared = dataclasses.replace(prepared, context=both)
  elif name == 'both halves from the start':
    prepared = dataclasses.replace(prepared, stem=twice(prepared.stem))
  x, t = given['noise'], jnp.full(len(still), 501)
  leaves, tree = jax.tree.flatten(prepared)  # jit looks at arguments, and a Prepared checks types

  def call(params, leaves, x, t):
    unet, prepared = nnx.merge(graphdef, params).unet, jax.tree.unflatten(tree, leaves)
    if name == 'cross-attentions in full':
      eps = unet.denoise(x, t, prepared, shortcut=False)
    elif name == "still channels' conv_in again":
      eps = unet(pbe.join(x, still), t, prepared.context)
    elif name == 'both halves from the start':
      eps = unet.denoise(twice(x), twice(t), prepared)
    elif name == 'none of these three':
      eps = unet(twice(pbe.join(x, still)), twice(t), prepared.context, shortcut=False)
    else:
      eps = unet.denoise(x, t, prepared)
    return guidance.combined(eps, SCALE)

  with whole_attention() if name == 'all logits at once' else contextlib.nullcontext():
    lowered = jax.jit(call).lower(params, leaves, x, t)
  options = {} if name == "XLA's own choice of library" else compiler_options()
  program = lowered.compile(compiler_options=options)
  return lambda: program(params, leaves, x, t), program


@contextlib.contextmanager
def whole_attention() -> Iterator[None]:
  """Trace attention with all logits of all heads in memory."""
  attend = kernels.attend
  kernels.attend = lambda q, k, v, implementation=None, causal=False: jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation=implementation
  )
  try:
    yield
  finally:
    kernels.attend = attend


def shortcuts(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Seconds and temporary memory of one evaluation without each shortcut, in turns."""
  model = load(spec)
  given = {name: jnp.asarray(a) for name, a in np.load(spec['inputs']).items()}
  runs, temporary = {}, {}
  for name in SHORTCUTS:
    runs[name], program = evaluation(model, given, name)
    temporary[name] = program.memory_analysis().temp_size_in_bytes
  seconds = harness.best_in_turns(runs, spec['rounds'], jax.block_until_ready)
  return dict(seconds=seconds, temporary_bytes=temporary)


# The plan.


def memory_plan(width: str, size: int, batch: int, precision: str, steps: int) -> dict[str, Any]:
  """The memory of an edit by platform, from the compiler; text if the compiler fails."""
  arguments = width, size, batch, precision, steps
  result: dict[str, Any] = {jax.default_backend(): planned(*arguments)}
  if topology.compiler():
    os.environ |= {n: v for n, v in topology.environment().items() if n not in os.environ}
    try:
      chip = jax.sharding.SingleDeviceSharding(topology.devices(topology.parse('v5e:2x2'))[0])
      jax.clear_caches()  # the caches contain the edit as traced for this machine
      with kernels.traced_for(kernels.Device('tpu')):
        result['tpu v5e'] = planned(*arguments, chip)
      jax.clear_caches()
    except (RuntimeError, ValueError, NotImplementedError) as error:
      result['tpu v5e'] = ' '.join(str(error).split())[:300]
  return result


def planned(width, size, batch, precision, steps, sharding=None) -> dict[str, int]:
  """Bytes of weights, inputs, outputs and temporaries of one compiled edit."""
  graph, shapes = pbe.abstract(networks.WIDTHS[width] | dict(dtype=precision))
  like = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  stored = lambda name: precision if name.endswith('.kernel') else 'float32'  # as pbe.load does
  params = {name: like(a.shape, stored(name)) for name, a in shapes.items()}
  graphdef, params = nnx.split(parameters.merge(graph, params))
  inputs = networks.edit_inputs(width, size, batch)
  given = {name: like(a.shape, a.dtype) for name, a in inputs.items()}

  def edit(params, given):
    model: Any = nnx.merge(graphdef, params)
    return pbe.edit(model, key=jax.random.key(0), steps=steps, **given, **EDIT)

  options = {} if sharding is not None else compiler_options()
  compiled = jax.jit(edit).lower(params, given).compile(compiler_options=options)
  found = compiled.memory_analysis()
  assert found is not None  # CPUs and TPUs have it
  total = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
  parts = dict(
    weights=total(params),  # all of them, because weights that the program ignores need memory too
    inputs=total(given),
    outputs=found.output_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
  )
  return dict(parts, together=sum(parts.values()))


# The door.

WORKERS = {'exedit': exedit, 'shortcuts': shortcuts}


def main(
  output: str, width: str, size: int, steps: int, batch: str, precision: str, rounds: int,
  shortcut_rounds: int, compiled: bool, plan: bool, weights: str,
) -> None:  # fmt: skip
  """Measures every system, prints the tables and writes the JSON."""
  batches = harness.numbers('batch', batch)
  settings = dict(width=width, size=size, precision=precision, steps=steps, rounds=rounds)
  report: dict[str, Any] = dict(settings=settings, machine=harness.machine())
  if plan:
    report['plan'] = {f'batch {b}': memory_plan(width, size, b, precision, steps) for b in batches}
  else:
    with tempfile.TemporaryDirectory() as temporary:
      folder = weights or temporary
      networks.write_weights(width, folder)
      spec = settings | dict(folder=folder, scale=SCALE)
      report['systems'] = compare(spec, batches, rounds, systems(compiled))
      if shortcut_rounds:
        own = dict(system='shortcuts', batch=batches[0], rounds=shortcut_rounds)
        report['shortcuts'] = in_own_process(spec | own)
  harness.finish(report, lines(report), output)


def systems(compiled: bool) -> list[str]:
  """The systems that can run here; torch.compile only on GPUs, or if asked for."""
  if not (importlib.util.find_spec('diffusers') and importlib.util.find_spec('torch')):
    return ['exedit']
  import torch

  more = ['diffusers compiled'] if compiled or torch.cuda.is_available() else []
  return ['exedit', 'diffusers', *more]


def compare(spec, batches, rounds, names) -> list[dict[str, Any]]:
  """One row per system and batch: the fastest times and the highest peak of all rounds."""
  rows = []
  for batch in batches:
    turns = [
      {name: in_own_process(spec | dict(system=name, batch=batch)) for name in names}
      for _ in range(rounds)
    ]
    for name in names:
      found = [turn[name] for turn in turns]
      row = {key: min(f[key] for f in found) for key in found[0]}
      row |= dict(system=name, batch=batch, peak_bytes=max(f['peak_bytes'] for f in found))
      ours = row if name == 'exedit' else rows[-names.index(name)]
      row |= {f'{key}_ratio': row[key] / ours[key] for key in ('edit', 'evaluation')}
      rows.append(row | dict(steps_per_second=spec['steps'] / row['edit']))
  return rows


def in_own_process(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The measurements of a worker, with the shared inputs and without cached programs."""
  inputs = networks.edit_inputs(spec['width'], spec['size'], spec['batch'])
  theirs, cache = 'benchmarks.sampling_diffusers', dict(JAX_ENABLE_COMPILATION_CACHE='false')
  return harness.measured(spec, WORKERS, 'benchmarks.sampling', theirs, inputs, **cache)


def lines(report: Mapping[str, Any]) -> Iterator[str]:
  """The tables of the report."""
  if 'systems' in report:
    columns = ('system', 'batch', 's/edit', 'steps/s', 's/evaluation', 's compile', 'peak GB')
    keys = ('edit', 'steps_per_second', 'evaluation', 'compile')
    rows = (
      (
        row['system'],
        [str(row['batch']), *(row[key] for key in keys), row['peak_bytes'] / 1e9]
        + [row['edit_ratio'], row['evaluation_ratio']],
      )
      for row in report['systems']
    )
    yield from harness.table((*columns, 'edit ratio', 'evaluation'), rows)
  if 'shortcuts' in report:
    seconds, temporary = report['shortcuts']['seconds'], report['shortcuts']['temporary_bytes']
    yield ''
    yield from removed(SHORTCUTS, seconds, temporary, 'one evaluation')
  for batch, platforms in report.get('plan', {}).items():
    for name, found in platforms.items():
      text = found if isinstance(found, str) else ', '.join(
        f'{key} {value / 1e9:.2f}' for key, value in found.items()
      )  # fmt: skip
      yield f'{batch}, {name}, GB: {text}'


def removed(
  names: Mapping[str, str], seconds: Mapping[str, float], temporary: Mapping[str, int], what: str
) -> Iterator[str]:
  """A table of what each technique gives: times with one of them removed."""
  rows = (
    (
      f'{name} (without: {about})' if about else name,
      [
        seconds[name],
        f'{100 * (seconds[name] / seconds["as it is"] - 1):+.1f}%',
        f'{temporary[name] / 1e6:.0f}',
      ],
    )
    for name, about in names.items()
  )
  return harness.table((what, 's', 'more', 'MB temporary'), rows)


if __name__ == '__main__':
  harness.door(main, FLAGS, __doc__, WORKERS)
