"""An open file that gives the bytes at an offset, into fresh memory, and says no in one line."""

import os

import numpy as np
from jaxtyping import UInt8

from exedit.runtime.errors import UserError


def damaged(path: str, why: str) -> UserError:
  """The refusal of a file whose bytes contradict each other."""
  return UserError(f'{path} is damaged ({why}): fetch it again or restore it from a copy')


def quoted(name: object) -> str:
  """A name out of a file, safe to print: quoted, escaped and cut."""
  text = ascii(name)
  return text if len(text) <= 100 else f'{text[:80]}...{text[-10:]}'


def read_small(path: str | os.PathLike, most: int) -> bytes:
  """A whole file of at most so many bytes; OSError where it cannot be read.

  Raises:
    UserError: for a larger one, and for a pipe or device, which would be waited for.
  """
  refuse_pipe(path)
  with open(path, 'rb') as file:
    data = file.read(most + 1)
  if len(data) > most:
    raise UserError(f'{path} has more than {most} bytes: is it the right file?')
  return data


def refuse_pipe(path: str | os.PathLike) -> None:
  """UserError for what is neither a file nor a folder; what is not there passes."""
  if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
    raise UserError(f'{os.fspath(path)} is a pipe or device: save it to a file first')


class File:
  """A file held open for as long as anybody may read from it; reads from any thread.

  No memory map: mapped pages count as this process's memory until something else needs them, so
  that loading a 5 GB file would look like, and on some pods be charged as, 10 GB.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = os.fspath(path)
    try:
      if os.path.isdir(self.path):
        raise UserError(f'{self.path} is a folder: name a weight file in it')
      refuse_pipe(self.path)
      self._fd = os.open(self.path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))
      self.size = os.fstat(self._fd).st_size
    except FileNotFoundError:
      raise UserError(f'{self.path} does not exist: check the path') from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
      why = getattr(error, 'strerror', None) or error
      raise UserError(f'{self.path!r} cannot be read ({why}): check its permissions') from None

  def __del__(self, close=os.close):  # at exit this module's own `os` may be gone
    if hasattr(self, '_fd'):
      close(self._fd)

  def read(self, offset: int, count: int) -> UInt8[np.ndarray, ' count']:
    """The bytes from `offset` on, in memory of their own; UserError where the file is shorter."""
    if offset + count > self.size:
      raise damaged(self.path, f'{self.size} bytes long, {offset + count} expected: truncated?')
    data = np.empty(count, np.uint8)
    done = 0
    while done < count:
      try:
        got = os.preadv(self._fd, [data.data[done:]], offset + done)  # 2 GB at most a call
      except OSError as error:
        raise damaged(self.path, f'byte {offset + done}: {error.strerror}') from None
      if not got:
        raise damaged(self.path, f'it shrank from {self.size} to {offset + done} bytes meanwhile')
      done += got
    return data
