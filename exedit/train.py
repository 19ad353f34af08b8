"""DOOR: train a system, or go on from where its workdir stands.

  python -m exedit.train --config=configs/pbe.py:tiny --workdir=/tmp/tiny

Any key of the config can be set: --config.optimizer.lr=3e-5. The same command goes on after a
crash, a kill or SIGTERM (which saves first), and ends where the uninterrupted run would have.
SIGTERM before the first step ends it as soon as Python has control (not while XLA compiles), and
while Python still imports by the signal itself: nothing has begun.
"""

import dataclasses
import functools
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags

from exedit import images, systems
from exedit.input_pipeline import latent_shards, loader, synthetic
from exedit.input_pipeline.errors import DataError
from exedit.models import parameters
from exedit.models.parameters import Params
from exedit.runtime import compilation, doors, files, processes, remote, settings, signals, versions
from exedit.runtime.errors import UserError
from exedit.training import goodput, latent_encoder, log, optimizer, sharding, state
from exedit.training import workdir as workdirs
from exedit.training.checkpoint import (
  FROZEN,
  CheckpointError,
  Checkpoints,
  load_frozen,
  save_frozen,
)
from exedit.training.prefetch import Prefetch
from exedit.training.state import TrainState
from exedit.training.step import Program, make_program
from exedit.training.workdir import Workdir
from exedit.weights.formats.run import steps_in
from exedit.weights.formats.tensor import Tensor

SOURCES = ('init_from', 'init_clip')  # settings that name weights to start from


def train(
  workdir: str,
  *,
  system: str,
  steps: int,
  batch_size: int,
  data: Mapping[str, Any],
  model: Mapping[str, Any],
  seed: int = 0,
  trainable: str = 'unet|conditioner',
  init_from: str | None = None,
  init_clip: str | None = None,
  init_parts: str = '',
  accumulate: int = 1,
  log_every: int = 100,
  save_every: int = 2000,
  edit_every: int = 0,
  max_bad_steps: int = 10,
  compile_cache: bool = True,
  optimizer: Mapping[str, Any] = {},
  ema: Mapping[str, Any] = {},
  mesh: Mapping[str, Any] = {},
  checkpoint: Mapping[str, Any] = {},
  edit: Mapping[str, Any] = {},
  synthetic: Mapping[str, Any] | None = None,
) -> TrainState:
  """Train to step `steps`; the keys of a config are these arguments.

  Args:
    workdir: where everything goes, and where an earlier start is continued; may be gs://...
    system: the name of a system; `model` are the arguments of its `build`, `edit` those of its
      `edit`, and `count`, the number of held-out examples in a grid.
    batch_size: of all devices together; taken in `accumulate` equal parts, one after the other.
    data: arguments of `loader.batches`. synthetic: of `synthetic.ensure`, to draw the data first.
    trainable: which parameters train, see `parameters.split_trainable`.
    init_from, init_clip: weights to start from instead of random ones, see the system's `start`.
    init_parts: which parameters are taken of them, a pattern as `trainable`; '': all.
    max_bad_steps: so many steps in a row without a finite loss and gradient end the run.
    compile_cache: keep compiled programs in the user's cache folder.
    optimizer: arguments of `optimizer.make`. ema: of `state.Ema`. mesh: of `mesh.make`.
    checkpoint: of `Checkpoints`.
  Raises:
    UserError: for a setting that cannot be, before anything is written; later for data,
      checkpoints or a disk that cannot be used, and for a run that diverged.
  """
  config = {name: value for name, value in locals().items() if name != 'workdir'}
  begin = versions.process_began() if __name__ == '__main__' else time.perf_counter()
  if compile_cache:
    compilation.cache_compiled()
  with processes.together(), settings.mendable(config):
    check(config)
    program = make_program(
      systems.get(system),
      model,
      optimizer,
      ema,
      mesh,
      trainable,
      batch_size,
      accumulate,
      seed,
      steps,
    )
    tensors = None if begun(workdir) else given(program, config)
    draw(data, synthetic)
  with processes.together(), settings.mendable(config):  # the data are there by now
    examples = held_out(data, edit) if edit_every else None
    stream = functools.partial(batches, data, batch_size, seed)
    one_each = {**data, 'workers': 0, 'threads': 1, 'prefetch': 1}  # shapes need no whole batch
    try_step(program, next(batches(one_each, jax.process_count(), seed, 0)), batch_size)
    shards = loader.survey(data['root'], data.get('split', 'train'))
  must_agree(config, shards)
  with processes.together():
    held = workdirs.hold(workdir, jax.process_index())
  with held:
    return go_on(workdir, held, program, config, tensors, stream, examples, shards, begin)


