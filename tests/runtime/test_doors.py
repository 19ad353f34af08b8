import os
import re
import signal
import subprocess
import sys
import time

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
  assert (
    refusal(capsys, read, '--bench=a', '--output=') == 'error: --output=... is missing: to write'
  )
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
  assert re.search('build +makes it\n', capsys.readouterr().out)
  with pytest.raises(SystemExit, match='0'):
    doors.call_one(commands, 'About.', ['door', 'build', '--help'])
  assert '--output' in capsys.readouterr().out
  for argv in (['door'], ['door', 'bulid']):
    line = refusal(capsys, doors.call_one, commands, 'About.', argv)
    assert 'name a command, build, read' in line


@pytest.mark.parametrize(
  'flag, line',
  [
    ('--cuont=3', '--cuont is not a flag: did you mean --count?'),
    ('--count=0', '--count=0: it must be a whole number at least 1'),
    ('--count=', '--count=: it must be a whole number at least 1'),
    ('--count=1.5', '--count=1.5: it must be a whole number at least 1'),
    ('--share=nan', '--share=nan: it must be a number'),
    ('--how=x', '--how=x: use one of nearest, centre'),
    ('--how', '--how has no value: write --how=VALUE'),
    ('--quick=maybe', '--quick=maybe: write --quick=true or --quick=false'),
    ('--noquick=1', '--noquick=1 does not take an argument'),
    ('word', "'word' is not a flag: flags are written --name=value"),
    ('--config.x=1', '--config.x is a key of a config: give --config=FILE too'),
  ],
)
def test_a_wrong_flag_is_a_sentence(flag, line, capsys):
  assert refusal(capsys, given, flag) == f'error: {line}'


def test_help_has_kinds_and_defaults(capsys):
  rows = [
    *ROWS,
    Flag('bench', doors.REQUIRED, 'to read'),
    Flag('last', None, 'of the last', int, shown='all'),
  ]
  with pytest.raises(SystemExit, match='0'):
    doors.call(lambda **_: None, rows, 'About.', ['door', '--nothing', '--help'])
  said = capsys.readouterr().out
  for line in (
    '--output=OUTPUT         folder to write\n',
    '--count=N               examples (default: 3, at least 1)\n',
    '--share=X               of all\n',
    '--[no]quick             without the slow part (default: false)\n',
    '--how=nearest|centre    to cut (default: nearest)\n',
    '--bench=BENCH           to read (required)\n',
    '--last=N                of the last (default: all)\n',
  ):
    assert f'  {line}' in said
  assert 'None' not in said and 'object' not in said


def test_ctrl_c_is_one_line_and_status_130(capsys):
  def main():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

  with pytest.raises(SystemExit) as end:
    doors.call(main, (), 'About.', ['door'])
  assert end.value.code == 130
  assert capsys.readouterr().err == 'stopped; the same command goes on\n'


@pytest.mark.parametrize('place', ['installed', 'checkout'])
def test_commands_in_texts_are_those_of_the_place(place, tmp_path, monkeypatch):
  package = tmp_path / 'exedit'
  (package / 'runtime').mkdir(parents=True)
  if place == 'checkout':
    (package / 'input_pipeline').symlink_to('../input_pipeline')
  monkeypatch.setattr(doors, '__file__', str(package / 'runtime' / 'doors.py'))
  text = 'run `python -m input_pipeline.show`; pip install -r requirements-plan.txt'
  other = "run `python -m exedit.input_pipeline.show`; pip install 'exedit[plan]'"
  assert doors.installed(text) == (text if place == 'checkout' else other)


QUICK = """
import importlib, sys
for door, flag in {doors!r}:
  module = importlib.import_module(door)
  status = 0
  try:
    module.run([door, flag])
  except SystemExit as end:
    status = end.code
  print(door, flag, status, sum(name in sys.modules for name in ('jax', 'grain', 'torch')))
"""
NAMES = ('train', 'sample', 'evaluate', 'convert', 'encode', 'plan', 'gmm', 'demo')
DOORS = [*(f'exedit.{name}' for name in NAMES), 'input_pipeline.show', 'input_pipeline.synthetic']
DOORS += ['input_pipeline.references', 'input_pipeline.coco_ee.__main__', 'launch.ablation']
DOORS += ['launch.user_study']


def test_help_and_misspelt_flags_are_answered_without_jax():
  asked = [(door, flag) for door in DOORS for flag in ('--help', '--nothing=1')]
  done = subprocess.run(
    [sys.executable, '-c', QUICK.format(doors=asked)], capture_output=True, text=True, cwd=ROOT
  )
  answers = re.findall(r'^(\S+) (--\w+)\S* (\d+) (\d+)$', done.stdout, re.M)
  assert answers == [(d, f.split('=')[0], '0' if f == '--help' else '2', '0') for d, f in asked]
  assert re.fullmatch(f'(error: [^\n]+\n){{{len(DOORS)}}}', done.stderr), done.stderr
  texts = re.split(r'^\S+ --nothing=1 2 0\n', done.stdout, flags=re.M)
  assert len(texts) == len(DOORS) + 1
  assert "None'" not in done.stdout and '<object' not in done.stdout


INTERRUPTED = """
import os, runpy, signal, sys

class Finder:
  def find_spec(name, *_):
    if name == {at!r}:
      os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
sys.orig_argv = ['python', '-m', 'exedit.sample']
sys.argv[1:] = ['--weights=w', '--output=o.png', '--image=i', '--mask=m', '--exemplar=e']
runpy.run_module('exedit.sample', run_name='__main__', alter_sys=True)
"""


@pytest.mark.parametrize('at', ['absl', 'exedit.editing.settings', 'jax'])
def test_ctrl_c_while_a_door_imports_is_one_line(at):
  done = subprocess.run(
    [sys.executable, '-c', INTERRUPTED.format(at=at)], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 130
  assert re.fullmatch('stopped[^\n]*\n', done.stderr), done.stderr


def test_the_bottom_of_the_package_imports_no_jax_and_no_system():
  code = (
    'import sys, exedit.runtime.doors, exedit.runtime.files, exedit.runtime.parallel,'
    'exedit.runtime.progress, exedit.runtime.settings, exedit.runtime.caches;'
    'print([n for n in sys.modules if n in ("jax", "torch", "exedit.paint_by_example")])'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert done.stdout == '[]\n', done.stderr


def test_a_key_of_a_config_may_be_a_word_of_python():
  words = [
    '--config.concept.class=a.class=b',
    '--class=c',
    '--config=class.py',
    '--config.name=class',
  ]
  spelt = [doors.python_name(word) for word in words]
  assert spelt == ['--config.concept.class_=a.class=b', *words[1:]]
