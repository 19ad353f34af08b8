"""The end of several processes, each a thread here; tests/test_sample.py has real ones."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from jax._src import distributed

from exedit.editing import shares
from exedit.runtime.errors import UserError


class Store(dict):
  """What JAX's key-value store is to these processes."""

  key_value_set = dict.__setitem__

  def key_value_dir_get(self, prefix):
    return [(key, text) for key, text in list(self.items()) if key.startswith(prefix)]


@pytest.fixture
def ended(monkeypatch):
  """Which error each of several processes leaves with, given its own."""
  own = threading.local()

  def together(*errors):
    monkeypatch.setattr(jax, 'process_count', lambda: len(errors))
    monkeypatch.setattr(jax, 'process_index', lambda: own.index)
    monkeypatch.setattr(distributed.global_state, 'client', Store())

    def end(index):
      own.index = index
      try:
        shares.end(errors[index])
      except Exception as error:
        return error

    with ThreadPoolExecutor(len(errors)) as pool:
      return list(pool.map(end, range(len(errors))))

  return together


def test_all_leave_well_where_all_end_well(ended):
  assert ended(None, None, None) == [None] * 3


def test_who_failed_raises_its_own_error_and_the_others_say_whose_it_is(ended):
  mine, bug = UserError('mend it'), KeyError('a bug')
  first, second, third, fourth = ended(None, mine, None, bug)
  assert second is mine and fourth is bug
  assert str(first).startswith("process 1: mend it; process 3: KeyError: 'a bug' (process 0 has")
  assert isinstance(third, UserError) and '(process 2 has made its share)' in str(third)


def test_a_process_that_failed_says_for_whom_it_waits(ended, monkeypatch, capsys):
  monkeypatch.setattr(shares, 'PATIENCE', 0.0)
  late = threading.Timer(
    0.5, lambda: distributed.global_state.client.update({'exedit/ended/1': ''})
  )
  wait = Store.key_value_set

  def set_later(self, key, text):
    late.start() if key.endswith('1') else wait(self, key, text)

  monkeypatch.setattr(Store, 'key_value_set', set_later)
  assert str(ended(UserError('mend it'), None)[0]) == 'mend it'
  assert capsys.readouterr().err == 'mend it (waiting for 1 other processes)\n'


def test_a_process_alone_waits_for_nobody():
  shares.end(None)
  with pytest.raises(KeyError):
    shares.end(KeyError('mine'))
