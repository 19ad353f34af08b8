"""What surrounds the step: processes, the signal to stop, the compile cache, versions."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from exedit import __version__, caches
from exedit.errors import UserError, explain, one_line
from exedit.training import rendezvous

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

CPU_OPTIONS: dict[str, Any] = {
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
  'xla_cpu_prefer_vector_width': '512',
}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """The flags that say which of several processes this one is; environments that know need none."""
  flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0', values)
  flags.DEFINE_integer('num_processes', None, 'of this run together', 1, flag_values=values)
  flags.DEFINE_integer('process_id', None, 'which of them this is, from 0', 0, flag_values=values)
  how = 'seconds to wait for the others at the start (300; or EXEDIT_JOIN_TIMEOUT)'
  flags.DEFINE_float('join_timeout', None, how, flag_values=values)
  how = 'seconds without a sign of life until a process counts as lost (100; or EXEDIT_HEARTBEAT)'
  flags.DEFINE_float('heartbeat', None, how, flag_values=values)


def place_flags(values: flags.FlagValues) -> dict[str, Any]:
  """The arguments of `join_processes` that stand in the flags."""
  return {name: values[name].value for name in inspect.signature(join_processes).parameters}


def join_processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  join_timeout: float | None = None,
  heartbeat: float | None = None,
) -> None:
  """Connect this process with its peers where it was started as one of several.

  Which one it is say the arguments, JAX's variables (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES,
  JAX_PROCESS_ID; Kubernetes too), Slurm's, a TPU machine's metadata or Open MPI, in this order.

  A lone process stays alone unless the arguments say otherwise. It was tried the other way: JAX's
  service then ends it by SIGABRT, with no checkpoint, when the clock jumps or the machine sleeps
  for longer than the heartbeat (a laptop's lid, Ctrl-Z), and it opens a port; all that it would
  give is the preemption service, and `Stop` answers SIGTERM with a flag.

  Raises:
    UserError: where the others do not come, in all that did, within `join_timeout` seconds.
  """
  timeout = rendezvous.wait_seconds(join_timeout, 'EXEDIT_JOIN_TIMEOUT', 300.0)
  beat = int(rendezvous.wait_seconds(heartbeat, 'EXEDIT_HEARTBEAT', 100.0))
  # Later than the watch below, which ends the waiting in words. Whoever leaves alone waits for the
  # others at the exit, and they for it: no longer than a heartbeat.
  how: dict[str, Any] = dict(
    initialization_timeout=int(timeout) + 60,
    heartbeat_timeout_seconds=beat,
    shutdown_timeout_seconds=beat,
  )
  place = rendezvous.find_place(os.environ, coordinator, num_processes, process_id)
  if place is not None:
    rendezvous.call_roll(place, timeout)
    with _watch(timeout, f'at {place.address}'):
      jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method='deactivate',  # JAX's would show each Slurm task one device only
        **how,
      )
  elif _tpu_machine() or int(os.environ.get('OMPI_COMM_WORLD_SIZE') or 1) > 1:
    with _watch(timeout, 'of this TPU slice or MPI job'):
      jax.distributed.initialize(**how)


@contextlib.contextmanager
def _watch(timeout: float, where: str):
  """End the process in words where JAX waits too long; it would end it with a stack trace."""

  def give_up():
    print(
      f'error: the processes {where} have not all come within {timeout:g} s: look at why they '
      'did not start, or wait longer with --join_timeout',
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)

  timer = threading.Timer(timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    yield
  except RuntimeError as error:
    raise UserError(f'the processes {where} cannot be joined: {one_line(error)}') from error
  finally:
    timer.cancel()


class TheOthers(UserError):
  """What one or several processes could not do, raised by all of them."""


def everyone(said: str) -> list[str]:
  """What each process says, in their order; all must ask at the same place."""
  if jax.process_count() == 1:
    return [said]
  from jax.experimental import multihost_utils

  mine = np.frombuffer(said.encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(mine.size)))
  lines = multihost_utils.process_allgather(np.pad(mine, (0, sizes.max() - mine.size)))
  return [bytes(line[:size]).decode() for line, size in zip(np.asarray(lines), sizes)]


@contextlib.contextmanager
def together():
  """Around what every process does for itself: what one cannot do ends all of them, in words.

  Else the others would wait for it in the next collective. Nothing inside may be a collective.
  """
  failed, words = None, ''
  try:
    yield
  except Exception as error:
    if jax.process_count() == 1:
      raise
    failed, words = error, explain(error) or f'{type(error).__name__}: {one_line(error)}'
  mine = [socket.gethostname(), words, getattr(failed, 'status', 2)]
  said = [json.loads(line) for line in everyone(json.dumps(mine))]
  wrong = [f'process {i} on {host}: {line}' for i, (host, line, _) in enumerate(said) if line]
  if wrong:
    alike = all(line == words for _, line, _ in said)
    all_of_them = TheOthers(words if alike else '; '.join(wrong))
    all_of_them.status = max(status for _, line, status in said if line)
    raise all_of_them from failed


@contextlib.contextmanager
def ending_together():
  """Around a run: where this process alone of several fails, it says its line and ends at once.

  At an ordinary exit JAX would wait for the others, which wait for this one in a collective; so
  they learn of it as of one that was killed. A lost peer is no fault of the person at the door:
  the exit status is 1, not 2, and whatever started the processes may start them again.
  """
  try:
    yield
  except Exception as error:
    if jax.process_count() == 1 or isinstance(error, TheOthers):
      raise
    words, status = explain(error), getattr(error, 'status', 2)
    if _lost(error):
      words, status = 'another process is gone: the same command, everywhere, goes on', 1
    elif words is None:
      traceback.print_exception(error)
      words, status = one_line(error), 1
    print(f'error: {words}', file=sys.stderr, flush=True)
    sys.stdout.flush()
    if jax.process_index() == 0:
      time.sleep(2)  # JAX's service goes with this process; the others may have the same to say
    os._exit(status)


def _lost(error: BaseException) -> bool:
  """Whether a collective failed because a peer has gone: words of gloo and of JAX's service."""
  text = str(error)
  words = ('Connection closed by peer', 'Connection reset by peer', 'Gloo', 'unhealthy')
  return isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in words)


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


