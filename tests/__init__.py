"""Tests, in the same folders as what they test; parity/ compares with PyTorch."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / 'fixtures'


def simulated(devices: int) -> dict[str, str]:
  """The variable that gives a process so many CPU devices."""
  flag = f'--xla_force_host_platform_device_count={devices}'
  return dict(XLA_FLAGS=f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip())
