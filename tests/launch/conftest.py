"""The scripts of launch/ with a stand-in for python."""

import os
import subprocess

import pytest


@pytest.fixture
def script(tmp_path):
  """Run a script: (exit status, the commands). Its python only records its arguments.

  REAL: a python that answers the calls of `python -c`.
  """
  binaries = tmp_path / 'venv' / 'bin'
  binaries.mkdir(parents=True)
  log = tmp_path / 'log'
  python = binaries / 'python'
  python.write_text(
    f'#!/bin/sh\necho "$*" >>{log}\ncase "$*" in *$FAIL*) [ -z "$FAIL" ] || exit 2;; esac\n'
    '[ "$1" != -c ] || [ -z "$REAL" ] || exec "$REAL" "$@"\n'
  )
  python.chmod(0o755)

  def run(name, **settings):
    env = {**os.environ, 'VENV': f'{tmp_path}/venv', 'PYTHON': 'python3', 'OUT': 'o', 'FAIL': ''}
    env['REAL'] = ''
    env |= settings
    log.unlink(missing_ok=True)
    done = subprocess.run([f'launch/{name}.sh'], env=env, capture_output=True, text=True)
    return done.returncode, log.read_text().splitlines()

  return run
