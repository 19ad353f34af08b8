import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exedit.planning import subprocess as runner
from exedit.runtime.errors import UserError
from tests import ROOT

# The functions of the process; it imports them by name.


def add(a, b, say):
  say('adding')
  os.write(2, b'noise')
  time.sleep(0.6)
  return a + b, os.getpid(), os.environ.get('EXEDIT_TEST')


def refuse(say):
  raise UserError('no such thing')


def fail(say):
  raise KeyError('unforeseen')


def die(say):
  os.write(2, b'the reason')
  os.abort()


def wait(path, say):
  Path(path).write_text(str(os.getpid()))
  time.sleep(60)


def test_the_result_comes_from_another_process_without_its_stderr(capfd):
  ticks = []
  answer = runner.run(add, (2, 3), {'EXEDIT_TEST': 'there'}, ticks.append)
  assert answer[0] == 5 and answer[1] != os.getpid() and answer[2] == 'there'
  assert 'EXEDIT_TEST' not in os.environ
  assert 'adding' in ticks
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
  'function, error, says',
  [
    (refuse, UserError, '^no such thing$'),
    (fail, RuntimeError, "KeyError: 'unforeseen'"),
    (die, runner.Died, 'status -6: .*the reason'),
  ],
)
def test_errors_of_the_process_are_raised_here(function, error, says):
  with pytest.raises(error, match=says):
    runner.run(function)


def test_the_process_ends_with_its_parent(tmp_path):
  path = tmp_path / 'pid'
  program = (
    f'from tests.planning import test_subprocess as t; t.runner.run(t.wait, ({str(path)!r},))'
  )
  parent = subprocess.Popen([sys.executable, '-c', program], cwd=ROOT)
  while not path.exists() or not path.read_text():
    assert parent.poll() is None
    time.sleep(0.05)
  parent.kill()
  parent.wait()
  pid, end = int(path.read_text()), time.monotonic() + 30
  while time.monotonic() < end:
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return
    if 'Z' in Path(f'/proc/{pid}/stat').read_text().split(')')[1].split()[0]:
      return  # a zombie: it has ended
    time.sleep(0.05)
  raise AssertionError(f'{pid} is still there')
