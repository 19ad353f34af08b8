"""How long a step takes at least, by what it computes, moves through memory and sends."""

import dataclasses
from collections.abc import Mapping

from exedit.planning.topology import Topology

# Times over a link, of the (n - 1) / n of a collective's bytes that a chip does not have yet.
PASSES = {'all-reduce': 2.0}  # a reduce-scatter and an all-gather; every other kind: once

ASSUMPTIONS = (
  'compute: every product at the bf16 peak, recomputation included; nothing is lost to padding '
  '(widths of 40 or 320 in tiles of 128), to float32 or to what the vector unit does',
  'memory: what every instruction of the compiled program reads from and writes to HBM, tiles '
  'padded, loops as often as they run, at the full bandwidth; what the attention kernel reads '
  'again for each block of queries is left out',
  'interconnect: every collective goes over all chips, in one direction of all links of the chip '
  'that has the fewest, at full bandwidth; latencies and other slices (DCN) are left out',
  'the step is at least the largest of the three (perfect overlap), and their sum if nothing '
  'overlaps; input, checkpoints and logs cost nothing',
)


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one step: of each resource alone, and of the whole at best and without overlap."""

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
    flops: that one chip computes. traffic: bytes that go through its memory.
    collectives: {kind: (number, bytes)} of one chip, as `collectives.count` gives them.
  """
  chip, n = topology.chip, topology.size
  sent = sum(PASSES.get(kind, 1.0) * size * (n - 1) / n for kind, (_, size) in collectives.items())
  return Roofline(
    compute=flops / chip.peak,
    memory=traffic / chip.bandwidth,
    interconnect=sent / topology.interconnect if n > 1 else 0.0,
  )
