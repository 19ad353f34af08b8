"""XLA: the cache of compiled programs, compiler options by platform, and memory."""

import contextlib
import ctypes
import functools
import os
import platform
from typing import Any

import jax

from exedit.runtime import caches, versions

CPU_OPTIONS: dict[str, Any] = {
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
  'xla_cpu_prefer_vector_width': '512',
}


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def cache_compiled(folder: str | None = None) -> None:
  """Keep compiled programs on the disk, so that a restarted run starts at once.

  JAX's own JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE=false, goes first. The
  default folder names jax and the processor: XLA's CPU programs hold for one kind only, and home
  folders are shared between machines. A folder that cannot be written is left alone.
  """
  allowed = getattr(jax.config, 'jax_enable_compilation_cache', True)
  if os.environ.get('JAX_COMPILATION_CACHE_DIR') or not allowed:
    return
  folder = folder or str(caches.folder(f'jax-{jax.__version__}-{versions.processor()}'))
  with contextlib.suppress(OSError):
    os.makedirs(folder, exist_ok=True)
  if os.access(folder, os.W_OK):
    jax.config.update('jax_compilation_cache_dir', folder)


def keep_memory() -> None:
  """Where a CPU computes, let the next step have the memory that the last one gave back.

  XLA asks for a program's temporaries anew at every call. glibc gives as much back to the system
  at once, and takes it again page by page, zeroed: hundreds of megabytes a step. Up to 2 GiB now
  stay with the process. Other threads' heaps are too small for that, so the thread that calls runs
  programs of one device itself, which is settled before JAX has looked for devices.
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  if jax.default_backend() == 'cpu' and platform.libc_ver()[0] == 'glibc':
    libc = ctypes.CDLL(None)
    # Old ones refuse so much; then the other threshold alone would make it worse.
    if libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
      libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def compiler_options(platform: str) -> dict[str, Any]:
  """`compiler_options` for a jit at top level: what XLA should do otherwise on this platform.

  On CPUs it gives products and convolutions to YNNPACK since jaxlib 0.10. Eigen, which it used
  before and takes where YNNPACK may only reduce, needs 0.5 to 0.9 of the time for the UNet's
  (benchmarks/sampling.py). Loops use all of AVX-512's registers where the processor has them;
  LLVM takes half of them by itself. A jaxlib that does not know them all is left alone.
  """
  if platform != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return CPU_OPTIONS
