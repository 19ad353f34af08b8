"""The training loop: everything is checked first, then steps, log lines, grids and checkpoints."""

import dataclasses
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exedit import images, systems
from exedit.input_pipeline import tokenizer
from exedit.models import parameters
from exedit.models.parameters import Params
from exedit.runtime import compilation, files, processes, settings, signals, versions
from exedit.runtime.errors import DataError, UserError
from exedit.training import fixed_loss, history, memory
from exedit.training.checkpoint import Checkpoints
from exedit.training.config import Config, keeps_best
from exedit.training.fixed_loss import FixedLoss
from exedit.training.given import given_weights
from exedit.training.history import History
from exedit.training.initial import has_checkpoints, initial_state, sizes
from exedit.training.log import Log, say
from exedit.training.optimizer import fitted
from exedit.training.prefetch import Prefetch
from exedit.training.sharding import batch_sharding, replicated
from exedit.training.state import TrainState
from exedit.training.step import Program, make_program
from exedit.training.timing import Account, duration
from exedit.training.workdir import Workdir, require_ours
from exedit.weights.formats.tensor import Tensor


def train(
  workdir: str,
  config: Config,
  began: float | None = None,
  *,
  allow_changes=False,
  ignore_memory=False,
) -> TrainState:
  """Trains up to step `config.steps`, from the last checkpoint in the workdir or from the start.

  workdir: a folder or gs://BUCKET/RUN. began: when the process began, on the clock of
  time.perf_counter; None: now. allow_changes: go on with another model, system, data or loss than
  the run was begun with. ignore_memory: start even if the arrays are larger than the memory.

  Raises:
    UserError: for settings or weights that cannot be used, before anything is written; later for
      data, checkpoints or a disk that cannot be used, and for a run that diverged.
  """
  began = time.perf_counter() if began is None else began
  if config.compile_cache:
    compilation.cache_compiled()
  prepared = prepare(workdir, config, allow_changes, ignore_memory)
  program, place = prepared.program, Workdir(workdir, jax.process_index())
  with processes.together():
    place.open()
  with place:
    checkpoints = Checkpoints(workdir, **config.checkpoint, say=say)
    checkpoints.require_space(program.state)
    state, frozen = initial_state(program, config, place, checkpoints, prepared.tensors, say)
    start = int(state.step)
    if start >= config.steps:
      checkpoints.tidy()
      say(f'{workdir} is at step {start} of {config.steps}{nothing_done(prepared.changed)}')
      return state
    place.claim()
    record(place, prepared, start)
    with signals.Stop() as stop:  # to the end, so that a second SIGTERM does not interrupt writing
      log = Log(
        place.folder,
        steps=config.steps,
        batch_size=config.batch_size,
        start=start,
        log_every=config.log_every,
        max_bad_steps=config.max_bad_steps,
        peak=program.peak(),
        account=Account(began),
      )
      rows = batches(config, prepared.data, prepared.history.examples(start))
      feed = Prefetch(rows, batch_sharding(program.mesh))
      try:
        state = take_steps(prepared, state, frozen, feed, log, checkpoints, place, stop)
        with log.pause('checkpoint'):
          checkpoints.wait()
      finally:
        feed.close()
        log.close()
        checkpoints.close()
        say(log.account.line())
  end, took = int(state.step), duration(time.perf_counter() - began)
  if end < config.steps:
    say(f'stopped and saved at step {end} of {config.steps}: the same command goes on from there')
  else:
    say(f'done: {end} steps, {took} here, in {workdir}')
  return state


@dataclasses.dataclass(frozen=True)
class Prepared:
  """What a run needs, checked before anything is written.

  tensors: the weights to start from, not yet read; None if the workdir has checkpoints. examples:
  the held-out examples of the grids; None without grids. fixed: the batches of fixed_loss.
  survey: the system's description of the data. data: the arguments of the system's data functions.
  origin: where the data come from, in words. history: what earlier starts have done. changed: the
  settings that differ from the last start's.
  """

  config: Config
  program: Program
  tensors: Mapping[str, Tensor] | None
  examples: Mapping[str, np.ndarray] | None
  fixed: list[dict[str, np.ndarray]]
  survey: Any
  data: Mapping[str, Any]
  origin: str
  history: History
  changed: list[str]