def go_on(
  workdir: str,
  held: Workdir,
  program: Program,
  config: Mapping[str, Any],
  tensors: Mapping[str, Tensor] | None,
  stream: Callable,
  examples: Mapping[str, np.ndarray] | None,
  shards: loader.Shards,
  begin: float,
) -> TrainState:
  """From where the held workdir stands to the last step.

  tensors: what to start from, None where the workdir has begun. stream: batches from a step on.
  examples: what is edited for the grids. begin: when the process began.
  """
  steps, batch_size, edit_every = config['steps'], config['batch_size'], config['edit_every']
  say = log.Progress(steps, batch_size).say
  hours = goodput.Goodput(held.files, begin)
  checkpoints = Checkpoints(workdir, **config['checkpoint'], say=say)
  checkpoints.require_space(program.now)
  now, frozen = initial(program, workdir, held, checkpoints, config, tensors, say)
  start = int(now.step)
  if start >= steps:
    checkpoints.tidy()
    hours.close()
    say(f'{workdir} is at step {start} of {steps}: nothing to do; raise --config.steps to go on')
    return now
  record(workdir, held, program, config, start, say)

  with signals.Stop() as stop:  # to the very end, so that a second SIGTERM ends no writing
    book = log.Log(
      held.files,
      steps=steps,
      batch_size=batch_size,
      start=start,
      log_every=config['log_every'],
      max_bad_steps=config['max_bad_steps'],
      peak=program.peak(),
      hours=hours,
    )
    hours.start(start)
    feed = Prefetch(stream(start=start), sharding.batch_sharding(program.mesh))
    try:
      for step in range(start + 1, steps + 1):
        with hours.spend('data'):
          batch = next(feed)
        with hours.spend('productive' if step > start + 1 else 'compile'):
          now, metrics = program.step(now, frozen, batch)
          book.flops = book.flops or program.flops(batch)
        book.push(step, {**metrics, 'truncated_shards': shards.truncated}, feed.waited)
        last = stop.requested(step) or step == steps
        if examples and (step % edit_every == 0 or step == steps):
          book.flush()
          with book.pause('edits'):  # before the checkpoint, behind which no start draws it again
            show_edits(program, now, frozen, examples, config['edit'], held, book, step)
        if last or step % config['save_every'] == 0:
          book.flush()
          with book.pause('checkpoint'):
            held.push()
            checkpoints.save(step, now)
        held.check()
        if last:
          break
      with book.pause('checkpoint'):
        checkpoints.wait()
    finally:
      feed.close()
      book.close()
      checkpoints.close()
      hours.close()
      say(hours.line())
    held.push()
  if step < steps:
    say(f'stopped and saved at step {step} of {steps}: the same command goes on from there')
  else:
    say(f'done: {steps} steps, {log.duration(time.perf_counter() - begin)} here, in {workdir}')
  return now


def initial(
  program: Program,
  workdir: str,
  held: Workdir,
  checkpoints: Checkpoints,
  config: Mapping[str, Any],
  tensors: Mapping[str, Tensor] | None,
  say: Callable,
) -> tuple[TrainState, Params]:
  """The state to start from: the workdir's own, else given weights, else random ones."""
  restored = checkpoints.restore(program.now)
  if restored is not None:
    stored = load_frozen(workdir, held.files)
    frozen = place(stored, program.frozen, f'{workdir}/{FROZEN}')
    latent_encoder.require_same(config, restored.params, frozen)
    return restored, frozen
  # No step has this number, so the first weights share no random number with any step.
  key = jax.random.fold_in(jax.random.key(config['seed'], impl='threefry2x32'), 2**32 - 1)
  tensors = given(program, config) if tensors is None else tensors
  everything = {**program.now.params, **program.frozen}
  where = ' and '.join(config[name] for name in SOURCES if config[name])
  like = {name: shape for name, shape in everything.items() if name in tensors}
  placed = place(tensors, like, where)
  if tensors:
    fresh = {name: shape for name, shape in everything.items() if name not in tensors}
    say(f'from {where}: {sizes(placed)}; random: {sizes(fresh)}')
  elif program.frozen:
    say(f'frozen and random, for no weights were given (init_from): {sizes(program.frozen)}')
  now, frozen = program.init(key, placed)
  latent_encoder.require_same(config, now.params, frozen)
  save_frozen(workdir, frozen, held.files)
  return now, frozen


def begun(workdir: str) -> bool:
  """Whether the workdir holds checkpoints, so that nothing else is asked for weights."""
  checkpoints = workdirs.path_of(workdir) / 'checkpoints'
  try:
    return bool(steps_in(checkpoints))
  except Exception as error:
    if not remote.is_remote(workdir):
      raise
    raise workdirs.trouble(workdir, error) from error


