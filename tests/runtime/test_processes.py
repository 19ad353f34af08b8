"""Two processes that train as one: stopped, killed, slow, and unlike each other."""

import json
import os
import re
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from exedit.runtime import processes
from exedit.runtime.errors import Passing, UserError
from tests import runs, toy_config
from tests.runs import at_line, digests, end, export, free_port, lines, start, start_two

# Seconds; short for a test, and long for a machine that does something else too.
HEARTBEAT = int(os.environ.get('EXEDIT_HEARTBEAT', 20))

# What Gloo prints on its own; two of its threads may do so at once, piece by piece.
GLOO = re.compile(
  r'(\[Gloo\] Rank | is connected to | peer ranks\. Expected number of connected peer ranks is : '
  r'|\d)*'
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return runs.shards(tmp_path_factory)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def test_one_run_of_two_is_stopped_and_killed_and_ends_as_it_would_have(
  root, cache, tmp_path, monkeypatch
):
  """SIGTERM to one: both save the same step. SIGKILL to one: the other ends. Then to the end.

  One of them is held up for a while, too. The parameters are sharded over both.
  """
  two, one = tmp_path / 'two', tmp_path / 'one'
  given, _ = export(tmp_path / 'given', width=4096)
  wide = (
    '--config.model.width=4096',
    '--config.mesh.fsdp=2',
    '--config.mesh.sharding=fsdp',
    '--config.data.size=8',
  )
  wide = (*wide, f'--config.init_from={given}', f'--heartbeat={HEARTBEAT}')
  endless = (*wide, '--config.steps=100000', '--config.save_every=4', '--config.edit_every=0')

  first = ('--config.edit_every=3', '--stopped_status=75')
  processes = start_two(root, two, cache, *endless, *first)
  at_line(two, 6, processes[0])
  processes[1].send_signal(signal.SIGSTOP)  # a straggler: the other waits, and nothing else
  time.sleep(2)
  held = len(lines(two))
  time.sleep(1)
  assert len(lines(two)) == held
  processes[1].send_signal(signal.SIGCONT)
  at_line(two, held + 3, processes[0])
  processes[1].send_signal(signal.SIGTERM)
  outputs = [end(process, 75) for process in processes]
  assert 'stopped and saved at step' in outputs[0] and 'step' not in outputs[1]
  stopped = int(outputs[0].split('stopped and saved at step ')[1].split()[0])
  assert (two / 'samples' / '6.png').exists()

  processes = start_two(root, two, cache, *endless)
  saved = stopped // 4 * 4 + 8  # one more checkpoint than may still be in the making
  at_line(two, saved + 2, processes[0])
  processes[1].send_signal(signal.SIGKILL)
  begin = time.monotonic()
  output = end(processes[0], (1, -signal.SIGABRT))  # it is no fault of the settings: not 2
  assert time.monotonic() - begin < HEARTBEAT + 20
  assert 'the same command, everywhere, goes on' in output or 'stopped sending heartbeats' in output
  end(processes[1], -signal.SIGKILL)
  before = lines(two)

  last = len(before) + 2
  processes = start_two(root, two, cache, *endless, f'--config.steps={last}')
  outputs = [end(process, 0) for process in processes]
  again = int(outputs[0].split('going on from step ')[1].split(',')[0])
  assert stopped < again < len(before) and f'done: {last} steps' in outputs[0]
  assert [line['step'] for line in lines(two)] == list(range(1, last + 1))
  assert lines(two)[: len(before)] == before  # what was lost came again, to the bit

  settings = toy_config.get_config(root).to_dict() | dict(compile_cache=False, init_from=given)
  settings |= dict(model=dict(width=4096), data={**settings['data'], 'size': 8})
  runs.train(one, **{**settings, 'steps': 6})
  losses = [[line['loss'] for line in lines(workdir)[:6]] for workdir in (two, one)]
  np.testing.assert_allclose(*losses, rtol=1e-3)
  # One process reads what two wrote, and goes on.
  now = runs.train(two, **{**settings, 'steps': last + 1})
  assert int(now.step) == last + 1 and digests(two, last + 1)


def test_a_host_that_lacks_a_shard_is_said_by_all(root, cache, tmp_path):
  lacking, workdir = tmp_path / 'lacking', tmp_path / 'run'
  shutil.copytree(root, lacking)
  for lost in lacking.glob('*-train.tfrecord-00000-of-*'):  # and its index
    lost.unlink()
  flags = (f'--heartbeat={HEARTBEAT}',)
  processes = start_two(root, workdir, cache, *flags, others=(f'--config.data.root={lacking}',))
  outputs = [end(process, 2) for process in processes]
  said = [[line for line in text.splitlines() if not GLOO.fullmatch(line)] for text in outputs]
  host = socket.gethostname()
  assert said[0] == said[1] and len(said[0]) == 1
  assert said[0][0].startswith(f"error: process 1 on {host}: no shards of split 'train' in")
  assert str(lacking) in said[0][0] and not workdir.exists()


def test_nobody_to_join_is_one_line_at_the_door(root, cache, tmp_path):
  place = (f'--coordinator=localhost:{free_port()}', '--num_processes=2', '--process_id=1')
  output = end(start(root, tmp_path / 'run', cache, *place, '--join_timeout=1'), 2)
  assert re.match(
    'error: the processes at localhost:.* have not all come within 1 s: check', output
  )
  assert output.count('\n') == 1
  assert not (tmp_path / 'run').exists()


# What one process says of the others


def test_what_one_cannot_do_ends_all(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda *_: 2)
  host = socket.gethostname()

  def met(mine, theirs, status=2):
    far = json.dumps(['far', theirs, status])
    monkeypatch.setattr(processes, 'everyone', lambda line: [line, far])
    with processes.together():
      if mine:
        raise mine

  met(None, '')
  with pytest.raises(processes.TheOthers, match='^process 1 on far: no such folder$'):
    met(None, 'no such folder')
  with pytest.raises(processes.TheOthers, match=f'^process 0 on {host}: mine$'):
    met(UserError('mine'), '')
  with pytest.raises(processes.TheOthers, match=f'^process 0 on {host}: a; process 1 on far: b$'):
    met(UserError('a'), 'b')
  with pytest.raises(processes.TheOthers, match='^the same$'):
    met(UserError('the same'), 'the same')
  for mine, theirs, status, expected in (
    (Passing('gone'), 'gone', 1, 1),
    (None, 'gone', 1, 1),
    (Passing('gone'), 'no such folder', 2, 2),
  ):
    with pytest.raises(processes.TheOthers) as caught:
      met(mine, theirs, status)
    assert caught.value.status == expected  # 2 is final
  with pytest.raises(processes.TheOthers, match='KeyError: 3') as caught:
    met(KeyError(3), '')
  assert isinstance(caught.value.__cause__, KeyError)


def test_a_process_alone_raises_what_it_met():
  with pytest.raises(KeyError):
    with processes.together():
      raise KeyError(3)
  assert processes.everyone('words') == ['words']


@pytest.mark.parametrize(
  'change, words',
  [
    (('config', 'batch_size', 16), 'batch_size 8 -> 16'),
    (('versions', 'jax', '0.1'), 'versions.jax .* -> 0.1'),
    (('config', 'data', dict(root=dict(shards=2, records=7), size=16)), 'data.root.records 9 -> 7'),
  ],
)
def test_processes_that_differ_are_told_in_what(change, words, monkeypatch):
  shards = dict(shards=2, records=9)
  config = dict(batch_size=8, data=dict(root=shards, size=16))
  facts = dict(config=config, versions=dict(jax='0.10'))

  def other(mine):
    host, facts = json.loads(mine)
    group, name, value = change
    facts[group][name] = value
    return [mine, json.dumps(['far', facts])]

  monkeypatch.setattr(processes, 'everyone', lambda mine: [mine, mine])
  processes.must_agree(facts)
  monkeypatch.setattr(processes, 'everyone', other)
  with pytest.raises(processes.TheOthers, match=words) as caught:
    processes.must_agree(facts)
  assert 'process 1 on far differs from process 0 on ' in str(caught.value)
