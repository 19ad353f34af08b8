"""Checkpoints as torch.save writes them since 1.6: a zip of one pickle and an entry per storage.

Format: torch/serialization.py, _save. Nothing in a file is executed.
"""

import functools
import re

from exedit.runtime.errors import UserError
from exedit.weights.formats import torch_names
from exedit.weights.formats.pread import damaged, quoted
from exedit.weights.formats.tensor import Tensor, read_view
from exedit.weights.formats.zips import Zip

LONGEST_PICKLE = 2**26  # bytes; a thousand times what a large checkpoint takes


def open_tensors(archive: Zip, where: str) -> dict[str, Tensor]:
  """The tensors by name, unread.

  Raises:
    UserError: where it is another zip or damaged, or its pickle asks for more than tensors.
  """
  pickled = [n for n in archive.names() if re.fullmatch(r'(?:[^/]+/)?data\.pkl', n)]
  if len(pickled) != 1:
    raise UserError(
      f'{where} is a zip with {len(pickled)} data.pkl, and a torch checkpoint has one: give'
      ' a checkpoint, or unpack it first'
    )
  if (size := archive.size(pickled[0])) > LONGEST_PICKLE:
    raise damaged(where, f'a pickle of {size} bytes')
  top = pickled[0].removesuffix('data.pkl')
  order = archive.read(f'{top}byteorder').tobytes() if archive.size(f'{top}byteorder') > 0 else b''
  if order not in (b'', b'little', b'big'):
    raise damaged(where, f'its byte order is {quoted(order)}')
  views = torch_names.read_weights(archive.read(pickled[0]).tobytes(), where)
  tensors = {}
  for name, view in views.items():
    key, size = f'{top}data/{view.storage.key}', view.storage.size
    if archive.size(key) != size:
      there = f'has {archive.size(key)}' if archive.size(key) >= 0 else 'is not there'
      raise damaged(where, f'{quoted(name)} needs {size} bytes in {quoted(key)}, which {there}')
    read = functools.partial(archive.read, key)
    read = functools.partial(read_view, read, view, big_endian=order == b'big')
    tensors[name] = Tensor(view.shape, view.dtype, read)
  return tensors
