"""Runs each system of a benchmark in its own process, and describes the machine."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exedit.input_pipeline.errors import DataError


def in_own_process(arguments: list[str], system: str, **environment: str) -> dict[str, Any]:
  """Runs `python -m *arguments` and returns the last line of its output, which is JSON.

  So times and memory peaks belong to one system. JAX does not reserve the whole GPU there.

  Raises:
    DataError: if the process fails; contains the end of its error output.
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
  theirs: str,
  arrays: Mapping[str, np.ndarray] | None = None,
  **environment: str,
) -> dict[str, Any]:
  """Returns what the worker of spec['system'] measured.

  ours: the systems that the benchmark's own module `door` measures. theirs: the module, without
  JAX, that measures the others. arrays: inputs that all systems share.
  """
  with tempfile.NamedTemporaryFile(suffix='.npz') as file:
    if arrays is not None:
      np.savez(file, allow_pickle=False, **arrays)
      file.flush()
      spec = dict(spec, inputs=file.name)
    text, system = json.dumps(spec), spec['system']
    arguments = [door, f'--worker={text}'] if system in ours else [theirs, text]
    return in_own_process(arguments, system, **environment)


def machine() -> dict[str, Any]:
  """Returns the machine and the versions that the figures belong to."""
  from exedit.runtime import versions

  found = versions.versions()
  names = ('device', 'platform', 'jax', 'jaxlib', 'flax', 'commit')
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else None
  return {n: found.get(n) for n in names} | dict(
    cores=cores, system=platform.platform(), load_before=load
  )


def conditions(report: Mapping[str, Any]) -> list[str]:
  """Returns the last lines of a table: the settings and the machine."""
  return [
    ', '.join(f'{name} {value}' for name, value in report[part].items())
    for part in ('settings', 'machine')
  ]
