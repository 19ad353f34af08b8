import os
import signal

import jax
import jax.numpy as jnp
import pytest

from exedit.training import runtime


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stop_turns_a_signal_into_an_answer(number):
  before = signal.getsignal(number)
  with runtime.Stop() as stop:
    assert not stop.requested(1)
    os.kill(os.getpid(), number)
    assert stop.requested(2) and stop.requested(3)
  assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts():
  with pytest.raises(KeyboardInterrupt):
    with runtime.Stop():
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def calls(monkeypatch):
  """The arguments jax.distributed.initialize was called with; no trace of this machine's env."""
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda *a: calls.append(a))
  monkeypatch.setattr(runtime, '_tpu_machine', lambda: False)
  for name in ('JAX_NUM_PROCESSES', 'SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.delenv(name, raising=False)
  return calls


def test_a_lone_process_stays_alone(calls, monkeypatch):
  runtime.join_processes()
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '1')
  runtime.join_processes()
  assert calls == []


def test_processes_join_by_hand_and_under_slurm(calls, monkeypatch):
  monkeypatch.setenv('SLURM_STEP_NUM_TASKS', '4')
  runtime.join_processes()
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  monkeypatch.setenv('JAX_PROCESS_ID', '1')
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', 'host:1234')
  runtime.join_processes()
  assert calls == [(), ('host:1234', 2, 1)]


@pytest.fixture
def updates(monkeypatch):
  updates = {}
  monkeypatch.setattr(jax.config, 'update', lambda name, value: updates.update({name: value}))
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  return updates


def test_the_compile_cache_is_in_the_users_cache_by_default(updates, monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  runtime.cache_compiled()
  folder = updates['jax_compilation_cache_dir']
  assert folder.startswith(f'{tmp_path}/exedit/jax-{jax.__version__}-')
  assert os.path.isdir(folder)


def test_a_cache_that_cannot_be_written_is_left_alone(updates, monkeypatch, tmp_path):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  runtime.cache_compiled()
  assert updates == {}


def test_the_compile_cache_leaves_the_users_own_choice(updates, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '/mine')
  runtime.cache_compiled()
  assert updates == {}


def test_versions_name_packages_and_devices():
  found = runtime.versions()
  assert found['jax'] == jax.__version__ and found['flax'] and found['optax']
  assert found['devices'] == jax.device_count() and 'commit' in found


def test_products_on_a_cpu_are_not_ynnpacks():
  options = runtime.compiler_options('cpu')
  assert options and runtime.compiler_options('tpu') == runtime.compiler_options('gpu') == {}
  product = jax.jit(lambda a, b: a @ b).lower(*[jnp.ones((256, 256))] * 2)
  assert '__ynn_fusion' not in product.compile(compiler_options=options).as_text()


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
  monkeypatch.setattr(runtime, 'CPU_OPTIONS', {'xla_cpu_no_such_option': True})
  runtime.compiler_options.cache_clear()
  try:
    assert runtime.compiler_options('cpu') == {}
  finally:
    runtime.compiler_options.cache_clear()
