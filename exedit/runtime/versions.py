"""The packages, devices and commit that a result depends on."""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax

from exedit import __version__

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'numpy',
  'pillow',
  'ml_collections',
)


def process_began() -> float:
  """When this process began to import, on the clock of time.perf_counter.

  Now, if the system does not tell.
  """
  try:
    ticks = int(Path('/proc/self/stat').read_text().rsplit(')', 1)[1].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, IndexError, AttributeError):
    age = 0.0
  return time.perf_counter() - age


def processor() -> str:
  """A name for the kind of processor: its architecture and a hash of its features."""
  text = platform.machine() + platform.processor()
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    text += next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  except OSError:
    pass
  return f'{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def versions() -> dict[str, object]:
  """Packages, devices, flags and the commit of this run, as far as they are known."""
  found: dict[str, object] = dict(
    python=platform.python_version(), command=' '.join(sys.argv), **versions_of_packages()
  )
  device = jax.devices()[0]
  found |= dict(
    device=device.device_kind,
    platform=device.platform,
    processor=f'{processor()} x{os.cpu_count()}' if device.platform == 'cpu' else None,
    devices=jax.device_count(),
    processes=jax.process_count(),
    xla_flags=os.environ.get('XLA_FLAGS', ''),
    **_commit(),
  )
  return found


def versions_of_packages() -> dict[str, str | None]:
  """The versions of exedit and its packages; None for one that is not installed."""
  found: dict[str, str | None] = dict(exedit=__version__)
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def _commit() -> dict[str, object]:
  """The commit of the checkout that contains this code, and whether files have changed since."""

  def git(*args):
    folder = str(Path(__file__).parent)
    return subprocess.run(
      ('git', '-C', folder, *args), capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()

  try:
    commit = git('rev-parse', 'HEAD')
    return dict(commit=commit, changed=bool(git('status', '--porcelain', '--untracked-files=no')))
  except (OSError, subprocess.SubprocessError):
    return dict(commit=None, changed=None)
