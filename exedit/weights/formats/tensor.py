"""A tensor of a file that is not read yet, and the strided windows that torch's files keep."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from exedit.weights.formats.torch_names import View


class Tensor(NamedTuple):
  """One tensor of a file, not read yet; every call of `read` reads it again, C-contiguous."""

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


def read_view(
  read: Callable[[int, int], np.ndarray], view: View, big_endian: bool = False
) -> np.ndarray:
  """A strided window made contiguous, reading from its first to its last element only.

  read: bytes of the storage, from an offset on and so many, in memory of their own.
  """
  if 0 in view.shape:
    return np.empty(view.shape, view.dtype)
  last = sum((n - 1) * step for n, step in zip(view.shape, view.stride))
  width = view.dtype.itemsize
  data = read(view.offset * width, (last + 1) * width)
  if big_endian:
    word = width // 2 if view.dtype.kind == 'c' else width
    data.view(f'u{word}').byteswap(inplace=True)
  steps = [step * width for step in view.stride]
  raw = data.view(f'V{width}')  # as_strided does not know every dtype
  window = np.lib.stride_tricks.as_strided(raw, view.shape, steps).view(view.dtype)
  return np.ascontiguousarray(window).reshape(view.shape)
