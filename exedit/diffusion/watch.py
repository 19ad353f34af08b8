"""Sampling that is watched: each step tells its latents to the host, which may end it there.

The step of a sampler calls `tell`. It adds nothing to a program, unless the program is compiled
inside `watching`; then it hands over values that the loop carries anyway, so that the result keeps
every bit. JAX does not store watched programs on the disk, because they call this process.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float, Int

# Gets the latents [b ...] and their timestep before each evaluation of the network, and the number
# of evaluations of the loop. It runs in a thread of XLA. What it raises ends the program.
Watcher = Callable[[np.ndarray, int, int], Any]

_here = threading.local()
_lock = threading.Lock()
_watcher: Watcher | None = None


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
  """Watches the programs that this thread starts and waits for in the block; one at a time."""
  global _watcher
  with _lock:
    _watcher, _here.watched = watcher, True
    try:
      yield
    finally:
      _watcher, _here.watched = None, False


def watched() -> bool:
  """Whether programs that this thread compiles now are watched."""
  return getattr(_here, 'watched', False)


def tell(x: Float[Array, 'b ...'], t: Int[Array, ''], count: int) -> None:
  """Tells the watcher of one evaluation, of `count` in this loop; see `Watcher`."""
  if watched():
    io_callback(lambda x, t: _call(x, t, count), None, x, t)


def _call(x: Any, t: Any, count: int) -> None:
  if _watcher is not None:
    _watcher(np.asarray(x), int(t), count)


def program(function: Callable[..., Any]) -> Callable[..., Any]:
  """The function as another one, because JAX keeps one trace of each function."""
  return functools.wraps(function)(lambda *args, **settings: function(*args, **settings))
