"""JAX for every test: strict about rank promotion, on the CPU only, and quick to compile."""

import gc
import os
import signal

# A shell starts background jobs with Ctrl-C ignored, and the tests' processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Tests spend most of their time in XLA's compiler, and its optimisations take most of that.
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


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

  The agreement tests in tests/parity have them on, because users run optimised programs.
  """
  marked = request.node.get_closest_marker('optimised') or 'parity' in request.path.parts
  if not marked:
    yield
    return
  jax.jit(lambda: 0)()  # XLA reads XLA_FLAGS now, before this changes them for other processes
  with pytest.MonkeyPatch.context() as patch:
    patch.delenv('JAX_DISABLE_MOST_OPTIMIZATIONS', raising=False)
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', before)
