import itertools
import os
import signal

import jax
import pytest

from exedit.runtime import errors, signals

KEYS = itertools.count()  # JAX also compares with those of earlier calls


class Compared:
  """A static argument that is interrupted by a signal as JAX's C++ compares it."""

  def __init__(self, number, key):
    self.number, self.key = number, key

  def __hash__(self):
    return hash(self.key)

  def __eq__(self, other):
    if self.key == other.key:
      os.kill(os.getpid(), self.number)
    return self.key == other.key


def compare(number):
  function, key = jax.jit(lambda x, compared: x, static_argnames='compared'), next(KEYS)
  for _ in range(2):
    function(1.0, compared=Compared(number, key))


def test_a_user_error_is_one_line_and_its_listing():
  assert str(errors.UserError('the file a\nb')) == 'the file a b'
  assert str(errors.UserError('two:', ['a', 'b'])) == 'two:\n  a\n  b'


def test_ctrl_c_inside_jax_is_heard():
  with pytest.raises(ValueError):  # what JAX makes of it
    compare(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    with errors.heard():
      compare(signal.SIGINT)


def test_all_else_stays_what_it_is():
  with pytest.raises(ValueError, match='of a user'):
    with errors.heard():
      raise ValueError('of a user')
  with pytest.raises(KeyboardInterrupt):
    with errors.heard():
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_has_arranged_ctrl_c_keeps_it():
  heard = []
  before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
  try:
    with errors.heard():
      os.kill(os.getpid(), signal.SIGINT)
  finally:
    signal.signal(signal.SIGINT, before)
  assert heard == [1]


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_training_told_to_stop_inside_jax_stops(number):
  before = signal.getsignal(signal.SIGTERM)
  try:
    with pytest.raises(signals.Stopped) as stopped:
      with signals.Stop(at_once=True):
        compare(number)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert stopped.value.number == number
