"""The real training step, compiled for devices that are not there, in a process of its own."""

import contextlib
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
from exedit.planning import child, collectives, topology, traffic
from exedit.runtime import caches, files, settings
from exedit.runtime.errors import UserError
from exedit.training import flops, sharding
from exedit.training.step import Program, make_program

# Arguments of make_program that a compiled step depends on; the others are numbers inside it.
GROUPS = ('system', 'model', 'optimizer', 'ema', 'mesh', 'trainable', 'batch_size', 'accumulate')
EFFORTS = dict(quick='-1.0', full='0.0')  # of the compiler, in making what it compiles fast
MEMORY = ('argument', 'output', 'alias', 'temp', 'generated_code')
REMEDY = 'try another --batch or --sharding, or another version of libtpu'

Config = Mapping[str, Any]
Findings = dict[str, Any]


def compiled(
  config: Config,
  name: str,
  refresh: bool = False,
  tick: Callable = print,
  effort: str = 'quick',
) -> Findings:
  """`compile_step` in a child process, or what it found before.

  Args:
    config: settings of a training run. name: a topology, 'v5e:4x4'.
    refresh: compile although the result is known.
    tick: is called with (what is being done, seconds since the start) while it goes on.
    effort: 'full' is what a run on the slice compiles with. 'quick' takes a tenth of the time;
      its instructions are placed with less care, so that temporaries come out larger.
  Raises:
    UserError: for settings that cannot be, and where the compiler dies.
  """
  path = remembered(config, name, effort)
  if not refresh:
    with contextlib.suppress(OSError, ValueError):
      return {**json.loads(path.read_text('utf-8')), 'cached': True}
  try:
    surroundings = topology.surroundings() | {topology.EFFORT: EFFORTS[effort]}
    found = child.run(compile_step, (dict(config), name), surroundings, tick)
  except child.Died as death:
    raise UserError(epitaph(death)) from death
  found['effort'] = effort
  with contextlib.suppress(OSError):  # a home that cannot be written costs time, no more
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, found)
  return {**found, 'cached': False}


def remembered(config: Config, name: str, effort: str = 'quick') -> Path:
  """Where findings are kept: by settings, topology, effort, versions and our own source."""
  what = {group: config.get(group) for group in GROUPS}
  what['batch'] = repr(systems.get(config['system']).data.shapes(**config['data']))
  what['steps'] = config['steps'] if config['optimizer'].get('schedule') == 'cosine' else None
  fact = json.dumps([name, what, effort, topology.versions(), source_digest()], sort_keys=True)
  return caches.folder('plans', hashlib.sha256(fact.encode()).hexdigest()[:32] + '.json')


def source_digest() -> str:
  """Of every file of this package: another source, another step."""
  here = Path(__file__).parent.parent
  files = sorted(here.rglob('*.py'))
  parts = [f'{path.relative_to(here)}\n'.encode() + path.read_bytes() for path in files]
  return hashlib.sha256(b'\0'.join(parts)).hexdigest()


def compile_step(config: Config, name: str, say: Callable[[str], None]) -> Findings:
  """Lay out, trace and compile the step; what the compiler says of it, for one device.

  Returns:
    fits; mesh; flops: of the whole step, the model's, and of one device with what it computes
    again; seconds of tracing and compiling; then, if it fits: memory (bytes), collectives ({kind:
    (number, bytes)}), traffic (bytes through memory), else needs and available (bytes or None).
  """
  where = topology.parse(name)
  check(config)
  say('tracing')
  start = time.perf_counter()
  with settings.mendable(config):
    program = lay_out(config, topology.devices(where))
    batch = batch_shapes(config, program.mesh)
    model = program.flops(batch)
    with kernels.traced_for(kernels.Device('tpu')):
      traced = program.step.trace(program.now, program.frozen, batch)
    work = dict(model=model, executed=flops.count(traced.jaxpr.jaxpr))
  found: Findings = dict(mesh=dict(program.mesh.shape), flops=work)
  lowered = traced.lower()
  traced_at = time.perf_counter()
  say('compiling')
  try:
    step = lowered.compile()
    found |= dict(fits=True, **examined(step))
  except jax.errors.JaxRuntimeError as error:
    numbers = topology.out_of_memory(error)
    if numbers is None:
      raise
    found |= dict(fits=False, needs=numbers[0], available=numbers[1])
  return found | dict(
    seconds=dict(trace=traced_at - start, compile=time.perf_counter() - traced_at)
  )


def check(config: Config) -> None:
  """UserError for a system that there is not, and for keys that no argument answers to."""
  settings.check(config['model'], systems.get(config['system']).build, 'config.model')
  settings.check(config['mesh'], sharding.make_mesh, 'config.mesh')


def lay_out(config: Config, devices) -> Program:
  """The program that `train` would make of these settings on these devices."""
  return make_program(
    systems.get(config['system']),
    config['model'],
    config['optimizer'],
    config['ema'],
    config['mesh'],
    config['trainable'],
    config['batch_size'],
    config['accumulate'],
    config['seed'],
    config['steps'],
    devices,
  )


def batch_shapes(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """The batch as `input_pipeline.loader.batches` gives it, without data."""
  shapes = systems.get(config['system']).data.shapes(**config['data'])
  over = sharding.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((config['batch_size'], *shape), dtype, sharding=over)
    for name, (shape, dtype) in shapes.items()
  }


def examined(step: jax.stages.Compiled) -> Findings:
  """What there is to read in a compiled step, for one device."""
  stats, text = step.memory_analysis(), step.as_text()
  assert stats is not None and text is not None
  memory = {name: getattr(stats, f'{name}_size_in_bytes') for name in MEMORY}
  own = memory['output'] - memory['alias']  # the new state lies where the old one was
  memory['peak'] = memory['argument'] + own + memory['temp'] + memory['generated_code']
  return dict(memory=memory, collectives=collectives.count(text), traffic=traffic.count(text))


def epitaph(death: child.Died) -> str:
  """One line for a compiler that took its process with it: libtpu's own faults end so."""
  if death.status < 0:
    symbol = re.search(r'@ .*?(xla::[\w:]+)\(', death.noise)
    where = f' in {symbol[1]}' if symbol else ''
    short = ' (was it short of memory?)' if -death.status == signal.SIGKILL else ''
    return f'the TPU compiler died of {signal.Signals(-death.status).name}{where}{short}: {REMEDY}'
  last = death.noise.strip().splitlines()[-1:] or ['it said nothing']
  return f'the TPU compiler ended with status {death.status}: {last[0][:200]}; {REMEDY}'
