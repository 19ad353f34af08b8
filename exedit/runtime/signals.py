"""SIGTERM and Ctrl-C: how a run is asked to stop."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax


class Stopped(KeyboardInterrupt):
  """SIGTERM or Ctrl-C came while there was nothing to save.

  It is a KeyboardInterrupt, because asyncio (in which Orbax runs) only reports any other exception
  that a signal handler raises inside its callbacks.
  """

  def __init__(self, number: int):
    name = 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name
    super().__init__(f'stopped by {name}: the same command goes on from where the run last saved')
    self.number = number


class Stop:
  """Turns SIGTERM and Ctrl-C into an answer of `requested`, for a loop to ask after each step.

  Several processes must stop at the same step, which JAX's preemption service arranges; a lone
  process needs only a flag. A second Ctrl-C interrupts at once.

  at_once: for the time around the loop, when there is nothing to save. Then a signal raises Stopped
  as soon as Python has control, which is not before a compilation ends. When several processes have
  joined, SIGTERM belongs to the preemption service. A Stop inside another one takes over from it.
  After the outermost one SIGTERM is ignored, because the process is ending anyway.
  """

  def __init__(self, at_once: bool = False):
    self._at_once, self._before = at_once, {}
    self._number: int | None = None  # of the last signal
    self._hook = sys.unraisablehook

  def __enter__(self):
    if self._at_once or jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._ask)
      # The outer Stop may have raised inside a finalizer, where Python only prints the exception.
      outer = getattr(self._before[signal.SIGTERM], '__self__', None)
      if isinstance(outer, Stop):
        self._number = self._number or outer._number
    if self._at_once:
      sys.unraisablehook = self._not_raised
    return self

  def __exit__(self, kind, error, _):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if self._at_once:
      sys.unraisablehook = self._hook
      # Python restores the default (which kills) for a handler that is a function when it ends.
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
      if self._number and isinstance(error, ValueError):
        # Raised while JAX's C++ code called Python, which replaced it: see errors.heard.
        raise Stopped(self._number) from error

  def _not_raised(self, what):
    """Sends a signal again that came inside a finalizer, where nothing can be raised."""
    if not isinstance(what.exc_value, Stopped):
      self._hook(what)
      return
    again = threading.Timer(0.05, self._again, (what.exc_value.number,))
    again.daemon = True
    again.start()

  def _again(self, number):
    if signal.getsignal(number) == self._ask:  # this Stop is still the innermost one
      os.kill(os.getpid(), number)

  def _ask(self, number, frame):
    self._number = number
    if self._at_once:
      raise Stopped(number)
    signal.signal(signal.SIGINT, self._before[signal.SIGINT])

  def requested(self, step: int) -> bool:
    """Whether to save and stop after this step; every process must ask once per step."""
    if jax.process_count() == 1:
      return self._number is not None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def delayed() -> Iterator[None]:
  """Delays signals to the end of the block, because Orbax takes what they raise for its own error.

  SIGTERM of several processes is not delayed: a handler set here would replace the preemption
  service's for good, because Python does not know that one.
  """
  came: list[int] = []
  handlers = {}
  if threading.current_thread() is threading.main_thread():
    ours = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else (signal.SIGINT,)
    asked = {number: signal.getsignal(number) for number in ours}
    handlers = {number: handler for number, handler in asked.items() if handler is not None}
  for number in handlers:
    signal.signal(number, lambda number, frame: came.append(number))
  try:
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
    for number in came:
      os.kill(os.getpid(), number)
