"""Seconds, steps per second and memory of an edit: exedit and diffusers, on the same weights.

  python -m benchmarks.sampling --output=sampling.json                 # full size, 512x512, PLMS 50
  python -m benchmarks.sampling --width=tiny --size=32 --steps=3 --batch=1
  python -m benchmarks.sampling --plan --precision=bfloat16            # memory, without running

Random weights are written once, and every system loads them from that folder in a process of its
own, in turns, so that times and peaks are its own. An edit is the whole of it: both encoders, PLMS
with guidance 5, the decode; `--steps` of them cost steps + 1 evaluations of the guided network. The
second edit is timed; what the first took longer is compilation. `evaluation` is one guided
prediction, timed alone. On a GPU diffusers runs eagerly and through torch.compile. The second table
takes exedit's exact shortcuts (and what else makes it fast) away one at a time. `--plan` asks the
compiler what memory an edit needs, here and on one TPU v5e chip where libtpu can be imported.
Nothing is extrapolated: steps per second are those of the steps that ran.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

if not __package__:  # run by its path: its own folder would be the first to be searched
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import sampling_diffusers, workers  # noqa: E402
from exedit import paint_by_example as pbe
from exedit.diffusion import guidance
from exedit.input_pipeline.errors import DataError
from exedit.models import kernels, parameters
from exedit.planning import topology
from exedit.runtime import compilation, doors
from exedit.weights import find
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts import diffusers

SCALE = 5.0
THEIRS = 'benchmarks.sampling_diffusers'  # a module without JAX, for its own memory's sake
LEVELS = dict(mult=(1, 2, 4, 4), layers=2)
WIDTHS: dict[str, dict[str, Any]] = {
  'tiny': dict(
    unet=dict(channels=16, mult=(1, 2), layers=1, attention_levels=(0,), heads=2, groups=8),
    autoencoder=dict(channels=16, mult=(1, 2), layers=1, groups=8),
    clip=dict(width=32, layers=4, heads=4, mlp=64, patch=8, image_size=32),
    conditioner=dict(layers=1),
    context_dim=12,
  ),
  'quarter': dict(
    unet=dict(channels=80, groups=16, **LEVELS),
    autoencoder=dict(channels=32, **LEVELS),
    clip=dict(width=256, layers=24, heads=4, mlp=1024),
    context_dim=192,
  ),
  'full': {},  # the published sizes
}


# The same weights and inputs for every system.


def write_weights(width: str, folder: Path) -> None:
  """A diffusers folder of random weights, each tensor a function of its name alone."""
  settings = pbe.complete(WIDTHS[width])
  _, shapes = pbe.abstract(settings)

  def draw(name, shape):
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if len(shape) > 1 and name != 'conditioner.null':
      return values * np.float32((values.size / shape[-1]) ** -0.5)
    return np.float32(0.1) * values + np.float32(name.endswith('.scale'))

  tensors = {
    name: Tensor(a.shape, np.dtype(np.float32), lambda name=name, a=a: draw(name, a.shape))
    for name, a in shapes.items()
  }
  folder.mkdir(parents=True, exist_ok=True)
  diffusers.write(folder, dict(model=settings), tensors)


def arrays(width: str, size: int, batch: int) -> dict[str, np.ndarray]:
  """source, mask (a quarter of it to repaint), exemplar, noise, posterior_noise; channels last."""
  random = np.random.default_rng(0)
  settings = pbe.complete(WIDTHS[width])
  latent = size // 2 ** (len(settings['autoencoder']['mult']) - 1)
  s = settings['clip']['image_size']
  mask = np.zeros((batch, size, size, 1))
  mask[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
  made = dict(
    source=random.uniform(-1, 1, (batch, size, size, 3)),
    mask=mask,
    exemplar=random.uniform(-1, 1, (batch, s, s, 3)),
    noise=random.normal(size=(batch, latent, latent, 4)),
    posterior_noise=random.normal(size=(batch, latent, latent, 4)),
  )
  return {name: a.astype(np.float32) for name, a in made.items()}


# exedit.


def load(folder: str, precision: str) -> pbe.PaintByExample:
  """Ours, with cuDNN's attention where there is a GPU and bfloat16."""
  weights = find.weights(folder)
  if jax.default_backend() == 'gpu' and precision == 'bfloat16':
    weights.config['model']['unet']['attention'] = 'cudnn'
  return pbe.load(weights, dtype=None if precision == 'float32' else precision)


