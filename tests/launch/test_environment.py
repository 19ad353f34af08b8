"""The environments that launch/test.sh, demo.sh and .ci/run make, and the Pythons they find."""

import re
import subprocess
import sys

import pytest

from tests import ROOT
from tests.launch.test_launchers import stand_in

FAILS = 'echo "pyenv: python3.98: command not found" >&2; exit 127'


def bash(line, home, **variables):
  """Status, stdout and stderr of a line that uses launch/environment.sh."""
  env = dict(PATH=f'{home}/bin:/usr/bin:/bin', HOME=str(home)) | variables
  command = ['bash', '-c', f'set -euo pipefail; source launch/environment.sh; {line}']
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize('place', ['bin/python3.98', '.pyenv/versions/3.98.1/bin/python', 'uv/py'])
def test_a_python_is_found_on_the_path_or_where_pyenv_and_uv_keep_it(tmp_path, place):
  home = tmp_path / 'home'
  stand_in(home / 'bin', 'python3.98', FAILS)  # as pyenv's, for versions that are not chosen
  stand_in(home / 'bin', 'uv', f'[ -e {home}/uv ] && echo {home}/uv/py')
  assert bash('find_python 3.98', home) == (1, '', '')
  stand_in((home / place).parent, (home / place).name, '')
  assert bash('find_python 3.98', home) == (0, str(home / place), '')


def test_an_environment_of_another_python_is_neither_used_nor_removed(tmp_path):
  python = stand_in(tmp_path / 'venv' / 'bin', 'python', 'echo "Python 3.98.1 (main) [GCC]"')
  where = dict(VENV=str(tmp_path / 'venv'), PYTHON=sys.executable)
  status, _, line = bash('make_environment x requirements.txt', tmp_path, **where)
  assert (status, line.count('\n')) == (2, 0) and python.exists()
  assert (
    f'venv is an environment of Python 3.98.1, and PYTHON is Python {sys.version_info[0]}' in line
  )


def test_the_core_of_the_tests_exists():
  listed = re.search(r'CORE=\((.*?)\n\)', (ROOT / 'launch/test.sh').read_text(), re.DOTALL)[1]
  for name in listed.split():
    path, _, function = name.partition('::')
    assert (ROOT / path).exists(), name
    assert not function or f'\ndef {function}(' in (ROOT / path).read_text(), name
