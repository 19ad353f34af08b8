"""Where a run's files go: a folder, or a place in Google's object store (gs://bucket/run).

Checkpoints and frozen parameters go there directly. A store knows no append, so the small files
that grow (metrics, goodput, TensorBoard's) and those beside them lie in a folder of the user's
cache that is copied there.
"""

import contextlib
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from exedit.input_pipeline.errors import DataError
from exedit.runtime import caches, files, lock, remote
from exedit.runtime.errors import Passing, UserError, one_line
from exedit.training import lease

EVERY = 60.0  # seconds between copies of what has changed
PULLED = ('metrics.jsonl', 'goodput.jsonl', 'config.json')  # what a later start reads and goes on


def path_of(workdir: str | os.PathLike) -> epath.Path:
  """The workdir as a path; in a store by requests that are never answered from memory."""
  name = os.fspath(workdir)
  if not remote.is_remote(name):
    return epath.Path(Path(name).absolute())  # not abspath: `..` after a link is the link's
  if not name.startswith('gs://'):
    raise UserError(
      f'{name} cannot be a workdir: checkpoints go to folders and gs://; name one of these'
    )
  try:
    remote.store(name)
  except DataError as error:
    raise UserError(str(error)) from error
  from fsspec import config

  # Other processes write there as well, and TensorStore does without gcsfs' knowledge.
  config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  return epath.Path(name.rstrip('/'))


def trouble(workdir: str | os.PathLike, error: BaseException) -> UserError:
  """What a store raised, in words: final where it said no, Passing where it could not be asked."""
  name, words = os.fspath(workdir), (getattr(error, 'strerror', None) or one_line(error))[:200]
  if remote.refused(error):
    return UserError(
      f'the workdir {name} cannot be used ({words}): check its name and your rights there, or '
      'choose another'
    )
  return Passing(f'the workdir {name} cannot be reached ({words}): the same command goes on')


def quiet_stores() -> None:
  """What becomes of requests that nobody waits for any more, after one has failed, is no news.

  Orbax leaves its event loop then, and TensorStore's other requests tell one that is closed. For
  the door, before anything else puts its own hook behind this one.
  """
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  before = sys.unraisablehook

  def unheard(what: Any) -> None:
    if str(what.exc_value) != 'Event loop is closed':
      before(what)

  sys.unraisablehook = unheard


class Workdir:
  """A workdir on a disk: everything is where it belongs as soon as it is written.

  To be used in a `with`, at whose end it is let go. files: the local folder for all but checkpoints
  and frozen parameters.
  """

  def __init__(self, workdir: str, process: int):
    self.files = workdir
    probe = Path(workdir) / f'probe.{process}.{os.getpid()}.tmp'
    try:
      os.makedirs(workdir, exist_ok=True)
      probe.touch()
      probe.unlink()
      if process == 0:
        lock.take(workdir)
        for folder in (workdir, os.path.join(workdir, 'samples')):
          files.sweep(folder, alone=True)
    except OSError as error:
      raise UserError(
        f'cannot write to the workdir {workdir} ({error.strerror}): choose another'
      ) from error

  def check(self) -> None:
    """UserError where the workdir is no longer this run's."""

  def push(self) -> None:
    """Return when what was written to `files` so far is where it belongs."""

  def close(self) -> None:
    """The same, and let go of the workdir."""
    lock.release(self.files)

  def __enter__(self) -> 'Workdir':
    return self

  def __exit__(self, kind, error, trace) -> None:
    try:
      self.close()
    except Exception as other:
      if error is None:
        raise
      print(f'and {one_line(other)}', file=sys.stderr)  # what came first is what is to be said


