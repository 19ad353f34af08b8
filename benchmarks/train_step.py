"""Images per second, MFU and memory of a training step: exedit and PyTorch, on the same weights.

  python -m benchmarks.train_step --output=train_step.json         # a GPU: full size, 512x512
  python -m benchmarks.train_step --width=quarter --size=256       # a CPU
  python -m benchmarks.train_step --width=tiny --size=32 --steps=1

The step is the whole of it: two autoencoder encodes, CLIP, UNet forward and backward, AdamW, EMA.
PyTorch's is put together from diffusers and transformers (train_step_torch.py): on a GPU bfloat16
autocast, eager and through torch.compile; on a CPU eager float32. It has no guard against NaN, no
gradient norm and no losses by timestep, which ours has. Random weights are written once and every
system loads them from that folder, in a process of its own, in turns; the fastest of `--steps`
steps counts, and of `--rounds` turns the fastest. The parts of ours are differences of programs
that go one part further each (so they add up to the step), PyTorch's are clocked within its step.
MFU is model FLOPs, counted on the step's jaxpr without what is computed again, over the device's
peak in bfloat16; on a CPU, of which no peak is known, over what a large product reaches there.
`--ablations` takes what makes our step fast away, one thing at a time. `--feed` runs our step on
batches that the input pipeline makes meanwhile, and says what share of the time it waits for them.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

if not __package__:  # run by its path: its own folder would be the first to be searched
  sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks import sampling, workers  # noqa: E402
from exedit import paint_by_example as pbe
from exedit.input_pipeline import loader, synthetic
from exedit.input_pipeline.errors import DataError
from exedit.models import parameters, unet
from exedit.models.parameters import Params
from exedit.runtime import compilation, doors
from exedit.training.initial import place
from exedit.training.prefetch import Prefetch
from exedit.training.sharding import batch_sharding
from exedit.training.state import TrainState
from exedit.training.step import Program, make_program
from exedit.weights import find

THEIRS = 'benchmarks.train_step_torch'  # a module without JAX, for its own memory's sake
PARTS = ('encode', 'clip', 'forward', 'backward', 'update')
DECAY = 0.9999


# The same weights and inputs for every system.


def arrays(width: str, size: int, batch: int) -> dict[str, np.ndarray]:
  """A batch as the input pipeline makes it: uint8 image, mask, exemplar, and the ids."""
  random = np.random.default_rng(0)
  s = pbe.complete(sampling.WIDTHS[width])['clip']['image_size']
  pixels = lambda *shape: random.integers(0, 256, (batch, *shape), np.uint8)
  mask = np.zeros((batch, size, size), np.uint8)
  mask[:, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 255
  return dict(
    image=pixels(size, size, 3),
    mask=mask,
    exemplar=pixels(s, s, 3),
    id=np.arange(batch, dtype=np.int32),
    corrupt=np.zeros(batch, np.int32),
  )


# exedit.


def model_settings(spec: Mapping[str, Any]) -> dict[str, Any]:
  """`build` settings of the width, in the precision, with this much computed again."""
  settings = pbe.complete(sampling.WIDTHS[spec['width']]) | dict(dtype=spec['precision'])
  settings['unet']['remat'] = spec['remat']
  return settings


def program_of(spec: Mapping[str, Any]) -> Program:
  """The step of the published recipe, with a moving average, on the devices that are there."""
  return make_program(
    pbe.SYSTEM,
    model=model_settings(spec),
    optimizer=dict(lr=1e-5),
    ema=dict(decay=DECAY),
    mesh={},
    trainable='unet|conditioner',
    batch_size=spec['batch'],
    accumulate=1,
    seed=0,
    steps=10**6,
  )


def begun(spec: Mapping[str, Any]) -> tuple[Program, TrainState, Params]:
  """The program, and where it starts from: the weights of the folder."""
  program = program_of(spec)
  everything = {**program.state.params, **program.frozen}
  tensors = find.weights(spec['folder']).fit(everything)
  placed = place(tensors, everything, 'weights')
  params = {name: placed[name] for name in program.state.params}
  # What the optimizer holds begins as zeros: program.init would compile for it for half a minute.
  now = dataclasses.replace(zeros(program.state), params=params, ema=jax.tree.map(jnp.copy, params))
  return program, now, {name: placed[name] for name in program.frozen}


def exedit(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Times and memory of ours, the whole step and by part."""
  compilation.keep_memory()  # as the door does
  program, now, frozen = begun(spec)
  rows = dict(np.load(spec['inputs']))
  batch = {name: jax.device_put(a, batch_sharding(program.mesh)) for name, a in rows.items()}
  start = time.perf_counter()
  step = compiled(program.step, now, frozen, batch)
  compile_seconds = time.perf_counter() - start
  found: dict[str, Any] = dict(trained=sum(a.size for a in program.state.params.values()))

  seconds, dispatches = [], []
  processor, begin = time.process_time(), time.perf_counter()
  for _ in range(spec['steps'] + 1):
    start = time.perf_counter()
    now, metrics = step(now, frozen, batch)
    dispatches.append(time.perf_counter() - start)
    jax.block_until_ready((now, metrics))
    seconds.append(time.perf_counter() - start)
  found['busy_cores'] = (time.process_time() - processor) / (time.perf_counter() - begin)
  found |= dict(first=compile_seconds + seconds[0], step=min(seconds[1:]))
  found |= dict(compile=compile_seconds, dispatch=min(dispatches[1:]))
  stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
  found['peak_bytes'] = stats.get('peak_bytes_in_use', sampling.sampling_diffusers.peak_bytes())
  found['temporary_bytes'] = step.memory_analysis().temp_size_in_bytes
  found['flops'] = program.flops(batch)
  found['peak_flops'] = program.peak() or large_product()
  if spec['parts']:
    found['parts'] = parts(program, now, frozen, batch, found['step'])
  if spec['feed']:
    found['waited'] = waited(program, step, now, frozen, spec)
  return found


