import json
import time

import pytest

from exedit.training import goodput


class Clocks:
  """perf_counter as told; the wall clock runs backwards."""

  def __init__(self, monkeypatch):
    self.now, self.wall = 1000.0, 2e9
    monkeypatch.setattr(goodput.time, 'perf_counter', lambda: self.now)
    monkeypatch.setattr(goodput.time, 'time', self._back)

  def _back(self):
    self.wall -= 3600
    return self.wall


@pytest.fixture
def clock(monkeypatch):
  return Clocks(monkeypatch)


def work(clock, hours, start, steps, save_every=2):
  """Start-up 5 s, compiling 10 s, then 2 s a step and 0.5 s of waiting, 1 s a save."""
  clock.now += 5
  hours.start(start)
  for step in range(start + 1, start + steps + 1):
    with hours.spend('data'):
      clock.now += 0.5
    with hours.spend('productive' if step > start + 1 else 'compile'):
      clock.now += 2 if step > start + 1 else 10
    clock.now += 1.0 if step == start + 1 else 0
    hours.reached(step)
    if step % save_every == 0:
      with hours.spend('checkpoint'):
        clock.now += 1


def test_every_second_is_booked_once(tmp_path, clock):
  hours = goodput.Goodput(tmp_path, clock.now - 3)  # three seconds of imports
  work(clock, hours, start=0, steps=4)
  with hours.spend('edits'):
    clock.now += 7
  hours.close()
  total = goodput.account(goodput.read(tmp_path / 'goodput.jsonl'))
  assert total == pytest.approx(
    dict(productive=7, lost=0, compile=10, data=2, checkpoint=2, edits=7, startup=8)
  )
  assert sum(total.values()) == pytest.approx(clock.now - 1000 + 3)
  assert hours.line() == (
    'goodput 19.4 % of 36.0 s in 1 start: productive 7.0 s, lost work 0.0 s, compile 10.0 s, '
    'data wait 2.0 s, checkpoints 2.0 s, edits 7.0 s, start-up 8.0 s'
  )


def test_what_is_spent_inside_counts_inside(tmp_path, clock):
  hours = goodput.Goodput(tmp_path, clock.now)
  hours.start(0)
  with pytest.raises(OSError), hours.spend('edits'):
    clock.now += 1
    with hours.spend('data'):
      clock.now += 2
    clock.now += 3
    raise OSError
  clock.now += 4
  hours.close()
  assert hours.seconds == dict(productive=4, compile=0, data=2, checkpoint=0, edits=4, startup=0)


def test_steps_done_again_were_lost_work_of_the_killed_start(tmp_path, clock):
  first = goodput.Goodput(tmp_path, clock.now)
  work(clock, first, start=0, steps=7)  # saved at 6, and killed: no close
  first._write()
  second = goodput.Goodput(tmp_path, clock.now)
  work(clock, second, start=4, steps=4)  # the checkpoint of step 6 was not whole yet
  second.close()
  lines = goodput.read(tmp_path / 'goodput.jsonl')
  total = goodput.account(lines)
  assert total['lost'] == pytest.approx(6)  # steps 5, 6 and 7
  assert total['productive'] == pytest.approx(1 + 3 * 2 + 1 + 3 * 2)
  assert sum(total.values()) == pytest.approx(clock.now - 1000)
  assert 'in 2 starts' in second.line()
  share = total['productive'] / sum(total.values())
  assert second.share() == pytest.approx(share)


def test_a_start_that_goes_back_behind_two_others_takes_from_both():
  def line(attempt, step, productive):
    return dict(attempt=attempt, step=step, seconds=dict(productive=productive, startup=1.0))

  lines = [line(1, None, 0), line(1, 0, 0), line(1, 10, 10), line(1, 20, 20)]
  lines += [line(2, 20, 0), line(2, 30, 5)]
  lines += [line(3, None, 0)]  # killed before it had restored: takes nothing back
  lines += [line(4, 15, 0), line(4, 16, 2)]
  total = goodput.account(lines)
  assert total['lost'] == pytest.approx(5 + 5)
  assert total['productive'] == pytest.approx(15 + 2)
  assert total['startup'] == 4


def test_a_run_that_has_ended_loses_nothing_by_being_started_again(tmp_path, clock):
  first = goodput.Goodput(tmp_path, clock.now)
  work(clock, first, start=0, steps=4)
  first.close()
  second = goodput.Goodput(tmp_path, clock.now)
  clock.now += 2
  second.close()  # nothing to do
  total = goodput.account(goodput.read(tmp_path / 'goodput.jsonl'))
  assert total['lost'] == 0 and total['productive'] == pytest.approx(7)
  assert sum(total.values()) == pytest.approx(clock.now - 1000)


def test_lines_are_added_and_a_torn_one_costs_only_itself(tmp_path, clock):
  path = tmp_path / 'goodput.jsonl'
  first = goodput.Goodput(tmp_path, clock.now)
  work(clock, first, start=0, steps=4)
  before = path.read_text()
  path.write_text(before + '{"attempt": 1, "step": 9, "seco')  # killed in the middle of a line
  second = goodput.Goodput(tmp_path, clock.now)
  second.start(4)
  second.close()
  assert path.read_text().startswith(before)
  assert second.attempt == 2
  assert [n['attempt'] for n in goodput.read(path)].count(2) == 3
  path.write_bytes(path.read_bytes() + b'\xff\xfe{}\n[]\n7\n{"attempt": 1}\n')
  assert len(goodput.read(path)) == before.count('\n') + 3


def test_it_is_written_every_ten_seconds_and_at_each_save(tmp_path, clock):
  path = tmp_path / 'goodput.jsonl'
  hours = goodput.Goodput(tmp_path, clock.now)
  hours.start(0)
  count = len(goodput.read(path))
  for step in range(1, 101):
    clock.now += 1
    hours.reached(step)
  assert len(goodput.read(path)) == count + 10
  with hours.spend('checkpoint'):
    clock.now += 0.1
  last = goodput.read(path)[-1]
  assert len(goodput.read(path)) == count + 11
  assert last['step'] == 100 and last['seconds']['checkpoint'] == pytest.approx(0.1)


def test_a_file_that_is_not_there_and_spans():
  assert goodput.describe(goodput.account([]), 0).startswith('goodput 0.0 % of 0.0 s in 0 starts')
  assert [goodput.span(s) for s in (0.04, 99.94, 100.0, 7509.9)] == [
    '0.0 s',
    '99.9 s',
    '0:01:40',
    '2:05:10',
  ]


def test_each_line_says_when_it_was_written(tmp_path):
  hours = goodput.Goodput(tmp_path, time.perf_counter())
  hours.close()
  lines = [json.loads(n) for n in (tmp_path / 'goodput.jsonl').read_text().splitlines()]
  assert all(abs(n['time'] - time.time()) < 60 for n in lines)
  assert lines[-1]['seconds']['startup'] < 60
