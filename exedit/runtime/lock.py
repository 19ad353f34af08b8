"""One run at a time in a workdir: a lock that goes with the process that holds it."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from exedit.runtime.errors import UserError

NAME = 'lock'
_held: dict[str, int] = {}  # the folders that this process holds, and the open file of each


def take(workdir: str | os.PathLike, say: Callable[[str], None] = print) -> None:
  """Hold the workdir until `release` or the end of this process, however it ends.

  It is flock on `<workdir>/lock`, which the kernel undoes with the process, SIGKILL included. The
  file stays: if it were removed, two runs could each hold one of that name. A process that has the
  folder may take it again. Where a file system knows no locks that is said, and nothing held.

  Raises:
    UserError: while another process holds it; names host, process and time.
  """
  folder = os.path.realpath(workdir)
  if folder in _held:
    return
  file = os.open(os.path.join(folder, NAME), os.O_RDWR | os.O_CREAT, 0o644)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    text = os.pread(file, 4096, 0)
    os.close(file)
    raise taken(workdir, text) from None
  except OSError as error:  # no locks on this file system
    os.close(file)
    say(f'{workdir} cannot be locked ({error.strerror}): see to it that no other run goes there')
    return
  os.ftruncate(file, 0)
  os.pwrite(file, json.dumps(here()).encode() + b'\n', 0)
  _held[folder] = file


def release(workdir: str | os.PathLike) -> None:
  """Let go of the workdir, where it is held."""
  file = _held.pop(os.path.realpath(workdir), None)
  if file is not None:
    os.close(file)


def here() -> dict[str, Any]:
  """What a lock says of the process that holds it."""
  return dict(host=socket.gethostname(), pid=os.getpid(), since=time.strftime('%F %T %z'))


def taken(workdir: str | os.PathLike, text: bytes) -> UserError:
  """The refusal of a workdir whose lock says this."""
  return UserError(
    f'another run is at work in {workdir} ({holder(text)}): wait for its end, stop it, or choose '
    'another workdir'
  )


def holder(text: bytes) -> str:
  """Who wrote a lock, in words."""
  try:
    found = json.loads(text)
    return f'process {found["pid"]} on {found["host"]}, since {found["since"]}'
  except (ValueError, KeyError, TypeError):  # it has the lock, but has not yet said its name
    return 'it has just started'
