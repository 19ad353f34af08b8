"""Images per second, MFU and memory of a training step: exedit and PyTorch, with equal weights.

  python -m benchmarks.train_step --output=train_step.json         # a GPU: full size, 512x512
  python -m benchmarks.train_step --width=quarter --size=256       # a CPU
  python -m benchmarks.train_step --width=tiny --size=32 --steps=1

A step includes two autoencoder encodes, CLIP, the UNet's forward and backward pass, AdamW and EMA.
PyTorch's step (train_step_torch.py) is built from diffusers and transformers: on a GPU in bfloat16,
eager and through torch.compile; on a CPU eager in float32. It has no guard against NaN, no gradient
norm and no losses by timestep. Each system loads the same random weights in a process of its own,
in turns; the fastest of `--steps` steps and of `--rounds` turns counts. The parts of exedit's step
are differences of programs that go one part further each; PyTorch's parts are timed within its
step. MFU is model FLOPs, without recomputation, over the device's bfloat16 peak, or on a CPU over
the speed of a large product. `--ablations` removes one technique at a time. `--feed` also runs the
step on batches of the input pipeline, and measures how long it waits for them.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, networks, sampling
from exedit import latent_diffusion
from exedit import paint_by_example as pbe
from exedit.input_pipeline import synthetic
from exedit.models import parameters, unet
from exedit.models.parameters import Params
from exedit.runtime import compilation
from exedit.runtime.doors import Flag
from exedit.training.initial import place
from exedit.training.prefetch import Prefetch
from exedit.training.sharding import batch_sharding
from exedit.training.state import TrainState
from exedit.training.step import Program, make_program
from exedit.weights import find

PARTS = ('encode', 'clip', 'forward', 'backward', 'update')
FLAGS = (
  Flag('width', 'full', 'of the networks', [*networks.WIDTHS]),
  Flag('size', 512, 'height and width of the images', least=1),
  Flag('batch', 2, 'images in a step', least=1),
  Flag('precision', '', 'by default bfloat16 on a GPU, else float32', ['', 'float32', 'bfloat16']),
  Flag(
    'remat', 'none', 'the recomputation; PyTorch has only none or all', ['none', 'conv1', 'block']
  ),
  Flag('steps', 3, 'timed steps; the fastest counts', least=1),
  Flag('rounds', 1, 'turns of each system; the fastest counts', least=1),
  Flag('parts', True, "exedit's step by part: four more programs to compile"),
  Flag('feed', False, 'also on batches of the input pipeline'),
  Flag('ablations', False, 'the second table'),
  Flag('channels_last', False, "PyTorch's layout on a CPU too"),
  Flag('only', '', 'some of exedit,pytorch,pytorch compiled'),
  Flag('weights', '', 'a diffusers pipeline, or the folder to keep the random one in'),
)


def program_of(spec: Mapping[str, Any]) -> Program:
  """The step of the published recipe, with a moving average, on all devices."""
  model = pbe.complete(networks.WIDTHS[spec['width']]) | dict(dtype=spec['precision'])
  model['unet']['remat'] = spec['remat']
  return make_program(
    pbe.SYSTEM,
    model=model,
    optimizer=dict(lr=1e-5),
    ema=dict(decay=0.9999),
    mesh={},
    trainable='unet|conditioner',
    batch_size=spec['batch'],
    accumulate=1,
    seed=0,
    steps=10**6,
  )


def begun(spec: Mapping[str, Any]) -> tuple[Program, TrainState, Params]:
  """The program, and its state and frozen parameters from the weights of the folder."""
  program = program_of(spec)
  return program, *filled(program, find.weights(spec['folder']).fit)


def filled(
  program: Program, read: Callable[[Params], Mapping[str, Any]]
) -> tuple[TrainState, Params]:
  """The state of a program and its frozen parameters, with the tensors that `read(shapes)` gives.

  The optimizer's state is zeros, because program.init would compile for half a minute.
  """
  everything = {**program.state.params, **program.frozen}
  placed = place(read(everything), everything, 'weights')
  params = {name: placed[name] for name in program.state.params}
  average = jax.tree.map(jnp.copy, params) if program.state.ema else {}
  state = dataclasses.replace(zeros(program.state), params=params, ema=average)
  return state, {name: placed[name] for name in program.frozen}


def zeros(shapes: Any) -> Any:
  """Zeros for a tree of shapes with shardings."""
  return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype, device=a.sharding), shapes)


def exedit(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Times and memory of exedit, for the whole step and by part."""
  compilation.keep_memory()  # as exedit.train does
  program, state, frozen = begun(spec)
  rows = np.load(spec['inputs']).items()
  batch = {name: jax.device_put(a, batch_sharding(program.mesh)) for name, a in rows}
  start = time.perf_counter()
  step = program.step.lower(state, frozen, batch).compile()
  compile_seconds = time.perf_counter() - start

  seconds, dispatches = [], []
  processor, begin = time.process_time(), time.perf_counter()
  for _ in range(spec['steps'] + 1):
    start = time.perf_counter()
    state, metrics = step(state, frozen, batch)
    dispatches.append(time.perf_counter() - start)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - start)
  stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
  found: dict[str, Any] = dict(
    trained=sum(a.size for a in program.state.params.values()),
    busy_cores=(time.process_time() - processor) / (time.perf_counter() - begin),
    first=compile_seconds + seconds[0],
    step=min(seconds[1:]),
    compile=compile_seconds,
    dispatch=min(dispatches[1:]),
    peak_bytes=stats.get('peak_bytes_in_use', harness.peak_bytes()),
    temporary_bytes=step.memory_analysis().temp_size_in_bytes,
    flops=program.flops(batch),
    peak_flops=program.peak() or large_product(),
  )
  if spec['parts']:
    found['parts'] = parts(program, state, frozen, batch, found['step'])
  if spec['feed']:
    found['waited'] = waited(program, step, state, frozen, spec)
  return found


