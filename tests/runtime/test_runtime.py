import asyncio
import gc
import os
import platform
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from exedit.runtime import compilation, processes, progress, signals
from exedit.runtime.errors import UserError
from tests import ROOT


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stop_turns_a_signal_into_an_answer(number):
  before = signal.getsignal(number)
  with signals.Stop() as stop:
    assert not stop.requested(1)
    os.kill(os.getpid(), number)
    assert stop.requested(2) and stop.requested(3)
  assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts():
  with pytest.raises(KeyboardInterrupt):
    with signals.Stop():
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def term():
  """SIGTERM answered as before when the test has ended."""
  before = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize('number, word', [(signal.SIGTERM, 'SIGTERM'), (signal.SIGINT, 'Ctrl-C')])
def test_around_a_door_a_signal_ends_it_at_once_and_in_words(term, number, word):
  reached = []
  with pytest.raises(signals.Stopped, match=f'stopped by {word}: the same command goes on'):
    with signals.Stop(at_once=True):
      os.kill(os.getpid(), number)
      reached.append('behind')
  assert not reached
  os.kill(os.getpid(), signal.SIGTERM)  # too late: the process is on its way out


def test_the_loop_takes_over_from_the_door_and_gives_back(term):
  with pytest.raises(signals.Stopped):
    with signals.Stop(at_once=True):
      with signals.Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested(1)
      os.kill(os.getpid(), signal.SIGTERM)


class Finalized:
  """Where it ends, Python prints what is raised, and goes on."""

  def __del__(self):
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_loop_hears_what_was_asked_at_the_door_and_lost(term, capfd):
  with signals.Stop(at_once=True):
    Finalized()
    gc.collect()
    with signals.Stop() as stop:
      assert stop.requested(1)
      time.sleep(0.1)
  assert 'Traceback' not in capfd.readouterr().err


def test_a_signal_in_a_finalizer_is_heard_a_little_later(term, capfd):
  with pytest.raises(signals.Stopped), signals.Stop(at_once=True):
    Finalized()
    gc.collect()
    time.sleep(60)
  assert 'Traceback' not in capfd.readouterr().err


def swallow(number):
  """A library that is sent a signal and goes on whatever it raises."""
  try:
    os.kill(os.getpid(), number)
  except BaseException:
    pass


def test_ctrl_c_that_a_library_swallows_comes_again():
  with pytest.raises(signals.Stopped), signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
    swallow(signal.SIGINT)
    time.sleep(60)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_swallowed_before_another_stop_begins_comes_again():
  with pytest.raises(signals.Stopped), signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
    swallow(signal.SIGINT)
    with signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
      time.sleep(60)


def test_ctrl_c_that_is_swallowed_at_the_end_still_counts():
  with pytest.raises(signals.Stopped):
    with signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
      swallow(signal.SIGINT)


def test_ctrl_c_that_a_library_replaces_still_counts():
  with pytest.raises(signals.Stopped) as stopped:
    with signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
      swallow(signal.SIGINT)
      raise ValueError('of a library')
  assert isinstance(stopped.value.__cause__, ValueError)


def test_cleaning_up_is_not_interrupted_by_the_reminder(monkeypatch):
  monkeypatch.setattr(signals, 'AGAIN', 0.01)
  done = []
  with pytest.raises(signals.Stopped), signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
    try:
      os.kill(os.getpid(), signal.SIGINT)
    finally:
      for _ in range(10):
        time.sleep(0.01)
      done.append(True)
  assert done


def test_all_else_stays_what_it_is():
  with pytest.raises(ValueError, match='of a user'):
    with signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
      raise ValueError('of a user')
  with pytest.raises(SystemExit, match='3'):
    with signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
      sys.exit(3)


def test_who_has_arranged_ctrl_c_keeps_it():
  heard = []
  before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
  try:
    with signals.Stop(at_once=True, numbers=(signal.SIGINT,)):
      os.kill(os.getpid(), signal.SIGINT)
  finally:
    signal.signal(signal.SIGINT, before)
  assert heard == [1]


def test_a_signal_in_a_callback_of_asyncio_ends_its_loop(term, capfd):
  async def work():
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)

  with pytest.raises(signals.Stopped), signals.Stop(at_once=True):
    asyncio.run(work())
  assert 'Traceback' not in capfd.readouterr().err


def test_what_is_held_is_heard_afterwards(term):
  heard = []
  with pytest.raises(signals.Stopped), signals.Stop(at_once=True):
    with signals.delayed():
      os.kill(os.getpid(), signal.SIGTERM)
      heard.append('inside')
    heard.append('behind')
  assert heard == ['inside']


def test_sigterm_is_too_late_until_the_process_is_gone():
  code = """
import os, signal
from exedit.runtime import compilation, processes, progress, signals
class Last:
  def __del__(self, kill=os.kill, pid=os.getpid(), term=signal.SIGTERM):
    kill(pid, term)  # while the interpreter ends
with signals.Stop(at_once=True):
  pass
last = Last()
last.itself = last
"""
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


@pytest.fixture
def calls(monkeypatch):
  """What jax.distributed.initialize was called with; no trace of this machine's environment."""
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *a, **how: calls.append((*a, how)))
  monkeypatch.setattr(processes, '_tpu_machine', lambda: False)
  for name in list(os.environ):
    if name.startswith(('JAX_NUM', 'JAX_PROC', 'JAX_COORD', 'SLURM_', 'OMPI_', 'EXEDIT_')):
      monkeypatch.delenv(name)
  return calls


