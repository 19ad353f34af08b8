import pytest

from exedit.training import timing
from exedit.training.timing import Account


class Clock:
  def __init__(self, monkeypatch):
    self.now = 1000.0
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
  return Clock(monkeypatch)


def test_every_second_counts_once(clock):
  account = Account(clock.now - 3)  # three seconds of imports
  clock.now += 5
  account.loop_begins()
  for activity, seconds in (('compile', 10), ('data', 1), ('checkpoint', 2), ('edits', 7)):
    with account.spend(activity):
      clock.now += seconds
    clock.now += 1.75
  assert account.line() == (
    'goodput 20.0 % of 35.0 s: productive 7.0 s, compile 10.0 s, data wait 1.0 s, '
    'checkpoints 2.0 s, edits 7.0 s, start-up 8.0 s'
  )
  assert account.share() == pytest.approx(0.2)


def test_time_inside_belongs_to_the_inner_activity_also_after_an_error(clock):
  account = Account(clock.now)
  account.loop_begins()
  with pytest.raises(OSError), account.spend('edits'):
    clock.now += 1
    with account.spend('data'):
      clock.now += 2
    clock.now += 3
    raise OSError
  clock.now += 4
  account.share()
  assert account.seconds == dict(productive=4, compile=0, data=2, checkpoint=0, edits=4, startup=0)


def test_spans():
  assert [timing.span(s) for s in (0.04, 99.94, 100.0, 7509.9)] == [
    '0.0 s',
    '99.9 s',
    '0:01:40',
    '2:05:10',
  ]
  assert timing.duration(7509.9) == '2:05:09'
