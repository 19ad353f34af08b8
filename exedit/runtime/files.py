"""Files and folders that appear whole or not at all, locks between processes, and file hashes."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import filelock

from exedit.runtime.errors import DataError, UserError

LONGEST_NAME = 200  # bytes; file systems allow 255, and temporary names are longer
TEMPORARY = re.compile(r'\.(?P<name>.+)\.(?P<process>\d+)\.\d+\.tmp')  # see `temporary_of`
LITTER = re.compile(  # what file managers, archivers and office programs leave in folders
  r'\..*|~\$.*|(eh)?thumbs(_vista)?\.db.*|desktop\.ini|icon\r|__macosx|@eadir|#recycle'
  r'|\$recycle\.bin|system volume information|lost\+found',
  re.IGNORECASE,
)
_numbers = itertools.count()

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def writing(path: PathLike, *, durable: bool = False) -> Iterator[IO[bytes]]:
  """A binary file to write to; it replaces `path` when the block ends without an error.

  The folder is made if it does not exist. A failed block leaves nothing behind and `path` as it
  was. durable: wait until the disk has stored the data.

  Raises:
    OSError: if the file cannot be written; its `filename` is `path`.
  """
  temporary = temporary_of(path)
  try:
    with _naming(path):
      os.makedirs(os.path.dirname(temporary), exist_ok=True)
      with open(temporary, 'xb') as file:
        yield file
        if durable:
          file.flush()
          os.fsync(file.fileno())
      os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      os.unlink(temporary)


def write_bytes(path: PathLike, data: bytes) -> None:
  """Writes a file as `writing` does."""
  with writing(path) as file:
    file.write(data)


def write_all(contents: Mapping[PathLike, bytes]) -> None:
  """Writes several files, all of them or none; they take their places in the given order.

  A file that was replaced before the fault stays as the new one.

  Raises:
    OSError: if one cannot be written; its `filename` is that path.
  """
  temporary = {path: temporary_of(path) for path in contents}
  new = {path for path in contents if not os.path.lexists(path)}
  moved = []
  try:
    for path, data in contents.items():
      with _naming(path):
        Path(temporary[path]).write_bytes(data)
    for path in contents:
      with _naming(path):
        os.replace(temporary[path], path)
      moved.append(path)
  except OSError:
    for path in new.intersection(moved):
      os.unlink(path)
    raise
  finally:
    for name in temporary.values():
      with contextlib.suppress(OSError):
        os.unlink(name)


def write_text(path: PathLike, text: str) -> None:
  """Writes a UTF-8 file as `writing` does."""
  write_bytes(path, text.encode())


def write_json(path: PathLike, value: Any) -> None:
  """Writes an indented JSON file as `writing` does."""
  write_text(path, json_text(value))


def json_text(value: Any) -> str:
  """The text of an indented JSON file."""
  return json.dumps(value, indent=2) + '\n'


@contextlib.contextmanager
def new_folder(path: PathLike) -> Iterator[Path]:
  """A folder to write to; it becomes `path` when the block ends without an error.

  A failed block leaves nothing behind. Call `check_new` first: `path` may only be an empty folder.

  Raises:
    OSError: if the folder cannot be made; its `filename` is `path`.
  """
  temporary = temporary_of(path)
  try:
    with _naming(path):
      os.makedirs(temporary)
    yield Path(temporary)
    with _naming(path):
      os.replace(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def is_litter(name: str) -> bool:
  """Whether a system left a file or folder of this name among the user's: no reader takes it."""
  return LITTER.fullmatch(name) is not None


def listing(folder: PathLike) -> list[str]:
  """The sorted names in a folder, without what systems leave there. Raises OSError."""
  return sorted(name for name in os.listdir(folder) if not is_litter(name))


def check_new(path: PathLike, flag: str = '') -> None:
  """Checks that `path` can become a new file or folder, or is an empty folder.

  flag: the flag that named it, such as '--output', for the message.

  Raises:
    DataError: if something has that name, if the name is too long, or as `check_folder`.
  """
  path = Path(path).absolute()
  another = f'name another {flag}'.rstrip()
  if len(os.fsencode(path.name)) > LONGEST_NAME:
    raise DataError(f'cannot write {path}: its name has more than {LONGEST_NAME} bytes; shorten it')
  if path.is_dir() and not path.is_symlink():
    if any(path.iterdir()):
      raise DataError(f'{path} is a folder with files in it: remove it or {another}')
  elif os.path.lexists(path):
    raise DataError(f'{path} exists already: remove it or {another}')
  check_folder(path.parent, flag or 'folder')


def check_output(path: PathLike, flag: str = '--output') -> None:
  """Checks that a file can be written at `path`; call it before the work whose result it is.

  The folder need not exist. flag: see `check_new`.

  Raises:
    DataError: for a folder, pipe or device, and for a place that takes no files.
  """
  if os.path.isdir(path):
    raise DataError(f'{path} is a folder: name a file as {flag}')
  if os.path.exists(path) and not os.path.isfile(path):
    raise DataError(f'{path} is a pipe or device: name a file as {flag}')
  check_folder(os.path.dirname(path), flag)


def check_folder(path: PathLike, flag: str = '--output') -> None:
  """Checks as `check_output` does that files can be written in a folder, by writing one.

  Of a folder that does not exist, it checks the nearest folder above it.
  """
  existing = os.path.abspath(path)
  while not os.path.lexists(existing):
    existing = os.path.dirname(existing)
  why = '' if os.path.isdir(existing) else f'{existing} is not a folder'
  if existing == '/dev':
    why = 'it holds devices'
  if not why:
    try:  # `os.access` says yes of /proc and of some network file systems
      tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
      why = f'{existing} takes no new files ({error.strerror})'
  if why:
    raise DataError(f'{path or "."} cannot be written to: {why}; name another {flag}')


