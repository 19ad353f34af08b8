"""One run at a time in a place of an object store, which knows no locks: a lease."""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

from exedit.errors import UserError
from input_pipeline import remote

NAME = 'lease'
RENEW = 10.0  # seconds; who has not renewed for three times as long is gone


class Lease:
  """Holds `<workdir>/lease` as long as somebody calls `renew` every RENEW seconds.

  No clock is compared with another: whoever finds a lease waits whether it changes.
  """

  def __init__(self, workdir: str):
    self._path = f'{workdir}/{NAME}'
    self._workdir = workdir
    here = dict(host=socket.gethostname(), pid=os.getpid(), since=time.strftime('%F %T %z'))
    self._mine: dict[str, Any] = dict(here, token=uuid.uuid4().hex, renewed=0)

  def take(self, say: Callable[[str], None] = print) -> None:
    """Hold the place.

    Raises:
      UserError: while another run renews its own lease of it.
      OSError: for a store that cannot be read or written.
    """
    found = self._read()
    if found is not None:
      say(
        f'{self._workdir} is held by {_holder(found)}: waiting {3 * RENEW:.0f} s for a sign of it'
      )
      until = time.monotonic() + 3 * RENEW
      while time.monotonic() < until:
        time.sleep(RENEW / 5)
        now = self._read()
        if now is None:
          break
        if now != found:
          raise UserError(
            f'another run is at work in {self._workdir} ({_holder(now)}): wait for its end, stop '
            'it, or choose another workdir'
          )
    self._write()

  def renew(self) -> None:
    """Say that this run is still there.

    Raises:
      UserError: where another run has taken the place meanwhile: this one must end.
    """
    found = self._read()
    if found is not None and found.get('token') != self._mine['token']:
      raise UserError(
        f'another run has taken {self._workdir} ({_holder(found)}), for this one gave no sign for '
        f'{3 * RENEW:.0f} s or both began at once: this one ends'
      )
    self._mine['renewed'] += 1
    self._write()

  def release(self) -> None:
    """Let go of the place, if it is still this run's."""
    found = self._read()
    if found is not None and found.get('token') == self._mine['token']:
      remote.remove(self._path)

  def _write(self) -> None:
    remote.write(self._path, json.dumps(self._mine).encode())

  def _read(self) -> dict[str, Any] | None:
    try:
      found = json.loads(remote.read(self._path))
      return found if isinstance(found, dict) else {}
    except FileNotFoundError:
      return None
    except ValueError:
      return {}


def _holder(found: dict[str, Any]) -> str:
  return f'process {found.get("pid")} on {found.get("host")}, since {found.get("since")}'
