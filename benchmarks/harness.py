"""Shared by the benchmarks: processes of their own, rounds in turn, peak memory, reports.

This module imports no JAX, so that PyTorch's side of a benchmark can use it.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exedit.runtime import doors
from exedit.runtime.errors import DataError

Worker = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def door(
  main: Callable[..., None],
  flags: Sequence[doors.Flag | tuple],
  about: str | None,
  workers: Mapping[str, Worker] = {},
  argv: Sequence[str] | None = None,
) -> None:
  """Calls main(output, **flags), or the worker that `measured` has started this process for."""
  argv = sys.argv if argv is None else argv
  if argv[1:] and argv[1].startswith('--worker='):
    spec = json.loads(argv[1].removeprefix('--worker='))
    print(json.dumps(workers[spec['system']](spec)))
    return
  output = doors.Flag('output', '', 'the file for the report as JSON')
  doors.call(main, [output, *flags], about, argv)


def in_own_process(arguments: list[str], system: str, **environment: str) -> dict[str, Any]:
  """The JSON in the last line that `python -m *arguments` prints; JAX shares a GPU there.

  Raises:
    DataError: if the process fails, with its last words.
  """
  done = subprocess.run(
    [sys.executable, '-m', *arguments],
    capture_output=True,
    text=True,
    env=os.environ | dict(XLA_PYTHON_CLIENT_PREALLOCATE='false') | environment,
    cwd=Path(__file__).parent.parent,
  )
  if done.returncode:
    raise DataError(f'{system} failed: {done.stderr.strip()[-2000:]}')
  return json.loads(done.stdout.splitlines()[-1])


def measured(
  spec: Mapping[str, Any],
  ours: Collection[str],
  door: str,
  theirs: str = '',
  arrays: Mapping[str, np.ndarray] | None = None,
  **environment: str,
) -> dict[str, Any]:
  """The measurements of the worker of spec['system'], from a process of its own.

  ours: the systems that are workers of the module `door`; the others are measured by the module
  `theirs`. arrays: inputs for the worker; spec['inputs'] is their file there.
  """
  with tempfile.NamedTemporaryFile(suffix='.npz') as file:
    if arrays is not None:
      np.savez(file, allow_pickle=False, **arrays)
      file.flush()
      spec = dict(spec, inputs=file.name)
    text, system = json.dumps(spec), spec['system']
    arguments = [door, f'--worker={text}'] if system in ours else [theirs, text]
    return in_own_process(arguments, system, **environment)


def best_in_turns(
  runs: Mapping[str, Callable[[], Any]], rounds: int, wait: Callable = lambda result: result
) -> dict[str, float]:
  """The fewest seconds of `rounds` calls of each, in turns, after one call that does not count."""
  best = dict.fromkeys(runs, float('inf'))
  for turn in range(rounds + 1):
    for name, run in runs.items():
      spent = seconds(run, wait)
      if turn:
        best[name] = min(best[name], spent)
  return best


def seconds(call: Callable[[], Any], wait: Callable = lambda result: result) -> float:
  """Seconds of one call, until wait(result) returns."""
  start = time.perf_counter()
  wait(call())
  return time.perf_counter() - start


def peak_bytes() -> int:
  """The largest memory of this process so far."""
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return used if sys.platform == 'darwin' else 1024 * used


def numbers(flag: str, text: str) -> list[int]:
  """The numbers of a flag such as --batch=1,4.

  Raises:
    DataError: if it has none, or one below 1.
  """
  try:
    found = [int(value) for value in text.split(',')]
  except ValueError:
    found = []
  if not found or min(found) < 1:
    raise DataError(f'--{flag}={text}: give numbers such as 1,10')
  return found


def table(
  columns: Sequence[str], rows: Iterable[tuple[str, Sequence[float | str]]], form: str = '.3f'
) -> Iterator[str]:
  """The lines of a table; a row is (name, values)."""
  rows = list(rows)
  width = max([len(columns[0]), *(len(name) for name, _ in rows)])
  yield f'{columns[0]:{width}}' + ''.join(f'{column:>14}' for column in columns[1:])
  for name, values in rows:
    cells = (value if isinstance(value, str) else format(value, form) for value in values)
    yield f'{name:{width}}' + ''.join(f'{cell:>14}' for cell in cells)


def machine() -> dict[str, Any]:
  """The machine and the versions that the figures are for."""
  from exedit.runtime import versions

  found = versions.versions()
  names = ('device', 'platform', 'jax', 'jaxlib', 'flax', 'commit')
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else None
  return {n: found.get(n) for n in names} | dict(
    cores=cores, system=platform.platform(), load_before=load
  )


def conditions(report: Mapping[str, Any]) -> list[str]:
  """The last lines of a report: the settings and the machine."""
  return [
    ', '.join(f'{name} {value}' for name, value in report[part].items())
    for part in ('settings', 'machine')
  ]


def finish(report: Mapping[str, Any], lines: Iterable[str], output: str) -> None:
  """Prints the lines and the conditions, and writes the report as JSON if `output` is given."""
  print('\n'.join([*lines, *conditions(report)]))
  if output:
    Path(output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