def test_a_lone_process_stays_alone_unless_it_is_told_otherwise(calls, monkeypatch):
  processes.join_processes()
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  processes.join_processes()
  assert calls == []
  processes.join_processes('localhost:1234', 1, 0)
  assert calls[0][:3] == ('localhost:1234', 1, 0)


def test_processes_join_by_hand_and_as_jax_finds_them(calls, monkeypatch):
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  monkeypatch.setenv('JAX_PROCESS_ID', '1')
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'host:1234')
  monkeypatch.setenv('EXEDIT_HEARTBEAT', '30')
  processes.join_processes(join_timeout=7.0)
  (*place, how) = calls.pop()
  assert place == ['host:1234', 2, 1] and how['local_device_ids'] is None
  assert how['heartbeat_timeout_seconds'] == how['shutdown_timeout_seconds'] == 30
  assert how['initialization_timeout'] > 7  # the watch speaks first
  monkeypatch.delenv('JAX_NUM_PROCESSES')
  monkeypatch.setattr(processes, '_tpu_machine', lambda: True)
  processes.join_processes()
  (how,) = calls.pop()
  assert how['initialization_timeout'] > 300 and 'local_device_ids' not in how


def test_what_jax_cannot_join_is_one_line(calls, monkeypatch):
  def fails(*_, **__):
    raise RuntimeError('UNKNOWN: Failed to start RPC server')

  monkeypatch.setattr(jax.distributed, 'initialize', fails)
  with pytest.raises(UserError, match='at host:1234 cannot be joined: UNKNOWN: Failed to start'):
    processes.join_processes('host:1234', 2, 0)


@pytest.mark.parametrize('value, words', [('0', 'must be at least 1'), ('soon', 'a number of sec')])
def test_a_time_that_cannot_be_is_one_line(calls, monkeypatch, value, words):
  monkeypatch.setenv('EXEDIT_JOIN_TIMEOUT', value)
  with pytest.raises(UserError, match=f'EXEDIT_JOIN_TIMEOUT is .*{words}'):
    processes.join_processes()


@pytest.fixture
def updates(monkeypatch):
  updates = {}
  monkeypatch.setattr(jax.config, 'update', lambda name, value: updates.update({name: value}))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  return updates


def test_the_compile_cache_is_in_the_users_cache_by_default(updates, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  compilation.cache_compiled()
  folder = updates['jax_compilation_cache_dir']
  assert folder.startswith(f'{tmp_path}/exedit/jax-{jax.__version__}-')
  assert os.path.isdir(folder)


def test_a_cache_that_cannot_be_written_is_left_alone(updates, monkeypatch, tmp_path):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  compilation.cache_compiled()
  assert updates == {}


def test_the_compile_cache_leaves_the_users_own_choice(updates, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/mine')
  compilation.cache_compiled()
  assert updates == {}


FAULTS = """
import resource, jax, jax.numpy as jnp
from exedit.runtime import compilation, processes, progress, signals
compilation.keep_memory()
step = jax.jit(lambda a: (a @ a.T) @ a)
a = jnp.ones((4096, 64))
for _ in range(6):  # the heap finds its shape in the first ones
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  step(a).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(step.lower(a).compile().memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of glibc alone')
def test_memory_of_a_step_is_the_next_ones():
  done = subprocess.run(
    [sys.executable, '-c', FAULTS], cwd=ROOT, capture_output=True, text=True, check=True,
    env=os.environ | dict(JAX_PLATFORMS='cpu', XLA_FLAGS=''),
  )  # fmt: skip
  faults, temporary = map(int, done.stdout.split())
  assert temporary >= 2**26 and faults < temporary / 4096 / 10


def test_products_on_a_cpu_are_not_ynnpacks():
  options = compilation.compiler_options('cpu')
  assert (
    options and compilation.compiler_options('tpu') == compilation.compiler_options('gpu') == {}
  )
  product = jax.jit(lambda a, b: a @ b).lower(*[jnp.ones((256, 256))] * 2)
  assert '__ynn_fusion' not in product.compile(compiler_options=options).as_text()


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
  monkeypatch.setattr(compilation, 'CPU_OPTIONS', {'xla_cpu_no_such_option': True})
  compilation.compiler_options.cache_clear()
  try:
    assert compilation.compiler_options('cpu') == {}
  finally:
    compilation.compiler_options.cache_clear()


def test_sigterm_of_several_processes_is_never_held(term, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  before = signal.getsignal(signal.SIGTERM)
  with signals.delayed():
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler


def test_a_bar_in_a_log_file_is_whole_lines_at_a_calm_rate(capsys, monkeypatch):
  for _ in progress.bar(range(1000), 'drawing', unit='scene'):
    time.sleep(1e-5)
  lines = capsys.readouterr().err.split('\n')
  assert [re.match(r'drawing: +\d+%', line)[0] for line in lines[:-1]] == [
    'drawing:   0%', 'drawing: 100%',
  ]  # fmt: skip
  assert lines[-1] == '' and '\r' not in ''.join(lines)
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  list(progress.bar(range(3), 'drawing'))
  assert '\r' in capsys.readouterr().err