def exedit(spec: Mapping[str, Any]) -> dict[str, float]:
  """Times and memory of ours."""
  start = time.perf_counter()
  model = load(spec['folder'], spec['precision'])
  loaded = time.perf_counter() - start
  given = {name: jnp.asarray(a) for name, a in np.load(spec['inputs']).items()}
  noises = {name: given.pop(name) for name in ('noise', 'posterior_noise')}
  settings: dict[str, Any] = dict(steps=spec['steps'], scale=SCALE, sampler='plms', paste=False)
  settings['mask_resize'] = 'nearest'  # diffusers'

  def edit():
    images = given['source'], given['mask'], given['exemplar']
    return pbe.edit(model, *images, jax.random.key(0), **noises, **settings)

  step, _ = evaluation(model, given | noises)
  found = sampling_diffusers.timed(edit, step, jax.block_until_ready)
  stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
  peak = stats.get('peak_bytes_in_use', sampling_diffusers.peak_bytes())
  return dict(load=loaded, **found, peak_bytes=peak)


def evaluation(model, given, name='as it is') -> tuple[Callable[[], jax.Array], Any]:
  """(one guided prediction, its compiled program), with one of SHORTCUTS taken away."""
  graphdef, params = nnx.split(model)
  still = jnp.concatenate([given['posterior_noise'], given['noise'][..., :1]], -1)
  context = jax.jit(lambda p: nnx.merge(graphdef, p).context(given['exemplar']))(params)
  step, prepared = variant(name, graphdef, params, still, context)
  x, t = given['noise'], jnp.full(len(still), 501)
  leaves, tree = jax.tree.flatten(prepared)  # arguments are looked at leaf by leaf

  def call(params, leaves, x, t):
    return step(params, jax.tree.unflatten(tree, leaves), x, t)

  with whole_attention() if name == 'all logits at once' else contextlib.nullcontext():
    lowered = jax.jit(call).lower(params, leaves, x, t)
  options = {} if name == "XLA's own choice of library" else compiler_options()
  program = lowered.compile(compiler_options=options)
  return lambda: program(params, leaves, x, t), program


def compiler_options() -> dict[str, Any]:
  """Those that `edit` compiles with here."""
  return compilation.compiler_options(jax.default_backend())


# exedit's shortcuts, taken away one at a time.

SHORTCUTS = {
  'as it is': '',
  'cross-attentions in full': '1: constants of the one-token context',
  "still's share of conv_in again": '3: conv_in of what is still, once per edit',
  'both halves from the start': '5: guidance shares what comes before the context',
  'none of these three': '1, 3, 5',
  'all logits at once': 'attention by parts',
  "XLA's own choice of library": 'Eigen on CPUs',
}


