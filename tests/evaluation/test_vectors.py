"""Vectors over devices and processes: the same as on one, computed once, none lost by a kill."""

import json
import os

import numpy as np
import pytest

from exedit.evaluation import instruments, vectors
from exedit.evaluation.cache import Cache
from exedit.evaluation.vectors import Column, Job
from exedit.input_pipeline.coco_ee import references
from exedit.runtime.errors import UserError
from tests import evaluations, scoring


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  root = evaluations.world(tmp_path_factory.mktemp('world'))
  references.write(str(root / 'bench'), 'copy_paste', str(root / 'pasted'))
  return root


def numbers(path):
  with open(path) as file:
    results = json.load(file)
  return results['metrics'], results['edits']


def test_two_processes_of_eight_devices_score_as_one_device(world, tmp_path):
  given = evaluations.arguments(world, tmp_path / 'alone')
  pictures = str(world / 'pasted')
  evaluations.score(str(tmp_path / 'one'), pictures=pictures, **given)
  with Cache(str(tmp_path / 'alone')) as kept:
    computed = kept._file.execute('select count(*) from rows').fetchone()[0]
  said = scoring.start_processes(2, 8, world, pictures, tmp_path / 'two', tmp_path / 'shared')
  devices, made = np.array([line.splitlines()[-1].split() for line in said], int).T
  assert devices.tolist() == [8, 8]
  assert made.sum() == computed and abs(made[0] - made[1]) <= 1  # each once, half by each
  (ours, edits), (expected, expected_edits) = (
    numbers(tmp_path / name / 'results.json') for name in ('two', 'one')
  )
  assert list(ours) == list(expected)
  for name, metric in ours.items():
    for part in ('value', 'low', 'high'):
      if expected[name][part] is None:
        assert metric[part] is None
      else:
        assert metric[part] == pytest.approx(expected[name][part], rel=1e-5, abs=1e-6), (name, part)
    assert metric['n'] == expected[name]['n'] and metric['basis'] == expected[name]['basis']
  assert [edit['id'] for edit in edits] == [edit['id'] for edit in expected_edits]
  assert not os.path.exists(tmp_path / 'two' / 'shares')
  with np.load(tmp_path / 'two' / 'vectors.npz') as theirs:
    for name, vector in scoring.looked_at(instruments.networks(given['features'])).items():
      assert np.abs(vector).max() > 0.01
      np.testing.assert_allclose(theirs[name], vector, rtol=1e-6, atol=1e-6 * np.abs(vector).max())


def column(*names, spoilt=''):
  def run(values):
    for value in values:
      yield np.array([[np.nan if value == spoilt else len(value)]], np.float32)

  def prepare(name):
    if name.startswith('none'):
      raise ValueError('there is none')
    return name

  jobs = {f'key {n}': Job(n, lambda n=n: prepare(n)) for n in names}
  return Column('a column', list(jobs), jobs, run)


def test_what_killed_processes_left_is_taken_and_their_folder_goes(tmp_path):
  shares = tmp_path / 'out' / 'shares'
  whole = column('a', 'bb', 'none', 'cccc')
  with Cache(str(shares), '7.sqlite') as left:  # of a process that there is no more
    left.put('key bb', np.array([7], np.float32))
    left.put('of nothing', np.array([1], np.float32))
    left.commit()
  (shares / '3.sqlite-journal').write_bytes(b'')
  with Cache(str(tmp_path / 'cache')) as kept:
    kept.put('key a', np.array([5], np.float32))
    kept.commit()
    vectors.share_out(kept, [whole, column('a')], str(shares))
    rows = next(iter(kept.rows(whole.keys)))
    assert not kept.missing(['of nothing'])
  assert [None if vector is None else vector[0] for vector, _ in rows] == [5, 7, None, 4]
  assert rows[2][1] == 'there is none'
  assert os.listdir(shares) == ['3.sqlite-journal']  # not ours


def test_a_damaged_share_is_one_line(tmp_path):
  (tmp_path / '0.sqlite').write_bytes(b'no database' * 100)
  with (
    Cache(str(tmp_path / 'cache')) as kept,
    pytest.raises(UserError, match=r'0\.sqlite cannot be used .* computed again'),
  ):
    vectors.share_out(kept, [column('a')], str(tmp_path))


def test_only_what_is_asked_for_is_computed(tmp_path):
  whole = column('a', 'bb', 'ccc')
  with Cache(str(tmp_path)) as kept:
    vectors.fill(kept, whole, {'key bb', 'another key'})
    assert kept.missing(whole.keys) == ['key a', 'key ccc']
    with pytest.raises(UserError, match='a column: what it gives for ccc is not finite'):
      vectors.fill(kept, column('a', 'bb', 'ccc', spoilt='ccc'))
