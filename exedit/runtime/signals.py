"""SIGTERM and Ctrl-C: how a command is asked to stop."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from exedit.runtime import start

AGAIN = 0.2  # seconds after which a signal that a library swallowed is sent again


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
  as soon as Python has control, which is not before a compilation ends. Libraries can swallow it:
  JAX's C++ code replaces what Python raises while it compares static arguments, and Python only
  reports what is raised in a finalizer; and C code that imports a module can crash, so nothing is
  raised then. So the signal comes again until Stopped is on its way, and the block ends with
  Stopped in any case. When several processes have joined, SIGTERM belongs to
  the preemption service. A Stop inside another one takes over from it. After the outermost one
  SIGTERM is ignored, because the process is ending anyway.

  door: a file that imports before it begins to work. Ctrl-C ends the process there.

  A Ctrl-C that the program ignores or handles itself stays as it is.
  """

  def __init__(
    self,
    at_once: bool = False,
    numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
    door: str | None = None,
  ):
    self._at_once, self._numbers, self._door = at_once, numbers, door
    self._before: dict[int, Any] = {}  # the handlers
    self._number: int | None = None  # of the last signal
    self._reminder: threading.Timer | None = None
    self._reminded = False
    self._hook = sys.unraisablehook

  def __enter__(self):
    if threading.current_thread() is not threading.main_thread():
      return self
    if self._at_once or _process_count() == 1:
      for number in self._numbers:
        handler = signal.getsignal(number)
        outer = getattr(handler, '__self__', None)
        ours = handler in (signal.default_int_handler, start.end) or isinstance(outer, Stop)
        if number == signal.SIGINT and not ours:
          continue
        self._before[number] = signal.signal(number, self._ask)
        if isinstance(outer, Stop) and outer._number:  # what it raised has been swallowed
          self._number, outer._number = outer._number, None
          if self._at_once:
            self._remind_later()
    if self._at_once:
      sys.unraisablehook = self._not_raised
    return self

  def __exit__(self, kind, error, _):
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if not self._at_once:
      return
    sys.unraisablehook = self._hook
    if self._reminder:
      self._reminder.cancel()
      self._reminder = None
    if signal.SIGTERM in self._before:
      # Python restores the default (which kills) for a handler that is a function when it ends.
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if self._number and (error is None or isinstance(error, Exception)):
      raise Stopped(self._number) from error

  def _not_raised(self, what):
    """Does not report Stopped from a finalizer, because the signal comes again."""
    if not isinstance(what.exc_value, Stopped):
      self._hook(what)

  def _ask(self, number, frame):
    self._number = number
    if not self._at_once:
      if signal.SIGINT in self._before:
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
      return
    reminded, self._reminded = self._reminded, False
    self._remind_later()
    importer = _importer(frame)
    if importer and importer == self._door and number == signal.SIGINT:
      start.end(number, frame)
    if not (importer or reminded and _on_its_way()):
      raise Stopped(number)

  def _remind_later(self):
    self._reminder = threading.Timer(AGAIN, self._remind)
    self._reminder.daemon = True
    self._reminder.start()

  def _remind(self):
    if self._number is None or self._reminder is None:  # an inner Stop has taken over, or the end
      return
    if signal.getsignal(self._number) == self._ask:
      self._reminded = True
      os.kill(os.getpid(), self._number)
    else:  # delayed
      self._remind_later()

  def requested(self, step: int) -> bool:
    """Whether to save and stop after this step; every process must ask once per step."""
    if _process_count() == 1:
      return self._number is not None
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


def _process_count() -> int:
  import jax  # not above, because doors answer a wrong flag before JAX is imported

  return jax.process_count()


def _on_its_way() -> bool:
  """Whether the main thread cleans up because of Stopped."""
  error = sys.exception()
  while error is not None and not isinstance(error, Stopped):
    error = error.__context__
  return error is not None


def _importer(frame) -> str | None:
  """The file with the outermost import that this frame belongs to; None if it belongs to none."""
  found = None
  while frame is not None:
    if frame.f_code.co_filename == '<frozen importlib._bootstrap>':
      found = frame.f_back
    frame = frame.f_back
  return found and found.f_code.co_filename


@contextlib.contextmanager
def delayed() -> Iterator[None]:
  """Delays signals to the end of the block, because Orbax takes what they raise for its own error.

  SIGTERM of several processes is not delayed: a handler set here would replace the preemption
  service's for good, because Python does not know that one.
  """
  came: list[int] = []
  handlers = {}
  if threading.current_thread() is threading.main_thread():
    ours = (signal.SIGINT, signal.SIGTERM) if _process_count() == 1 else (signal.SIGINT,)
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
