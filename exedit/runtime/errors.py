"""The errors that a user can fix. A door prints them as one line on stderr, without a traceback."""

import contextlib
import errno
import signal
from collections.abc import Iterator, Sequence

LONGEST = 20  # entries of a listing that are shown


class UserError(Exception):
  """An error that the user can fix: one line with what is wrong, both values and the remedy.

  `listing` holds the entries that the line announces; each is printed on a line of its own below.
  `status` is the exit status: 2 tells a supervisor not to start the program again.
  """

  status = 2

  def __init__(self, line: str, listing: Sequence[str] = ()):
    super().__init__(' '.join(line.splitlines()))  # a file name in it may contain a line break
    self.listing = tuple(listing)

  def __str__(self) -> str:
    more = len(self.listing) - LONGEST
    shown = [*self.listing[:LONGEST], *([f'and {more} more'] if more > 0 else [])]
    return '\n  '.join([*map(str, self.args), *shown])


class Passing(UserError):
  """A failure that may be gone at the next attempt, such as a lost network: exit status 1."""

  status = 1


class DataError(UserError, ValueError):
  """Data that the user can correct."""


class Unusable(DataError):
  """A valid record that cannot be trained on, for example because no box has a fitting size."""


def one_line(error: BaseException) -> str:
  """The error's message on one line, or the name of its class if it has no message."""
  return ' '.join(str(error).split()) or type(error).__name__


def disk_is_full(error: BaseException) -> bool:
  """Whether the error says that the disk or the quota is full, also inside a library's message."""
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
  text = str(error).lower()
  return full or 'no space left' in text or 'disk quota' in text


def explain(error: BaseException) -> str | None:
  """The line (and listing) of an error that the user can fix; None for a bug of the program.

  The operating system's refusals (no space, no permission) become a line that names the path.
  """
  if isinstance(error, UserError):
    return str(error) if error.listing else one_line(error)
  if disk_is_full(error):
    where = getattr(error, 'filename', None) or 'the output'
    return f'no space left on the disk while writing {where}: free some, or choose another folder'
  if isinstance(error, OSError):
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY):
      return f'cannot write or read {error.filename}: {error.strerror}; choose another name'
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
      return f'cannot write or read {error.filename}: {error.strerror}; choose another folder'
  return None


@contextlib.contextmanager
def heard() -> Iterator[None]:
  """Makes Ctrl-C leave the block as KeyboardInterrupt even when JAX's C++ code was calling Python.

  JAX compares the static arguments of compiled functions there and replaces any exception by one of
  its own. Use it in the main thread; it does nothing if the program handles Ctrl-C itself.
  """
  if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield
    return
  came = False

  def interrupt(number, frame):
    nonlocal came
    came = True
    raise KeyboardInterrupt

  signal.signal(signal.SIGINT, interrupt)
  try:
    yield
  except Exception as error:
    if came:
      raise KeyboardInterrupt from error
    raise
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)
