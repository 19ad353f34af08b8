"""Two results of one benchmark: paired, on one page, and refused unless of the same edits."""

import copy
import json
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exedit.evaluation import compare
from exedit.input_pipeline.coco_ee import references
from exedit.metrics import confidence
from exedit.runtime.errors import UserError
from tests import bench, evaluations
from tests.evaluation.test_report import Links


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


# The page


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A benchmark, two systems' pictures and their results."""
  root = tmp_path_factory.mktemp('world')
  bench.write(root / 'bench', size=evaluations.SIZE)
  for kind in ('copy_paste', 'source'):
    references.write(str(root / 'bench'), kind, str(root / kind))
    given = dict(evaluations.plain(root), cache=str(root / 'cache'))
    evaluations.score(root / f'scored {kind}', pictures=str(root / kind), **given)
  return root


@pytest.fixture
def comparison(world):
  return compare.compare(
    *(str(world / f'scored {kind}' / 'results.json') for kind in ('copy_paste', 'source'))
  )


def test_both_systems_are_on_the_page(world, comparison, tmp_path):
  page = Links(compare.write(str(tmp_path), comparison))
  pictures = [link for link in page.found if link.endswith('.png')]
  assert {p.split('_')[-1] for p in pictures[:4]} == {
    f'{kind}.png' for kind in ('source', 'exemplar', *compare.SYSTEMS)
  }
  assert not page.open and '#copy_paste' in page.found
  for link in pictures:
    assert not link.startswith(('/', 'http'))
    Image.open(tmp_path / link).load()
  for kind, system in zip(('copy_paste', 'source'), compare.SYSTEMS, strict=True):
    shown = np.asarray(Image.open(tmp_path / 'page' / f'{17:012d}_{system}.png'))
    scored = np.asarray(Image.open(world / kind / f'{17:012d}.png'))
    times = len(shown) // len(scored)
    np.testing.assert_array_equal(shown[::times, ::times], scored)
  text = ''.join(page.text)
  assert 'second is better' in text  # the repeated source contains nothing of the exemplar
  ahead = [t for t in page.text if t.endswith('ahead by the most')]
  assert ahead == [f'{comparison["second"]} ahead by the most']


def test_pictures_that_have_changed_are_refused(world, comparison, tmp_path):
  path = world / 'source' / f'{17:012d}.png'
  before = path.read_bytes()
  Image.new('RGB', (evaluations.SIZE, evaluations.SIZE)).save(path)
  with pytest.raises(UserError, match='17.png is not what .* scored: score it again'):
    compare.write(str(tmp_path / 'page'), comparison)
  path.write_bytes(before)
  assert not (tmp_path / 'page').exists()


def test_the_page_of_an_evaluation_is_not_replaced(world, comparison):
  page = world / 'scored source' / 'index.html'
  before = page.read_bytes()
  with pytest.raises(UserError, match='holds an evaluation'):
    compare.write(os.fspath(world / 'scored source'), comparison)
  assert page.read_bytes() == before
