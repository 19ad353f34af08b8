"""A benchmark's workers: each system in a process of its own, and what its figures hold for."""

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
  """The last line, in JSON, that `python -m *arguments` prints: times and peaks are its own.

  JAX does not take all of a GPU there. DataError, with its last words, where it fails.
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
  """What the worker of spec['system'] measured, on the same `arrays` as the others if there are.

  Systems of ours are workers of the benchmark's own `door`; `theirs` is a module without JAX.
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
  """What the figures hold for."""
  from exedit.runtime import versions

  found = versions.versions()
  names = ('device', 'platform', 'jax', 'jaxlib', 'flax', 'commit')
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  load = os.getloadavg()[0] if hasattr(os, 'getloadavg') else None
  return {n: found.get(n) for n in names} | dict(
    cores=cores, system=platform.platform(), load_before=load
  )


def conditions(report: Mapping[str, Any]) -> list[str]:
  """The last lines of a table: the settings and the machine."""
  return [
    ', '.join(f'{name} {value}' for name, value in report[part].items())
    for part in ('settings', 'machine')
  ]