def variant(name, graphdef, params, still, context) -> tuple[Callable, Any]:
  """(step(params, prepared, x, t) -> guided eps, prepared) with one of SHORTCUTS taken away."""
  unet = lambda params: nnx.merge(graphdef, params).unet
  null = nnx.merge(graphdef, params).conditioner.null[...]
  both = guidance.doubled(context, null)
  twice = lambda a: jnp.concatenate([a, a])
  prepared = jax.jit(lambda p: unet(p).prepare(still, both))(params)

  def step(params, prepared, x, t):
    net = unet(params)
    if name == 'cross-attentions in full':
      eps = net.denoise(x, t, prepared, shortcut=False)
    elif name == "still's share of conv_in again":
      eps = net(pbe.join(x, still), t, prepared.context)
    elif name == 'both halves from the start':
      eps = net.denoise(twice(x), twice(t), prepared)
    elif name == 'none of these three':
      eps = net(twice(pbe.join(x, still)), twice(t), prepared.context, shortcut=False)
    else:
      eps = net.denoise(x, t, prepared)
    return guidance.combined(eps, SCALE)

  if name in ('cross-attentions in full', 'none of these three'):
    prepared = dataclasses.replace(prepared, context=both)
  elif name == 'both halves from the start':
    prepared = dataclasses.replace(prepared, stem=twice(prepared.stem))
  return step, prepared


