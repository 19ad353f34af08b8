import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exedit.editing.room import Room


def test_what_is_in_work_at_once_stays_within_the_bound():
  room, lock, now, most = Room(10), threading.Lock(), [0], [0]

  def work(size):
    with room.taken(size):
      with lock:
        now[0] += size
        most[0] = max(most[0], now[0])
      time.sleep(0.002)
      with lock:
        now[0] -= size

  with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, [3, 4, 5, 1, 0, 2] * 10))
  assert 5 < most[0] <= 10 and now[0] == 0


def test_what_is_larger_than_the_room_is_alone_in_it():
  room, inside = Room(10), []

  def work(size):
    with room.taken(size):
      inside.append(size)
      assert sum(inside) == max(inside) or sum(inside) <= 10
      time.sleep(0.002)
      inside.remove(size)

  with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, [99, 3, 4] * 10))


def test_room_is_given_back_after_an_error():
  room = Room(10)
  with pytest.raises(KeyError), room.taken(10):
    raise KeyError
  with room.taken(10):
    pass
