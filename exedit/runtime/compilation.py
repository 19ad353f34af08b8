"""XLA: the cache of compiled programs, compiler options for each platform, and memory."""

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
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def cache_compiled(folder: str | None = None) -> None:
  """Stores compiled programs on the disk, so that a restarted run starts at once.

  JAX_COMPILATION_CACHE_DIR and JAX_ENABLE_COMPILATION_CACHE=false take precedence. The default
  folder names the versions of jax and the processor, because XLA's CPU programs run on one kind of
  processor only and machines share home folders. A folder that cannot be written is not used.
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
  """On a CPU, keeps up to 2 GiB of freed memory in the process for the next step.

  XLA allocates the temporaries of a program at every call. By default glibc returns hundreds of
  megabytes to the system after each step, and gets them back page by page, zeroed. The heaps of
  other threads are too small for this, so the calling thread runs the programs of one device; that
  must be set before JAX looks for devices.
  """
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  if jax.default_backend() == 'cpu' and platform.libc_ver()[0] == 'glibc':
    libc = ctypes.CDLL(None)
    # Older versions refuse such a number; the other threshold alone would make it slower.
    if libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
      libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@functools.cache
def compiler_options(platform: str) -> dict[str, Any]:
  """The `compiler_options` of a jit at top level on this platform.

  On CPUs, jaxlib 0.10 began to give products and convolutions to YNNPACK. Eigen, which it used
  before and uses if YNNPACK may only reduce, takes 0.5 to 0.9 of the time for the UNet's
  (benchmarks/sampling.py). Loops use the full width of AVX-512 if the processor has it; LLVM's
  default is half of it. If a jaxlib does not know all of these options, none is set.
  """
  if platform != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=CPU_OPTIONS).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return CPU_OPTIONS
