"""A function in a process of its own, which alone dies if what the function calls does."""

import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from exedit.runtime.errors import UserError


class Died(RuntimeError):
  """The process ended without an answer: its exit status (-signal) and what stood on its stderr."""

  def __init__(self, status: int, noise: str):
    super().__init__(f'the process ended with status {status}: {noise[-2000:]}')
    self.status, self.noise = status, noise


def run(
  function: Callable,
  arguments: tuple = (),
  environment: Mapping[str, str] = {},
  tick: Callable[[str, float], None] = lambda doing, seconds: None,
) -> Any:
  """function(*arguments, say) in a fresh process; its stderr is kept back.

  Args:
    function: importable by name. It may call say('what it does now').
    environment: variables of the process beside this one's, there before anything is imported.
    tick: is called twice a second with what it does and the seconds since the start.
  Raises:
    UserError: the function's own.
    RuntimeError: any other error of the function, its traceback as text.
    Died: if there is no answer.
  """
  context = multiprocessing.get_context('spawn')
  here, there = context.Pipe(duplex=False)
  with tempfile.NamedTemporaryFile() as noise:
    process = context.Process(target=_work, args=(there, noise.name, function, arguments))
    process.daemon = True
    with _variables(environment):
      process.start()
    there.close()
    try:
      return _answer(here, tick)
    except EOFError:
      process.join()
      raise Died(process.exitcode or 0, noise.read().decode(errors='replace')) from None
    finally:
      process.kill()
      process.join()


@contextlib.contextmanager
def _variables(environment):
  """These environment variables, for what is started inside."""
  before = dict(os.environ)
  os.environ.update(environment)
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)


def _answer(pipe, tick):
  """What the process sends in the end; EOFError if it ends before."""
  start, doing = time.perf_counter(), 'starting'
  while True:
    kind, value = pipe.recv() if pipe.poll(0.5) else ('say', doing)
    if kind == 'done':
      return value
    if kind == 'no':
      raise UserError(value)
    if kind == 'bug':
      raise RuntimeError(f'in a process of its own:\n{value}')
    doing = value
    tick(doing, time.perf_counter() - start)


def _work(pipe, noise, function, arguments):
  """The process: run the function, and send what came of it."""
  os.dup2(os.open(noise, os.O_WRONLY | os.O_APPEND), 2)
  threading.Thread(target=_with_parent, daemon=True).start()
  try:
    pipe.send(('done', function(*arguments, lambda doing: pipe.send(('say', doing)))))
  except UserError as error:
    pipe.send(('no', str(error)))
  except Exception:
    pipe.send(('bug', traceback.format_exc()))


def _with_parent():
  """End this process when the one that waits for it is gone, killed perhaps."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    parent.join()
    os._exit(1)
