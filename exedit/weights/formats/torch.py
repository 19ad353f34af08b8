"""Checkpoints of torch.save: zip files since torch 1.6, before that a row of pickles.

Formats: torch/serialization.py, `_save` and `_legacy_save`. Most networks of the metrics were
published in the old one: FID's Inception, torchvision's AlexNet and VGG-16, the weights of LPIPS.
Nothing in a file is executed.
"""

import functools
import io
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from exedit.runtime.errors import UserError
from exedit.weights.formats import pickles, torch_names
from exedit.weights.formats.pickles import Pairs, kind
from exedit.weights.formats.tensor import File, Tensor, damaged, quoted
from exedit.weights.formats.torch_names import NAMES, Storage, View
from exedit.weights.formats.torch_saving import NOTES

LONGEST_PICKLE = 2**26  # bytes; a thousand times what a large checkpoint takes
LONGEST_NOTE = 2**22  # bytes
LARGEST_DIRECTORY = 2**24  # bytes of a zip's list of entries, about 150,000 of them
CHUNK = 2**22  # bytes that are unpacked at a time
# All entries of a zip together may unpack to this many times the file's size and this many bytes
# more: trained weights hardly compress at all, zeros compress by a thousand.
MOST_RATIO, MOST_ON_TOP = 20, 2**28
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the old format
LONGEST_HEAD = 2**22  # bytes of all pickles of an old file; those of 1,500 tensors take a tenth


def read_view(read: Callable[[int, int], np.ndarray], view: View) -> np.ndarray:
  """Returns a tensor's part of its storage as a contiguous array.

  read(start, count): bytes of the storage, as a new array. Only the bytes from the part's first
  to its last element are read.
  """
  if 0 in view.shape:
    return np.empty(view.shape, view.dtype)
  last = sum((n - 1) * step for n, step in zip(view.shape, view.stride))
  width = view.dtype.itemsize
  data = read(view.offset * width, (last + 1) * width)
  steps = [step * width for step in view.stride]
  raw = data.view(f'V{width}')  # as_strided does not know every type
  window = np.lib.stride_tricks.as_strided(raw, view.shape, steps).view(view.dtype)
  return np.ascontiguousarray(window).reshape(view.shape)


# Since torch 1.6


def open_zip(file: File, nested: bool = False) -> dict[str, Tensor]:
  """Returns the tensors of a zip by name, unread. nested: see `torch_names.read_weights`.

  Raises:
    UserError: if it is another zip, damaged, or its pickle asks for more than tensors.
  """
  archive = Zip(file)
  if any(name.endswith('/constants.pkl') for name in archive.names()):
    raise UserError(
      f'{file.path} is TorchScript, which exedit does not read: use a .safetensors file or a saved'
      " state_dict instead (openai/clip-vit-base-patch32 holds the weights of OpenAI's ViT-B-32.pt)"
    )
  pickled = [n for n in archive.names() if re.fullmatch(r'(?:[^/]+/)?data\.pkl', n)]
  if len(pickled) != 1:
    raise UserError(
      f'{file.path} is a zip with {len(pickled)} data.pkl, and a torch checkpoint has one: give'
      ' a checkpoint, or unpack it first'
    )
  if (size := archive.size(pickled[0])) > LONGEST_PICKLE:
    raise damaged(file.path, f'a pickle of {size} bytes')
  top = pickled[0].removesuffix('data.pkl')
  order = archive.read(f'{top}byteorder').tobytes() if archive.size(f'{top}byteorder') > 0 else b''
  if order not in (b'', b'little'):
    raise UserError(f'{file.path} has the byte order {quoted(order)}: save it on another machine')
  tensors = {}
  data = archive.read(pickled[0]).tobytes()
  for name, view in torch_names.read_weights(data, file.path, nested=nested).items():
    key, size = f'{top}data/{view.storage.key}', view.storage.size
    if archive.size(key) != size:
      there = f'has {archive.size(key)}' if archive.size(key) >= 0 else 'is not there'
      raise damaged(file.path, f'{quoted(name)} needs {size} bytes in {quoted(key)}, which {there}')
    read = functools.partial(read_view, functools.partial(archive.read, key), view)
    tensors[name] = Tensor(view.shape, view.dtype, read)
  return tensors


def read_notes(file: File) -> dict[str, str]:
  """Returns the texts that `save_checkpoint` has added to a zip; ValueError if one is no text."""
  archive, notes = Zip(file), {}
  for name in archive.names():
    if name.startswith(NOTES) and archive.size(name) <= LONGEST_NOTE:
      notes[name.removeprefix(NOTES)] = archive.read(name).tobytes().decode()
  return notes