def prepare(workdir: str, config: Config, allow_changes=False, ignore_memory=False) -> Prepared:
  """Lays out the program, finds weights and data, and traces one step; draws synthetic data.

  Raises:
    UserError: in all processes, for what one of them cannot use, and for differences between them.
  """
  system, data = systems.get(config.system), config.data
  with processes.together():
    if jax.process_index() == 0:
      require_ours(workdir, data['root'])
  with processes.together(), settings.fixable(config.as_dict()):
    _, shortened = fitted(config.optimizer, config.steps)
    program = make_program(
      system,
      model=config.model,
      optimizer=config.optimizer,
      ema=config.ema,
      mesh=config.mesh,
      trainable=config.trainable,
      batch_size=config.batch_size,
      accumulate=config.accumulate,
      seed=config.seed,
      steps=config.steps,
    )
    if not ignore_memory:
      memory.require(program)
    begun = has_checkpoints(workdir)
    past = history.read(workdir, config.batch_size) if begun else History()
    learned, other = past.changes(config)
    history.require_same(workdir, learned, allow_changes)
    shapes = system.data.shapes(**system.data_settings(config.as_dict()))
    if config.synthetic:  # drawing takes a minute, so what cannot work is said before
      trace_step(program, config, shapes)
    if not config.synthetic:  # before weights are fetched
      survey_of(system, system.data_settings(config.as_dict()))
    tensors = None if begun else given_weights(system, config.as_dict())
    origin = provide_data(config)
  with processes.together(), settings.fixable(config.as_dict()):  # by now the data exist
    read = system.data_settings(config.as_dict(), workdir)
    examples = held_out(config, read) if config.edit_every else None
    fixed = fixed_batches(config, read) if config.fixed_every else []
    trace_step(program, config, stored_shapes(config, read))
    survey = survey_of(system, read)
    replaced = past.other_data(data['root'], dataclasses.asdict(survey))
    if begun:
      replaced += history.other_tokenizer(workdir, read.get('tokenizer'))
    history.require_same(workdir, replaced, allow_changes)
  # The folder of the data may have another name on another machine; its content may not differ.
  facts = dict(config.as_dict(), data={**data, 'root': dataclasses.asdict(survey)})
  if folder := read.get('tokenizer'):
    facts['tokenizer'] = tokenizer.digest(folder)
  processes.must_agree(dict(config=facts, versions=versions.versions_of_packages()))
  if shortened:
    say(shortened)
  changed = [*learned, *replaced, *other]
  return Prepared(config, program, tensors, examples, fixed, survey, read, origin, past, changed)


def survey_of(system: systems.System, data: Mapping[str, Any]) -> Any:
  """The system's description of the data, by those of their settings that it takes."""
  names = [p.name for p in settings.arguments(system.data.survey)]
  given = {'split': 'train', **data}
  return system.data.survey(**{name: given[name] for name in names if name in given})


def take_steps(
  prepared: Prepared,
  state: TrainState,
  frozen: Params,
  feed: Prefetch,
  log: Log,
  checkpoints: Checkpoints,
  workdir: Workdir,
  stop: signals.Stop,
) -> TrainState:
  """Takes one step after the other; the last checkpoint may still be being written at the end."""
  config, program, examples = prepared.config, prepared.program, prepared.examples
  first = int(state.step) + 1
  fixed = FixedLoss(program, prepared.fixed, config.seed) if prepared.fixed else None
  # Process 0 says it, because with a store it alone has the log of earlier starts.
  best = float(processes.everyone(repr(fixed_loss.least(workdir.folder, first - 1)))[0])
  log.account.loop_begins()
  for step in range(first, config.steps + 1):
    with log.account.spend('data'):
      batch = next(feed)
    with log.account.spend('productive' if step > first else 'compile'):
      state, metrics = program.step(state, frozen, batch)
      log.flops = log.flops or program.flops(batch)
    truncated = getattr(prepared.survey, 'truncated', 0)
    log.push(step, {**metrics, 'truncated_shards': truncated}, feed.waited)
    workdir.push_metrics()
    last = stop.requested(step) or step == config.steps
    if examples is not None and (step % config.edit_every == 0 or step == config.steps):
      with log.pause('edits'):  # before the checkpoint, because a restart there would not repeat it
        write_grid(program, state, frozen, examples, config, workdir, log)
    saves, better = last or step % config.save_every == 0, False
    if fixed and (step % config.fixed_every == 0 or step == config.steps):
      with log.pause('edits'):
        found = fixed(state, frozen)
        log.values(step, found)
        better, best = found[fixed_loss.NAME] < best, min(best, found[fixed_loss.NAME])
    if program.system.outcome and (better if keeps_best(config) else saves):
      hand_over(program, state, frozen, config, workdir)
    if saves:
      with log.pause('checkpoint'):
        workdir.push()
        checkpoints.save(step, state)
    if last:
      break
  return state


