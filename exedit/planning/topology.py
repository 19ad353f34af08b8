"""Slices of TPUs: the numbers of their chips, and virtual devices to compile for.

The numbers come from docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November 2026; the
links of v4 come from arXiv 2304.01433, table 4. training/flops.py has the peak FLOP/s.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exedit.training import flops

GIB = 2**30
COMPILER_VARIABLES = (
  'LIBTPU_INIT_ARGS',
  'XLA_FLAGS',
  'JAX_OPTIMIZATION_LEVEL',
  'JAX_MEMORY_FITTING_EFFORT',
  'JAX_MEMORY_FITTING_LEVEL',
)


@dataclasses.dataclass(frozen=True)
class Chip:
  """A generation of chips.

  kind: jax's device_kind. hbm: GiB of memory. usable: GiB that a program gets, from the error
  messages of libtpu 0.0.52. bandwidth: of the memory, bytes/s. link: of one link between two chips,
  bytes/s in one direction. axes: of its torus. most: chips of the largest slice. wrap: an axis is a
  ring if its length is a multiple of this; with `cubes`, only if all lengths are.
  """

  kind: str
  hbm: float
  usable: float
  bandwidth: float
  link: float
  axes: int
  most: int
  wrap: int
  cubes: bool = False

  @property
  def peak(self) -> float:
    """Peak bf16 FLOP/s."""
    found = flops.peak(self.kind)
    assert found is not None, self.kind
    return found


CHIPS = {
  'v4': Chip('TPU v4', 32.0, 30.75, 1.2e12, 5e10, axes=3, most=4096, wrap=4, cubes=True),
  'v5e': Chip('TPU v5 lite', 16.0, 15.75, 8.19e11, 5e10, axes=2, most=256, wrap=16),
  'v5p': Chip('TPU v5', 95.0, 95.73, 2.765e12, 1e11, axes=3, most=6144, wrap=4, cubes=True),
  'v6e': Chip('TPU v6 lite', 32.0, 31.24, 1.638e12, 1e11, axes=2, most=256, wrap=16),
}
SLICES = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')  # of v5e and v6e
EXAMPLES = 'v5e:2x2, v5e:4x4, v5e:16x16, v6e:4x4, v4:2x2x2, v5p:2x2x2, v5p:4x4x4'


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice: the number of chips along each axis of its torus or mesh."""

  generation: str
  shape: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    return CHIPS[self.generation]

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def links(self) -> int:
    """The links of the chip with the fewest: in a mesh a corner, in a torus any chip."""
    wrap = self.chip.wrap
    cubes = all(n % wrap == 0 for n in self.shape)
    closed = [cubes if self.chip.cubes else n % wrap == 0 for n in self.shape]
    return sum((2 if ring else 1) for n, ring in zip(self.shape, closed) if n > 1)

  @property
  def interconnect(self) -> float:
    """Bytes/s in one direction over all links of the chip with the fewest links."""
    return self.links * self.chip.link

  def __str__(self) -> str:
    return f'{self.generation}:{"x".join(map(str, self.shape))}'


def parse(name: str) -> Topology:
  """Parse a name such as 'v5e:4x4'.

  Raises:
    ValueError: for an unknown generation or shape; the message names the known ones.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  if not match or match[1] not in CHIPS:
    raise ValueError(
      f"topology is '{name}'; use one of {', '.join(CHIPS)}, a colon and the shape of the slice, "
      f'such as {EXAMPLES}'
    )
  chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split('x')))
  if chip.axes == 2 and match[2] not in SLICES:
    raise ValueError(f"topology is '{name}'; slices of {match[1]} are {', '.join(SLICES)}")
  if chip.axes == 3 and not _cuboid(shape, chip.most):
    raise ValueError(
      f"topology is '{name}'; slices of {match[1]} are 2x2x1, 2x2x2, 2x2x4, 2x4x4, or AxBxC in "
      f'multiples of 4, with {chip.most:,} chips at most'
    )
  return Topology(match[1], shape)


def _cuboid(shape: Sequence[int], most: int) -> bool:
  small = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
  cubes = len(shape) == 3 and all(n and n % 4 == 0 for n in shape) and math.prod(shape) <= most
  return tuple(shape) in small or cubes


@functools.cache
def devices(topology: Topology) -> Sequence[Any]:
  """The slice's virtual devices, which serve only for compiling; JAX itself still runs on the CPU.

  The variables of `environment` must be set before JAX is imported.
  """
  from jax.experimental import topologies

  # A chip of v4 has two cores, and this option makes them one device.
  options = dict(chip_config_name='megacore') if topology.generation == 'v4' else {}
  found = topologies.get_topology_desc(str(topology), 'tpu', **options).devices
  assert len(found) == topology.size, (str(topology), len(found))
  return found


def environment() -> dict[str, str]:
  """Environment variables for a process that compiles for TPUs on a machine without TPUs.

  Without them libtpu asks a cloud machine's metadata server for its TPU, takes a lock that stops
  other processes from compiling, and writes logs to /tmp.
  """
  return dict(
    JAX_PLATFORMS='cpu',
    TPU_SKIP_MDS_QUERY='1',
    TPU_ACCELERATOR_TYPE='v5litepod-4',
    TPU_WORKER_HOSTNAMES='localhost',
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_LOG_DIR='disabled',
    TPU_MIN_LOG_LEVEL='3',
    TPU_STDERR_LOG_LEVEL='3',
  )


def compiler() -> str | None:
  """The version of the installed libtpu, or its path if TPU_LIBRARY_PATH sets one; else None."""
  package = importlib.util.find_spec('libtpu')
  path = os.environ.get('TPU_LIBRARY_PATH')  # JAX prefers this one, and sets it itself
  home = Path(package.origin).parent if package and package.origin else None
  if path and os.path.isfile(path) and Path(path).parent != home:
    found = Path(path).stat()
    return f'{path} ({found.st_size} bytes of {int(found.st_mtime)})'
  if package is None:
    return None
  try:
    return importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'


def versions() -> dict[str, str | None]:
  """The versions and environment variables that change a compiled program."""
  names = ('jax', 'jaxlib', 'flax', 'optax')
  flags = {name: os.environ.get(name, '') for name in COMPILER_VARIABLES}
  return {
    **{name: importlib.metadata.version(name) for name in names},
    'libtpu': compiler(),
    **{name: value for name, value in flags.items() if value},
  }


def out_of_memory(error: Exception) -> tuple[float | None, float | None] | None:
  """(bytes needed, bytes available) from a compiler's error about memory; None for other errors.

  A number that the message does not contain is None. The compiler has two forms of the message.
  """
  text = str(error)
  if 'RESOURCE_EXHAUSTED' not in text or 'hbm' not in text.lower():
    return None
  needs = re.search(r'(?:Used|HLO temporaries \(|required[^(]*\() ?([\d.]+)([KMGT])', text)
  has = re.search(r'(?:Used [\d.]+[KMGT] of|available HBM \() ?([\d.]+)([KMGT])', text)
  return _bytes(needs), _bytes(has)


def _bytes(match: re.Match | None) -> float | None:
  return float(match[1]) * 2 ** (10 * (1 + 'KMGT'.index(match[2]))) if match else None