def given(program: Program, config: Mapping[str, Any]) -> dict[str, Tensor]:
  """The weights to start from, found and checked but not read."""
  sources, parts = [config[name] for name in SOURCES], config['init_parts']
  if not any(sources):
    if parts:
      raise UserError(
        f"config.init_parts is '{parts}', but no weights are given to take that from: set "
        '--config.init_from=...'
      )
    return {}
  tensors = program.system.start(*sources, config['model'])
  return parameters.split_trainable(tensors, parts, 'init_parts')[0] if parts else tensors


def place(arrays: Mapping[str, Any], like: Params, where: str) -> Params:
  """Arrays or unread tensors onto the mesh as `like` says, each read once by every process.

  UserError where they belong to another model.
  """
  for name in sorted(set(arrays) | set(like)):
    found = tuple(arrays[name].shape) if name in arrays else 'absent'
    wanted = tuple(like[name].shape) if name in like else 'absent'
    if found != wanted:
      raise UserError(
        f'{where} holds another model ({name}: there {found}, in the config {wanted}): '
        'use the config it was made with'
      )
  return {name: place_one(arrays[name], shape) for name, shape in like.items()}


def place_one(array: Any, like: Any) -> jax.Array:
  """One array or unread tensor: each device gets its part, and the host's copy goes."""
  host = np.asarray(array.read() if isinstance(array, Tensor) else array, like.dtype)
  placed = jax.make_array_from_callback(like.shape, like.sharding, lambda part: host[part])
  return placed.block_until_ready()


