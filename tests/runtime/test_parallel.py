import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exedit.runtime.errors import UserError
from exedit.runtime.parallel import PixelBudget, ahead


def test_ahead_keeps_the_order_and_begins_no_more_than_it_may():
  begun, lock = [], threading.Lock()

  def slow(i):
    with lock:
      begun.append(i)
    time.sleep(0.01 * (i % 3))
    return i

  with ThreadPoolExecutor(4) as pool:
    items = ahead(pool, slow, range(20), 4)
    assert next(items) == 0
    time.sleep(0.2)
    assert max(begun) == 4
    assert list(items) == list(range(1, 20))


def test_ahead_turns_a_users_error_into_its_line_and_raises_a_bug():
  def fail(error):
    raise error

  with ThreadPoolExecutor(2) as pool:
    assert list(ahead(pool, fail, [UserError('mend it')], 1)) == ['mend it']
    with pytest.raises(KeyError):
      list(ahead(pool, fail, [KeyError('a bug')], 1))


@pytest.mark.parametrize('sizes', [[3, 4, 5, 1, 0, 2], [99, 3, 4]])
def test_threads_stay_within_the_budget_and_a_larger_photo_is_alone(sizes):
  budget, lock, inside = PixelBudget(10), threading.Lock(), []

  def work(size):
    with budget.taken(size):
      with lock:
        inside.append(size)
        assert sum(inside) == max(inside) or sum(inside) <= 10
      time.sleep(0.002)
      with lock:
        inside.remove(size)

  with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, sizes * 10))
  assert not inside


def test_the_budget_is_free_again_after_an_error():
  budget = PixelBudget(10)
  with pytest.raises(KeyError), budget.taken(10):
    raise KeyError
  with budget.taken(10):
    pass