def zeros(shapes: Any) -> Any:
  """Arrays for a tree of shapes, each where it is to lie."""
  return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, device=a.sharding), shapes)


def compiled(function: Callable, *args, options: Mapping[str, Any] | None = None):
  """An executable, compiled as the training loop compiles its step unless told otherwise."""
  given = {} if options is None else dict(compiler_options=dict(options))
  function = function if hasattr(function, 'lower') else jax.jit(function)
  return function.lower(*args).compile(**given)


def parts(program, now, frozen, batch, whole: float) -> dict[str, float]:
  """Seconds by part: what each program takes longer than the one that goes less far."""
  model = lambda params, frozen: parameters.merge(program.graph, {**params, **frozen})
  image = jnp.concatenate([pbe.as_signed(batch['image'])] * 2)
  exemplar = pbe.as_signed(batch['exemplar'])
  key = jax.random.key(0)
  gradient = jax.value_and_grad(lambda p, f: program.loss(p, f, batch, key)[0])
  programs = dict(
    encode=lambda p, f: model(p, f).autoencoder.encode(image),
    clip=lambda p, f: model(p, f).clip(exemplar),
    forward=lambda p, f: program.loss(p, f, batch, key)[0],
    backward=gradient,
  )
  runs = {}
  for name, function in programs.items():
    part = compiled(function, now.params, frozen, options=sampling.compiler_options())
    runs[name] = lambda part=part: part(now.params, frozen)
  upto = sampling.best_in_turns(runs, 2)
  return dict(
    encode=upto['encode'],
    clip=upto['clip'],
    forward=upto['forward'] - upto['encode'] - upto['clip'],
    backward=upto['backward'] - upto['forward'],
    update=whole - upto['backward'],
  )


