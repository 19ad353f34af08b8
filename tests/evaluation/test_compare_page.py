"""Two systems on one page: each edit's two pictures side by side, the same that were scored."""

import os

import numpy as np
import pytest
from PIL import Image

from exedit.evaluation import compare, compare_page
from exedit.input_pipeline.coco_ee import references
from exedit.runtime.errors import UserError
from tests import bench, evaluations
from tests.evaluation.test_report import Links


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A benchmark, two systems' pictures and their results."""
  root = tmp_path_factory.mktemp('world')
  bench.write(root / 'bench', size=evaluations.SIZE)
  for kind in ('copy_paste', 'source'):
    references.write(str(root / 'bench'), kind, str(root / kind))
    evaluations.score(
      str(root / f'scored {kind}'),
      pictures=str(root / kind),
      data=dict(root=str(root / 'bench')),
      features={},
      reference={},
      cache=str(root / 'cache'),
      say=lambda line: None,
    )
  return root


@pytest.fixture
def comparison(world):
  return compare.compare(
    *(str(world / f'scored {kind}' / 'results.json') for kind in ('copy_paste', 'source'))
  )


def test_both_systems_are_on_the_page(world, comparison, tmp_path):
  page = Links(compare_page.write(str(tmp_path), comparison))
  pictures = [link for link in page.found if link.endswith('.png')]
  assert {p.split('_')[-1] for p in pictures[:4]} == {f'{kind}.png' for kind in compare_page.KINDS}
  assert not page.open and '#copy_paste' in page.found
  for link in pictures:
    assert not link.startswith(('/', 'http'))
    Image.open(tmp_path / link).load()
  for kind, system in zip(('copy_paste', 'source'), compare_page.SYSTEMS, strict=True):
    shown = np.asarray(Image.open(tmp_path / 'page' / f'{17:012d}_{system}.png'))
    scored = np.asarray(Image.open(world / kind / f'{17:012d}.png'))
    times = len(shown) // len(scored)
    np.testing.assert_array_equal(shown[::times, ::times], scored)
  text = ''.join(page.text)
  assert 'second is better' in text  # nothing of the exemplar is pasted where the source stays
  ahead = [t for t in page.text if t.endswith('ahead by the most')]
  assert ahead == [f'{comparison["second"]} ahead by the most']


def test_pictures_that_have_changed_are_refused(world, comparison, tmp_path):
  path = world / 'source' / f'{17:012d}.png'
  before = path.read_bytes()
  Image.new('RGB', (evaluations.SIZE, evaluations.SIZE)).save(path)
  with pytest.raises(UserError, match='17.png is not what .* scored: score it again'):
    compare_page.write(str(tmp_path / 'page'), comparison)
  path.write_bytes(before)
  assert not (tmp_path / 'page').exists()


def test_the_page_of_an_evaluation_is_not_replaced(world, comparison):
  page = world / 'scored source' / 'index.html'
  before = page.read_bytes()
  with pytest.raises(UserError, match='holds an evaluation'):
    compare_page.write(os.fspath(world / 'scored source'), comparison)
  assert page.read_bytes() == before
