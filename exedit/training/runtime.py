"""What surrounds the step: processes, the signal to stop, the compile cache, versions."""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from exedit import __version__

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'pillow',
  'ml_collections',
)

CPU_OPTIONS: dict[str, Any] = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'}


def join_processes() -> None:
  """Connect this process with its peers where it was started as one of several.

  By hand (Kubernetes too): JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Slurm,
  MPI and TPU machines are asked by JAX itself. A lone process stays alone: all that
  jax.distributed would give it is the preemption service, and `Stop` does that with a flag.
  """
  env = os.environ
  if int(env.get('JAX_NUM_PROCESSES') or 1) > 1:
    address, index = env['JAX_COORDINATOR_ADDRESS'], int(env['JAX_PROCESS_ID'])
    jax.distributed.initialize(address, int(env['JAX_NUM_PROCESSES']), index)
  elif _tpu_machine() or any(
    int(env.get(name) or 1) > 1 for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
  ):
    jax.distributed.initialize()


def own_share(items: Sequence[Any]) -> list[Any]:
  """The items that are this process's: every n-th of n processes."""
  return list(items[jax.process_index() :: jax.process_count()])


def wait_for_others(name: str) -> None:
  """Until every process is at this place; the first to leave would take the others with it."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _tpu_machine() -> bool:
  chips = os.path.exists('/dev/accel0') or os.path.exists('/dev/vfio/0')
  asked = os.environ.get('JAX_PLATFORMS', 'tpu').split(',')
  return chips and 'tpu' in asked and importlib.util.find_spec('libtpu') is not None


class Stop:
  """Turns SIGTERM and Ctrl-C into a question that the loop asks between two steps.

  With several processes they must agree on the step to stop at, which JAX's preemption service
  arranges; a process alone needs only a flag. A second Ctrl-C interrupts at once.
  """

  def __enter__(self):
    self._asked = False
    self._before = {}
    if jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    self._asked = True
    signal.signal(signal.SIGINT, self._before[signal.SIGINT])

  def requested(self, step: int) -> bool:
    """Whether to save and leave after this step; every process asks once per step."""
    if jax.process_count() == 1:
      return self._asked
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def cache_compiled(folder: str | None = None) -> None:
  """Keep compiled programs on the disk, so that a restarted run starts at once.

  JAX's own JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE=false, goes first. The
  default folder names jax and the processor: XLA's CPU programs hold for one kind only, and home
  folders are shared between machines. A folder that cannot be written is left alone.
  """
  allowed = getattr(jax.config, 'jax_enable_compilation_cache', True)
  if os.environ.get('JAX_COMPILATION_CACHE_DIR') or not allowed:
    return
  base = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = folder or os.path.join(base, 'exedit', f'jax-{jax.__version__}-{_processor()}')
  with contextlib.suppress(OSError):
    os.makedirs(folder, exist_ok=True)
  if os.access(folder, os.W_OK):
    jax.config.update('jax_compilation_cache_dir', folder)


@functools.cache
def compiler_options(platform: str) -> dict[str, Any]:
  """`compiler_options` for a jit at top level: what XLA should do otherwise on this platform.

  On CPUs it gives products and convolutions to YNNPACK since jaxlib 0.10. Eigen, which it used
  before and takes where YNNPACK may only reduce, needs 0.5 to 0.9 of the time for the UNet's
  (benchmarks/sampling.py). A jaxlib that does not know the option is left alone.
  """
  if platform != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return CPU_OPTIONS


def _processor() -> str:
  text = platform.machine() + platform.processor()
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    text += next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  except OSError:
    pass
  return f'{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def versions() -> dict[str, object]:
  """What this run stands on: packages, devices, flags and the commit, where they are known."""
  found: dict[str, object] = dict(
    exedit=__version__, python=platform.python_version(), command=' '.join(sys.argv)
  )
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  device = jax.devices()[0]
  found |= dict(
    device=device.device_kind,
    platform=device.platform,
    processor=f'{_processor()} x{os.cpu_count()}' if device.platform == 'cpu' else None,
    devices=jax.device_count(),
    processes=jax.process_count(),
    xla_flags=os.environ.get('XLA_FLAGS', ''),
    **_commit(),
  )
  return found


def _commit() -> dict[str, object]:
  """The commit of the checkout that this code runs from, and whether it was changed since."""

  def git(*args):
    folder = str(Path(__file__).parent)
    return subprocess.run(
      ('git', '-C', folder, *args), capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()

  try:
    commit = git('rev-parse', 'HEAD')
    return dict(commit=commit, changed=bool(git('status', '--porcelain', '--untracked-files=no')))
  except (OSError, subprocess.SubprocessError):
    return dict(commit=None, changed=None)
