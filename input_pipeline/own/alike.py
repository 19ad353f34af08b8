"""Finds near-duplicates: copies of a picture that were saved again, made smaller or brighter."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

SIDE, CELLS = 16, 4
STEP = 2  # levels by which a place must be brighter than its neighbour; noise is less
BITS = 12  # of the 256 that may differ
LEVELS = 24  # of 255 by which the colour of a cell may differ
BANDS = BITS + 1  # hashes that differ in at most BITS agree in one of so many parts
WINDOW = 32  # pictures that one is compared with in a part in which many agree


def signature(pixels: np.ndarray) -> bytes:
  """Returns what is compared of a picture uint8 [h w 3].

  The 256 bits say whether each place of a grid is brighter than the one to its left (a difference
  hash, as dHash); 48 bytes are the mean colours of a coarser grid.
  """
  grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  grid = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
  colours = cv2.resize(pixels, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
  return np.packbits(np.diff(grid) > STEP).tobytes() + colours.tobytes()


def groups(signatures: Sequence[bytes]) -> list[int]:
  """Returns for each picture the position of the first one that it is alike, itself if none.

  Pictures that are alike through others are in one group. Time and memory grow with the number of
  pictures, not with its square.
  """
  first = list(range(len(signatures)))

  def root(i: int) -> int:
    while first[i] != i:
      first[i] = first[first[i]]
      i = first[i]
    return i

  parts = np.frombuffer(b''.join(signatures), np.uint8).reshape(len(signatures), -1)
  hashes = parts[:, : SIDE * SIDE // 8]
  colours = parts[:, SIDE * SIDE // 8 :].astype(np.int16)
  for i, others in _candidates(hashes):
    bits = np.bitwise_count(hashes[others] ^ hashes[i]).sum(1, dtype=np.int32)
    near = np.abs(colours[others] - colours[i]).max(1) <= LEVELS
    for j in others[(bits <= BITS) & near].tolist():
      low, high = sorted((root(i), root(j)))
      first[high] = low
  return [root(i) for i in range(len(signatures))]


def _candidates(hashes: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
  """Yields each picture with others that agree with it in a part of the hash.

  The bits of a part are spread over the picture, because borders of pictures are often plain.
  """
  bits = np.unpackbits(hashes, axis=1)
  order = np.random.default_rng(0).permutation(bits.shape[1])
  for part in np.array_split(order, BANDS):
    same = defaultdict(list)
    for i, key in enumerate(np.packbits(bits[:, part], axis=1)):
      same[key.tobytes()].append(i)
    for found in same.values():
      members = np.array(found)
      if len(members) > WINDOW:  # the most alike come next to each other
        members = members[np.lexsort(hashes[members].T)]
      for at, i in enumerate(members[:-1].tolist()):
        yield i, members[at + 1 : at + 1 + WINDOW]
