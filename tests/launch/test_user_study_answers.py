"""The table of the user study: means, intervals by scipy, and damaged answers."""

import json
import re
import shutil

import numpy as np
import pytest
import scipy.stats

from launch import user_study_answers as answers
from tests.launch.test_user_study import run
from tests.refusals import refusal


def made_key(edits=6, systems=3):
  names = [f's{s}' for s in range(systems)]
  shown = [dict(edit=e, systems={f'{e}-{n}': n for n in names}) for e in range(edits)]
  about = dict(format=answers.KEY_FORMAT, study='toy', title='toy', systems=names, edits=shown)
  return about | dict(questions=['quality', 'consistency'])


def saved(participant, orders, saved_at='1'):
  """A participant's file: orders is {(question, edit): [systems, best first]}."""
  rows = [
    dict(question=q, edit=e, ranks=[f'{e}-{name}' for name in order], shown=[], seconds=1)
    for (q, e), order in orders.items()
  ]
  about = dict(format=answers.FORMAT, study='toy', participant=participant, saved=saved_at)
  return about | dict(answers=rows)


def random_orders(key, seed, questions=('quality', 'consistency'), share=1.0):
  rng = np.random.default_rng(seed)
  return {
    (q, e['edit']): rng.permutation(key['systems']).tolist()
    for q in questions
    for e in key['edits']
    if rng.random() < share
  }


def used(*people):
  return [dict(participant=str(i), ranks=ranks) for i, ranks in enumerate(people)]


def test_means_are_those_counted_by_hand():
  key = made_key()
  people = [random_orders(key, seed, share=0.8) for seed in range(5)]
  rows = answers.summarise(used(*people), key, 500)
  assert [(r['question'], r['system']) for r in rows] == [
    (q, s) for q in key['questions'] for s in key['systems']
  ]
  for row in rows:
    orders = [o for ranks in people for (q, _), o in ranks.items() if q == row['question']]
    places = [order.index(row['system']) + 1 for order in orders]
    assert row['n'] == len(places) < 30
    assert row['mean_rank'] == pytest.approx(np.mean(places))
    assert row['firsts'] == pytest.approx(np.mean(np.array(places) == 1))
    low, high = row['mean_rank_interval']
    assert 1 <= low < row['mean_rank'] < high <= 3


def test_with_one_edit_the_interval_is_the_bootstrap_over_people():
  key = made_key(edits=1)
  people = [random_orders(key, seed, ['quality']) for seed in range(60)]
  row = answers.summarise(used(*people), key, 20000)[0]
  places = [ranks['quality', 0].index('s0') + 1 for ranks in people]
  theirs = scipy.stats.bootstrap(
    (np.array(places),), np.mean, n_resamples=20000, method='percentile', rng=0
  ).confidence_interval
  np.testing.assert_allclose(row['mean_rank_interval'], theirs, atol=0.02)


def test_people_who_agree_tell_no_more_than_one():
  key = made_key(edits=12)
  one = random_orders(key, 1, ['quality'])
  alone = answers.summarise(used(one), key, 20000)
  crowd = answers.summarise(used(*[one] * 30), key, 20000)
  for a, b in zip(alone, crowd):
    np.testing.assert_allclose(a['mean_rank_interval'], b['mean_rank_interval'], atol=0.06)
    assert (a['n'], b['n']) == (12, 360)


@pytest.fixture
def sent(tmp_path, monkeypatch):
  """A key and three participants' files."""
  monkeypatch.chdir(tmp_path)
  key = made_key()
  (tmp_path / 'toy.key.json').write_text(json.dumps(key))
  (tmp_path / 'answers').mkdir()
  for k in range(3):
    file = saved(f'P{k}', random_orders(key, k))
    (tmp_path / 'answers' / f'{k}.json').write_text(json.dumps(file))
  return tmp_path, key


def paths(root):
  return sorted(str(p.relative_to(root)) for p in (root / 'answers').iterdir())


def test_the_table_is_printed_and_written(sent, capsys):
  root, key = sent
  run('table', *paths(root), '--resamples=200', '--json=t.json')
  said = capsys.readouterr().out
  assert '3 systems, 6 edits, 3 participants' in said and 'chance: mean rank 2' in said
  rows = json.loads((root / 't.json').read_text())['rows']
  ranks = [row['mean_rank'] for row in rows if row['question'] == 'quality']
  lines = [line for line in said.splitlines() if re.match(r's\d ', line)]
  assert [float(line.split()[1]) for line in lines[:3]] == [round(r, 2) for r in sorted(ranks)]


