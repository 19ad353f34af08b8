"""The place of a run's files: a folder, or a folder of Google's object store (gs://bucket/run)."""

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from etils import epath

from exedit.runtime import files, remote
from exedit.runtime.errors import DataError, Passing, UserError, one_line
from exedit.weights.formats.run import steps_in

STARTED = 'started.json'
LOGS = ('.log', '.out', '.err', '.txt')  # files that people keep in a workdir from the beginning
METRICS = 'metrics.jsonl'
PULLED = (METRICS, 'config.json')  # small files that a later start reads


class Workdir:
  """The workdir of a run; use it in a `with` block.

  Checkpoints and frozen parameters are written to it directly. A store cannot append to a file, so
  the small files (metrics, TensorBoard events, grids, settings) are written to `folder`, a folder
  on this machine, and `push` copies what has changed to the store. On a disk `folder` is the
  workdir itself.

  On a disk, process 0 locks the workdir against other runs. In a store there is no lock. There each
  start that is about to train calls `claim`, which writes STARTED, and a run that finds another
  start's at its next `push` ends.

  Raises:
    UserError: if the workdir cannot be used, or another run holds its lock.
  """

  def __init__(self, name: str, process: int = 0):
    path_of(name)
    self.name = name
    self.folder = name
    self._process = process
    self._lock: files.Lock | None = None
    self._pushed: dict[str, tuple[int, int]] = {}
    self._last_push = time.monotonic()
    self._mark = json.dumps({**files.this_process(), 'start': uuid.uuid4().hex}).encode()
    self._claimed = False

  def open(self) -> 'Workdir':
    """Makes the workdir, checks that it can be written, and locks it."""
    if remote.is_remote(self.name):
      self._pull()
    else:
      try:
        self._make()
      except OSError as error:
        raise UserError(
          f'cannot write to the workdir {self.name} ({error.strerror}): choose another'
        ) from error
    return self

  def _make(self) -> None:
    os.makedirs(self.name, exist_ok=True)
    probe = Path(files.temporary_of(os.path.join(self.name, 'probe')))
    probe.touch()
    probe.unlink()
    if self._process == 0:
      self._take_lock()
      for folder in (self.name, os.path.join(self.name, 'samples')):
        files.sweep(folder, alone=True)

  def _take_lock(self) -> None:
    lock = files.Lock(os.path.join(self.name, 'lock'))
    try:
      lock.acquire(wait=False)
    except files.Taken:
      raise UserError(
        f'another run is at work in {self.name} ({lock.holder()}): wait for its end, stop it, or '
        'choose another workdir'
      ) from None
    except OSError as error:
      if error.errno not in files.NO_LOCKS:
        raise
      words = f'{self.name} cannot be locked ({error.strerror}): start no other run there'
      print(words, flush=True)
    self._lock = lock

  def _pull(self) -> None:
    """Copies what earlier starts have left; of TensorBoard's files only the names are needed."""
    self.folder = tempfile.mkdtemp(prefix='exedit-run-')
    tb = Path(self.folder, 'tb')
    tb.mkdir()
    if self._process != 0:
      return
    try:
      for name in PULLED:
        with contextlib.suppress(FileNotFoundError):
          Path(self.folder, name).write_bytes(remote.read(f'{self.name}/{name}'))
      for name in remote.listing(f'{self.name}/tb'):
        (tb / name).touch()
    except (OSError, DataError) as error:
      shutil.rmtree(self.folder, ignore_errors=True)
      raise trouble(self.name, error) from error
    self._pushed = self._found()

  def claim(self) -> None:
    """Says in a store that this start trains there from now on; an older run then ends.

    Raises:
      UserError: if the store refuses. Passing: if it cannot be reached.
    """
    if self._process == 0 and remote.is_remote(self.name):
      try:
        remote.write(f'{self.name}/{STARTED}', self._mark)
      except OSError as error:
        raise trouble(self.name, error) from error
      self._claimed = True

  def push_metrics(self, every: float = 60.0) -> None:
    """Copies metrics.jsonl to the store, at most once in `every` seconds.

    A store that refuses or is not reached is no error here: the next `push` copies everything.
    """
    if not self._claimed or time.monotonic() - self._last_push < every:
      return
    self._last_push = time.monotonic()
    with contextlib.suppress(OSError):
      remote.put(os.path.join(self.folder, METRICS), f'{self.name}/{METRICS}')

  def push(self) -> None:
    """Copies the small files that have changed to the store.

    Raises:
      UserError: if another run has started there, or the store refuses. Passing: if it cannot be
        reached.
    """
    if self._process != 0 or not remote.is_remote(self.name):
      return
    self._last_push = time.monotonic()
    try:
      if self._claimed and remote.read(f'{self.name}/{STARTED}') != self._mark:
        raise UserError(
          f'another run has started in {self.name}: this one ends, see {STARTED} there'
        )
      for name, version in self._found().items():
        if self._pushed.get(name) != version:
          remote.put(os.path.join(self.folder, name), f'{self.name}/{name}')
          self._pushed[name] = version
    except OSError as error:
      raise trouble(self.name, error) from error

  def _found(self) -> dict[str, tuple[int, int]]:
    """The size and the time of change of each small file."""
    found = {}
    for path in Path(self.folder).rglob('*'):
      if path.is_file() and path.suffix != '.tmp':
        status = path.stat()
        found[path.relative_to(self.folder).as_posix()] = status.st_size, status.st_mtime_ns
    return found

  def __enter__(self) -> 'Workdir':
    return self

  def __exit__(self, kind, error, trace) -> None:
    try:
      with contextlib.suppress(UserError) if error else contextlib.nullcontext():
        self.push()
    finally:
      if self._lock is not None:
        self._lock.release()
      if remote.is_remote(self.name):
        shutil.rmtree(self.folder, ignore_errors=True)


