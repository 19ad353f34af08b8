"""Sampling that is watched: each step tells its latents to the host, which may end it there.

The steps of a loop call `tell` with what they hand to the next step. That adds nothing to a
program, unless it is compiled inside `watching`. Then the host reads an array that lies in memory
anyway, so that XLA makes the same code of the step, and the result keeps its bits. Nothing else may
be told: a further reader of another value changes what XLA copies and fuses, and so the rounding.
JAX does not store watched programs on the disk, because they call this process.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float, Int

# Gets the latents [b ...] after step `done` of a loop (1, 2, ...), and the timesteps that its steps
# reach. It runs in a thread of XLA. What it raises ends the program.
Watcher = Callable[[np.ndarray, int, Sequence[int]], Any]

_here = threading.local()
_lock = threading.Lock()
_current: '_Counted | None' = None


class _Counted:
  """A watcher with the number of steps that the present loop has made."""

  def __init__(self, watcher: Watcher):
    self.watcher, self.loop, self.done = watcher, (), 0

  def tell(self, x: Any, reached: tuple[int, ...]) -> None:
    going_on = self.loop is reached and self.done < len(reached)
    self.loop, self.done = reached, self.done + 1 if going_on else 1
    self.watcher(np.asarray(x), self.done, reached)


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
  """Watches the programs that this thread starts and waits for in the block; one at a time."""
  global _current
  with _lock:
    _current, _here.watched = _Counted(watcher), True
    try:
      yield
    finally:
      _current, _here.watched = None, False


def watched() -> bool:
  """Whether programs that this thread compiles now are watched."""
  return getattr(_here, 'watched', False)


def tell(x: Float[Array, 'b ...'], reached: Int[np.ndarray, ' steps']) -> None:
  """Tells the latents that a step of a loop ends with.

  reached: the timestep of the latents after each step of the loop, in the order of the steps.
  """
  if watched():
    known = tuple(int(t) for t in reached)
    io_callback(lambda x: _call(x, known), None, x)


def _call(x: Any, reached: tuple[int, ...]) -> None:
  if _current is not None:
    _current.tell(x, reached)


def program(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function as another one, because JAX keeps one trace of each function."""
  return functools.wraps(function)(lambda *args, **settings: function(*args, **settings))
