import subprocess
import sys

import pytest

from exedit.runtime import doors
from exedit.runtime.doors import Command, Flag
from exedit.runtime.errors import Passing
from tests import ROOT
from tests.refusals import refusal

ROWS = (
  ('output', '', 'folder to write'),
  Flag('count', 3, 'examples', least=1),
  Flag('share', None, 'of all', float),
  ('quick', False, 'without the slow part'),
  Flag('from', [], 'folders', list),
  Flag('how', 'nearest', 'to cut', ['nearest', 'centre']),
)


def given(*argv, words=''):
  found = {}
  doors.call(lambda **values: found.update(values), ROWS, 'About.', ['door', *argv], words)
  return found


def test_flags_become_arguments():
  plain = dict(output='', count=3, share=None, quick=False, how='nearest')
  assert given() == plain | {'from': []}
  found = given('--from=a', '--count=2', '--quick', '--from', 'b', '--how=centre', '--share=1')
  assert found == dict(output='', count=2, share=1.0, quick=True, how='centre') | {
    'from': ['a', 'b']
  }


def test_a_required_flag_must_be_given(capsys):
  rows = [('bench', doors.REQUIRED, 'to read'), ('output', doors.REQUIRED, 'to write')]
  read = lambda *argv: doors.call(lambda bench, output: None, rows, 'About.', ['door', *argv])
  read('--bench=a', '--output=b')
  assert refusal(capsys, read, '--bench=a', '--output=') == 'error: --output=... is missing'
  assert '--output' in refusal(capsys, read, '--bench=a')


def test_words_are_one_argument():
  assert given('a', '--count=2', 'b', words='files')['files'] == ['a', 'b']
  assert given(words='files')['files'] == []


@pytest.mark.parametrize(
  'flag, says',
  [('--cuont=3', 'cuont'), ('--count=0', 'count'), ('--how=x', 'how'), ('word', "'word' is not")],
)
def test_a_wrong_flag_is_one_line(flag, says, capsys):
  assert says in refusal(capsys, given, flag)


@pytest.mark.parametrize(
  'error, status, says',
  [
    (Passing('no network'), 1, 'error: no network\n'),
    (FileNotFoundError(2, 'No such file', 'a.txt'), 2, "error: [Errno 2] No such file: 'a.txt'\n"),
    (PermissionError(13, 'Permission denied', 'b'), 2, 'error: cannot write or read b: '),
  ],
)
def test_what_the_user_can_fix_is_one_line(error, status, says, capsys):
  def main():
    raise error

  line = refusal(capsys, doors.call, main, (), 'About.', ['door'], status=status)
  assert f'{line}\n'.startswith(says)


def test_a_door_with_several_commands(capsys):
  found = {}
  commands = dict(
    build=Command(lambda **values: found.update(values), 'makes it', ROWS),
    read=Command(lambda **values: found.update(values), 'reads it', (), words='answers'),
  )
  doors.call_one(commands, 'About.', ['door', 'build', '--count=5'])
  assert found['count'] == 5
  doors.call_one(commands, 'About.', ['door', 'read', 'a.json', 'b.json'])
  assert found['answers'] == ['a.json', 'b.json']
  doors.call_one(commands, 'About.', ['door', '--help'])
  assert 'build: makes it\n' in capsys.readouterr().out
  with pytest.raises(SystemExit, match='0'):
    doors.call_one(commands, 'About.', ['door', 'build', '--help'])
  assert '--output' in capsys.readouterr().out
  for argv in (['door'], ['door', 'bulid']):
    line = refusal(capsys, doors.call_one, commands, 'About.', argv)
    assert 'name a command: build, read' in line


def test_the_bottom_of_the_package_imports_no_jax_and_no_system():
  code = (
    'import sys, exedit.runtime.doors, exedit.runtime.files, exedit.runtime.parallel,'
    'exedit.runtime.progress, exedit.runtime.settings, exedit.runtime.caches;'
    'print([n for n in sys.modules if n in ("jax", "torch", "exedit.paint_by_example")])'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert done.stdout == '[]\n', done.stderr
