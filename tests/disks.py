"""Real file systems that are small or only read: for tests of what a full disk does."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def tmpfs(path, size):
  """A disk of `size` bytes at a folder; the test is skipped where one may not be mounted."""
  path.mkdir()
  command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(path)]
  try:
    done = subprocess.run(command, capture_output=True, text=True)
  except FileNotFoundError:
    pytest.skip('there is no mount here')
  if done.returncode:
    pytest.skip(f'no disk may be mounted here: {done.stderr.strip()}')
  try:
    yield path
  finally:
    subprocess.run(['umount', '-l', str(path)], check=True)


def only_read(path):
  subprocess.run(['mount', '-o', 'remount,ro', str(path)], check=True)
