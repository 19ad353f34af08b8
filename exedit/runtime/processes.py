"""The processes of one run: how they join, talk to each other, and end together."""

import contextlib
import importlib.util
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from exedit.runtime.errors import UserError, explain, one_line
from exedit.runtime.place import find_place, wait_seconds
from exedit.runtime.settings import differences

LONGEST_WAIT = 14 * 24 * 3600  # seconds that a process waits for the others' shares
_barriers = itertools.count()


def join_processes(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  join_timeout: float | None = None,
  heartbeat: float | None = None,
) -> None:
  """Connects this process with the others of its run, if there are others.

  The place of this process comes from, in this order: the arguments, JAX's environment variables,
  Slurm's (see `find_place`), a TPU machine's metadata, Open MPI's variables.

  A lone process does not start JAX's distributed service, because the service would end the process
  by SIGABRT, without a checkpoint, when the clock jumps or the machine sleeps for longer than the
  heartbeat.

  Raises:
    UserError: if the place is incomplete, or JAX cannot join the processes. If the others do not
      come within `join_timeout` seconds, the process prints a line and ends with status 2.
  """
  timeout = wait_seconds(join_timeout, 'EXEDIT_JOIN_TIMEOUT', 300.0)
  beat = int(wait_seconds(heartbeat, 'EXEDIT_HEARTBEAT', 100.0))
  how: dict[str, Any] = dict(
    initialization_timeout=int(timeout) + 60,  # JAX would print a stack trace; _watch ends earlier
    heartbeat_timeout_seconds=beat,
    shutdown_timeout_seconds=beat,
  )
  place = find_place(os.environ, coordinator, num_processes, process_id)
  if place is not None:
    with _watch(timeout, f'at {place.address}'):
      jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method='deactivate',  # it would give each Slurm task only one device
        **how,
      )
  elif _tpu_machine() or int(os.environ.get('OMPI_COMM_WORLD_SIZE') or 1) > 1:
    with _watch(timeout, 'of this TPU slice or MPI job'):
      jax.distributed.initialize(**how)


@contextlib.contextmanager
def _watch(timeout: float, where: str) -> Iterator[None]:
  """Ends the process with one line if the block takes longer than `timeout` seconds."""

  def give_up():
    print(
      f'error: the processes {where} have not all come within {timeout:g} s: check --coordinator,'
      ' --num_processes and the --process_id of each, find out which did not start, or wait'
      ' longer with --join_timeout',
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
  """A failure of one or several processes, raised in all of them."""


def everyone(said: str) -> list[str]:
  """Sends a text to all processes and returns the texts of all, in the order of the processes.

  It is a collective: every process must call it at the same point.
  """
  if jax.process_count() == 1:
    return [said]
  from jax.experimental import multihost_utils

  mine = np.frombuffer(said.encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int32(mine.size)))
  lines = multihost_utils.process_allgather(np.pad(mine, (0, sizes.max() - mine.size)))
  return [bytes(line[:size]).decode() for line, size in zip(np.asarray(lines), sizes)]


def must_agree(facts: Mapping[str, Any]) -> None:
  """Compares facts of all processes, such as settings and versions; it is a collective.

  Raises:
    TheOthers: in every process, if they differ; names the differences.
  """
  said = everyone(json.dumps([socket.gethostname(), facts]))
  (host, first), *others = map(json.loads, said)
  for index, (other, theirs) in enumerate(others, 1):
    changed = differences(first, theirs)
    if changed:
      raise TheOthers(
        f'process {index} on {other} differs from process 0 on {host}, all must be the same: '
        + ', '.join(changed[:5])
      )


@contextlib.contextmanager
def together(patient: bool = False) -> Iterator[None]:
  """Around work that each process does by itself: a failure of one is raised in all of them.

  Otherwise the others would wait for it in the next collective. The block itself must not contain
  a collective. patient: the processes may need very different times (`wait_for_others`).

  Raises:
    TheOthers: with the line of each process that failed.
  """
  failed, words = None, ''
  try:
    yield
  except Exception as error:
    if jax.process_count() == 1:
      raise
    failed, words = error, explain(error) or f'{type(error).__name__}: {one_line(error)}'
    if explain(error) is None:
      traceback.print_exception(error)
  if patient:
    wait_for_others('together')
  mine = [socket.gethostname(), words, getattr(failed, 'status', 2)]
  said = [json.loads(line) for line in everyone(json.dumps(mine))]
  wrong = [f'process {i} on {host}: {line}' for i, (host, line, _) in enumerate(said) if line]
  if wrong:
    alike = all(line == words for _, line, _ in said)
    error = TheOthers(words if alike else '; '.join(wrong))
    error.status = max(status for _, line, status in said if line)
    raise error from failed


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Around a run of several processes: one that fails prints its line and ends at once.

  At an ordinary exit JAX would wait for the other processes, which wait for this one in a
  collective; so the others notice it like a killed process. A process that lost a peer ends with
  status 1 and not 2, because the same command can be started again.
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
      time.sleep(2)  # JAX's service ends with this process; others may still have to print a line
    os._exit(status)


def _lost(error: BaseException) -> bool:
  """Whether a collective failed because a peer is gone, by the words of Gloo and JAX's service."""
  text = str(error)
  words = ('Connection closed by peer', 'Connection reset by peer', 'Gloo', 'unhealthy')
  return isinstance(error, jax.errors.JaxRuntimeError) and any(word in text for word in words)


def own_share(items: Sequence[Any]) -> list[Any]:
  """This process's share of the items: every n-th one for n processes."""
  return list(items[jax.process_index() :: jax.process_count()])


def wait_for_others(name: str) -> None:
  """Waits until every process has reached this point, because the first to exit ends the others.

  The processes may arrive days apart: JAX's coordination service keeps the barrier. (A collective
  of JAX waits for less than a minute on CPUs.) A process that was killed ends the wait by an error.
  """
  if jax.process_count() > 1:
    from orbax.checkpoint import multihost

    key = f'exedit/{name}/{next(_barriers)}'  # every process counts the same barriers
    multihost.get_barrier_sync_fn()(key=key, timeout_ms=LONGEST_WAIT * 1000)


def _tpu_machine() -> bool:
  chips = os.path.exists('/dev/accel0') or os.path.exists('/dev/vfio/0')
  asked = os.environ.get('JAX_PLATFORMS', 'tpu').split(',')
  return chips and 'tpu' in asked and importlib.util.find_spec('libtpu') is not None
