"""The page of the user study: it is blind, its orders are fair, and its answers can be read."""

import json
import re
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest
import scipy.stats
from PIL.PngImagePlugin import PngInfo

from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import references
from exedit.runtime import doors
from launch import user_study
from launch import user_study_answers as answers
from tests import bench as layout
from tests.refusals import refusal

SYSTEMS = ('zebra', 'copy paste', 'quokka')
RESULTS = [f'--results={system}=results {system}' for system in SYSTEMS]


@pytest.fixture
def world(tmp_path, monkeypatch):
  """A benchmark of four edits and the results of three systems, in the current folder."""
  monkeypatch.chdir(tmp_path)
  layout.write(tmp_path / 'bench')
  for system, kind in zip(SYSTEMS, ('harmonised', 'copy_paste', 'source')):
    references.write('bench', kind, f'results {system}')
  return tmp_path


def run(*argv):
  doors.call_one(user_study.COMMANDS, user_study.__doc__, ['user_study', *argv])


def build(**settings):
  folders = {system: f'results {system}' for system in SYSTEMS}
  return user_study.build('bench', folders, 'study', **settings)


def page_of(path='study/index.html'):
  with open(path, encoding='utf-8') as file:
    text = file.read()
  found = re.search(r'const STUDY = (.*);\n', text)
  assert found
  return text, json.loads(found[1])


def test_the_page_shows_what_the_key_says(world):
  key = build()
  text, page = page_of()
  edits = coco_ee.Bench('bench', exemplar_size=None)
  assert [edit['edit'] for edit in page['edits']] == edits.ids.tolist()
  assert key['study'] == page['study'] and key['systems'] == list(SYSTEMS)
  for k, (shown, known) in enumerate(zip(page['edits'], key['edits'])):
    assert known['edit'] == shown['edit'] == edits[k]['id']
    read = lambda address: np.asarray(PIL.Image.open(world / 'study' / address))
    np.testing.assert_array_equal(read(shown['source']), edits[k]['source'])
    np.testing.assert_array_equal(read(shown['exemplar']), edits[k]['exemplar'])
    assert sorted(known['systems']) == [result['token'] for result in shown['results']]
    for result in shown['results']:
      system = known['systems'][result['token']]
      stored = PIL.Image.open(f'results {system}/{shown["edit"]:012d}.png')
      np.testing.assert_array_equal(read(result['picture']), np.asarray(stored))


def test_nothing_on_the_page_tells_whose_a_result_is(world):
  tagged = PngInfo()
  tagged.add_text('Software', 'zebra')
  path = world / 'results zebra' / '000000000283.png'
  PIL.Image.open(path).save(path, pnginfo=tagged)
  build()
  text, page = page_of()
  for word in ('copy paste', 'quokka', 'zebra', 'harmonised', str(world)):
    assert word not in text
  for file in (world / 'study').rglob('*.png'):
    assert re.fullmatch(r'[0-9a-f]{12}\.png', file.name)
    assert b'zebra' not in file.read_bytes()
  assert sorted(p.name for p in (world / 'study').iterdir()) == ['index.html', 'pictures']
  for edit in page['edits']:  # not even by an order
    names = [result['token'] for result in edit['results']]
    assert names == sorted(names)


def test_the_page_loads_nothing_from_elsewhere(world):
  build()
  text, page = page_of()
  addresses = re.findall(r'(?:https?:)?//[\w.]+\.\w+', text)
  assert set(addresses) == {'http://www.w3.org'}  # the name of SVG's namespace
  assert not re.search(r'(?:src|href)="(?!data:)|@import|url\(|fetch\(|XMLHttp|sendBeacon', text)
  shown = [edit[name] for edit in page['edits'] for name in ('source', 'exemplar')]
  shown += [result['picture'] for edit in page['edits'] for result in edit['results']]
  stored = {f'pictures/{path.name}' for path in (world / 'study' / 'pictures').iterdir()}
  assert set(shown) == stored and len(shown) == len(stored) == 4 * 5


def test_the_same_settings_build_the_same_study_and_another_seed_another_one(world):
  first = build(count=2)
  text = page_of()[0]
  for again in (dict(count=2), dict(count=2, seed=1)):
    shutil.rmtree('study')
    (world / 'study.key.json').unlink()
    key = build(**again)
    assert (key == first and page_of()[0] == text) == ('seed' not in again)
    assert len(key['edits']) == 2
  tokens = [{t for edit in k['edits'] for t in edit['systems']} for k in (key, first)]
  assert key['study'] != first['study'] and not tokens[0] & tokens[1]


def test_a_title_is_only_a_title(world):
  title = '</script><b>"Best" & worst'
  build(title=title)
  text, page = page_of()
  assert page['title'] == title and text.count('</script>') == 1


def test_the_outline_follows_the_mask():
  corners = lambda path: {tuple(map(float, p.split())) for p in re.split('[MLZ ]*[MLZ]', path) if p}
  mask = np.asarray(layout.mask((4, 6, 14, 18)))
  found = corners(user_study._outline(mask))
  assert len(found) == 4
  for corner in found:
    near = [abs(corner[0] - x) + abs(corner[1] - y) for x in (4, 14) for y in (6, 18)]
    assert min(near) <= 0.5
  assert user_study._outline(np.zeros((8, 8), np.uint8)) == ''


