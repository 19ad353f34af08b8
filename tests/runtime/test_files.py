import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from exedit.runtime import files, remote
from exedit.runtime.errors import DataError, UserError, explain
from tests import pictures

HOLD = """
import sys
from exedit.runtime import files, remote
with files.Lock(sys.argv[1]):
  print('held', flush=True)
  sys.stdin.read()
"""


def names(folder):
  return sorted(os.listdir(folder))


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'new' / 'a.txt'
  files.write_text(path, 'old')
  with pytest.raises(RuntimeError, match='torn'):
    with files.writing(path, durable=True) as file:
      file.write(b'half')
      assert path.read_text() == 'old'
      raise RuntimeError('torn')
  assert path.read_text() == 'old' and names(path.parent) == ['a.txt']
  assert oct(path.stat().st_mode & 0o044) == oct(0o044 & ~_umask())


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask


def test_a_refusal_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(OSError) as caught:
    files.write_text(tmp_path / 'a.txt', 'text')
  assert f'while writing {tmp_path}/a.txt:' in str(explain(caught.value))
  assert names(tmp_path) == []


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
  with pytest.raises(RuntimeError):
    with files.new_folder(tmp_path / 'out') as folder:
      (folder / 'a').touch()
      raise RuntimeError
  assert names(tmp_path) == []
  with files.new_folder(tmp_path / 'out') as folder:
    (folder / 'a').touch()
    assert not (tmp_path / 'out').exists()
  assert names(tmp_path) == ['out'] and names(tmp_path / 'out') == ['a']


def test_what_is_there_already_is_refused(tmp_path):
  (tmp_path / 'file').touch()
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'a').touch()
  (tmp_path / 'empty').mkdir()
  for name, says in [
    ('file', 'exists already: remove it or name another --to'),
    ('full', 'is a folder with files in it: remove it'),
    ('file/new', 'file is not a folder'),
    ('x' * 201, 'more than 200 bytes'),
  ]:
    with pytest.raises(DataError, match=says):
      files.check_new(tmp_path / name, '--to')
  files.check_new(tmp_path / 'empty')
  files.check_new(tmp_path / 'not' / 'yet')


def test_only_what_dead_processes_left_is_swept(tmp_path):
  gone = subprocess.run(
    [sys.executable, '-c', 'import os; print(os.getpid())'], capture_output=True
  )
  dead, alive = int(gone.stdout), os.getppid()
  left = [f'.out.{dead}.3.tmp', f'.config.json.{dead}.0.tmp', f'.3.png.{dead}.345.tmp']
  others = ['3.png', 'config.json', 'notes.tmp', f'.out.{alive}.3.tmp']
  for name in [*left[1:], *others]:
    (tmp_path / name).touch()
  (tmp_path / left[0]).mkdir()
  files.sweep(tmp_path, lambda name: name == 'out')
  assert names(tmp_path) == sorted([*left[1:], *others])
  files.sweep(tmp_path)
  assert names(tmp_path) == sorted(others)
  files.sweep(tmp_path, alone=True)
  assert names(tmp_path) == sorted(others[:3])


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path / 'lock')],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdout is not None and process.stdout.readline() == b'held\n'
  yield process
  process.kill()
  process.wait()


def test_a_lock_is_held_until_its_process_is_killed(holder, tmp_path):
  lock, words = files.Lock(tmp_path / 'lock'), []
  with pytest.raises(files.Taken):
    lock.acquire(wait=False, busy=words.append)
  assert words[0].startswith(f'process {holder.pid} on {socket.gethostname()}, since ')
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with lock:
    assert f'"pid": {os.getpid()}' in (tmp_path / 'lock').read_text()
  assert names(tmp_path) == ['lock']


def test_a_lock_is_waited_for(holder, tmp_path):
  def end(words):
    holder.kill()

  lock = files.Lock(tmp_path / 'lock')
  lock.acquire(busy=end)
  with pytest.raises(files.Taken, match=f'process {os.getpid()} on'):
    files.Lock(tmp_path / 'lock').acquire(wait=False)
  lock.release()


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
  import fcntl

  def refuse(file, how):
    raise OSError(errno.ENOSYS, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with pytest.raises(OSError, match='Function not implemented'):
    files.Lock(tmp_path / 'lock').acquire(wait=False)


@pytest.mark.parametrize(
  'ours', ['a.png', 'thumbs.png', 'desktop.initial.png', '1.~lock', 'MACOSX']
)
def test_a_listing_leaves_out_what_systems_leave(tmp_path, ours):
  (tmp_path / ours).touch()
  pictures.strew(tmp_path)
  for name in ('ehthumbs_vista.db', 'Desktop.ini', 'THUMBS.DB', 'Icon\r', '$RECYCLE.BIN'):
    (tmp_path / name).touch()
  assert files.listing(tmp_path) == [ours] == [*remote.listing(str(tmp_path))]


@pytest.mark.parametrize(
  'path, says',
  [
    ('/dev/null', 'pipe or device'),
    ('pipe', 'pipe or device'),
    ('/dev/x.png', 'holds devices'),
    ('.', 'is a folder'),
    ('/proc/new/x.png', 'takes no new files'),
    ('a.png/x.png', 'a.png is not a folder'),
  ],
)
def test_an_output_that_cannot_be_written_is_refused(tmp_path, monkeypatch, path, says):
  monkeypatch.chdir(tmp_path)
  Path('a.png').write_text('')
  os.mkfifo('pipe')
  with pytest.raises(UserError, match=says) as caught:
    files.check_output(path, '--there')
  assert '--there' in str(caught.value)


def test_an_output_in_a_folder_to_come_is_fine_and_nothing_is_written(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  Path('old.png').write_text('')
  for path in ('new.png', 'old.png', 'new/deeper/x.png', tmp_path / 'new' / 'x.png'):
    files.check_output(path)
  assert os.listdir() == ['old.png']


@pytest.mark.parametrize('linked', [True, False])
def test_an_old_file_is_kept_under_a_free_name(tmp_path, monkeypatch, linked):
  if not linked:
    monkeypatch.setattr(os, 'link', lambda *_: (_ for _ in ()).throw(OSError))
  for name in ('a.png', 'a.json', 'a-old.json'):
    (tmp_path / name).write_text(name)
  kept = files.keep_old(tmp_path / 'a.png', tmp_path / 'a.json', tmp_path / 'a.txt')
  assert kept == str(tmp_path / 'a-old-2.png') and Path(kept).read_text() == 'a.png'
  assert (tmp_path / 'a-old-2.json').read_text() == 'a.json' and len(os.listdir(tmp_path)) == 5
