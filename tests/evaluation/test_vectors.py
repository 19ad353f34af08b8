"""Vectors on the disk: kept exactly, computed once, shared by processes, not lost by a kill."""

import json
import os

import numpy as np
import pytest

from exedit.evaluation import resources, vectors
from exedit.evaluation.vectors import Column, Store
from exedit.input_pipeline.coco_ee import references
from exedit.runtime.errors import UserError
from tests import evaluations, scoring


def column(*names, spoilt='', digest='d' * 64, counted=None):
  """One number per name, its length; names that start with 'none' have no vector."""

  def run(values):
    for value in values:
      if counted is not None:
        counted.append(value)
      yield np.array([[np.nan if value == spoilt else len(value)]], np.float32)

  def load(i):
    if names[i].startswith('none'):
      raise ValueError('there is none')
    return names[i]

  return Column('a column', digest, [f'key {name}' for name in names], names, load, run)


def put(store, **values):
  for key, value in values.items():
    store.put(key, value)
  store.close()


def files_of(store):
  return [os.path.join(store.folder, name) for name in os.listdir(store.folder)]


def test_vectors_and_reasons_come_back_in_order(tmp_path, monkeypatch):
  monkeypatch.setattr(vectors, 'SHARD', 4)
  rng = np.random.default_rng(0)
  values = {f'k{i}': rng.normal(size=3).astype(np.float32) for i in range(10)}
  folder = str(tmp_path / 'new' / 'folder')
  put(Store(folder, column()), **values, none='too small')
  kept = Store(folder, column())
  assert len(files_of(kept)) == 3 and not kept.missing([*values, 'none'])
  order = [*list(values)[::-1], 'none', 'k3', 'k3']
  found, reasons = kept.read(order)
  assert found.dtype == np.float32 and reasons == {10: 'too small'} and np.isnan(found[10]).all()
  expected = [values[name] for name in order if name != 'none']
  np.testing.assert_array_equal(np.delete(found, 10, 0), expected)
  found, reasons = kept.read(['none'])
  assert found.shape == (1, 1) and list(reasons) == [0]
  with pytest.raises(KeyError):
    kept.read(['b'])


def test_what_was_not_written_is_missing_and_another_column_has_its_own(tmp_path):
  one, other = (Store(str(tmp_path), column()) for _ in range(2))
  one.put('a', np.zeros(1))
  assert one.missing(['a', 'b', 'a']) == ['a', 'b'] == other.missing(['a', 'b'])
  one.close()
  assert one.missing(['a', 'b']) == ['b'] == Store(str(tmp_path), column()).missing(['a', 'b'])
  assert Store(str(tmp_path), column(digest='e' * 64)).missing(['a']) == ['a']


def test_digests_differ_in_every_part():
  parts = [('a', 'b'), ('b', 'a'), ('ab',), ('a', 'b', ''), ('a\n', 'b')]
  assert len({vectors.digest(*part) for part in parts}) == 5


@pytest.mark.parametrize('content', [b'no vectors' * 100, b'', None])
def test_a_damaged_file_is_one_line(tmp_path, content):
  store = Store(str(tmp_path), column())
  put(store, a=np.zeros(1))
  path = files_of(store)[0]
  with open(path, 'rb') as file:
    whole = file.read()
  with open(path, 'wb') as file:
    file.write(whole[:-90] if content is None else content)
  with pytest.raises(UserError, match='cannot be read .*: remove it') as caught:
    Store(str(tmp_path), column())
  assert '\n' not in str(caught.value)


def test_only_what_is_missing_and_asked_for_is_computed(tmp_path):
  counted = []
  whole = column('a', 'bb', 'none', 'ccc', counted=counted)
  vectors.fill(Store(str(tmp_path), whole), whole, {'key bb', 'another key'})
  assert counted == ['bb']
  kept = Store(str(tmp_path), whole)
  assert kept.missing(whole.keys) == ['key a', 'key none', 'key ccc']
  spoilt = column('a', 'bb', 'none', 'ccc', spoilt='ccc')
  with pytest.raises(UserError, match='a column: the vector of ccc is not finite'):
    vectors.fill(kept, spoilt)
  vectors.fill(Store(str(tmp_path), whole), whole)  # what came before the error was kept
  assert counted == ['bb', 'ccc']
  found, reasons = Store(str(tmp_path), whole).read(whole.keys)
  np.testing.assert_array_equal(found[:, 0], [1, 2, np.nan, 3])
  assert reasons == {2: 'there is none'}


def numbers(path):
  with open(path) as file:
    results = json.load(file)
  return results['metrics'], results['edits']


def test_two_processes_of_eight_devices_score_as_one_device(tmp_path):
  world = evaluations.world(tmp_path / 'world')
  references.write(str(world / 'bench'), 'copy_paste', str(world / 'pasted'))
  given = evaluations.arguments(world, tmp_path / 'alone')
  pictures = str(world / 'pasted')
  evaluations.score(str(tmp_path / 'one'), pictures=pictures, **given)
  computed = sum(map(scoring.count, (tmp_path / 'alone').glob('*/*.npz')))
  said = scoring.start_processes(2, 8, world, pictures, tmp_path / 'two')
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
  with np.load(tmp_path / 'two' / 'vectors.npz') as theirs:
    for name, vector in scoring.looked_at(resources.networks(given['features'])).items():
      assert np.abs(vector).max() > 0.01
      np.testing.assert_allclose(theirs[name], vector, rtol=1e-6, atol=1e-6 * np.abs(vector).max())