def batches(config: Config, data: Mapping[str, Any], start: int) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches behind the first `start` examples."""
  shard = dict(shard_index=jax.process_index(), shard_count=jax.process_count())
  how = dict(batch_size=config.batch_size, seed=config.seed, start=start)
  return systems.get(config.system).data.batches(**how, **shard, **data)


def stored_shapes(
  config: Config, data: Mapping[str, Any]
) -> dict[str, tuple[tuple[int, ...], Any]]:
  """{name: (shape, dtype)} of one example, from the data themselves."""
  quick = {**data, 'workers': 0, 'threads': 1, 'prefetch': 1}
  small = dataclasses.replace(config, batch_size=jax.process_count())
  found = next(batches(small, quick, 0))
  return {name: (rows.shape[1:], rows.dtype) for name, rows in found.items()}


def trace_step(
  program: Program, config: Config, shapes: Mapping[str, tuple[tuple[int, ...], Any]]
) -> None:
  """Traces one step on examples of these shapes, so that sizes that do not fit are reported now."""
  batch = {
    name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
    for name, (shape, dtype) in shapes.items()
  }
  program.step.eval_shape(program.state, program.frozen, batch)


def provide_data(config: Config) -> str:
  """Draws the synthetic data if the config asks for them; says where the data come from."""
  if jax.process_index() != 0:
    return ''
  from exedit.input_pipeline import synthetic  # here, because only this process needs the drawings

  return synthetic.provide(config.data['root'], config.synthetic)


def held_out(config: Config, data: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
  """The validation examples of the grids.

  Raises:
    UserError: if there are none.
  """
  count = config.edit.get('count', 8)
  try:
    return systems.get(config.system).data.held_out(count, **data)
  except DataError as error:
    raise UserError(f'{error} (for the grids of edits; --config.edit_every=0 for none)') from error


def fixed_batches(config: Config, data: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
  """The examples of fixed_loss: the same in all processes and starts, not augmented."""
  system, count = systems.get(config.system), config.fixed_examples
  fixed: dict[str, Any] = dict(split='validation', workers=0, threads=1, prefetch=1)
  known = system.data.defaults()
  fixed |= {name: value for name, value in dict(augment=False).items() if name in known}
  size = min(count, config.batch_size)
  rows = system.data.batches(batch_size=size, seed=0, **{**data, **fixed})
  return list(itertools.islice(rows, max(1, count // size)))


def write_grid(
  program: Program,
  state: TrainState,
  frozen: Params,
  examples: Mapping[str, np.ndarray],
  config: Config,
  workdir: Workdir,
  log: Log,
) -> None:
  """Writes one grid of the system's preview of the held-out examples: samples/STEP.png."""
  step = int(state.step)
  edit = systems.edit_settings(program.system, config.as_dict())
  model = parameters.merge(program.graph, {**(state.ema or state.params), **frozen})
  assert program.system.preview is not None  # `systems.training` refuses other systems
  captions, rows = program.system.preview(model, examples, **edit)
  if jax.process_index() != 0:
    return
  sheet = images.grid(rows, captions)
  folder = os.path.join(workdir.folder, 'samples')
  os.makedirs(folder, exist_ok=True)
  images.save(sheet, os.path.join(folder, f'{step}.png'))
  log.image(step, 'edits', sheet)


def hand_over(
  program: Program, state: TrainState, frozen: Params, config: Config, workdir: Workdir
) -> None:
  """Lets the system write what the training is for.

  It comes before the checkpoint of the step, because a restart there would not repeat it.
  """
  params, everywhere = state.ema or state.params, replicated(program.mesh)
  whole = params if program.mesh.size == 1 else jax.jit(dict, out_shardings=everywhere)(params)
  if jax.process_index() == 0 and program.system.outcome:
    settings = config.as_dict()
    program.system.outcome(workdir.folder, settings, whole, frozen, int(state.step))


def nothing_done(changed: Sequence[str]) -> str:
  """What a run that is at its last step says; changed: settings that differ from its own."""
  if not changed:
    return ': nothing to do; raise --config.steps to go on'
  return (
    f' and was trained with other settings ({", ".join(changed)}): nothing is trained with these; '
    'raise --config.steps to go on with them, or choose another --workdir'
  )


def record(workdir: Workdir, prepared: Prepared, start: int) -> None:
  """Writes what the run is and reads: JSON files and parameters.txt; reports changes."""
  if jax.process_index() != 0:
    return
  from clu import parameter_overview

  config, program, past = prepared.config, prepared.program, prepared.history
  if start:
    changed = prepared.changed
    words = f', with other settings than before: {", ".join(changed)}' if changed else ''
    say(f'going on from step {start}{words}')
  survey, root = dataclasses.asdict(prepared.survey), config.data['root']
  batches = past.going_on(start, config.batch_size)
  if len(batches) > 1:
    say(f'{past.examples(start):,} examples of the data are seen; the next ones follow')
  count = f'{survey["records"]:,} records' if 'records' in survey else 'records'
  split = config.data.get('split', 'train')
  say(f'data: {root}, split {split}, {count}: {prepared.origin}')
  files.write_json(os.path.join(workdir.folder, history.CONFIG), config.as_dict())
  described = dict(root=root, split=split, **survey, origin=prepared.origin, batches=batches)
  files.write_json(os.path.join(workdir.folder, history.DATA), described)
  files.write_json(os.path.join(workdir.folder, 'versions.json'), versions.versions())
  tables = [
    f'{title}\n{parameter_overview.get_parameter_overview(params, include_stats=False)}\n'
    for title, params in (('trained', program.state.params), ('frozen', program.frozen))
    if params
  ]
  files.write_text(os.path.join(workdir.folder, 'parameters.txt'), '\n'.join(tables))
  if folder := prepared.data.get('tokenizer'):
    tokenizer.copy(folder, workdir.folder)
  workdir.push()
  say(f'trained: {sizes(program.state.params)}; frozen: {sizes(program.frozen)}')
  shape = ' x '.join(f'{name} {size}' for name, size in program.mesh.shape.items())
  say(f'mesh: {shape}; everything goes to {workdir.name}; compiling the step')
