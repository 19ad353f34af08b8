import os

import pytest

from exedit.editing import session
from exedit.runtime.errors import UserError
from tests import small


def test_pace_tells_the_first_batch_from_the_others(monkeypatch):
  clock = iter([100.0, 112.34, 114.44, 116.54])
  monkeypatch.setattr(session.time, 'perf_counter', lambda: next(clock))
  pace = session.Pace()
  pace.made(1)
  assert pace.text() == 'first 12.3 s with compiling'
  pace.made(1)
  pace.made(1)
  assert pace.text() == 'first 12.3 s with compiling, then 2.1 s each'
  pace.counts = [4, 1, 1]
  assert pace.text() == 'first 4 in 12.3 s with compiling, then 2.1 s each'


def test_sweep_removes_only_what_a_killed_run_left(tmp_path):
  alive = f'.a.png.{os.getppid()}.1.tmp'  # of a run beside this one
  dead = 4194305  # no process has this number
  left = f'.a.png.{dead}.12.tmp', f'.a.json.{dead}.7.tmp', f'.a.png.{os.getpid()}.2.tmp'
  kept = 'a.png', '.a.png.x.tmp', f'.b.png.{dead}.12.tmp', 'a[1].png', alive
  for name in left + kept:
    (tmp_path / name).write_text('')
  session.sweep([str(tmp_path / 'a.png'), str(tmp_path / 'a[1].png')])
  assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_settings_are_given_or_the_weights_own_or_the_defaults(tmp_path):
  one = session.Session(small.export(tmp_path / 'small'))
  own = one.settings()
  assert (own.steps, own.scale, own.sampler, own.zoom) == (3, 2.0, 'ddim', 'auto')
  given = one.settings(steps=9, zoom='off', seed=None)
  assert (given.steps, given.scale, given.zoom, given.seed) == (9, 2.0, 'off', 0)
  assert one.precision == 'float32' and one.trained == small.SIZE
  assert one.settings(guidance_interval=[0.25, 1]).guidance_interval == '0.25,1'
  for wrong, says in ((dict(steps=0), 'steps is 0'), (dict(stpes=3), 'stpes is not a setting')):
    with pytest.raises(UserError, match=says):
      one.settings(**wrong)