def waited(program, step, now, frozen, spec: Mapping[str, Any]) -> float:
  """Share of the time that the step waits for the input pipeline, as the training loop runs it."""
  settings = pbe.complete(sampling.WIDTHS[spec['width']])
  sizes = dict(size=spec['size'], exemplar_size=settings['clip']['image_size'])
  with tempfile.TemporaryDirectory() as folder:
    side = -(-spec['size'] // synthetic.GRID) * synthetic.GRID  # scenes come in multiples
    synthetic.ensure(folder, scenes=64, val_scenes=1, seed=0, size=side, shards=2)
    data = dict(root=folder, split='train', workers=0, **sizes)
    batches = loader.batches(batch_size=spec['batch'], seed=0, **data)
    feed = Prefetch(batches, batch_sharding(program.mesh))
    try:
      now, metrics = step(now, frozen, next(feed))  # the first batch is waited for by any loop
      jax.block_until_ready(metrics)
      start, before = time.perf_counter(), feed.waited
      for _ in range(spec['steps']):
        now, metrics = step(now, frozen, next(feed))
        jax.block_until_ready(metrics)
      return (feed.waited - before) / (time.perf_counter() - start)
    finally:
      feed.close()


def large_product() -> float:
  """FLOP/s of a large float32 product here: what a CPU can be measured by."""
  n = 2048
  a = jnp.ones((n, n))
  product = compiled(jnp.matmul, a, a, options=sampling.compiler_options())
  return 2 * n**3 / sampling.best_in_turns(dict(product=lambda: product(a, a)), 3)['product']


# What makes the step fast, taken away one at a time, and what would make it faster at a price.

ABLATIONS = {
  'as it is': '',
  'cross-attentions in full': 'exact shortcut 1: constants of the one-token context',
  'two encodes': 'exact shortcut 4: image and masked image in one call',
  'all logits at once': 'attention by parts',
  "XLA's own choice of library": 'Eigen on CPUs',
  'latents kept': 'both encodes, by exedit.encode: crops and masks are drawn once',
  'remat conv1': 'keeping all activations; of ResBlocks only the first convolution now',
  'remat block': 'keeping all activations; of blocks only what goes in now',
}


def ablations(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Seconds and temporary bytes of loss and gradient without each, in turns."""
  rows = dict(np.load(spec['inputs']))
  batch = {name: jnp.asarray(a) for name, a in rows.items()}
  key = jax.random.key(0)
  program, now, frozen = begun(spec)
  kept = dict(batch, moments=moments(program, {**now.params, **frozen}, batch))
  del kept['image']
  runs, temporary = {}, {}
  for name in ABLATIONS:
    own = dict(spec, remat=name.split()[-1] if name.startswith('remat') else spec['remat'])
    compute = program_of(own).loss
    given = kept if name == 'latents kept' else batch
    loss = lambda p, f, compute=compute, given=given: compute(p, f, given, key)[0]
    gradient = jax.value_and_grad(loss)
    options = {} if name == "XLA's own choice of library" else sampling.compiler_options()
    with without(name):
      call = compiled(gradient, now.params, frozen, options=options)
    runs[name] = lambda call=call: call(now.params, frozen)
    temporary[name] = call.memory_analysis().temp_size_in_bytes
  losses = {name: float(run()[0]) for name, run in runs.items()}
  seconds = sampling.best_in_turns(runs, spec['steps'])
  return dict(seconds=seconds, temporary_bytes=temporary, losses=losses)


def moments(program: Program, params: Params, batch: Mapping[str, Any]) -> jax.Array:
  """What exedit.encode keeps of a batch."""
  mask = batch['mask'][..., None].astype(jnp.float32) / 255
  network: Any = parameters.merge(program.graph, params)
  return jax.jit(lambda image, mask: pbe.moments(network.autoencoder, image, mask))(
    pbe.as_signed(batch['image']), mask
  )


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
  """While tracing, the step with one of ABLATIONS taken away."""
  if name == 'all logits at once':
    with sampling.whole_attention():
      yield
    return
  before = unet.UNet.__call__, pbe.latents
  if name == 'cross-attentions in full':
    unet.UNet.__call__ = unet.UNet.general
  elif name == 'two encodes':
    pbe.latents = latents_apart
  try:
    yield
  finally:
    unet.UNet.__call__, pbe.latents = before


def latents_apart(model, image, mask, noises=None):
  """`paint_by_example.latents` with a call of the encoder for each of the two."""
  first, second = (None, None) if noises is None else (noises[:, 0], noises[:, 1])
  z = model.autoencoder.encode(image, first)
  hole = model.autoencoder.encode(image * (1 - mask), second)
  z, hole = jax.lax.stop_gradient((z, hole))
  return z, jnp.concatenate([hole, pbe.keep(mask, z.shape[1:3])], -1)


# The door.


def main(
  output: str, width: str, size: int, batch: int, precision: str, remat: str, steps: int,
  rounds: int, parts: bool, feed: bool, ablations: bool, channels_last: bool, worker: str,
  weights: str, only: list[str],
) -> None:  # fmt: skip
  """Measure every system, print the tables, write the JSON."""
  if worker:
    spec = json.loads(worker)
    print(json.dumps(WORKERS[spec['system']](spec)))
    return
  if min(size, batch, steps, rounds) < 1:
    raise DataError('size, batch, steps and rounds must be at least 1')
  gpu = jax.default_backend() == 'gpu'
  precision = precision or ('bfloat16' if gpu else 'float32')
  spec = dict(width=width, size=size, batch=batch, precision=precision, remat=remat, steps=steps)
  report: dict[str, Any] = dict(settings=spec | dict(rounds=rounds), machine=workers.machine())
  spec |= dict(parts=parts, feed=feed, channels_last=channels_last or gpu)
  names = only or systems(gpu)
  with tempfile.TemporaryDirectory() as folder:
    folder = weights or folder
    if not (Path(folder) / 'model_index.json').exists():
      sampling.write_weights(width, Path(folder))
    spec |= dict(folder=folder)
    report['systems'] = compare(spec, rounds, names)
    if ablations:
      report['ablations'] = in_own_process(spec | dict(system='ablations'))
  print(table(report))
  if output:
    Path(output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


WORKERS = {'exedit': exedit, 'ablations': ablations}


def systems(gpu: bool) -> list[str]:
  """Which systems run here: PyTorch only where it is installed, compiled on GPUs."""
  if not (importlib.util.find_spec('diffusers') and importlib.util.find_spec('torch')):
    return ['exedit']
  return ['exedit', 'pytorch', *(['pytorch compiled'] if gpu else [])]


def compare(spec: Mapping[str, Any], rounds: int, names: list[str]) -> list[dict[str, Any]]:
  """One row per system: of `rounds` turns the one with the fastest step, and the highest peak."""
  turns = [
    {name: in_own_process(spec | dict(system=name)) for name in names} for _ in range(rounds)
  ]
  rows = []
  for name in names:
    found = [turn[name] for turn in turns]
    row = dict(system=name, **min(found, key=lambda f: f['step']))
    row['peak_bytes'] = max(f['peak_bytes'] for f in found)
    row['steps'] = [f['step'] for f in found]
    row['images_per_second'] = spec['batch'] / row['step']
    rows.append(row)
  work = next((row for row in rows if 'flops' in row), None)
  for row in rows:
    if work:
      row['mfu'] = work['flops'] / row['step'] / work['peak_flops']
    row['ratio'] = row['step'] / rows[0]['step']
  return rows


def in_own_process(spec: Mapping[str, Any]) -> dict[str, Any]:
  """What a worker measured on the shared inputs; JAX keeps no compiled programs there."""
  inputs = arrays(spec['width'], spec['size'], spec['batch'])
  door, fresh = 'benchmarks.train_step', dict(JAX_ENABLE_COMPILATION_CACHE='false')
  return workers.measured(spec, WORKERS, door, THEIRS, inputs, **fresh)


def table(report: Mapping[str, Any]) -> str:
  """The report as text."""
  columns = ('images/s', 's/step', 'MFU %', 'peak GB', 's compile', 'cores', 's/step ratio')
  lines = [f'{"system":18}' + ''.join(f'{c:>14}' for c in columns)]
  for row in report['systems']:
    values = [row['images_per_second'], row['step'], 100 * row.get('mfu', float('nan'))]
    values += [row['peak_bytes'] / 1e9, row['compile'], row['busy_cores'], row['ratio']]
    lines.append(f'{row["system"]:18}' + ''.join(f'{v:14.3f}' for v in values))
  with_parts = [row for row in report['systems'] if 'parts' in row]
  if with_parts:
    lines.append(f'\n{"ms by part":18}' + ''.join(f'{part:>14}' for part in PARTS))
  for row in with_parts:
    milliseconds = ''.join(f'{1e3 * row["parts"][part]:14.1f}' for part in PARTS)
    lines.append(f'{row["system"]:18}{milliseconds}')
  for row in report['systems']:
    if 'flops' in row:
      lines.append(
        f'{row["system"]}: {row["flops"] / 1e9:.1f} GFLOP a step, peak taken as '
        f'{row["peak_flops"] / 1e9:.0f} GFLOP/s; dispatch {1e3 * row["dispatch"]:.1f} ms; '
        f'temporaries {row["temporary_bytes"] / 1e6:.0f} MB'
        + (f'; waited for data {100 * row["waited"]:.2f} %' if 'waited' in row else '')
      )
  if 'ablations' in report:
    found = report['ablations']
    lines.append(f'\n{"loss and gradient":28}{"s":>8}{"more":>9}{"MB temporary":>14}  without')
    for name, what in ABLATIONS.items():
      more = f'{100 * (found["seconds"][name] / found["seconds"]["as it is"] - 1):+.1f}%'
      megabytes = found['temporary_bytes'][name] / 1e6
      lines.append(f'{name:28}{found["seconds"][name]:8.3f}{more:>9}{megabytes:14.0f}  {what}')
  return '\n'.join(lines + workers.conditions(report))


def _flags():
  from absl import flags

  values = flags.FlagValues()
  for define, name, value, about in (
    (flags.DEFINE_string, 'output', '', 'the JSON to write'),
    (flags.DEFINE_integer, 'size', 512, 'height and width of the images'),
    (flags.DEFINE_integer, 'batch', 2, 'images in a step'),
    (flags.DEFINE_integer, 'steps', 3, 'timed, of which the fastest counts'),
    (flags.DEFINE_integer, 'rounds', 1, 'turns of each system; the fastest counts'),
    (flags.DEFINE_bool, 'parts', True, 'ours by part (four more programs to compile)'),
    (flags.DEFINE_bool, 'feed', False, 'also on batches of the input pipeline'),
    (flags.DEFINE_bool, 'ablations', False, 'the second table'),
    (flags.DEFINE_bool, 'channels_last', False, "PyTorch's layout on a CPU too"),
    (flags.DEFINE_list, 'only', '', 'some of exedit,pytorch,pytorch compiled'),
    (flags.DEFINE_string, 'weights', '', 'a diffusers pipeline, or where to keep the random one'),
    (flags.DEFINE_string, 'worker', '', 'used inside'),
  ):
    define(name, value, about, flag_values=values)
  flags.DEFINE_enum('width', 'full', list(sampling.WIDTHS), 'of the networks', flag_values=values)
  about = 'of the networks; by default bfloat16 on a GPU and float32 elsewhere'
  flags.DEFINE_enum('precision', None, ['float32', 'bfloat16'], about, flag_values=values)
  about = 'what ours computes again; PyTorch checkpoints its blocks unless it is none'
  flags.DEFINE_enum('remat', 'none', ['none', 'conv1', 'block'], about, flag_values=values)
  return values


if __name__ == '__main__':
  doors.call(main, _flags(), __doc__, sys.argv)