def shortcuts(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Seconds of one evaluation with each taken away, in turns; of the conditioner, without 2."""
  model = load(spec['folder'], spec['precision'])
  graphdef, params = nnx.split(model)
  given = {name: jnp.asarray(a) for name, a in np.load(spec['inputs']).items()}
  runs, temporary = {}, {}
  for name in SHORTCUTS:
    runs[name], program = evaluation(model, given, name)
    temporary[name] = program.memory_analysis().temp_size_in_bytes
  features = jnp.ones((len(given['noise']), 1, model.clip.width))
  for name, shortcut in (('conditioner', True), ('conditioner, attention in full', False)):
    call = lambda p, f, shortcut=shortcut: nnx.merge(graphdef, p).conditioner(f, shortcut=shortcut)
    program = jax.jit(call, compiler_options=compiler_options()).lower(params, features).compile()
    runs[name] = lambda program=program: program(params, features)
  return dict(seconds=best_in_turns(runs, spec['rounds']), temporary_bytes=temporary)


@contextlib.contextmanager
def whole_attention() -> Iterator[None]:
  """While tracing, attention as it was: all logits of all heads in memory."""
  attend = kernels.attend
  kernels.attend = lambda q, k, v, implementation=None: jax.nn.dot_product_attention(
    q, k, v, implementation=implementation
  )
  try:
    yield
  finally:
    kernels.attend = attend


def best_in_turns(runs: Mapping[str, Callable], rounds: int) -> dict[str, float]:
  """The fastest of `rounds` calls of each, A B A B, after one call that does not count."""
  best = dict.fromkeys(runs, float('inf'))
  for turn in range(rounds + 1):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      if turn:
        best[name] = min(best[name], time.perf_counter() - start)
  return best


# The plan.


def memory_plan(width: str, size: int, batch: int, precision: str, steps: int) -> dict[str, Any]:
  """What the compiler says an edit keeps in memory, by platform; a string where it cannot say."""
  result: dict[str, Any] = {jax.default_backend(): planned(width, size, batch, precision, steps)}
  if topology.compiler():
    os.environ |= {n: v for n, v in topology.environment().items() if n not in os.environ}
    try:
      devices = topology.devices(topology.parse('v5e:2x2'))
      chip = jax.sharding.SingleDeviceSharding(devices[0])
      jax.clear_caches()  # the edit as traced for the device here
      with kernels.traced_for(kernels.Device('tpu')):
        result['tpu v5e'] = planned(width, size, batch, precision, steps, chip)
      jax.clear_caches()
    except (RuntimeError, ValueError, NotImplementedError) as error:
      result['tpu v5e'] = ' '.join(str(error).split())[:300]
  return result


def planned(width, size, batch, precision, steps, sharding=None) -> dict[str, int]:
  """Bytes of weights, other arguments, results and temporaries of one compiled edit."""
  graph, shapes = pbe.abstract(WIDTHS[width] | dict(dtype=precision))

  def like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  kept = lambda name: precision if name.endswith('.kernel') else 'float32'  # as pbe.load does
  params = {name: like(a.shape, kept(name)) for name, a in shapes.items()}
  graphdef, params = nnx.split(parameters.merge(graph, params))
  given = [like(a.shape, a.dtype) for a in arrays(width, size, batch).values()]
  options = {} if sharding is not None else compiler_options()

  def edit(params, source, mask, exemplar, noise, posterior):
    model: Any = nnx.merge(graphdef, params)
    noises = dict(noise=noise, posterior_noise=posterior)
    settings: dict[str, Any] = dict(steps=steps, scale=SCALE, sampler='plms', paste=False)
    return pbe.edit(model, source, mask, exemplar, jax.random.key(0), **noises, **settings)

  compiled = jax.jit(edit).lower(params, *given).compile(compiler_options=options)
  found = compiled.memory_analysis()
  assert found is not None  # every platform of the plan has it
  size = lambda tree: sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))
  parts = dict(
    weights=size(params),  # also those that the program does not read: they are there
    inputs=size(given),
    outputs=found.output_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
  )
  return dict(parts, together=sum(parts.values()))


# The door.


def main(
  output: str, width: str, size: int, steps: int, batch: list[str], precision: str, rounds: int,
  shortcut_rounds: int, compiled: bool, plan: bool, worker: str, weights: str,
) -> None:  # fmt: skip
  """Measure every system, print the tables, write the JSON."""
  if worker:
    spec = json.loads(worker)
    print(json.dumps(WORKERS[spec['system']](spec)))
    return
  try:
    batches = [int(b) for b in batch]
  except ValueError:
    raise DataError(f'--batch={",".join(batch)}: numbers such as 1,4') from None
  if min(size, steps, rounds, *batches) < 1 or shortcut_rounds < 0:
    raise DataError('size, steps, batch and rounds must be at least 1')
  report: dict[str, Any] = dict(settings=dict(width=width, size=size, precision=precision))
  report['settings'] |= dict(steps=steps, sampler='plms', scale=SCALE, rounds=rounds)
  report['machine'] = workers.machine()
  if plan:
    report['plan'] = {f'batch {b}': memory_plan(width, size, b, precision, steps) for b in batches}
  else:
    with tempfile.TemporaryDirectory() as folder:
      folder = weights or folder
      if not (Path(folder) / 'model_index.json').exists():
        write_weights(width, Path(folder))
      spec = dict(width=width, size=size, steps=steps, precision=precision, folder=folder)
      spec |= dict(scale=SCALE)
      report['systems'] = compare(spec, batches, rounds, systems(compiled))
      if shortcut_rounds:
        spec |= dict(system='shortcuts', batch=batches[0], rounds=shortcut_rounds)
        report['shortcuts'] = in_own_process(spec)
  print(table(report))
  if output:
    Path(output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


WORKERS = {'exedit': exedit, 'shortcuts': shortcuts}


def systems(compiled: bool) -> list[str]:
  """Which systems run here: diffusers only where it is installed, compiled on GPUs or if asked."""
  if not (importlib.util.find_spec('diffusers') and importlib.util.find_spec('torch')):
    return ['exedit']
  import torch

  more = ['diffusers compiled'] if compiled or torch.cuda.is_available() else []
  return ['exedit', 'diffusers', *more]


def compare(spec, batches, rounds, names) -> list[dict[str, Any]]:
  """One row per system and batch: of `rounds` turns the fastest edit, and the highest peak."""
  rows = []
  for batch in batches:
    turns = [
      {name: in_own_process(spec | dict(system=name, batch=batch)) for name in names}
      for _ in range(rounds)
    ]
    for name in names:
      found = [turn[name] for turn in turns]
      row = {key: min(f[key] for f in found) for key in found[0]}
      row |= dict(peak_bytes=max(f['peak_bytes'] for f in found))
      rows.append(dict(system=name, batch=batch, **row))
      rows[-1]['steps_per_second'] = spec['steps'] / row['edit']
    ours = rows[-len(names)]
    for row in rows[-len(names) :]:
      row |= {f'{key}_ratio': row[key] / ours[key] for key in ('edit', 'evaluation')}
  return rows


def in_own_process(spec: Mapping[str, Any]) -> dict[str, Any]:
  """What a worker measured on the shared inputs; JAX keeps no compiled programs there."""
  inputs = arrays(spec['width'], spec['size'], spec['batch'])
  door, fresh = 'benchmarks.sampling', dict(JAX_ENABLE_COMPILATION_CACHE='false')
  return workers.measured(spec, WORKERS, door, THEIRS, inputs, **fresh)


def table(report: Mapping[str, Any]) -> str:
  """The report as text."""
  lines = []
  if 'systems' in report:
    columns = ('s/edit', 'steps/s', 's/evaluation', 's compile', 'peak GB', 'edit', 'evaluation')
    lines.append(f'{"system":20}{"batch":>6}' + ''.join(f'{c:>13}' for c in columns))
  for row in report.get('systems', ()):
    values = [row[k] for k in ('edit', 'steps_per_second', 'evaluation', 'compile')]
    values += [row['peak_bytes'] / 1e9, row['edit_ratio'], row['evaluation_ratio']]
    lines.append(f'{row["system"]:20}{row["batch"]:6}' + ''.join(f'{v:13.3f}' for v in values))
  if 'shortcuts' in report:
    seconds, temporary = (report['shortcuts'][k] for k in ('seconds', 'temporary_bytes'))
    lines.append(
      f'\n{"one evaluation":34}{"s":>8}{"more":>8}{"MB temporary":>14}  without shortcut'
    )
    for name, what in SHORTCUTS.items():
      more = f'{100 * (seconds[name] / seconds["as it is"] - 1):+.1f}%'
      megabytes = temporary[name] / 1e6
      lines.append(f'{name:34}{seconds[name]:8.3f}{more:>8}{megabytes:14.0f}  {what}')
    for name in list(seconds)[-2:]:
      what = '2: value path of the mapper (once per edit)' if 'full' in name else ''
      lines.append(f'{name:34}{seconds[name]:8.4f}{"":22}  {what}')
  for batch, platforms in report.get('plan', {}).items():
    for name, found in platforms.items():
      text = found if isinstance(found, str) else ', '.join(
        f'{key} {value / 1e9:.2f}' for key, value in found.items()
      )  # fmt: skip
      lines.append(f'{batch}, {name}, GB: {text}')
  return '\n'.join(lines + workers.conditions(report))


def _flags():
  from absl import flags

  values = flags.FlagValues()
  for define, name, value, about in (
    (flags.DEFINE_string, 'output', '', 'the JSON to write'),
    (flags.DEFINE_integer, 'size', 512, 'height and width of the source'),
    (flags.DEFINE_integer, 'steps', 50, 'of PLMS'),
    (flags.DEFINE_list, 'batch', '1,4', 'edits at once'),
    (flags.DEFINE_integer, 'rounds', 1, 'turns of each system; the fastest counts'),
    (flags.DEFINE_integer, 'shortcut_rounds', 3, 'turns of each shortcut; 0: without that table'),
    (flags.DEFINE_bool, 'compiled', False, 'torch.compile on a CPU too'),
    (flags.DEFINE_bool, 'plan', False, 'only ask the compiler for memory'),
    (flags.DEFINE_string, 'weights', '', 'a diffusers pipeline, or where to keep the random one'),
    (flags.DEFINE_string, 'worker', '', 'used inside'),
  ):
    define(name, value, about, flag_values=values)
  flags.DEFINE_enum('width', 'full', list(WIDTHS), 'of the networks', flag_values=values)
  precisions = ['float32', 'bfloat16']
  flags.DEFINE_enum('precision', 'float32', precisions, 'of the networks', flag_values=values)
  return values


if __name__ == '__main__':
  doors.call(main, _flags(), __doc__, sys.argv)
