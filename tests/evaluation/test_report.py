"""The page of an evaluation: every link leads somewhere, and best is best."""

import html.parser
import os
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from exedit.evaluation import benchmark, pages, report
from exedit.input_pipeline.coco_ee import references
from exedit.input_pipeline.coco_ee.bench import Bench
from tests import bench

IDS = tuple(range(10, 40))


@pytest.fixture(scope='module')
def scored(tmp_path_factory):
  root = tmp_path_factory.mktemp('world')
  bench.write(root / 'bench', ids=IDS, size=20)
  references.write(str(root / 'bench'), 'copy_paste', str(root / 'pasted & co'))
  whole = Bench(str(root / 'bench'), exemplar_size=None)
  edits = benchmark.survey(whole)
  return benchmark.results(edits, str(root / 'pasted & co')), benchmark.Reader(whole)


def metric(value: float | None = 1.0, better='higher', n=30, note='', **ends):
  low, high = (ends.get('low', value), ends.get('high', value))
  return dict(value=value, low=low, high=high, n=n, better=better, note=note, about='a & b')


def results(**scores) -> dict[str, Any]:
  return dict(
    benchmark=dict(root='test <bench>', edits=len(IDS), sha256='a' * 64),
    pictures='some folder',
    reference=None,
    metrics={name: metric(better=better) for name, (better, _) in scores.items()},
    edits=[
      dict(id=i, metrics={name: values[k] for name, (_, values) in scores.items()})
      for k, i in enumerate(IDS)
    ],
  )


class Links(html.parser.HTMLParser):
  """The targets of a page's pictures and links, and its texts."""

  def __init__(self, path):
    super().__init__()
    self.found, self.text, self.open = [], [], []
    with open(path, encoding='utf-8') as file:
      self.feed(file.read())
    self.close()

  def handle_starttag(self, tag, attrs):
    if tag not in ('img', 'meta'):
      self.open.append(tag)
    self.found += [value for name, value in attrs if name in ('src', 'href')]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_every_link_of_the_page_is_relative_and_leads_to_a_picture(scored, tmp_path):
  output = tmp_path / 'out'
  values = np.linspace(0, 1, len(IDS)).tolist()
  page = Links(report.write(str(output), results(x=('higher', values)), *scored))
  links = [link for link in page.found if not link.startswith('#')]
  assert len(links) == 4 * (pages.SHOWN + 2 * pages.EXTREMES)
  assert set(page.found) - set(links) == {'#x'}
  assert '<h2 id="x">' in (output / 'index.html').read_text()
  for link in links:
    assert not link.startswith(('/', 'http'))
    Image.open(output / link).load()
  assert not page.open  # every element is closed
  assert 'test <bench>' in ''.join(page.text)  # and no name is taken for markup


@pytest.mark.parametrize('better, best', [('higher', 39), ('lower', 10)])
def test_best_and_worst_edits(scored, tmp_path, better, best):
  values = np.linspace(0, 1, len(IDS)).tolist()
  report.write(str(tmp_path), results(x=(better, values)), *scored)
  captions = [t for t in Links(tmp_path / 'index.html').text if ': ' in t and t[0].isdigit()]
  ids = [int(text.split(':')[0]) for text in captions]
  ranked = sorted(IDS, reverse=better == 'higher')
  assert ids[0] == best
  assert ids == ranked[: pages.EXTREMES] + ranked[::-1][: pages.EXTREMES]


def test_metrics_without_two_values_have_no_extremes(scored, tmp_path):
  nothing, same = [None] * len(IDS), [1.0] * len(IDS)
  report.write(str(tmp_path), results(x=('higher', nothing), y=('lower', same)), *scored)
  assert 'Best' not in (tmp_path / 'index.html').read_text()


def test_pictures_of_an_earlier_page_are_removed(scored, tmp_path):
  (tmp_path / 'page').mkdir()
  (tmp_path / 'page' / '000000000099_result.png').write_bytes(b'')
  report.write(str(tmp_path), results(x=('higher', [1.0] * len(IDS))), *scored)
  names = os.listdir(tmp_path / 'page')
  assert len(names) == 3 * pages.SHOWN and '000000000099_result.png' not in names
  shutil.rmtree(tmp_path / 'page')


def test_the_mask_is_shown_on_the_source(scored, tmp_path):
  report.write(str(tmp_path), results(x=('higher', [1.0] * len(IDS))), *scored)
  items, reader = scored
  edit = reader(items[0])
  shown = np.asarray(Image.open(tmp_path / 'page' / f'{IDS[0]:012d}_source.png'))
  times = len(shown) // len(edit['mask'])
  assert len(shown) == times * len(edit['mask']) and times > 1  # pixels made squares
  np.testing.assert_array_equal(shown, shown[::times, ::times].repeat(times, 0).repeat(times, 1))
  shown, outside = shown[::times, ::times], edit['mask'] == 0
  np.testing.assert_array_equal(shown[outside], edit['source'][outside])
  assert (shown[~outside] != edit['source'][~outside]).any(-1).all()


def test_the_table_has_value_interval_n_and_why():
  found = results(x=('higher', [1.0] * len(IDS)))
  found['metrics'] = dict(
    x=metric(12.34567, low=11.1, high=13.9, n=3499, note='undefined for 1 of 3500 edits'),
    fid=dict(metric(None, 'lower', 0, 'get the weights'), low=None, high=None),
  )
  lines = report.table(found).splitlines()
  row = next(line for line in lines if line.startswith('x'))
  assert row.split()[:7] == ['x', '12.35', '11.1', 'to', '13.9', '3499', 'higher']
  assert row.endswith('undefined for 1 of 3500 edits')
  row = next(line for line in lines if line.startswith('fid'))
  assert row.split()[:4] == ['fid', '-', '-', '0'] and row.endswith('get the weights')
