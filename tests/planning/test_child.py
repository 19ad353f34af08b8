import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exedit.planning import child
from exedit.runtime.errors import UserError
from tests import ROOT

# What runs in the process: importable by name.


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


def test_the_answer_comes_back_from_another_process_and_the_noise_does_not(capfd):
  ticks = []
  answer = child.run(add, (2, 3), {'EXEDIT_TEST': 'there'}, lambda *tick: ticks.append(tick))
  assert answer[0] == 5 and answer[1] != os.getpid() and answer[2] == 'there'
  assert 'EXEDIT_TEST' not in os.environ
  assert 'adding' in {doing for doing, _ in ticks}
  assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
  'function, error, says',
  [
    (refuse, UserError, '^no such thing$'),
    (fail, RuntimeError, "KeyError: 'unforeseen'"),
    (die, child.Died, 'status -6: .*the reason'),
  ],
)
def test_what_goes_wrong_there_is_told_here(function, error, says):
  with pytest.raises(error, match=says):
    child.run(function)


def test_it_does_not_outlive_who_started_it(tmp_path):
  path = tmp_path / 'pid'
  program = f'from tests.planning import test_child as t; t.child.run(t.wait, ({str(path)!r},))'
  root = ROOT
  parent = subprocess.Popen([sys.executable, '-c', program], cwd=root)
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
      return  # nobody has asked for its status yet
    time.sleep(0.05)
  raise AssertionError(f'{pid} is still there')
