"""SIGTERM and Ctrl-C: how a run is asked to stop."""

import contextlib
import os
import signal
import sys
import threading

import jax


class Stopped(KeyboardInterrupt):
  """SIGTERM or Ctrl-C, where there was nothing to save.

  A KeyboardInterrupt, for asyncio (Orbax runs its loops here) reports any other exception that a
  signal raises in its callbacks and goes on.
  """

  def __init__(self, number: int):
    name = 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name
    super().__init__(f'stopped by {name}: the same command goes on from where the run last saved')
    self.number = number


class Stop:
  """Turns SIGTERM and Ctrl-C into a question that the loop asks between two steps.

  With several processes they must agree on the step to stop at, which JAX's preemption service
  arranges; a process alone needs only a flag. A second Ctrl-C interrupts at once.

  at_once: around a whole door, before and after the loop. There nothing has to be saved: a signal
  raises Stopped as soon as Python has control, which is not before a compilation ends. When
  several processes have been joined, SIGTERM is the preemption service's. A Stop inside another
  takes over from it, and behind the outermost SIGTERM is too late: the process is leaving anyway.
  """

  def __init__(self, at_once: bool = False):
    self._at_once, self._before = at_once, {}
    self._number: int | None = None  # of the signal that asked last
    self._hook = sys.unraisablehook

  def __enter__(self):
    if self._at_once or jax.process_count() == 1:
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._ask)
      # One that was raised where Python only prints it (a finalizer) is answered here.
      outer = getattr(self._before[signal.SIGTERM], '__self__', None)
      if isinstance(outer, Stop):
        self._number = self._number or outer._number
    if self._at_once:
      sys.unraisablehook = self._unheard
    return self

  def __exit__(self, kind, error, _):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if self._at_once:
      sys.unraisablehook = self._hook
      # Not a function: as it leaves, Python gives those back to the system, which kills.
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
      if self._number and isinstance(error, ValueError):
        raise Stopped(self._number) from error  # raised where C++ had asked Python: errors.heard

  def _unheard(self, what):
    """A signal that came while Python ran a finalizer, where nothing can be raised: once more."""
    if not isinstance(what.exc_value, Stopped):
      self._hook(what)
      return
    again = threading.Timer(0.05, self._again, (what.exc_value.number,))
    again.daemon = True
    again.start()

  def _again(self, number):
    if signal.getsignal(number) == self._ask:  # neither over nor taken over
      os.kill(os.getpid(), number)

  def _ask(self, number, frame):
    self._number = number
    if self._at_once:
      raise Stopped(number)
    signal.signal(signal.SIGINT, self._before[signal.SIGINT])

  def requested(self, step: int) -> bool:
    """Whether to save and leave after this step; every process asks once per step."""
    if jax.process_count() == 1:
      return self._number is not None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def held():
  """Signals wait until this is over: what they raise, Orbax takes for a failure of its own.

  SIGTERM of several processes is the preemption service's, which Python knows nothing of; a handler
  set here would take its place for good.
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