def compiled(function: Callable, *args, options: Mapping[str, Any] | None = None) -> Any:
  """A function compiled for these arguments, with the options of sampling by default."""
  options = sampling.compiler_options() if options is None else options
  return jax.jit(function).lower(*args).compile(compiler_options=dict(options))


def parts(program, state, frozen, batch, whole: float) -> dict[str, float]:
  """Seconds by part: the additional time of each program over the shorter one."""
  model: Any = lambda params, frozen: parameters.merge(program.graph, {**params, **frozen})
  image = jnp.concatenate([latent_diffusion.as_signed(batch['image'])] * 2)
  exemplar = latent_diffusion.as_signed(batch['exemplar'])
  loss = lambda p, f: program.loss(p, f, batch, jax.random.key(0))[0]
  programs = dict(
    encode=lambda p, f: model(p, f).autoencoder.encode(image),
    clip=lambda p, f: model(p, f).clip(exemplar),
    forward=loss,
    backward=jax.value_and_grad(loss),
  )
  runs = {}
  for name, function in programs.items():
    part = compiled(function, state.params, frozen)
    runs[name] = lambda part=part: part(state.params, frozen)
  upto = harness.best_in_turns(runs, 2, jax.block_until_ready)
  return dict(
    encode=upto['encode'],
    clip=upto['clip'],
    forward=upto['forward'] - upto['encode'] - upto['clip'],
    backward=upto['backward'] - upto['forward'],
    update=whole - upto['backward'],
  )


