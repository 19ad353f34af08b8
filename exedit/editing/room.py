"""So many pixels at once: threads that work on large photos wait for each other, not for memory."""

import contextlib
import threading
from collections.abc import Iterator

PIXELS = 2**27  # in work at once; the largest photo that Pillow allows has two thirds of it


class Room:
  """What is in work at once takes up at most `most`; whatever is larger is let in alone."""

  def __init__(self, most: int):
    self.most, self._used = most, 0
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def taken(self, size: int) -> Iterator[None]:
    """Waits until there is room; not to be nested, for two could wait for each other."""
    with self._changed:
      self._changed.wait_for(lambda: not self._used or self._used + size <= self.most)
      self._used += size
    try:
      yield
    finally:
      with self._changed:
        self._used -= size
        self._changed.notify_all()


# Of a photo that is decoded or written, each pixel takes up to about 16 bytes.
PHOTOS = Room(PIXELS)