class Zip:
  """The entries of a zip file by name. The standard library unpacks them and checks their CRCs."""

  def __init__(self, file: File):
    self._path = file.path
    try:
      self._zip = zipfile.ZipFile(_Bounded(file.path))  # type: ignore[arg-type]
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, struct.error) as e:
      raise damaged(file.path, f'{str(e)[:150]}; truncated?') from None
    self._entries = {entry.filename: entry for entry in self._zip.infolist()}
    self._sound: set[str] = set()  # the entries whose CRC was checked
    self._check(file.size)

  def _check(self, size: int) -> None:
    """Refuses entries of unknown kinds, and sizes that cannot be true, before any is read."""
    entries = self._zip.infolist()
    if len(self._entries) < len(entries):
      raise damaged(self._path, 'two of its entries have the same name')
    for entry in entries:
      known = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
      if entry.flag_bits & 1 or not known:
        what = quoted(entry.filename)
        raise UserError(
          f'{self._path}: {what} is encrypted or compressed in a rare way: save it again'
        )
      if entry.CRC == 0:
        del entry.CRC  # torch was told not to compute it; the library then does not check it
    if sum(entry.compress_size for entry in entries) > size:
      raise damaged(self._path, 'its entries claim more bytes than the file has')
    total = sum(entry.file_size for entry in entries)
    if total > MOST_RATIO * size + MOST_ON_TOP:
      raise UserError(
        f'{self._path} is refused: its {size} bytes claim to unpack to {total} bytes, which weights'
        ' never do'
      )

  def names(self) -> list[str]:
    """The names of all entries."""
    return list(self._entries)

  def size(self, name: str) -> int:
    """The unpacked bytes of an entry; -1 if there is none of this name."""
    return self._entries[name].file_size if name in self._entries else -1

  def read(self, name: str, start: int = 0, count: int | None = None) -> UInt8[np.ndarray, ' n']:
    """Returns `count` bytes of an entry from `start` on (default: to its end) as a new array.

    Raises:
      UserError: if the entry's bytes are not those that were once written.
    """
    entry = self._entries[name]
    count = entry.file_size - start if count is None else count
    try:
      if count < entry.file_size and name not in self._sound:
        with self._zip.open(entry) as opened:  # the CRC is of the whole entry: look at it once
          while opened.read(CHUNK):
            pass
      data = self._part(entry, start, count)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, struct.error) as error:
      raise damaged(self._path, f'{quoted(name)}: {str(error)[:150]}') from None
    self._sound.add(name)
    return data

  def _part(self, entry: zipfile.ZipInfo, start: int, count: int) -> np.ndarray:
    data, done = np.empty(count, np.uint8), 0
    with self._zip.open(entry) as opened:
      if opened.seekable():
        opened.seek(start)
      else:  # an entry without a CRC
        for at in range(0, start, CHUNK):
          opened.read(min(CHUNK, start - at))
      while done < count:
        piece = opened.read(min(CHUNK, count - done))
        if not piece:
          raise EOFError(f'{start + done} of {entry.file_size} bytes')
        data[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
    return data


class _Bounded(io.FileIO):
  """A file object with a limit per read, because a zip's own header says how long its list is."""

  def read(self, size: int | None = -1) -> bytes:
    if size is not None and size > LARGEST_DIRECTORY:
      raise zipfile.BadZipFile(f'a list of entries of {size} bytes')
    return super().read(-1 if size is None else size) or b''


# Before torch 1.6: five pickles one behind the other, then the storages' bytes


def is_legacy(head: bytes) -> bool:
  """Whether a file with this beginning is in the old format: protocol 2, an integer of 10 bytes."""
  return head[:4] == b'\x80\x02\x8a\x0a'


def open_legacy(file: File, nested: bool = False) -> dict[str, Tensor]:
  """Returns the tensors of a file in the old format by name, unread. nested: as in `open_zip`.

  Raises:
    UserError: if it is damaged, of another version, or asks for more than tensors.
  """
  magic, version, system, weights, keys = _pickles(file)
  found = [pickles.unpickle(data, file.path, NAMES) for data in (magic, version)]
  if found != [MAGIC, VERSION]:
    raise damaged(file.path, f'magic number and version are {kind(found[0])}, {kind(found[1])}')
  words = pickles.unpickle(system, file.path, NAMES)
  if not isinstance(words, Pairs) or ('little_endian', True) not in words.items:
    raise damaged(file.path, 'it does not say that its numbers are little-endian')
  storages: dict[str, Storage] = {}
  views = torch_names.read_weights(weights, file.path, _legacy_names(storages), nested)
  order = pickles.unpickle(keys, file.path, NAMES)
  places = _places(file, order, storages, sum(map(len, (magic, version, system, weights, keys))))
  return {
    name: Tensor(view.shape, view.dtype, functools.partial(_read, file, places, view))
    for name, view in views.items()
  }


def _pickles(file: File) -> list[bytes]:
  """The five pickles at the beginning, cut where each one stops and not yet interpreted."""
  head, cut, at = file.read(0, min(file.size, LONGEST_HEAD)).tobytes(), [], 0
  try:
    for _ in range(5):
      *_, (_, _, stop) = pickletools.genops(io.BytesIO(head[at:]))
      cut.append(head[at : at + (stop or 0) + 1])
      at += len(cut[-1])
  except (ValueError, OverflowError) as error:
    raise damaged(file.path, f'its pickles: {str(error)[:150]}') from None
  return cut


def _legacy_names(storages: dict[str, Storage]) -> pickles.Names:
  """What the pickle may ask for. All storages that it names are collected in `storages`."""

  def note(pid: Any) -> Storage:
    storage = NAMES.persistent(pid)
    if len(pid) != 6 or pid[5] is not None:
      raise ValueError('a storage that is part of another: torch before 0.4 wrote such files')
    if storages.setdefault(storage.key, storage) != storage:
      raise ValueError(f'storage {quoted(storage.key)} of two kinds or sizes')
    return storage

  builders = {**NAMES.builders, 'collections.OrderedDict': _ordered}
  return NAMES._replace(builders=builders, persistent=note)


def _ordered(*args: Any) -> Pairs:
  """An OrderedDict: Python 3 fills it afterwards, Python 2 gave it a list of [key, value]."""
  items = args[0] if args else []
  if len(args) > 1 or not isinstance(items, list):
    raise ValueError('an OrderedDict of other things than pairs')
  if not all(isinstance(item, (list, tuple)) and len(item) == 2 for item in items):
    raise ValueError('an OrderedDict of other things than pairs')
  return Pairs([(key, value) for key, value in items])


def _places(file: File, keys: Any, storages: Mapping[str, Storage], at: int) -> dict[str, int]:
  """The offset of each storage's bytes; its number of elements stands in front of them."""
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
