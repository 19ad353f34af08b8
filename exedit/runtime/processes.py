"""The processes of one run: how they find each other, wait for each other and end together."""

import contextlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from exedit.runtime import rendezvous
from exedit.runtime.errors import UserError, explain, one_line


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
