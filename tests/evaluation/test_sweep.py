"""Custom-Edit's comparison: scores against their formulas, what is written, what is refused."""

import csv
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from exedit import evaluate, images
from exedit.evaluation import networks, plot, published, sweep, vectors
from exedit.metrics.features import cosines
from exedit.runtime.errors import explain
from tests import bench, judges, vocabulary

STRENGTHS, SOURCES = (0.2, 0.5, 0.8), 4
COLUMNS = ('method', 'strength', 'image', 'references', 'output', 'target')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Two methods that fade from a reference to the source; the second one is noisier."""
  root = tmp_path_factory.mktemp('sweep')
  (root / 'refs').mkdir()
  seen = [np.asarray(bench.picture(50 + k, (40, 40))) for k in range(2)]
  for k, pixels in enumerate(seen):
    images.save(pixels, root / 'refs' / f'{k}.png')
  rows, rng = [], np.random.default_rng(0)
  for i in range(SOURCES):
    source = np.asarray(bench.picture(i, (40, 40)))
    images.save(source, root / f'{i}.png')
    for method, noise in (('ours', 0), ('theirs', 6)):
      for strength in STRENGTHS:
        mixed = strength * source + (1 - strength) * seen[0] + noise * rng.normal(size=source.shape)
        name = f'{method}-{i}-{strength}.png'
        images.save(np.clip(mixed, 0, 255).astype(np.uint8), root / name)
        rows.append((method, strength, f'{i}.png', 'refs', name, 'photo of <new1> red ball'))
  write(root / 'edits.csv', rows)
  judges.write(root / 'networks', words=vocabulary.WORDS)
  return root


def write(path, rows, columns=COLUMNS):
  with open(path, 'w', newline='') as file:
    csv.writer(file).writerows([columns, *rows])


def score(world, output='scores', edits='edits.csv', nets=('clip', 'dino'), **more):
  return sweep.evaluate(
    str(world / output),
    edits=str(world / edits),
    features={name: str(world / 'networks' / f'{name}.safetensors') for name in nets},
    cache=str(world / 'cache'),
    **{'say': lambda line: None, **more},
  )


@pytest.fixture(scope='module')
def found(world):
  return score(world)


def refusal(call, *args, **given):
  with pytest.raises(Exception) as caught:
    call(*args, **given)
  line = explain(caught.value)
  assert line is not None and len(line) < 400, caught.value
  return line


def test_every_score_is_its_formula(world, found):
  files = {name: str(world / 'networks' / f'{name}.safetensors') for name in ('clip', 'dino')}
  clip, dino = (networks.load(name, path) for name, path in files.items())
  edits = found['edits']
  outputs = [images.read(edit['output']) for edit in edits]
  sources = [images.read(edit['image']) for edit in edits]
  refs = [images.read(str(world / 'refs' / f'{k}.png')) for k in range(2)]
  both = lambda network: np.mean(
    [cosines(network(outputs), network([ref] * len(edits))) for ref in refs], 0
  )
  text = networks.load_texts('clip', files['clip'])(['photo of red ball'] * len(edits))
  expected = dict(
    source=cosines(clip(outputs), clip(sources)),
    reference=both(clip),
    text=cosines(clip(outputs), text),
    identity=both(dino),
  )
  for name, values in expected.items():
    scores = [edit[name] for edit in edits]
    np.testing.assert_allclose(scores, 100 * values, atol=1e-3)
    assert np.ptp(scores) > 0.1
  for point in found['points']:
    own = [
      e['source']
      for e in edits
      if (e['method'], e['strength']) == (point['method'], point['strength'])
    ]
    assert point['n'] == SOURCES and point['source']['value'] == pytest.approx(np.mean(own))
    assert point['source']['low'] <= point['source']['value'] <= point['source']['high']


def test_curves_figure_and_page_are_written(world, found):
  with open(world / 'scores' / 'curves.csv') as file:
    rows = [*csv.DictReader(file)]
  assert [(row['method'], float(row['strength'])) for row in rows] == [
    (method, strength) for method in ('ours', 'theirs') for strength in STRENGTHS
  ]
  for row, point in zip(rows, found['points']):
    assert float(row['reference']) == pytest.approx(point['reference']['value'], rel=1e-4)
    assert float(row['source_low']) <= float(row['source']) <= float(row['source_high'])
  root = ET.parse(world / 'scores' / 'figure.svg').getroot()
  dots = [e for e in root.iter() if e.tag.endswith('circle')]
  assert len(dots) == 6 + 4 * len(published.FIGURE_4)
  page = (world / 'scores' / 'index.html').read_text()
  assert 'figure.svg' in page and '81.1, 70.3' in page and 'SDEdit, DreamBooth' in page


def test_methods_are_compared_where_both_reach(found):
  rows = {(c['what'].split()[0], c['method'], c['against']): c for c in found['comparisons']}
  assert len(rows) == 6
  for what in ('at', 'mean'):
    pair, one, other = (
      rows[what, *key] for key in (('ours', 'theirs'), ('ours', ''), ('theirs', ''))
    )
    assert pair['n'] == SOURCES and pair['low'] <= pair['value'] <= pair['high']
    assert pair['value'] == pytest.approx(one['value'] - other['value'])


def test_a_second_evaluation_computes_nothing(world, found, monkeypatch):
  def fill(store, column, only=None):
    assert not store.missing(column.keys), 'a vector is computed again'

  monkeypatch.setattr(vectors, 'fill', fill)
  assert score(world) == found


def test_a_similarity_that_a_method_does_not_reach_has_no_value(world):
  found = score(world, 'far', nets=('clip',), at=1.0, low=-5.0, high=200.0)
  assert all(c['value'] is None and 'reaches only' in c['note'] for c in found['comparisons'])
  assert 'identity' not in found['points'][0]
  assert 'low is 3 and high 2' in refusal(score, world, 'far', nets=('clip',), low=3.0, high=2.0)


def test_lists_that_cannot_be_scored_are_refused(world, tmp_path):
  place = lambda name: str(world / name)
  row = ['ours', 0.2, place('0.png'), place('refs'), place('ours-0-0.2.png'), '']
  change = lambda i, value: [*row[:i], value, *row[i + 1 :]]
  for rows, message in [
    ([change(1, 'strong')], "line 2: strength is 'strong': it must be a number"),
    ([change(1, 'inf')], "strength is 'inf': it must be a number"),
    ([change(1, 'nan')], 'line 2: it has no strength'),  # as pandas writes an empty cell
    ([row, [*change(1, 0.5)[:-1], 'a ball']], 'line 2: it has no target, or one of learned words'),
    ([change(4, place('none.png'))], 'none.png does not exist'),
    ([change(3, place('none'))], 'none is not a folder'),
    ([change(0, '')], 'it has no method'),
    ([row, row], 'ours at strength 0.2 has two edits of one source'),
    ([row, change(2, place('1.png')), change(1, 0.5)], 'has 2 edits at strength 0.2 and 1 at 0.5'),
  ]:
    write(tmp_path / 'edits.csv', rows)
    assert message in refusal(sweep.read, str(tmp_path / 'edits.csv'))
  write(tmp_path / 'edits.csv', [row])
  zero = sweep.read(str(tmp_path / 'edits.csv'))
  assert zero[0].strength == 0.2 and zero[0].target == ''
  assert 'config.features.clip_b32 is not set; get OpenAI' in refusal(
    score, world, 'x', nets=('dino',)
  )
  config = dict(bench='custom_edit_sweep', edits='x', features={})
  flags = dict(weights='w', images=None, compare=None, output='o', words=[])
  assert 'leave out --weights and --images' in refusal(evaluate.main, config, **flags)
  said = refusal(evaluate.main, config, **dict(flags, weights=None, concept='c'))
  assert "--concept has no use: bench 'custom_edit_sweep'" in said


@pytest.mark.parametrize('values', [[3.0], [60.2, 88.7], [0.0, 1e-4], [-5.0, 700.0]])
def test_ticks_enclose_the_values(values):
  ticks = plot._ticks(values)
  assert ticks[0] <= min(values) and ticks[-1] >= max(values) and 2 <= len(ticks) <= 11
