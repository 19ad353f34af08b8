"""The errors that a user can fix. A door prints them as one line on stderr, without a traceback."""

import errno
import os
import re
from collections.abc import Sequence

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


class Uncaptioned(Unusable):
  """A record without the caption that a training on texts needs."""


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
  return _platform(error)


def _platform(error):
  """The line of an error with which JAX refuses the platform, or the devices fail; else None.

  JAX raises any kind of error for a platform that is not there, so the place in it counts.
  """
  text, places, trace = one_line(error), set(), error.__traceback__
  while trace is not None:
    places.add(trace.tb_frame.f_code.co_filename.replace(os.sep, '/').split('/jax/_src/')[-1])
    trace = trace.tb_next
  if 'config.py' in places and 'environment' in text and isinstance(error, ValueError):
    return f'JAX refuses its settings: {text}; correct or unset the variable'
  if re.search('RESOURCE_EXHAUSTED.*(memory|allocat)|CUDA_ERROR_OUT_OF_MEMORY', text):
    return (
      f'the device has too little memory ({text:.200}): give a smaller batch or size, or end other '
      'programs that use the device'
    )
  fault = any(word in text for word in ('CUDA_ERROR', 'CUDA error', 'cuInit', 'hipError'))
  if 'xla_bridge.py' in places or fault and isinstance(error, RuntimeError):
    asked = os.environ.get('JAX_PLATFORMS')
    where = f'the devices of JAX_PLATFORMS={asked}' if asked else "this machine's devices"
    reason = re.sub(r' *\(set JAX_PLATFORMS=.*|^AssertionError$', '', text) or 'there are none'
    return (
      f'JAX cannot use {where} ({reason:.200}): '
      f'{"correct or unset it, or " if asked else ""}set JAX_PLATFORMS=cpu to compute without; '
      'a GPU needs its driver and jax[cuda13], a TPU jax[tpu]'
    )
  return None
