"""Where a run's files go: a folder, or a place in Google's object store (gs://bucket/run).

Checkpoints go there directly. A store knows no append, so the small files that grow (metrics,
goodput, TensorBoard's) and those beside them lie in a local folder that is copied there.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from etils import epath

from exedit import caches
from exedit.errors import UserError
from exedit.training import lease, lock, log
from input_pipeline import remote
from input_pipeline.errors import DataError

EVERY = 60.0  # seconds between copies of what has changed
PULLED = ('metrics.jsonl', 'goodput.jsonl', 'config.json')  # what a later start reads and goes on


def path_of(workdir: str | os.PathLike) -> epath.Path:
  """The workdir as a path; in a store by requests that are never answered from memory."""
  name = os.fspath(workdir)
  if not remote.is_remote(name):
    return epath.Path(os.path.abspath(name))
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


class Workdir:
  """A workdir on a disk: everything is where it belongs as soon as it is written.

  files: the local folder for all but checkpoints and frozen parameters.
  """

  def __init__(self, workdir: str, leader: bool):
    self.files = workdir
    probe = Path(workdir) / f'.{os.getpid()}.tmp'
    try:
      os.makedirs(workdir, exist_ok=True)
      probe.touch()
      probe.unlink()
      if leader:
        lock.take(workdir)
        log.sweep(workdir)
    except OSError as error:
      raise UserError(
        f'cannot write to the workdir {workdir} ({error.strerror}): choose another'
      ) from error

  def push(self) -> None:
    """Return when what was written to `files` so far is where it belongs."""

  def close(self) -> None:
    """The same, and let go of the workdir."""
    lock.release(self.files)


class _Mirror(Workdir):
  """A workdir in a store. What a kill loses of the small files the next start writes again.

  For they are pushed before each checkpoint. A thread of the leader's renews the lease and pushes
  now and then; what goes wrong there is raised by the next `push`.
  """

  def __init__(self, workdir: str, leader: bool, say: Callable[[str], None]):
    self._workdir = workdir
    self._pushed: dict[str, tuple[int, int]] = {}
    self._busy, self._ended = threading.Lock(), threading.Event()
    self._failed: Exception | None = None
    self._lease = lease.Lease(workdir) if leader else None
    name = hashlib.sha256(workdir.encode()).hexdigest()[:16]
    self.files = str(caches.folder('runs', name))
    if self._lease is None:
      return
    try:
      self._lease.take(say)
      self._pull()
    except (OSError, DataError) as error:
      raise UserError(
        f'cannot write to the workdir {workdir} ({_words(error)}): check its name and your rights '
        'there, or choose another'
      ) from error
    self._thread = threading.Thread(target=self._keep, name='workdir', daemon=True)
    self._thread.start()

  def push(self) -> None:
    if self._failed is not None:
      raise self._failed
    if self._lease is not None:
      self._push()

  def close(self) -> None:
    if self._ended.is_set():
      return
    self._ended.set()
    if self._lease is not None:
      self._thread.join()
      if not isinstance(self._failed, UserError):  # another run's place by now
        self._push()
        self._lease.release()
        shutil.rmtree(self.files, ignore_errors=True)

  def _pull(self) -> None:
    """What earlier starts have left; of TensorBoard's files only the names count."""
    shutil.rmtree(self.files, ignore_errors=True)  # a killed run's, all of which counts is there
    os.makedirs(os.path.join(self.files, 'tb'))
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
    with self._busy:
      for name, state in self._found().items():
        if self._pushed.get(name) != state:
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

  def _keep(self) -> None:
    waited = 0.0
    while not self._ended.wait(lease.RENEW):
      waited += lease.RENEW
      try:
        assert self._lease is not None
        self._lease.renew()
        if waited >= EVERY:
          self._push()
          waited = 0.0
      except UserError as error:
        self._failed = error
        return
      except OSError:  # the store is out of reach; the next checkpoint will say so if it stays
        continue


def hold(workdir: str, leader: bool = True, say: Callable[[str], None] = print) -> Workdir:
  """Make the workdir, see that it can be written and, as the `leader`, hold it against other runs.

  Raises:
    UserError: where it cannot be written, or another run is at work there.
  """
  path = path_of(workdir)
  if remote.is_remote(workdir):
    return _Mirror(os.fspath(path), leader, say)
  return Workdir(workdir, leader)


def _words(error: BaseException) -> str:
  return ' '.join(str(getattr(error, 'strerror', None) or error).split())[:200]
