"""JAX for every test: strict about rank promotion, on the CPU only, and quick to compile."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

# A shell starts background jobs with Ctrl-C ignored, and the tests' processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests spend most of their time in XLA's compiler, and its optimisations take most of that.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# All processes of one run of the tests share what they compile; the first one made the folder.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='exedit-tests-compiled-')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import compiler  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')

# One LLVM module per program instead of many, and loops that are written in LLVM's language at
# once: XLA takes about a third less time. Newer versions have only the emitters of MLIR.
OLD_EMITTERS = jax.__version_info__ < (0, 11)
GIVEN = os.environ.get('XLA_FLAGS', '')
FLAGS = '--xla_cpu_parallel_codegen_split_count=1'
if OLD_EMITTERS:
  FLAGS += ' --xla_cpu_use_fusion_emitters=false'
if FLAGS not in GIVEN:  # test processes inherit it
  os.environ['XLA_FLAGS'] = f'{FLAGS} {GIVEN}'.strip()


quick_options = compiler.get_compile_options


def users_options(*args, env_options_overrides=None, **kwargs):
  """JAX's options of a compilation, with the emitters that XLA uses by default.

  XLA reads XLA_FLAGS once, so they cannot change during the tests of a process.
  """
  options = {'xla_cpu_use_fusion_emitters': True} | dict(env_options_overrides or {})
  return quick_options(*args, env_options_overrides=options, **kwargs)


@pytest.fixture(scope='module', autouse=True)
def settled():
  """Keeps what a module leaves behind out of later garbage collections.

  JAX keeps its traces, and searching them again and again took a quarter of the tests' time.
  """
  yield
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='module', autouse=True)
def optimised(request):
  """Turns XLA's optimisations on for the modules with `pytestmark = pytest.mark.optimised`.

  The agreement tests in tests/parity have them on, because users run optimised programs. Those
  with `pytestmark = pytest.mark.quick` compare none.
  """
  mark = request.node.get_closest_marker
  if mark('quick') or not (mark('optimised') or 'parity' in request.path.parts):
    yield
    return
  jax.jit(lambda: 0)()  # XLA reads XLA_FLAGS now, before this changes them for other processes
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('JAX_DISABLE_MOST_OPTIMIZATIONS', raising=False)
    patch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'].replace(FLAGS, '').strip())
    if OLD_EMITTERS:
      patch.setattr(compiler, 'get_compile_options', users_options)
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', before)