class _Mirror(Workdir):
  """A workdir in a store. What a kill loses of the small files the next start writes again.

  For all of them are pushed before each checkpoint. Of process 0 one thread renews the lease and
  another sends what has changed every minute. A place that was lost is noticed by `check`; a store
  that cannot be reached by them is left for `push` to say.
  """

  def __init__(self, workdir: str, process: int, say: Callable[[str], None]):
    self._workdir = workdir
    self._pushed: dict[str, tuple[int, int]] = {}
    self._busy, self._ended = threading.Lock(), threading.Event()
    self._lost: UserError | None = None
    self._closed = False
    self._lease = lease.Lease(workdir)
    self._leads = process == 0
    home = caches.folder_of('runs', workdir)
    self.files = str(home / self._lease.token)
    try:
      os.makedirs(os.path.join(self.files, 'tb'))
    except OSError as error:
      raise UserError(
        f'cannot write to {home} ({error.strerror}), where files on their way to {workdir} are '
        'kept: set XDG_CACHE_HOME to another folder'
      ) from error
    if not self._leads:
      return
    try:
      self._lease.take(say)
      for other in home.iterdir():  # of runs that were killed: nobody else holds the place
        if other.name != self._lease.token:
          shutil.rmtree(other, ignore_errors=True)
      self._pull()
    except BaseException as error:
      shutil.rmtree(self.files, ignore_errors=True)
      with contextlib.suppress(OSError):
        self._lease.release()
      if not isinstance(error, (OSError, DataError)):
        raise
      raise trouble(workdir, error) from error
    self._threads = [
      threading.Thread(target=self._every, args=every, daemon=True)
      for every in ((self._renew, lambda: lease.RENEW), (self._push, lambda: EVERY))
    ]
    for thread in self._threads:
      thread.start()

  def check(self) -> None:
    if self._lost is not None:
      raise self._lost

  def push(self) -> None:
    self.check()
    if self._leads:
      try:
        self._push()
      except OSError as error:
        raise trouble(self._workdir, error) from error

  def close(self) -> None:
    if self._closed:
      return
    self._closed = True
    self._ended.set()
    try:
      if self._leads:
        for thread in self._threads:
          thread.join()
        if self._lost is None:  # else it is another run's place by now
          try:
            self._push()
          finally:
            self._lease.release()
    except OSError as error:
      raise trouble(self._workdir, error) from error
    finally:
      shutil.rmtree(self.files, ignore_errors=True)

  def _pull(self) -> None:
    """What earlier starts have left; of TensorBoard's files only the names count."""
    for name in PULLED:
      try:
        data = remote.read(f'{self._workdir}/{name}')
      except FileNotFoundError:
        continue
      Path(self.files, name).write_bytes(data)
    for name in remote.listing(f'{self._workdir}/tb'):
      Path(self.files, 'tb', name).touch()
    self._pushed = self._found()

  def _push(self) -> None:
    for name, state in self._found().items():
      if self._pushed.get(name) == state:
        continue
      with self._busy:  # one file at a time, so that nobody waits for all of the other's
        # Read at once: it may grow while it is sent.
        remote.write(f'{self._workdir}/{name}', Path(self.files, name).read_bytes())
        self._pushed[name] = state

  def _found(self) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file by its name."""
    found = {}
    for path in Path(self.files).rglob('*'):
      if path.is_file() and path.suffix != '.tmp':
        status = path.stat()
        found[path.relative_to(self.files).as_posix()] = status.st_size, status.st_mtime_ns
    return found

  def _renew(self) -> None:
    try:
      self._lease.renew()
    except UserError as error:
      self._lost = error
      self._ended.set()

  def _every(self, what: Callable[[], None], seconds: Callable[[], float]) -> None:
    while not self._ended.wait(seconds()):
      with contextlib.suppress(OSError):  # it is tried again, and the next `push` will say so
        what()


def hold(workdir: str, process: int = 0, say: Callable[[str], None] = print) -> Workdir:
  """Make the workdir, see that it can be written and, as process 0, hold it against other runs.

  Raises:
    UserError: where it cannot be written, or another run is at work there.
  """
  path = path_of(workdir)
  if remote.is_remote(workdir):
    return _Mirror(os.fspath(path), process, say)
  return Workdir(workdir, process)
