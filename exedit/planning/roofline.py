"""The least time of a training step: the roofline of compute, memory and interconnect."""

import dataclasses
from collections.abc import Mapping

from exedit.planning.topology import Topology

# How often a collective sends the (n - 1) / n of its bytes over a link; every other kind: once.
PASSES = {'all-reduce': 2.0}  # a reduce-scatter, then an all-gather

ASSUMPTIONS = (
  'compute: all products, including recomputation, run at the bf16 peak; padding (widths of 40 or '
  '320 in tiles of 128), float32 and the vector unit cost nothing',
  'memory: all instructions of the compiled program read and write HBM at full bandwidth, with '
  'padded tiles and with every run of a loop; the repeated reads of the attention kernel for each '
  'block of queries are not counted',
  'interconnect: each collective runs over all chips, in one direction of all links of the chip '
  'with the fewest links, at full bandwidth; latencies and other slices (DCN) are not counted',
  'the step takes at least the largest of the three times (perfect overlap), or their sum if '
  'nothing overlaps; input, checkpoints and logs cost nothing',
)


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one step on each resource alone; `best` is with full overlap, `serial` with none."""

  compute: float
  memory: float
  interconnect: float

  @property
  def best(self) -> float:
    return max(self.compute, self.memory, self.interconnect)

  @property
  def serial(self) -> float:
    return self.compute + self.memory + self.interconnect

  @property
  def bound(self) -> str:
    """The resource that takes longest."""
    return max(('compute', 'memory', 'interconnect'), key=lambda name: getattr(self, name))


def estimate(
  topology: Topology,
  flops: float,
  traffic: float,
  collectives: Mapping[str, tuple[int, int]],
) -> Roofline:
  """The roofline of one step on a slice (Williams et al. 2009, with links as a third roof).

  Args:
    flops: the work of one chip. traffic: bytes that go through its memory.
    collectives: {kind: (number, bytes)} of one chip, from `hlo.count_collectives`.
  """
  chip, n = topology.chip, topology.size
  sent = sum(PASSES.get(kind, 1.0) * size * (n - 1) / n for kind, (_, size) in collectives.items())
  return Roofline(
    compute=flops / chip.peak,
    memory=traffic / chip.bandwidth,
    interconnect=sent / topology.interconnect if n > 1 else 0.0,
  )
