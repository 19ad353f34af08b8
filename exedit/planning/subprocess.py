"""Run a function in a fresh process, so that a crash of native code ends only that process."""

import contextlib
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from exedit.runtime import parallel
from exedit.runtime.errors import UserError


class Died(RuntimeError):
  """The process ended without an answer.

  status: its exit status, or minus the signal that ended it. stderr: its standard error.
  """

  def __init__(self, status: int, stderr: str):
    super().__init__(f'the process ended with status {status}: {stderr[-2000:]}')
    self.status, self.stderr = status, stderr


def run(
  function: Callable,
  arguments: tuple = (),
  environment: Mapping[str, str] = {},
  tick: Callable[[str], None] = lambda doing: None,
) -> Any:
  """The result of function(*arguments, say) in a fresh process, without its standard error.

  Args:
    function: importable by name. It may call say('its current activity').
    environment: variables to add before the process imports anything.
    tick: called twice a second with the current activity.

  Raises:
    UserError: the function's own.
    RuntimeError: for any other error of the function, with its traceback as text.
    Died: if the process ends without an answer.
  """
  context = multiprocessing.get_context('spawn')
  receive, send = context.Pipe(duplex=False)
  with tempfile.NamedTemporaryFile() as stderr:
    process = context.Process(target=_work, args=(send, stderr.name, function, arguments))
    process.daemon = True
    with _variables(environment):
      process.start()
    send.close()
    try:
      return _answer(receive, tick)
    except EOFError:
      process.join()
      raise Died(process.exitcode or 0, stderr.read().decode(errors='replace')) from None
    finally:
      process.kill()
      process.join()


@contextlib.contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
  """Set environment variables for the processes that are started inside."""
  before = dict(os.environ)
  os.environ.update(environment)
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)


def _answer(pipe, tick):
  """The final message of the process; EOFError if it ends before."""
  doing = 'starting'
  while True:
    kind, value = pipe.recv() if pipe.poll(0.5) else ('say', doing)
    if kind == 'result':
      return value
    if kind == 'user error':
      raise UserError(value)
    if kind == 'error':
      raise RuntimeError(f'in a subprocess:\n{value}')
    doing = value
    tick(doing)


def _work(pipe, stderr, function, arguments):
  """The main function of the process: it runs the function and sends the result."""
  os.dup2(os.open(stderr, os.O_WRONLY | os.O_APPEND), 2)
  parallel.end_with_parent()
  try:
    pipe.send(('result', function(*arguments, lambda doing: pipe.send(('say', doing)))))
  except UserError as error:
    pipe.send(('user error', str(error)))
  except Exception:
    pipe.send(('error', traceback.format_exc()))
