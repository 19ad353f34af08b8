"""The one way in which a door says no: one line on stderr, exit status, no traceback."""

import contextlib
import errno
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

LONGEST = 20  # entries of a listing that are shown


class UserError(Exception):
  """What the person at the door can mend: what was wrong, both values, the remedy, in one line.

  `listing` are the entries that the line announces, one on each line below it. `status` is the exit
  status: 2 is final for whatever starts a failed program again.
  """

  status = 2

  def __init__(self, line: str, listing: Sequence[str] = ()):
    super().__init__(' '.join(line.splitlines()))  # a name in it may hold a line break
    self.listing = tuple(listing)

  def __str__(self) -> str:
    more = len(self.listing) - LONGEST
    shown = [*self.listing[:LONGEST], *([f'and {more} more'] if more > 0 else [])]
    return '\n  '.join([*map(str, self.args), *shown])


class Passing(UserError):
  """What may be gone at the next attempt, such as a network that is not there: exit status 1."""

  status = 1


def one_line(error: BaseException) -> str:
  """The error's message with its line breaks folded away."""
  return ' '.join(str(error).split()) or type(error).__name__


def disk_is_full(error: BaseException) -> bool:
  """Whether that is what the error says; libraries wrap the system's own words in theirs."""
  full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
  text = str(error).lower()
  return full or 'no space left' in text or 'disk quota' in text


def explain(error: BaseException) -> str | None:
  """One line (and its listing) for an error that the user can mend, None for one that is our bug.

  `input_pipeline` may not import exedit, so its errors are recognised here: DataError is a
  ValueError of that package. Operating-system refusals (no space, no permission) name the path.
  """
  from exedit.input_pipeline.errors import DataError

  if isinstance(error, UserError) and error.listing:
    return str(error)
  if isinstance(error, (UserError, DataError)):
    return one_line(error)
  if disk_is_full(error):
    where = getattr(error, 'filename', None) or 'the output'
    return f'no space left on the disk while writing {where}: free some, or choose another folder'
  if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
    return f'cannot write or read {error.filename}: {error.strerror}; choose another name'
  if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
    return f'cannot write or read {error.filename}: {error.strerror}; choose another folder'
  return None


@contextlib.contextmanager
def heard() -> Iterator[None]:
  """Ctrl-C leaves as KeyboardInterrupt also where it came while C++ asked Python something.

  JAX compares the static arguments of compiled functions so; whatever is raised there becomes an
  error of its own. For the main thread of a program that has not arranged Ctrl-C otherwise.
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


def door(main: Callable) -> Callable:
  """Wrap a door's `main(argv)`: a mendable error becomes one line and its exit status, mostly 2."""

  def guarded(argv):
    try:
      return main(argv)
    except Exception as error:
      line = explain(error)
      if line is None:
        raise
      print(f'error: {line}', file=sys.stderr)
      sys.exit(getattr(error, 'status', 2))

  return guarded
