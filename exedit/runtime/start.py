"""Ctrl-C while a door still imports; the package imports this first of all."""

# `signal` imports enum, and nothing may be imported before this.
import _signal  # pyright: ignore[reportMissingImports]
import os
import sys


def end_at_once() -> None:
  """Makes Ctrl-C end the process with one line where a door has nothing to lose.

  That is while `python -m exedit.X` or `exedit-X` still imports, and behind its work (signals.Stop
  takes over between them, and gives back). Nothing is raised, because C code that imports can crash
  then.
  """
  words = [*sys.orig_argv[1:], '']
  program = words[words.index('-m') + 1] if '-m' in words else os.path.basename(words[0])
  door = program.startswith(('exedit.', 'exedit-', 'input_pipeline.', 'launch.', 'benchmarks.'))
  if door and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, end)


def end(number, frame) -> None:
  """A signal handler that ends the process with status 130."""
  os.write(2, b'stopped\n')
  os._exit(130)
