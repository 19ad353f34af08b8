"""Makes the record of one picture and its subjects, or says why there is none."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from exedit.runtime import decode, mask_files
from exedit.runtime.errors import UserError

from .. import codec, tf_example
from ..captioned import CAPTION, PHRASE
from ..open_images import AREAS, MASKS
from ..reports import Odd, Reasons
from . import alike, labels
from .subjects import ALPHA, Picture, Placed, Subject, place

LARGEST = 1024  # pixels of the longer side; Open Images' pictures have as many


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a subject and a stored picture must be: shares of the picture, and pixels."""

  min_area: float = AREAS['min_area']
  max_area: float = AREAS['max_area']
  largest: int = LARGEST


@dataclasses.dataclass(frozen=True)
class Found:
  """What became of a picture: its record, b'' if it is dropped for `reason`.

  signature: see `alike`. boxes: those kept, in shares. reasons: of the subjects left out.
  """

  name: str
  record: bytes = b''
  signature: bytes = b''
  boxes: tuple[tuple[float, float, float, float], ...] = ()
  reason: str = ''
  why: str = ''
  reasons: Reasons = dataclasses.field(default_factory=Reasons)


def examine(
  folder: str, name: str, subjects: Sequence[Subject], classes: Sequence[str], rules: Rules
) -> Found:
  """Reads a picture and makes its record, with the features of open_images_v4 and three more.

  These are `caption`, the text of a.txt beside a.jpg; `bobjects/caption`, the label of each box;
  and `bobjects/mask`. Each is there only if there is something to store.
  """
  reasons = Reasons()
  try:
    data, picture = read(os.path.join(folder, name), name, any(s.mask == ALPHA for s in subjects))
  except (UserError, OSError) as error:
    return Found(name, reason='unreadable', why=str(error))
  placed = []
  for subject in subjects:
    try:
      placed.append(place(subject, picture, rules.min_area, rules.max_area))
    except Odd as odd:
      reasons.add(odd)
  if not placed:
    why = f'{name}: {reasons}'
    return Found(name, reason='no_usable_subject', why=why, reasons=reasons)
  caption = caption_of(os.path.join(folder, name))
  record = tf_example.serialize_example(
    features(data, picture, placed, classes, caption, rules.largest)
  )
  boxes = tuple(one.box for one in placed)
  return Found(name, record, alike.signature(picture.pixels), boxes, reasons=reasons)


def read(path: str, name: str, alpha=False) -> tuple[bytes, Picture]:
  """Returns a file's bytes and its upright picture, on white where it is transparent.

  Raises:
    UserError, OSError: if it cannot be read.
  """
  data = Path(path).read_bytes()
  with decode.opened(data, name) as file:
    orientation, stored = decode.orientation(file), decode.stored_size(file)
    clear = None
    if alpha and file.has_transparency_data:
      clear = np.asarray(decode.eight_bit(file).convert('RGBA'))[..., 3]
      clear = None if clear.min() >= mask_files.HALF else clear
  if orientation == 1:
    pixels = codec.decode(data, name)
  else:
    pixels = np.asarray(decode.upright(data, 'RGB', 'white', name))
  return data, Picture(name, pixels, stored, orientation, clear)


def features(
  data: bytes,
  picture: Picture,
  placed: Sequence[Placed],
  classes: Sequence[str],
  caption: str,
  largest: int,
) -> dict[str, bytes | list[bytes] | np.ndarray]:
  """Returns the features of a record; the file's own bytes if it is upright and not too large."""
  size, scale = picture.size, largest / max(picture.size)
  if scale < 1:
    size = tuple(max(1, round(side * scale)) for side in size)
  if picture.orientation != 1 or scale < 1:
    data = codec.jpeg(resized(picture.pixels, size))
  found = {
    'image': data,
    'image/filename': picture.name.encode(),
    'bobjects/bbox': np.array([[y0, x0, y1, x1] for x0, y0, x1, y1 in (p.box for p in placed)]),
    'bobjects/label': np.array([classes.index(p.label) if p.label else -1 for p in placed]),
  }
  if any(p.label for p in placed):
    found[PHRASE] = [p.label.encode() for p in placed]
  if any(p.mask is not None for p in placed):
    png = lambda mask: b'' if mask is None else codec.png(resized(mask, size))
    found[MASKS] = [png(p.mask) for p in placed]
  return found | ({CAPTION: caption.encode()} if caption else {})


def resized(pixels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
  """Returns pixels at a width and height that are not larger; areas are averaged."""
  if pixels.shape[1::-1] == tuple(size):
    return np.ascontiguousarray(pixels)
  return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def caption_of(path: str) -> str:
  """Returns the text in the .txt file beside a picture; '' without one, and for YOLO's boxes."""
  beside = Path(path).with_suffix('.txt')
  if not beside.is_file():
    return ''
  text = beside.read_text('utf-8-sig', 'replace')
  return '' if all(map(labels.is_numbers, text.splitlines())) else ' '.join(text.split())