@pytest.mark.parametrize(
  'spoil, more, line',
  [
    (lambda w: shutil.rmtree(w / 'results zebra'), [], 'zebra: is not a folder'),
    (lambda w: None, ['--count=0'], '--count=0 must be at least 1'),
    (lambda w: None, ['--results=bench'], 'write --results=NAME=FOLDER'),
    (lambda w: None, ['--results=zebra=bench'], 'there is a system zebra already'),
    (lambda w: None, [f'--results={i}=bench' for i in range(7)], '10 --results: a study compares'),
    (
      lambda w: (w / 'results zebra' / '000000000017.png').unlink(), [],
      'results zebra lacks 1 of the 4 results of zebra, the first is 000000000017.png',
    ),
    (
      lambda w: layout.picture(0, (9, 24)).save(w / 'results quokka' / '000000000017.png'), [],
      'quokka/000000000017.png is 9x24, its source 24x24',
    ),
    (
      lambda w: (w / 'results quokka' / '000000000017.png').write_bytes(b'no'), [],
      '000000000017.png is not an image',
    ),
    (lambda w: (w / 'bench' / 'id_list.npy').unlink(), [], 'id_list.npy is missing'),
    (lambda w: (w / 'study').write_text(''), [], 'study exists already: remove it or name'),
    (lambda w: (w / 'study.key.json').touch(), [], 'study.key.json is the key of another study'),
  ],
)  # fmt: skip
def test_a_study_that_cannot_be_shown_writes_nothing(world, capsys, spoil, more, line):
  spoil(world)
  before = sorted(p.name for p in world.iterdir())
  argv = 'build', '--bench=bench', '--output=study', *RESULTS, *more
  assert line in refusal(capsys, run, *argv)
  assert sorted(p.name for p in world.iterdir()) == before


def test_the_command_builds_the_study(world, capsys):
  run('build', '--bench=bench', '--output=study', *RESULTS, '--count=3', '--title=Which?')
  assert 'study/index.html: 3 systems, 3 edits\n' in capsys.readouterr().out
  assert page_of()[1]['title'] == 'Which?'


# The page's own logic, in node.


def script(study, body):
  """Runs the JavaScript `body` after the page's functions, and returns what it returns."""
  logic = user_study.PAGE.read_text().split('// <logic>')[1].split('// </logic>')[0]
  code = f"'use strict'; const STUDY = {json.dumps(study)}; {logic}\n"
  code += f'console.log(JSON.stringify((() => {{ {body} }})()))'
  run = subprocess.run(['node', '-e', code], capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  return json.loads(run.stdout)


needs_node = pytest.mark.skipif(not shutil.which('node'), reason="node runs the page's functions")


def toy(edits=6, systems=5):
  results = lambda e: [dict(token=f'{e}-{s}', picture='') for s in range(systems)]
  questions = [dict(name='quality'), dict(name='consistency')]
  shown = [dict(edit=e, results=results(e)) for e in range(edits)]
  return dict(format=answers.FORMAT, study='toy', title='t', questions=questions, edits=shown)


@needs_node
def test_orders_are_the_participants_own_and_complete():
  study = toy()
  one, again, other = (
    script(
      study,
      f'return steps(STUDY, "{name}").map((s) => [s.edit.edit, s.question.name,'
      ' s.results.map((r) => r.token)])',
    )
    for name in ('P1', 'P1', 'P2')
  )
  assert one == again != other
  for steps in (one, other):
    assert [row[1] for row in steps] == ['quality', 'consistency'] * 6
    assert sorted(row[0] for row in steps[::2]) == list(range(6))
    for edit, _, tokens in steps:
      assert sorted(tokens) == [f'{edit}-{s}' for s in range(5)]
  assert len({tuple(int(t[-1]) for t in row[2]) for row in one}) > 3


@needs_node
def test_every_place_is_equally_likely():
  body = """
    const counts = [0, 1, 2, 3].map(() => [0, 0, 0, 0]);
    for (let i = 0; i < 8000; i++)
      shuffled([0, 1, 2, 3], `study/P${i % 40}/${i}`).forEach((item, at) => counts[item][at]++);
    return counts;"""
  counts = np.array(script(None, body))
  assert scipy.stats.chisquare(counts.ravel(), np.full(16, 2000)).pvalue > 0.001


@needs_node
@pytest.mark.parametrize(
  'expression, ranks',
  [
    ("toggled([null, null, null], 'b')", ['b', None, None]),
    ("toggled(['b', null, 'c'], 'a')", ['b', 'a', 'c']),
    ("toggled(['b', 'a', 'c'], 'a')", ['b', None, 'c']),
    ("undone(['a', 'b', null])", ['a', None, None]),
    ('undone([null, null])', [None, None]),
    ("complete(['a', null])", False),
    ("complete(['a', 'b'])", True),
  ],
)
def test_clicks_change_a_ranking(expression, ranks):
  assert script(None, f'return {expression}') == ranks


@needs_node
def test_what_the_page_saves_is_what_the_table_reads(world):
  key = build()
  _, page = page_of()
  body = """
    const state = { started: 'then', at: 0, given: {} };
    steps(STUDY, 'P"1').forEach(({ edit, results, question }, i) => {
      const ranks = results.map((r) => r.token).sort();
      const given = i === 7 ? [...ranks.slice(1), null] : ranks;
      state.given[`${question.name}/${edit.edit}`] = { ranks: given, seconds: 1.5 };
    });
    return answers(STUDY, 'P"1', state, 'now');"""
  saved = script(page, body)
  assert (
    saved['complete'] is False and len(saved['answers']) == 7
  )  # an incomplete ranking is not saved
  (world / 'a.json').write_text(json.dumps(saved))
  read = answers.read_answers('a.json', key)
  assert read['participant'] == 'P"1' and len(read['ranks']) == 7
  known = {edit['edit']: edit['systems'] for edit in key['edits']}
  for (_, edit), order in read['ranks'].items():
    assert order == [known[edit][token] for token in sorted(known[edit])]