class Stopped(KeyboardInterrupt):
  """SIGTERM or Ctrl-C, where there was nothing to save.

  A KeyboardInterrupt, for asyncio (Orbax runs its loops here) reports any other exception that a
  signal raises in its callbacks and goes on.
  """

  def __init__(self, number: int):
    name = 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name
    super().__init__(f'stopped by {name}: the same command goes on from where the run last saved')
    self.number = number


class Stop:
  """Turns SIGTERM and Ctrl-C into a question that the loop asks between two steps.

  With several processes they must agree on the step to stop at, which JAX's preemption service
  arranges; a process alone needs only a flag. A second Ctrl-C interrupts at once.

  at_once: around a whole door, before and after the loop. There nothing has to be saved: a signal
  raises Stopped as soon as Python has control, which is not before a compilation ends. When
  several processes have been joined, SIGTERM is the preemption service's. A Stop inside another
  takes over from it, and behind the outermost SIGTERM is too late: the process is leaving anyway.
  """

  def __init__(self, at_once: bool = False):
    self._at_once, self._before = at_once, {}
    self._number: int | None = None  # of the signal that asked last
    self._hook = sys.unraisablehook

  def __enter__(self):
    if self._at_once or jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._ask)
      # One that was raised where Python only prints it (a finalizer) is answered here.
      outer = getattr(self._before[signal.SIGTERM], '__self__', None)
      if isinstance(outer, Stop):
        self._number = self._number or outer._number
    if self._at_once:
      sys.unraisablehook = self._unheard
    return self

  def __exit__(self, kind, error, _):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if self._at_once:
      sys.unraisablehook = self._hook
      # Not a function: as it leaves, Python gives those back to the system, which kills.
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
      if self._number and isinstance(error, ValueError):
        raise Stopped(self._number) from error  # raised where C++ had asked Python: errors.heard

  def _unheard(self, what):
    """A signal that came while Python ran a finalizer, where nothing can be raised: once more."""
    if not isinstance(what.exc_value, Stopped):
      self._hook(what)
      return
    again = threading.Timer(0.05, self._again, (what.exc_value.number,))
    again.daemon = True
    again.start()

  def _again(self, number):
    if signal.getsignal(number) == self._ask:  # neither over nor taken over
      os.kill(os.getpid(), number)

  def _ask(self, number, frame):
    self._number = number
    if self._at_once:
      raise Stopped(number)
    signal.signal(signal.SIGINT, self._before[signal.SIGINT])

  def requested(self, step: int) -> bool:
    """Whether to save and leave after this step; every process asks once per step."""
    if jax.process_count() == 1:
      return self._number is not None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def held():
  """Signals wait until this is over: what they raise, Orbax takes for a failure of its own.

  SIGTERM of several processes is the preemption service's, which Python knows nothing of; a handler
  set here would take its place for good.
  """
  came: list[int] = []
  handlers = {}
  if threading.current_thread() is threading.main_thread():
    ours = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else (signal.SIGINT,)
    asked = {number: signal.getsignal(number) for number in ours}
    handlers = {number: handler for number, handler in asked.items() if handler is not None}
  for number in handlers:
    signal.signal(number, lambda number, frame: came.append(number))
  try:
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    for number in came:
      os.kill(os.getpid(), number)


