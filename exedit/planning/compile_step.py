"""Compile the real training step for TPUs that this machine does not have, and measure it."""

import contextlib
import dataclasses
import hashlib
import json
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from exedit import systems
from exedit.models import kernels
from exedit.planning import hlo, subprocess, topology
from exedit.runtime import caches, files, settings
from exedit.runtime.errors import UserError
from exedit.training import config as training_config
from exedit.training import flops, sharding
from exedit.training.step import Program, make_program

# The settings that change the compiled step; all others are only numbers that it computes with.
GROUPS = ('system', 'model', 'optimizer', 'ema', 'mesh', 'trainable', 'batch_size', 'accumulate')
# The compiler's effort to make the program fast: a number, and from jax 0.12 on a level.
if hasattr(jax.config, 'jax_exec_time_optimization_effort'):
  EFFORT, EFFORTS = 'JAX_EXEC_TIME_OPTIMIZATION_EFFORT', dict(quick='-1.0', full='0.0')
else:
  EFFORT, EFFORTS = 'JAX_OPTIMIZATION_LEVEL', dict(quick='O0', full='UNKNOWN')
MEMORY = ('argument', 'output', 'alias', 'temp', 'generated_code')
REMEDY = 'try another --batch or --sharding, or another version of libtpu'

Config = Mapping[str, Any]
Findings = dict[str, Any]


def cached_compile(
  config: Config,
  name: str,
  *,
  refresh: bool = False,
  tick: Callable[[str], None] = lambda doing: None,
  effort: str = 'quick',
) -> Findings:
  """The result of `compile_step` in a subprocess, or the cached result of an earlier call.

  Args:
    config: the settings of a training run. name: a topology such as 'v5e:4x4'.
    refresh: compile even if there is a cached result.
    tick: called twice a second with the current activity.
    effort: 'full' compiles as a run on the TPUs does. 'quick' takes a tenth of the time, but it
      schedules instructions with less care, so that temporaries need more memory.

  Raises:
    UserError: for invalid settings, and if the compiler crashes.
  """
  path = cache_path(config, name, effort)
  if not refresh:
    with contextlib.suppress(OSError, ValueError):
      return {**json.loads(path.read_text('utf-8')), 'cached': True}
  environment = topology.environment() | {EFFORT: EFFORTS[effort]}
  try:
    found = subprocess.run(compile_step, (dict(config), name), environment, tick)
  except subprocess.Died as death:
    raise UserError(crash_message(death)) from death
  found['effort'] = effort
  with contextlib.suppress(OSError):  # without a cache the next call only takes longer
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, found)
  return {**found, 'cached': False}


def cache_path(config: Config, name: str, effort: str = 'quick') -> Path:
  """The cache file for these settings, topology, effort, versions and this package's source."""
  key: dict[str, Any] = {group: config.get(group) for group in GROUPS}
  key['batch'] = repr(example_shapes(config))
  key['steps'] = config['steps'] if config['optimizer'].get('schedule') == 'cosine' else None
  text = json.dumps([name, key, effort, topology.versions(), source_hash()], sort_keys=True)
  return caches.folder('plans', hashlib.sha256(text.encode()).hexdigest()[:32] + '.json')


def source_hash() -> str:
  """A hash of all source files of this package, because any of them may change the step."""
  package = Path(__file__).parent.parent
  parts = [
    f'{path.relative_to(package)}\n'.encode() + path.read_bytes()
    for path in sorted(package.rglob('*.py'))
  ]
  return hashlib.sha256(b'\0'.join(parts)).hexdigest()