def keep_old(path: PathLike, *beside: PathLike) -> str:
  """Keeps a file under a new name before it is replaced: `out-old.png`, `out-old-2.png`, ...

  beside: files that get the same new stem, if they exist, such as `out.json`. Returns the new name.
  """
  stem, ending = os.path.splitext(os.fspath(path))
  endings = [ending, *(os.path.splitext(other)[1] for other in beside if os.path.exists(other))]
  names = (f'{stem}-old{f"-{number}" if number > 1 else ""}' for number in itertools.count(1))
  kept = next(name for name in names if not any(os.path.lexists(name + e) for e in endings))
  for ending in endings:
    try:
      os.link(stem + ending, kept + ending)
    except OSError:  # a file system without links
      shutil.copy2(stem + ending, kept + ending)
  return kept + endings[0]


def temporary_of(path: PathLike) -> str:
  """A hidden name beside `path`, '.NAME.PROCESS.NUMBER.tmp', unique among this machine's processes.

  `sweep` removes files and folders with such a name.
  """
  folder, name = os.path.split(os.path.abspath(path))
  return os.path.join(folder, f'.{name}.{os.getpid()}.{next(_numbers)}.tmp')


def sweep(folder: PathLike, wanted: Callable[[str], bool] | None = None, alone=False) -> None:
  """Removes the temporary files and folders that killed processes have left in a folder.

  Call it before this process writes there: files with its own number are an earlier process's.

  wanted: takes the final name and says whether its temporary files are to go; None: all are.
  alone: no other process writes here. Then the files of all processes go, because a process may
  have run on another machine.
  """
  if not os.path.isdir(folder):
    return
  for path in Path(folder).iterdir():
    found = TEMPORARY.fullmatch(path.name)
    if not found or (wanted is not None and not wanted(found['name'])):
      continue
    process = int(found['process'])
    if not alone and process != os.getpid() and runs(process):
      continue
    if path.is_dir() and not path.is_symlink():
      shutil.rmtree(path, ignore_errors=True)
    else:
      with contextlib.suppress(OSError):
        path.unlink()


def runs(process: int) -> bool:
  """Whether a process with this number runs on this machine."""
  try:
    os.kill(process, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except OSError:  # another user's process
    pass
  return True


def require_space(path: PathLike, need: int, remedy: str = 'or choose another folder') -> None:
  """Checks that the disk has `need` bytes for a new file or folder, if its parent exists.

  Raises:
    UserError: if it has not; it ends with `remedy`.
  """
  folder = os.path.dirname(os.path.abspath(path))
  if os.path.isdir(folder) and need > shutil.disk_usage(folder).free:
    raise no_space(path, need, remedy)


def no_space(path: PathLike, need: int = 0, remedy: str = 'or choose another folder') -> UserError:
  """The error of a full disk. need: number of bytes to write; 0 if unknown."""
  free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
  takes = f'it takes {need / 1e6:.1f} MB and ' if need else ''
  return UserError(
    f'no space left for {path}: {takes}{free / 1e6:.1f} MB are free; free some, {remedy}'
  )


def head(path: PathLike, count: int = 4096) -> bytes:
  """The first bytes of a file; none if it is no file or cannot be read."""
  if not os.path.isfile(path):  # opening a pipe would block
    return b''
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    return file.read(count)
  return b''


def sha256(path: PathLike) -> str:
  """The SHA-256 of a file's content, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def this_process() -> dict[str, Any]:
  """The host, the number and the present time of this process, for other processes to read."""
  return dict(host=socket.gethostname(), pid=os.getpid(), since=time.strftime('%F %T %z'))


# The errors of a file system that has no locks; other errors mean that the file cannot be used.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Taken(UserError):
  """Another process holds the lock."""


class Lock:
  """A lock between the processes that share a file system; use it in a `with` block.

  The kernel releases it when the process ends, also after SIGKILL. The file stays: if it were
  removed, two processes could each lock a file of that name. It names the process that holds it.
  """

  def __init__(self, path: PathLike):
    self.path = os.path.realpath(path)
    self._lock = filelock.FileLock(self.path, thread_local=False, fallback_to_soft=False)

  def acquire(self, *, wait: bool = True, busy: Callable[[str], None] = lambda holder: None):
    """Takes the lock, and waits for it if `wait`.

    busy: called once with the words of `holder` if another process holds the lock.

    Raises:
      Taken: if another process holds the lock and `wait` is False.
      OSError: if the file system has no locks, or the file cannot be written.
    """
    try:
      self._lock.acquire(timeout=0)
    except filelock.Timeout:
      busy(self.holder())
      if not wait:
        raise Taken(f'{self.path} is locked ({self.holder()})') from None
      self._lock.acquire()
    with contextlib.suppress(OSError):  # on a full disk the lock is still good
      Path(self.path).write_text(json.dumps(this_process()) + '\n')

  def release(self) -> None:
    """Releases the lock if this object holds it."""
    self._lock.release()

  def holder(self) -> str:
    """Who holds the lock, for a message: 'process 12 on HOST, since TIME'."""
    try:
      found = json.loads(Path(self.path).read_text())
      return f'process {found["pid"]} on {found["host"]}, since {found["since"]}'
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock but not yet written
      return 'it has just started'

  def __enter__(self) -> 'Lock':
    if not self._lock.is_locked:
      self.acquire()
    return self

  def __exit__(self, *_) -> None:
    self.release()


@contextlib.contextmanager
def _naming(path):
  """Gives an OSError the final path: a full disk names none, and a temporary name helps nobody."""
  try:
    yield
  except OSError as error:
    error.filename, error.filename2 = os.fspath(path), None
    raise
