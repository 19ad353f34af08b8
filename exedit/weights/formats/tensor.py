"""An unread tensor of a file and the open file behind it; what all readers and writers share."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from exedit.runtime import files
from exedit.runtime.errors import UserError, disk_is_full

LONGEST_JSON = 2**26  # bytes; the index of 100,000 tensors in shards takes a tenth of it


class Tensor(NamedTuple):
  """A tensor that is not read yet. Each call of `read` reads it again, C-contiguous."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]

  @property
  def nbytes(self) -> int:
    """The number of bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def to_dtype(tensors: Mapping[str, Tensor | np.ndarray], dtype: str | None) -> dict[str, Tensor]:
  """Returns the tensors in another type, converted when they are read; None keeps the type.

  Reading a tensor whose numbers are too large for the type raises UserError.
  """
  return {name: _in_dtype(name, tensor, dtype) for name, tensor in tensors.items()}


def _in_dtype(name: str, tensor: Tensor | np.ndarray, dtype: str | None) -> Tensor:
  read = tensor.read if isinstance(tensor, Tensor) else lambda: tensor
  target = jnp.dtype(dtype or tensor.dtype)
  shape = tuple(tensor.shape)
  if target == tensor.dtype:
    return Tensor(shape, target, read)

  def convert():
    old = read()
    with np.errstate(over='ignore'):
      new = old.astype(target)
    if not np.isfinite(new.max(initial=0) - new.min(initial=0)) and np.isfinite(old).all():
      raise UserError(
        f'{name} holds numbers up to {np.abs(old).max():.3g}, more than {target} can: store the'
        ' weights in bfloat16 or float32'
      )
    return new

  return Tensor(shape, target, convert)


def counted(tensors: Mapping[str, Tensor], read: Callable[[int], Any]) -> dict[str, Tensor]:
  """Returns the same tensors; whenever one is read, `read` is called with its bytes."""

  def noted(tensor):
    array = tensor.read()
    read(tensor.nbytes)
    return array

  return {n: t._replace(read=lambda t=t: noted(t)) for n, t in tensors.items()}


def native(dtype: np.dtype) -> np.dtype:
  """Returns the type in the byte order of this machine, which is little-endian."""
  return dtype.newbyteorder('=') if dtype.byteorder == '>' else dtype


def bytes_of(name: str, tensor: np.ndarray | Tensor) -> memoryview:
  """Returns the bytes of a tensor in C order; a `Tensor` is read now."""
  array = tensor.read() if isinstance(tensor, Tensor) else tensor
  if array.shape != tensor.shape or array.dtype != tensor.dtype:
    raise ValueError(
      f'{name}: read as {array.dtype} {array.shape}, announced as {tensor.dtype} {tensor.shape}'
    )
  array = np.ascontiguousarray(array, native(array.dtype))
  return array.reshape(-1).view(np.uint8).data


@contextlib.contextmanager
def writing(path: str | os.PathLike, size: int) -> Iterator[IO[bytes]]:
  """A large file to write to, as `files.writing`; UserError if the disk has no space for it."""
  files.require_space(path, size)
  try:
    with files.writing(path, durable=True) as file:
      yield file
  except OSError as error:
    if not disk_is_full(error):
      raise
    raise files.no_space(path, size) from None


class File:
  """A file that stays open while somebody may read from it. Any thread can read.

  The file is not mapped into memory: the pages of a map count as memory of this process, so that
  loading 5 GB would need, on machines with a limit, 10 GB.
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

  def __del__(self, close=os.close):  # `os` of this module can be gone when Python exits
    if hasattr(self, '_fd'):
      close(self._fd)

  def read(self, offset: int, count: int) -> UInt8[np.ndarray, ' count']:
    """Returns `count` bytes from `offset` on as a new array.

    Raises:
      UserError: if the file is shorter.
    """
    if offset + count > self.size:
      raise damaged(self.path, f'{self.size} bytes long, {offset + count} expected: truncated?')
    data = np.empty(count, np.uint8)
    done = 0
    while done < count:
      try:
        got = os.preadv(self._fd, [data.data[done:]], offset + done)  # at most 2 GB per call
      except OSError as error:
        raise damaged(self.path, f'byte {offset + done}: {error.strerror}') from None
      if not got:
        raise damaged(self.path, f'it shrank from {self.size} to {offset + done} bytes meanwhile')
      done += got
    return data


def damaged(path: str | os.PathLike, why: str) -> UserError:
  """The error for a file whose bytes contradict each other."""
  return UserError(
    f'{os.fspath(path)} is damaged ({why}): fetch it again or restore it from a copy'
  )


def quoted(name: object) -> str:
  """A name from a file that is safe to print: in quotes, escaped and at most 100 characters."""
  text = ascii(name)
  return text if len(text) <= 100 else f'{text[:80]}...{text[-10:]}'


def refuse_pipe(path: str | os.PathLike) -> None:
  """Raises UserError for a pipe or a device, because reading it could wait forever."""
  if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
    raise UserError(f'{os.fspath(path)} is a pipe or device: save it to a file first')


def read_small(path: str | os.PathLike, most: int) -> bytes:
  """Reads a whole file of at most `most` bytes.

  Raises:
    UserError: if it is larger, or a pipe or a device.
    OSError: if it cannot be read.
  """
  refuse_pipe(path)
  with open(path, 'rb') as file:
    data = file.read(most + 1)
  if len(data) > most:
    raise UserError(f'{path} has more than {most} bytes: is it the right file?')
  return data


def read_json(path: str | os.PathLike, most: int = LONGEST_JSON) -> dict[str, Any]:
  """Reads a JSON object; UserError if the file is missing, damaged or has over `most` bytes."""
  try:
    value = json.loads(read_small(Path(path), most).decode('utf-8'))
    if isinstance(value, dict):
      return value
    raise ValueError('no object')
  except FileNotFoundError:
    raise UserError(f'{path} is missing: fetch it, or restore the folder from a copy') from None
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error.strerror}') from None
  except (ValueError, RecursionError) as error:
    raise damaged(path, f'its JSON: {str(error)[:150]}') from None