def compile_step(config: Config, name: str, say: Callable[[str], None]) -> Findings:
  """Trace and compile the training step for a topology, and read the result for one device.

  Returns:
    fits: whether the program fits into memory. mesh: sizes of its axes. flops: {'model': of the
    whole step; 'executed': of one device, including recomputation}. seconds: of tracing and
    compiling. If it fits also memory (bytes), collectives ({kind: (number, bytes)}) and traffic
    (bytes through memory), else needs and available (bytes, or None if unknown).
  """
  where = topology.parse(name)
  check(config)
  say('tracing')
  start = time.perf_counter()
  with settings.fixable(config):
    program = make_step(config, topology.devices(where))
    batch = batch_shapes(config, program.mesh)
    model = program.flops(batch)
    with kernels.traced_for(kernels.Device('tpu')):
      traced = program.step.trace(program.state, program.frozen, batch)
    work = dict(model=model, executed=flops.count(traced.jaxpr.jaxpr))
  found: Findings = dict(mesh=dict(program.mesh.shape), flops=work)
  lowered = traced.lower()
  traced_at = time.perf_counter()
  say('compiling')
  try:
    found |= dict(fits=True, **measured(lowered.compile()))
  except jax.errors.JaxRuntimeError as error:
    numbers = topology.out_of_memory(error)
    if numbers is None:
      raise
    found |= dict(fits=False, needs=numbers[0], available=numbers[1])
  seconds = dict(trace=traced_at - start, compile=time.perf_counter() - traced_at)
  return found | dict(seconds=seconds)


def with_defaults(config: Config) -> dict[str, Any]:
  """The settings of a training, with the defaults of those that the config does not have."""
  fields = dataclasses.fields(training_config.Config)
  known = {field.name: config[field.name] for field in fields if field.name in config}
  settings.check_complete(known, training_config.Config, 'config')
  return training_config.Config(**known).as_dict()


def check(config: Config) -> None:
  """UserError for a system that trains nothing, and for unknown keys of two groups."""
  settings.check(config['model'], systems.training(config['system']).build, 'config.model')
  settings.check(config['mesh'], sharding.make_mesh, 'config.mesh')


def make_step(config: Config, devices) -> Program:
  """The program that `exedit.train` makes of these settings on these devices."""
  return make_program(
    systems.get(config['system']),
    model=config['model'],
    optimizer=config['optimizer'],
    ema=config['ema'],
    mesh=config['mesh'],
    trainable=config['trainable'],
    batch_size=config['batch_size'],
    accumulate=config['accumulate'],
    seed=config['seed'],
    steps=config['steps'],
    devices=devices,
  )


def batch_shapes(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes of a training batch, without data."""
  over = sharding.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((config['batch_size'], *shape), dtype, sharding=over)
    for name, (shape, dtype) in example_shapes(config).items()
  }


def example_shapes(config: Config) -> dict[str, tuple[tuple[int, ...], Any]]:
  """{name: (shape, dtype)} of one training example."""
  system = systems.get(config['system'])
  return system.data.shapes(**system.data_settings(config))


def measured(step: jax.stages.Compiled) -> Findings:
  """Memory, collectives and memory traffic of a compiled step, for one device."""
  stats, text = step.memory_analysis(), step.as_text()
  assert stats is not None and text is not None
  memory = {name: getattr(stats, f'{name}_size_in_bytes') for name in MEMORY}
  new = memory['output'] - memory['alias']  # the new state takes the place of the old state
  memory['peak'] = memory['argument'] + new + memory['temp'] + memory['generated_code']
  collectives = hlo.count_collectives(text)
  return dict(memory=memory, collectives=collectives, traffic=hlo.hbm_bytes(text))


def crash_message(death: subprocess.Died) -> str:
  """One line about a compiler whose fault has ended its process."""
  if death.status < 0:
    symbol = re.search(r'@ .*?(xla::[\w:]+)\(', death.stderr)
    where = f' in {symbol[1]}' if symbol else ''
    memory = ' (was it short of memory?)' if -death.status == signal.SIGKILL else ''
    name = signal.Signals(-death.status).name
    return f'the TPU compiler died of {name}{where}{memory}: {REMEDY}'
  last = death.stderr.strip().splitlines()[-1:] or ['it printed nothing']
  return f'the TPU compiler ended with status {death.status}: {last[0][:200]}; {REMEDY}'
