"""Files that torch wrote before 1.6: five pickles one behind the other, then the storages' bytes.

Most networks of the metrics were published so: FID's Inception, torchvision's AlexNet and VGG-16,
the weights of LPIPS. Format: torch/serialization.py, _legacy_save. Nothing in a file is executed.
"""

import functools
import io
import pickletools
from collections.abc import Mapping
from typing import Any

import numpy as np

from exedit.weights.formats import pickles, torch_names
from exedit.weights.formats.pickles import Pairs, kind
from exedit.weights.formats.pread import File, damaged, quoted
from exedit.weights.formats.tensor import Tensor, read_view
from exedit.weights.formats.torch_names import Storage, View

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
LONGEST_HEAD = 2**22  # bytes of all pickles; those of 1,500 tensors take a tenth of it
_PLAIN = torch_names.NAMES


def is_legacy(head: bytes) -> bool:
  """Whether a file with this beginning is one of them: protocol 2, an integer of ten bytes."""
  return head[:4] == b'\x80\x02\x8a\x0a'


def open_tensors(file: File) -> dict[str, Tensor]:
  """The tensors by name, unread.

  Raises:
    UserError: where it is damaged, of another version, or asks for more than tensors.
  """
  magic, version, system, weights, keys = _pickles(file)
  found = [pickles.unpickle(data, file.path, _PLAIN) for data in (magic, version)]
  if found != [MAGIC, VERSION]:
    raise damaged(file.path, f'magic number and version are {kind(found[0])}, {kind(found[1])}')
  words = pickles.unpickle(system, file.path, _PLAIN)
  if not isinstance(words, Pairs) or ('little_endian', True) not in words.items:
    raise damaged(file.path, 'it does not say that its numbers are little-endian')
  storages: dict[str, Storage] = {}
  views = torch_names.read_weights(weights, file.path, _names(storages))
  order = pickles.unpickle(keys, file.path, _PLAIN)
  places = _places(file, order, storages, sum(map(len, (magic, version, system, weights, keys))))
  return {
    name: Tensor(view.shape, view.dtype, functools.partial(_read, file, places, view))
    for name, view in views.items()
  }


def _pickles(file: File) -> list[bytes]:
  """The five pickles at the beginning: cut where each one stops, not yet interpreted."""
  head, cut, at = file.read(0, min(file.size, LONGEST_HEAD)).tobytes(), [], 0
  try:
    for _ in range(5):
      *_, (_, _, stop) = pickletools.genops(io.BytesIO(head[at:]))
      cut.append(head[at : at + (stop or 0) + 1])
      at += len(cut[-1])
  except (ValueError, OverflowError) as error:
    raise damaged(file.path, f'its pickles: {str(error)[:150]}') from None
  return cut


def _names(storages: dict[str, Storage]) -> pickles.Names:
  """What the pickle may ask for; the storages that it speaks of are noted, bystanders' too."""

  def note(pid: Any) -> Storage:
    storage = _PLAIN.persistent(pid)
    if len(pid) != 6 or pid[5] is not None:
      raise ValueError('a storage that is part of another: torch before 0.4 wrote such files')
    if storages.setdefault(storage.key, storage) != storage:
      raise ValueError(f'storage {quoted(storage.key)} of two kinds or sizes')
    return storage

  builders = {**_PLAIN.builders, 'collections.OrderedDict': _ordered}
  return _PLAIN._replace(builders=builders, persistent=note)


def _ordered(*args: Any) -> Pairs:
  """An OrderedDict: Python 3 fills it afterwards, Python 2 gave it a list of [key, value]."""
  items = args[0] if args else []
  if len(args) > 1 or not isinstance(items, list):
    raise ValueError('an OrderedDict of other things than pairs')
  if not all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
    raise ValueError('an OrderedDict of other things than pairs')
  return Pairs([(key, value) for key, value in items])


def _places(file: File, keys: Any, storages: Mapping[str, Storage], at: int) -> dict[str, int]:
  """Where each storage's bytes begin; each stands behind its number of elements."""
  if not isinstance(keys, list) or sorted(map(kind, keys)) != sorted(map(kind, storages)):
    raise damaged(file.path, 'its list of storages is not that of its tensors')
  places = {}
  for key in keys:
    storage = storages[key]
    count = int.from_bytes(file.read(at, 8).tobytes(), 'little')
    if count * storage.dtype.itemsize != storage.size:
      size = storage.size // storage.dtype.itemsize
      raise damaged(
        file.path, f'storage {quoted(key)} has {count} elements, its tensors say {size}'
      )
    places[key] = at + 8
    at += 8 + storage.size
  if at > file.size:
    raise damaged(file.path, f'{file.size} bytes long, {at} expected: truncated?')
  return places


def _read(file: File, places: Mapping[str, int], view: View) -> np.ndarray:
  place = places[view.storage.key]
  return read_view(lambda start, count: file.read(place + start, count), view)