def change(path, **changes):
  file = json.loads(path.read_text())
  file.update(changes)
  path.write_text(json.dumps(file))


def spoil_row(path, **changes):
  file = json.loads(path.read_text())
  file['answers'][4].update(changes)
  path.write_text(json.dumps(file))


@pytest.mark.parametrize(
  'spoil, line',
  [
    (lambda p: p.write_text(p.read_text()[:50]), '1.json is not JSON'),
    (lambda p: p.write_text('[]'), '1.json contains no answers of a user study'),
    (lambda p: change(p, study='else'), '1.json is of study else, the key of toy'),
    (lambda p: change(p, participant=''), '1.json is damaged: it names no participant'),
    (lambda p: change(p, answers=[3]), 'damaged: answer 1 does not rank each result'),
    (lambda p: spoil_row(p, ranks=['4-s0', '4-s0', '4-s1']), 'answer 5 does not rank each'),
    (lambda p: spoil_row(p, edit=99), 'answer 5 does not rank each result'),
    (lambda p: spoil_row(p, question='beauty'), 'answer 5 does not rank each result'),
    (
      lambda p: spoil_row(p, edit=3, ranks=['3-s0', '3-s1', '3-s2']),
      'damaged: answer 5 repeats the question of an earlier one',
    ),
  ],
)
def test_damaged_answers_are_named_and_left_out(sent, capsys, spoil, line):
  root, key = sent
  spoil(root / 'answers' / '1.json')
  run('table', *paths(root), '--resamples=200', '--json=t.json')
  said = capsys.readouterr().out
  assert (
    re.search(f'^left out: answers/.*{re.escape(line)}', said, re.M) and '2 participants' in said
  )
  good = [answers.read_answers(f'answers/{k}.json', key) for k in (0, 2)]
  report = json.loads((root / 't.json').read_text())
  assert report['rows'] == answers.summarise(good, key, 200)
  assert len(report['complaints']) == 1


def test_half_a_study_counts_and_is_named(sent, capsys):
  root, key = sent
  half = random_orders(key, 1, ['quality'])
  (root / 'answers' / '1.json').write_text(json.dumps(saved('P1', half)))
  (root / 'answers' / '9.json').write_text(json.dumps(saved('P9', {})))
  run('table', *paths(root), '--resamples=200', '--json=t.json')
  said = capsys.readouterr().out
  assert 'incomplete: answers/1.json answers 6 of 12' in said
  assert 'left out: answers/9.json contains no answer yet' in said
  rows = json.loads((root / 't.json').read_text())['rows']
  assert [row['n'] for row in rows] == [18] * 3 + [12] * 3


def test_a_participant_counts_once(sent, capsys):
  root, key = sent
  newer = saved('P1', random_orders(key, 50), '2')
  (root / 'answers' / '5.json').write_text(json.dumps(newer))
  people, lines = answers.gather(paths(root), key)
  assert sorted(a['path'] for a in people) == [f'answers/{k}.json' for k in (0, 2, 5)]
  assert len(lines) == 1 and "left out: answers/1.json is of participant 'P1'" in lines[0]


@pytest.mark.parametrize(
  'spoil, argv, line',
  [
    (lambda r: (r / 'toy.key.json').unlink(), [], '0 keys of this study were found'),
    (lambda r: shutil.copy('toy.key.json', 'b.key.json'), [], '2 keys of this study were found'),
    (lambda r: None, ['--key=answers/0.json'], 'answers/0.json is not the key of a user study'),
    (lambda r: change(r / 'toy.key.json', systems=['a']), [], 'toy.key.json is damaged'),
    (lambda r: change(r / 'toy.key.json', edits=3), ['--key=toy.key.json'], 'is damaged'),
    (
      lambda r: [change(p, answers=[]) for p in (r / 'answers').iterdir()], [],
      'none of 3 files can be used; left out: answers/0.json contains no answer yet',
    ),
    (
      lambda r: [p.write_text('no') for p in (r / 'answers').iterdir()], [],
      'no answers of a user study in answers/0.json, answers/1.json, answers/2.json',
    ),
  ],
)  # fmt: skip
def test_no_table_without_a_key_or_answers(sent, capsys, spoil, argv, line):
  root, _ = sent
  spoil(root)
  assert line in refusal(capsys, run, 'table', *paths(root), *argv)


def test_a_key_is_found_above_the_answers(sent, monkeypatch):
  root, _ = sent
  monkeypatch.chdir(root / 'answers')
  assert answers.find_key(['0.json', '1.json']) == '../toy.key.json'
