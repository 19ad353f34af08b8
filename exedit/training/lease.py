"""One run at a time in a place of an object store, which knows no locks: a lease."""

import json
import time
import uuid
from collections.abc import Callable

from exedit.runtime import lock, remote
from exedit.runtime.errors import UserError

NAME = 'lease'
RENEW = 10.0  # seconds; who has not renewed for three times as long is gone


class Lease:
  """Holds `<workdir>/lease` as long as somebody calls `renew` every RENEW seconds.

  No clock is compared with another: whoever finds a lease waits whether it changes. Of two that
  find none at the same time one can create it.
  """

  def __init__(self, workdir: str):
    self._path = f'{workdir}/{NAME}'
    self._workdir = workdir
    self.token = uuid.uuid4().hex
    self._renewed, self._here = 0, lock.here()

  def take(self, say: Callable[[str], None] = print) -> None:
    """Hold the place.

    Raises:
      UserError: while another run renews its own lease of it.
      OSError: for a store that cannot be read or written.
    """
    found = self._read()
    if found is not None:
      who = lock.holder(found)
      say(f'{self._workdir} is held ({who}): waiting {3 * RENEW:.0f} s for a sign of it')
      until = time.monotonic() + 3 * RENEW
      while (now := self._read()) == found and time.monotonic() < until:
        time.sleep(RENEW / 5)
      if now not in (None, found):
        raise lock.taken(self._workdir, now)
      if now is not None:
        remote.remove(self._path)
    try:
      remote.write(self._path, self._text(), new=True)
    except FileExistsError:
      found = self._read() or b''
      if found != self._text():  # else it was this one's, asked for twice
        raise lock.taken(self._workdir, found) from None

  def renew(self) -> None:
    """Say that this run is still there.

    Raises:
      UserError: where another run has taken the place meanwhile: this one must end.
      OSError: for a store that cannot be reached.
    """
    found = self._read()
    if found is not None and not self._own(found):
      raise UserError(
        f'another run has taken {self._workdir} ({lock.holder(found)}), for this one gave no sign '
        f'for {3 * RENEW:.0f} s: this one ends'
      )
    self._renewed += 1
    remote.write(self._path, self._text())

  def release(self) -> None:
    """Let go of the place, if it is still this run's."""
    found = self._read()
    if found is not None and self._own(found):
      remote.remove(self._path)

  def _text(self) -> bytes:
    return json.dumps(dict(self._here, token=self.token, renewed=self._renewed)).encode()

  def _own(self, text: bytes) -> bool:
    return self.token.encode() in text

  def _read(self) -> bytes | None:
    try:
      return remote.read(self._path)
    except FileNotFoundError:
      return None