def require_ours(workdir: str, data_root: str) -> None:
  """Checks that a folder is a run's, or holds nothing but log files and the data of the run.

  Raises:
    UserError: if it holds anything else, which a run would stand among or write over.
  """
  if remote.is_remote(workdir) or not os.path.isdir(workdir):
    return
  folder = Path(workdir)
  if steps_in(folder / 'checkpoints') or _is_runs(folder):
    return
  data = Path(os.path.relpath(data_root, workdir)).parts[:1]
  if _json(folder / 'config.json').get('exported'):
    raise UserError(
      f'{workdir} holds exported weights: name a new --workdir, and start from these weights with '
      f'--config.init_from={workdir}'
    )
  there = [n for n in files.listing(workdir) if n not in data and Path(n).suffix not in LOGS]
  if there:
    more = f' and {len(there) - 1} more' if len(there) > 1 else ''
    raise UserError(
      f'{workdir} is no workdir of a run and holds {there[0]}{more}: name an empty folder or a new '
      'one with --workdir'
    )


def _is_runs(folder: Path) -> bool:
  """Whether the folder holds the settings or the lock of a run."""
  config, lock = _json(folder / 'config.json'), folder / 'lock'
  if {'steps', 'batch_size', 'model', 'data'} <= config.keys() and 'exported' not in config:
    return True
  return 'pid' in _json(lock) or (lock.is_file() and not lock.stat().st_size)


def _json(path: Path) -> dict[str, Any]:
  """The object in a JSON file; empty if there is none."""
  try:
    found = json.loads(path.read_text())
    return found if isinstance(found, dict) else {}
  except (OSError, ValueError):
    return {}


def path_of(workdir: str | os.PathLike) -> epath.Path:
  """The workdir as a path; listings of a store are never taken from gcsfs' cache.

  Raises:
    UserError: for a store other than gs://, or without its driver.
  """
  name = os.fspath(workdir)
  if not remote.is_remote(name):
    return epath.Path(Path(name).absolute())  # os.path.abspath would resolve `link/..` wrongly
  if not name.startswith('gs://'):
    raise UserError(
      f'{name} cannot be a workdir: checkpoints go to folders and gs://; name one of these'
    )
  remote.store(name)
  from fsspec import config

  # TensorStore writes there too, which gcsfs does not notice.
  config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  return epath.Path(name.rstrip('/'))


def trouble(workdir: str | os.PathLike, error: BaseException) -> UserError:
  """The error of a store in words: a UserError if it refused, Passing if it was not reached."""
  name, words = os.fspath(workdir), (getattr(error, 'strerror', None) or one_line(error))[:200]
  if remote.refused(error):
    return UserError(
      f'the workdir {name} cannot be used ({words}): check its name and your rights there, or '
      'choose another'
    )
  return Passing(f'the workdir {name} cannot be reached ({words}): the same command goes on')


def quiet_stores() -> None:
  """Silences the errors of requests that nobody waits for any more after one of them failed.

  Orbax leaves its event loop then, and TensorStore's other requests report to a closed loop. Call
  it in the door, before anything else installs its own hook.
  """
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  before = sys.unraisablehook

  def hook(what: Any) -> None:
    if str(what.exc_value) != 'Event loop is closed':
      before(what)

  sys.unraisablehook = hook
