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


def test_ctrl_c_inside_jax_is_replaced():
  with pytest.raises(ValueError):  # what JAX makes of it: the reason for the next test
    compare(signal.SIGINT)


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


def raised(error, filename='code.py'):
  """The error as it is caught after it was raised in a file of this name."""
  try:
    exec(compile('raise error', filename, 'exec'), dict(error=error))
  except Exception as caught:
    return caught


BRIDGE = '/somewhere/jax/_src/xla_bridge.py'
CONFIG = '/somewhere/jax/_src/config.py'


@pytest.mark.parametrize(
  'error, place, says',
  [
    (AssertionError(), BRIDGE, 'JAX_PLATFORMS=cuda (there are none): correct or unset'),
    (RuntimeError("no libtpu (set JAX_PLATFORMS='' to choose)"), BRIDGE, '(no libtpu)'),
    (RuntimeError('INTERNAL: CUDA_ERROR_ECC_UNCORRECTABLE'), 'code.py', 'JAX_PLATFORMS=cpu'),
    (RuntimeError('INTERNAL: CUDA error: the driver is gone'), 'code.py', 'JAX_PLATFORMS=cpu'),
    (RuntimeError('RESOURCE_EXHAUSTED: Out of memory'), 'code.py', 'a smaller batch'),
    (ValueError("invalid truth value 'x' for environment 'JAX_X'"), CONFIG, 'unset the variable'),
  ],
)
def test_devices_that_jax_cannot_use_are_one_line(error, place, says, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  line = errors.explain(raised(error, place))
  assert line is not None and says in line and '\n' not in line


@pytest.mark.parametrize('error', [RuntimeError('a bug'), ValueError('environment'), MemoryError()])
def test_a_bug_stays_a_bug(error):
  assert errors.explain(raised(error)) is None
