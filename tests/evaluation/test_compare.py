"""Two results of one benchmark: paired, and refused where they are not of the same edits."""

import copy
import json
from typing import Any

import numpy as np
import pytest

from exedit.evaluation import compare
from exedit.metrics import confidence
from exedit.runtime.errors import UserError


def results(scores, basis='b', sha256='s' * 64, better='higher') -> dict[str, Any]:
  """A results.json with these scores by metric."""
  n = len(next(iter(scores.values())))
  return dict(
    format='exedit bench 1',
    benchmark=dict(root='test_bench', edits=n, sha256=sha256),
    metrics={
      name: dict(value=1.0, better=better, basis=basis, n=n, note='', about='') for name in scores
    },
    edits=[
      dict(id=100 + i, metrics={name: values[i] for name, values in scores.items()})
      for i in range(n)
    ],
  )


@pytest.fixture
def files(tmp_path):
  def write(**contents):
    for name, content in contents.items():
      (tmp_path / f'{name}.json').write_text(json.dumps(content))
    return [str(tmp_path / f'{name}.json') for name in contents]

  return write


def refusal(*paths):
  with pytest.raises(UserError) as caught:
    compare.compare(*paths)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_differences_are_paired_by_id(files):
  rng = np.random.default_rng(0)
  a = rng.normal(size=30)
  b = a - 0.2 + rng.normal(size=30) / 10  # a pair differs far less than two edits do
  second = results(dict(x=b.tolist()))
  second['edits'].reverse()
  found = compare.compare(*files(a=results(dict(x=a.tolist())), b=second))['metrics']['x']
  expected = confidence.paired(a, b)
  assert (found['difference'], found['low'], found['high'], found['p'], found['n']) == (
    *(expected.difference, expected.low, expected.high, expected.p, 30),
  )
  assert found['p'] < 0.001 and found['low'] > 0
  assert found['first'] == pytest.approx(a.mean()) and found['second'] == pytest.approx(b.mean())


def test_only_edits_with_both_scores_count(files):
  a, b = [1.0, 2.0, None, 4.0], [0.5, None, 3.0, 3.0]
  paths = files(a=results(dict(x=a)), b=results(dict(x=b)))
  found = compare.compare(*paths)['metrics']['x']
  assert found['n'] == 2 and found['difference'] == 0.75
  paths = files(a=results(dict(x=[1.0, None])), b=results(dict(x=[1.0, 2.0])))
  assert '1 edits have it in both' in compare.compare(*paths)['metrics']['x']['note']


def test_what_cannot_be_compared_says_why(files):
  a, b = results(dict(x=[1.0, 2.0], y=[1.0, 2.0])), results(dict(x=[1.0, 2.0], z=[1.0, 2.0]))
  b['metrics']['x']['basis'] = 'another'
  found = compare.compare(*files(a=a, b=b))
  assert found['metrics']['x'] == dict(
    note='measured with other networks, real images or another mixture'
  )
  assert found['metrics']['y'] == found['metrics']['z'] == dict(note='not in both')
  assert 'measured with other networks' in compare.table(found)


def test_the_table_says_which_is_better(files):
  n = 30
  low, high = np.linspace(0, 1, n).tolist(), np.linspace(1, 2, n).tolist()
  for better, verdict in (('higher', 'second is better'), ('lower', 'first is better')):
    paths = files(a=results(dict(x=low), better=better), b=results(dict(x=high), better=better))
    table = compare.table(compare.compare(*paths))
    assert verdict in table and '-1' in table and 'p' in table
  same = compare.table(compare.compare(paths[0], paths[0]))
  assert 'no difference shown' in same


def test_other_benchmarks_and_other_files_are_refused(files, tmp_path):
  good = results(dict(x=[1.0, 2.0]))
  a, b = files(a=good, b=results(dict(x=[1.0, 2.0]), sha256='t' * 64))
  line = refusal(a, b)
  assert 'sha256 ssssssssssss' in line and 'sha256 tttttttttttt' in line
  assert 'cannot be read' in refusal(a, str(tmp_path / 'none.json'))
  (tmp_path / 'cut.json').write_text('{"format": ')
  assert 'is no results.json' in refusal(a, str(tmp_path / 'cut.json'))
  for spoil in (
    lambda r: r.pop('format'),
    lambda r: r.update(format='other'),
    lambda r: r.pop('edits'),
    lambda r: r['benchmark'].pop('sha256'),
    lambda r: r['metrics']['x'].pop('basis'),
    lambda r: r['edits'][1].pop('id'),
    lambda r: r.update(metrics=3),
  ):
    bad = copy.deepcopy(good)
    spoil(bad)
    assert 'is no results.json' in refusal(a, files(bad=bad)[0])
  assert 'is no results.json' in refusal(files(bad=[1])[0], a)
