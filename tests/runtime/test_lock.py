import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from exedit.runtime import lock
from exedit.runtime.errors import UserError

HOLD = """
import sys
from exedit.training import lock
lock.take(sys.argv[1])
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the folder."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
  )
  assert process.stdout is not None and process.stdout.readline() == b'held\n'
  yield process
  process.kill()
  process.wait()


def test_the_second_run_is_refused_in_words_until_the_first_is_killed(holder, tmp_path):
  words = f'another run is at work in {tmp_path} .process {holder.pid} on {socket.gethostname()}, '
  with pytest.raises(UserError, match=words) as caught:
    lock.take(tmp_path)
  assert '\n' not in str(caught.value) and 'choose another workdir' in str(caught.value)
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  lock.take(tmp_path)
  assert f'"pid": {os.getpid()}' in (tmp_path / 'lock').read_text()
  lock.release(tmp_path)
  assert os.listdir(tmp_path) == ['lock']


def test_one_process_may_take_it_again_and_lets_go_once(tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'run')
  lock.take(tmp_path / 'run')
  lock.take(tmp_path / 'link')
  lock.release(tmp_path / 'link')
  lock.release(tmp_path / 'run')
  with open(tmp_path / 'run' / 'lock') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_has_not_said_its_name_yet_is_no_puzzle(tmp_path):
  with open(tmp_path / 'lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='it has just started'):
      lock.take(tmp_path)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
  def refuse(file, how):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  lines = []
  lock.take(tmp_path, lines.append)
  assert lines == [
    f'{tmp_path} cannot be locked (No locks available): see to it that no other run goes there'
  ]
  lock.release(tmp_path)
