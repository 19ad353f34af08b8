"""A part of the fuzzing, and proof that it notices every kind of failure."""

import json
import time

import numpy as np
import pytest
from PIL import EpsImagePlugin

from exedit.runtime.errors import UserError
from tests import fuzz, fuzz_files
from tests.fuzz import Case


def test_150_bad_files_are_read_or_refused():
  todo = [(case, seed) for case, seed in fuzz.cases(180, 1) if 'megapixels' not in case.kind][:150]
  table = fuzz.run(todo, seconds=300)  # other tests may run beside it
  failures = [f'{kind}: {failure}' for kind, row in table.items() for failure in row.failures]
  assert not failures, '\n'.join(failures)
  assert {case.kind for case, _ in fuzz.cases(2000, 1)} - set(table) <= {'picture, megapixels'}
  assert sum(row.accepted for row in table.values()) > 10
  assert sum(row.refused for row in table.values()) > 100
  assert not table['pickle, hostile'].accepted


def test_the_files_before_they_are_damaged_are_good(tmp_path, monkeypatch):
  monkeypatch.setattr(
    fuzz_files, 'damaged_text', lambda rng, value, write=json.dumps: write(value).encode()
  )
  monkeypatch.setattr(fuzz_files, 'mutated', lambda rng, data: data)
  costly = ('torch bombs', 'picture, megapixels')
  damaged_anyway = ('hostile', 'costly', 'no ', 'truncated', 'declared', 'list', 'index of shards')
  for case, _ in fuzz.cases(40, 0):
    if case.kind in costly or any(word in case.kind for word in damaged_anyway):
      continue
    folder = tmp_path / case.kind
    files = case.make(np.random.default_rng(3), fuzz.CANARY)
    for name, data in files.items():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(data)
    case.doors[0](folder / next(iter(files)))
  for name, data in fuzz_files.pictures().items():
    (tmp_path / name).write_bytes(data)
    fuzz.open_image(tmp_path / name)


def good(rng, canary):
  return {'a.txt': b'text'}


def raise_another(path):
  raise ValueError('not for users')


def leave_something(path):
  (path.parent / 'b.txt').touch()


def obey(path):
  (path.parent / fuzz.CANARY).touch()
  raise UserError(f'{path} is bad')


def name_no_file(path):
  raise UserError('the file is bad')


def say_much(path):
  raise UserError(f'{path} is bad' + ' and bad' * 500)


def hang(path):
  time.sleep(60)


def eat(path):
  np.ones(2**29)  # 4 GiB: more than a process keeps of what it freed


def succeed(path):
  print('opened')


def test_every_kind_of_failure_is_noticed_and_the_next_file_is_judged_for_itself(capsys):
  expected = {
    raise_another: 'ValueError: not for users',
    leave_something: 'left or changed',
    obey: 'obeyed',
    name_no_file: 'does not name',
    say_much: 'not one line',
    hang: 'no answer within 1 s',
    eat: 'MemoryError',
  }
  todo = []
  for door in expected:
    todo += [(Case(door.__name__, good, (door,), 2**28), [0, len(todo)])]
    todo += [(Case('fine', good, (succeed,), 2**28), [0, len(todo)])]
  table = fuzz.run(todo, seconds=1)
  assert 'fine, seed [0, 1], succeed\nopened\n' in capsys.readouterr().out  # names a crash
  assert table['fine'].accepted == len(expected) and not table['fine'].failures
  for door, words in expected.items():
    (failure,) = table[door.__name__].failures
    assert words in failure and failure in fuzz.show(table)


def test_files_are_a_function_of_seed_and_place():
  def made(seed):
    return [case.make(np.random.default_rng(s), 'sung') for case, s in fuzz.cases(30, seed)][10:]

  assert made(3) == made(3) != made(4)


def test_postscript_is_refused_and_no_program_is_run(tmp_path, monkeypatch):
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('it was called'))
  (tmp_path / 'a.png').write_bytes(
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n'
  )
  with pytest.raises(UserError, match='not an image of a kind'):
    fuzz.open_image(tmp_path / 'a.png')