def process_began() -> float:
  """When this process began, imports included, on the clock of time.perf_counter.

  Where the system does not tell, it is now.
  """
  try:
    ticks = int(Path('/proc/self/stat').read_text().rsplit(')', 1)[1].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, IndexError, AttributeError):
    age = 0.0
  return time.perf_counter() - age


def cache_compiled(folder: str | None = None) -> None:
  """Keep compiled programs on the disk, so that a restarted run starts at once.

  JAX's own JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE=false, goes first. The
  default folder names jax and the processor: XLA's CPU programs hold for one kind only, and home
  folders are shared between machines. A folder that cannot be written is left alone.
  """
  allowed = getattr(jax.config, 'jax_enable_compilation_cache', True)
  if os.environ.get('JAX_COMPILATION_CACHE_DIR') or not allowed:
    return
  folder = folder or str(caches.folder(f'jax-{jax.__version__}-{_processor()}'))
  with contextlib.suppress(OSError):
    os.makedirs(folder, exist_ok=True)
  if os.access(folder, os.W_OK):
    jax.config.update('jax_compilation_cache_dir', folder)


def keep_memory() -> None:
  """Where a CPU computes, let the next step have the memory that the last one gave back.

  XLA asks for a program's temporaries anew at every call. glibc gives as much back to the system
  at once, and takes it again page by page, zeroed: hundreds of megabytes a step. Up to 2 GiB now
  stay with the process. Other threads' heaps are too small for that, so the thread that calls runs
  programs of one device itself, which is settled before JAX has looked for devices.
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  if jax.default_backend() == 'cpu' and platform.libc_ver()[0] == 'glibc':
    libc = ctypes.CDLL(None)
    # Old ones refuse so much; then the other threshold alone would make it worse.
    if libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
      libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def compiler_options(platform: str) -> dict[str, Any]:
  """`compiler_options` for a jit at top level: what XLA should do otherwise on this platform.

  On CPUs it gives products and convolutions to YNNPACK since jaxlib 0.10. Eigen, which it used
  before and takes where YNNPACK may only reduce, needs 0.5 to 0.9 of the time for the UNet's
  (benchmarks/sampling.py). Loops use all of AVX-512's registers where the processor has them;
  LLVM takes half of them by itself. A jaxlib that does not know them all is left alone.
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
    python=platform.python_version(), command=' '.join(sys.argv), **versions_of_packages()
  )
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


def versions_of_packages() -> dict[str, str | None]:
  """exedit and what it stands on; None for what is not installed."""
  found: dict[str, str | None] = dict(exedit=__version__)
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
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