def batches(
  data: Mapping[str, Any], batch_size: int, seed: int, start: int
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches from step `start` on."""
  place = dict(shard_index=jax.process_index(), shard_count=jax.process_count())
  return loader.batches(batch_size=batch_size, seed=seed, start_step=start, **place, **data)


def try_step(program: Program, rows: Mapping[str, np.ndarray], batch_size: int) -> None:
  """Trace one step on the shapes of a batch, so that sizes that do not fit say so at once."""
  batch = {
    name: jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype)
    for name, array in rows.items()
  }
  program.step.eval_shape(program.now, program.frozen, batch)


def draw(data: Mapping[str, Any], scenes: Mapping[str, Any] | None) -> None:
  """Draw the synthetic data where a config asks for them."""
  if not data.get('root'):
    raise ValueError('data.root is not set: give --config.data.root=DIR, the folder of the shards')
  if scenes is None or latent_shards.manifest(data['root']) is not None:
    return
  if jax.process_index() == 0:
    synthetic.ensure(data['root'], **scenes)


def must_agree(config: Mapping[str, Any], shards: loader.Shards) -> None:
  """UserError, in every process, where they differ in settings, versions or data.

  The folder of the data may have another name on another machine; what lies in it may not differ.
  """
  facts = dict(config, data={**config['data'], 'root': dataclasses.asdict(shards)})
  facts = dict(config=facts, versions=versions.versions_of_packages())
  said = processes.everyone(json.dumps([socket.gethostname(), facts]))
  (host, first), *others = map(json.loads, said)
  for index, (other, theirs) in enumerate(others, 1):
    changed = settings.differences(first, theirs)
    if changed:
      raise processes.TheOthers(
        f'process {index} on {other} differs from process 0 on {host}, all must be the same: '
        + ', '.join(changed[:5])
      )


def held_out(data: Mapping[str, Any], edit: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The same few validation examples for every grid; as in training, but not augmented."""
  same = dict(split='validation', augment=False, workers=0, threads=1, prefetch=1)
  how = dict(batch_size=edit.get('count', 8), seed=0, shuffle=False)
  try:
    found = next(loader.batches(**how, **{**data, **same}))
    if 'image' not in found:
      raise DataError(f'the validation split in {data["root"]} holds latents and no pictures')
    return found
  except DataError as error:
    raise UserError(f'{error} (for the grids of edits; --config.edit_every=0 for none)') from error


def show_edits(
  program: Program,
  now: TrainState,
  frozen: Params,
  examples: Mapping[str, np.ndarray],
  edit: Mapping[str, Any],
  held: Workdir,
  book: log.Log,
  step: int,
) -> None:
  """Write one grid of the system's preview of the held-out examples."""
  how = {name: value for name, value in edit.items() if name != 'count'}
  model = parameters.merge(program.graph, {**(now.ema or now.params), **frozen})
  captions, rows = program.system.preview(model, examples, **how)
  if jax.process_index() != 0:
    return
  sheet = images.grid(rows, captions)
  os.makedirs(os.path.join(held.files, 'samples'), exist_ok=True)
  images.save(sheet, os.path.join(held.files, 'samples', f'{step}.png'))
  book.image(step, 'edits', sheet)


def record(
  workdir: str,
  held: Workdir,
  program: Program,
  config: Mapping[str, Any],
  start: int,
  say: Callable,
) -> None:
  """Leave behind what the run is: config.json, versions.json, parameters.txt."""
  if jax.process_index() != 0:
    return
  from clu import parameter_overview

  path = os.path.join(held.files, 'config.json')
  if start and os.path.exists(path):
    with open(path, encoding='utf-8') as file:
      changed = settings.differences(json.load(file), json.loads(json.dumps(config)))
    said = f', with other settings than before: {", ".join(changed)}' if changed else ''
    say(f'going on from step {start}{said}')
  files.write_json(path, config)
  files.write_json(os.path.join(held.files, 'versions.json'), versions.versions())
  tables = [
    f'{title}\n{parameter_overview.get_parameter_overview(params, include_stats=False)}\n'
    for title, params in (('trained', program.now.params), ('frozen', program.frozen))
    if params
  ]
  files.write_text(os.path.join(held.files, 'parameters.txt'), '\n'.join(tables))
  say(f'trained: {sizes(program.now.params)}; frozen: {sizes(program.frozen)}')
  shape = ' x '.join(f'{name} {size}' for name, size in program.mesh.shape.items())
  say(f'mesh: {shape}; everything goes to {workdir}; compiling the step')


def sizes(params: Params) -> str:
  """Number of parameters by part, 'unet 859,535,364, conditioner 63,770,368'."""
  parts: dict[str, int] = {}
  for name, array in params.items():
    part = name.split('.')[0]
    parts[part] = parts.get(part, 0) + int(np.prod(array.shape))
  return ', '.join(f'{part} {count:,}' for part, count in parts.items()) or 'nothing'


def check(config: Mapping[str, Any]) -> None:
  """Say now what is wrong with the settings; hours may pass before some of them count."""
  system = systems.get(config['system'])
  once = ('steps', 'batch_size', 'accumulate', 'log_every', 'save_every', 'max_bad_steps')
  least = {name: 1 for name in once} | dict(edit_every=0)
  values = {name: config[name] for name in least}
  values['edit.count'] = config['edit'].get('count', 1)
  values['checkpoint.keep'] = config['checkpoint'].get('keep', 1)
  for name, value in values.items():
    if value < least.get(name, 1):
      raise UserError(f'config.{name} is {value}; it must be at least {least.get(name, 1)}')
  settings.check(config['model'], system.build, 'config.model')
  known = [*systems.network_settings(system.settings()), 'count']
  for name in config['edit']:
    if name not in known:
      raise UserError(settings.unknown(f'config.edit.{name}', known))
  settings.check(config['optimizer'], optimizer.make, 'config.optimizer')
  settings.check(config['ema'], state.Ema, 'config.ema')
  settings.check(config['mesh'], sharding.make_mesh, 'config.mesh')
  settings.check(config['checkpoint'], Checkpoints, 'config.checkpoint')
  systems.edit_settings(system, config)


def define_flags() -> None:
  """The flags that tell nothing of the run itself: where it takes place, and how it ends."""
  processes.define_flags()
  what = 'exit status of a run that was told to stop, and has saved, before its last step'
  flags.DEFINE_integer('stopped_status', 0, what, 0, 255)


def run(workdir: str, config: Mapping[str, Any]) -> bool:
  """Train as the config says; whether the last step was reached."""
  settings.check(config, train, 'config')
  settings.check_complete(config, train, 'config')
  try:
    now = train(workdir, **config)
  except (CheckpointError, log.NotFinite) as error:
    raise UserError(str(error)) from error
  return bool(now.step >= config['steps'])


def main(argv: list[str]) -> None:
  """Open the door: flags in, a run in the workdir out."""
  if not flags.FLAGS.config or not flags.FLAGS.workdir:
    raise UserError('train needs --config=configs/pbe.py:tiny (or another) and --workdir=DIR')
  if remote.is_remote(flags.FLAGS.workdir):
    workdirs.quiet_stores()
  try:
    with signals.Stop(at_once=True):
      processes.join_processes(**processes.place_flags(flags.FLAGS))
      with processes.ending_together():
        compilation.keep_memory()
        finished = run(flags.FLAGS.workdir, flags.FLAGS.config.to_dict())
  except signals.Stopped as stopped:
    print(stopped, flush=True)
    finished = False
  if not finished:
    sys.exit(flags.FLAGS.stopped_status)


if __name__ == '__main__':
  doors.define_config('the settings, configs/pbe.py:tiny')
  flags.DEFINE_string('workdir', None, 'where the run goes, or goes on')
  define_flags()
  doors.run(main)