def waited(program, step, state, frozen, spec: Mapping[str, Any]) -> float:
  """The share of the time that the step waits for the input pipeline."""
  exemplar = pbe.complete(networks.WIDTHS[spec['width']])['clip']['image_size']
  with tempfile.TemporaryDirectory() as folder:
    side = -(-spec['size'] // synthetic.GRID) * synthetic.GRID  # scenes have multiples of GRID
    synthetic.ensure(folder, scenes=64, val_scenes=1, seed=0, size=side, shards=2)
    data = dict(root=folder, split='train', workers=0, size=spec['size'], exemplar_size=exemplar)
    rows = pbe.SYSTEM.data.batches(batch_size=spec['batch'], seed=0, **data)
    feed = Prefetch(rows, batch_sharding(program.mesh))
    try:
      state, metrics = step(state, frozen, next(feed))  # every loop waits for its first batch
      jax.block_until_ready(metrics)
      start, before = time.perf_counter(), feed.waited
      for _ in range(spec['steps']):
        state, metrics = step(state, frozen, next(feed))
        jax.block_until_ready(metrics)
      return (feed.waited - before) / (time.perf_counter() - start)
    finally:
      feed.close()


def large_product() -> float:
  """FLOP/s of a large float32 product, the reference for a CPU's MFU."""
  n = 2048
  a = jnp.ones((n, n))
  product = compiled(jnp.matmul, a, a)
  runs = dict(product=lambda: product(a, a))
  return 2 * n**3 / harness.best_in_turns(runs, 3, jax.block_until_ready)['product']


# The techniques that make the step fast, removed one at a time, and options that cost something.

ABLATIONS = {
  'as it is': '',
  'cross-attentions in full': 'constants of the one-token context',
  'two encodes': 'image and masked image in one call',
  'all logits at once': 'attention in parts',
  "XLA's own choice of library": 'Eigen on CPUs',
  'latents kept': 'both encodes, by exedit.encode',
  'remat conv1': 'keeping all activations',
  'remat block': 'keeping all activations',
}


def ablations(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Seconds, temporary memory and loss of loss and gradient without each, in turns."""
  batch = {name: jnp.asarray(a) for name, a in np.load(spec['inputs']).items()}
  program, state, frozen = begun(spec)
  kept = dict(batch, moments=moments(program, {**state.params, **frozen}, batch))
  del kept['image']
  runs, temporary = {}, {}
  for name in ABLATIONS:
    own = dict(spec, remat=name.split()[-1] if name.startswith('remat') else spec['remat'])
    given = kept if name == 'latents kept' else batch
    loss = program_of(own).loss
    call = jax.value_and_grad(
      lambda p, f, loss=loss, given=given: loss(p, f, given, jax.random.key(0))[0]
    )
    options = {} if name == "XLA's own choice of library" else None
    with without(name):
      call = compiled(call, state.params, frozen, options=options)
    runs[name] = lambda call=call: call(state.params, frozen)
    temporary[name] = call.memory_analysis().temp_size_in_bytes
  losses = {name: float(run()[0]) for name, run in runs.items()}
  seconds = harness.best_in_turns(runs, spec['steps'], jax.block_until_ready)
  return dict(seconds=seconds, temporary_bytes=temporary, losses=losses)


def moments(program: Program, params: Params, batch: Mapping[str, Any]) -> jax.Array:
  """The moments that exedit.encode would store for a batch."""
  mask = batch['mask'][..., None].astype(jnp.float32) / 255
  image = latent_diffusion.as_signed(batch['image'])
  network: Any = parameters.merge(program.graph, params)
  return jax.jit(functools.partial(latent_diffusion.moments, network.autoencoder))(image, mask)


def without(name: str) -> contextlib.AbstractContextManager:
  """Trace the step without one of ABLATIONS."""
  if name == 'all logits at once':
    return sampling.whole_attention()
  if name == 'cross-attentions in full':
    call = unet.UNet.__call__
    in_full = lambda *args: call(*args, shortcut=False)
    return mock.patch.object(unet.UNet, '__call__', in_full)
  if name == 'two encodes':
    return mock.patch.object(latent_diffusion, 'moments', moments_apart)
  return contextlib.nullcontext()


def moments_apart(autoencoder, image, mask):
  """`latent_diffusion.moments` with one call of the encoder for each image."""
  both = [autoencoder.moments(image), autoencoder.moments(image * (1 - mask))]
  return jax.lax.stop_gradient(jnp.stack(both, 1))


# The door.

WORKERS = {'exedit': exedit, 'ablations': ablations}


def main(
  output: str, width: str, size: int, batch: int, precision: str, remat: str, steps: int,
  rounds: int, parts: bool, feed: bool, ablations: bool, channels_last: bool, weights: str,
  only: str,
) -> None:  # fmt: skip
  """Measures every system, prints the tables and writes the JSON."""
  gpu = jax.default_backend() == 'gpu'
  precision = precision or ('bfloat16' if gpu else 'float32')
  spec = dict(width=width, size=size, batch=batch, precision=precision, remat=remat, steps=steps)
  report: dict[str, Any] = dict(settings=spec | dict(rounds=rounds), machine=harness.machine())
  spec |= dict(parts=parts, feed=feed, channels_last=channels_last or gpu)
  with tempfile.TemporaryDirectory() as temporary:
    spec |= dict(folder=weights or temporary)
    networks.write_weights(width, spec['folder'])
    report['systems'] = compare(spec, rounds, only.split(',') if only else systems(gpu))
    if ablations:
      report['ablations'] = in_own_process(spec | dict(system='ablations'))
  harness.finish(report, lines(report), output)


def systems(gpu: bool) -> list[str]:
  """The systems that can run here; torch.compile only on GPUs."""
  if not (importlib.util.find_spec('diffusers') and importlib.util.find_spec('torch')):
    return ['exedit']
  return ['exedit', 'pytorch', *(['pytorch compiled'] if gpu else [])]


def compare(spec: Mapping[str, Any], rounds: int, names: list[str]) -> list[dict[str, Any]]:
  """One row per system: the round with the fastest step, and the highest peak of all rounds."""
  turns = [
    {name: in_own_process(spec | dict(system=name)) for name in names} for _ in range(rounds)
  ]
  rows = []
  for name in names:
    found = [turn[name] for turn in turns]
    row = dict(system=name, **min(found, key=lambda f: f['step']))
    row |= dict(peak_bytes=max(f['peak_bytes'] for f in found), steps=[f['step'] for f in found])
    rows.append(row | dict(images_per_second=spec['batch'] / row['step']))
  counted = next((row for row in rows if 'flops' in row), None)
  for row in rows:
    row['ratio'] = row['step'] / rows[0]['step']
    if counted:
      row['mfu'] = counted['flops'] / row['step'] / counted['peak_flops']
  return rows


def in_own_process(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The measurements of a worker, with the shared inputs and without cached programs."""
  inputs = networks.training_batch(spec['width'], spec['size'], spec['batch'])
  theirs, cache = 'benchmarks.train_step_torch', dict(JAX_ENABLE_COMPILATION_CACHE='false')
  return harness.measured(spec, WORKERS, 'benchmarks.train_step', theirs, inputs, **cache)


def lines(report: Mapping[str, Any]) -> Iterator[str]:
  """The tables of the report."""
  systems = report['systems']
  keys = ('images_per_second', 'step', 'compile', 'busy_cores', 'ratio')
  columns = ('system', 'images/s', 's/step', 's compile', 'cores', 's/step ratio', 'MFU', 'peak GB')
  rows = (
    (
      row['system'],
      [*(row[key] for key in keys), f'{row.get("mfu", float("nan")):.1%}', row['peak_bytes'] / 1e9],
    )
    for row in systems
  )
  yield from harness.table(columns, rows)
  split = [row for row in systems if 'parts' in row]
  if split:
    yield ''
    rows = ((row['system'], [1e3 * row['parts'][part] for part in PARTS]) for row in split)
    yield from harness.table(('ms by part', *PARTS), rows, '.1f')
  for row in systems:
    if 'flops' in row:
      yield (
        f'{row["system"]}: {row["flops"] / 1e9:.1f} GFLOP per step, peak taken as '
        f'{row["peak_flops"] / 1e9:.0f} GFLOP/s; dispatch {1e3 * row["dispatch"]:.1f} ms; '
        f'temporaries {row["temporary_bytes"] / 1e6:.0f} MB'
        + (f'; waited for data {row["waited"]:.2%}' if 'waited' in row else '')
      )
  if 'ablations' in report:
    found = report['ablations']
    yield ''
    yield from sampling.removed(
      ABLATIONS, found['seconds'], found['temporary_bytes'], 'loss and gradient'
    )


if __name__ == '__main__':
  harness.door(main, FLAGS, __doc__, WORKERS)
