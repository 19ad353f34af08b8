"""What a compiled or lowered program sends between devices, read from its text."""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

_NAMES = '|'.join(kind.replace('-', '[-_]') for kind in KINDS)
# '%x = f32[8,16]{1,0} all-gather(%y), ...'; a layout may hold parentheses, an opcode none.
_HLO = re.compile(rf' = (?P<type>.*?)\s(?P<kind>{_NAMES})(?P<start>-start)?\(')
_STABLEHLO = re.compile(rf'"?stablehlo\.(?P<kind>{_NAMES})"?\(')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]')
_TENSOR = re.compile(r'tensor<((?:\d+x)*)(\w+)>')
_GROUPS = re.compile(r'replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\])')
_CHAIN = re.compile(r'chain_id="(\d+)"')
_DENSE_GROUPS = re.compile(r'replica_groups = dense<.*?> : tensor<\d+x(\d+)xi64>')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation, as each of its devices sees it.

  kind: one of KINDS. bytes: of the whole that it deals with, the larger of what a device puts in
  and gets out: a ring of n devices moves (n - 1) / n of it over each link, an all-reduce twice
  that. dtype: as the text spells it ('bf16'). group: how many devices take part, 0 if all do.
  """

  kind: str
  bytes: int
  dtype: str
  group: int


def count(text: str) -> dict[str, tuple[int, int]]:
  """How many collectives of each kind a program has, and their bytes together.

  Args:
    text: a compiled program (`jax.stages.Compiled.as_text`; asynchronous pairs count once) or a
      lowered one (`Lowered.as_text`, where only those of `jax.shard_map` are to be seen yet).
  Returns:
    {kind: (number, bytes)}, kinds that do not occur left out; bytes as in `Collective`. What
    stands in the body of a loop counts once, however often it runs.
  """
  counts: dict[str, tuple[int, int]] = {}
  for one in find(text):
    number, size = counts.get(one.kind, (0, 0))
    counts[one.kind] = number + 1, size + one.bytes
  return counts


def find(text: str) -> Iterator[Collective]:
  """Every collective of a program's text (HLO or StableHLO), from its top to its end."""
  return _in_stablehlo(text) if 'stablehlo.' in text else _in_hlo(text)


def _in_hlo(text: str) -> Iterator[Collective]:
  """Two habits of TPU programs are seen through, so that what the step asked for is what counts.

  A gather that is spread over several fusions stands in each of them, under one chain_id; and a
  computation called all-reduce-scatter is a reduce-scatter that is written as all-reduce and slice.
  """
  chains, fused = set(), False
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      fused = line.startswith('%all-reduce-scatter')
    match = _HLO.search(line)
    if not match:
      continue
    kind, group, chain = match['kind'], _group(line), _CHAIN.search(line)
    if chain and (kind, chain[1]) in chains:
      continue
    chains |= {(kind, chain[1])} if chain else set()
    # The scalars of asynchronous pairs are handles.
    arrays = [(d, s) for d, s in _ARRAY.findall(match['type']) if not (match['start'] and not s)]
    sizes = [_bytes(dtype, shape.split(',')) for dtype, shape in arrays]
    if match['start'] and kind != 'all-reduce':  # (what goes in, what comes out)
      half = len(sizes) // 2
      size = max(sum(sizes[:half]), sum(sizes[half:]))
    else:
      size = sum(sizes) * (max(group, 1) if kind == 'reduce-scatter' else 1)
    kind = 'reduce-scatter' if fused and kind == 'all-reduce' else kind
    yield Collective(kind, size, arrays[0][0] if arrays else '', group)


def _group(line: str) -> int:
  match = _GROUPS.search(line)
  if not match:
    return 0
  listed, _, size = match.groups()
  return int(size) if size else len([n for n in (listed or '').split(',') if n])


def _in_stablehlo(text: str) -> Iterator[Collective]:
  for match in _STABLEHLO.finditer(text):
    # Those that reduce carry a region; the types stand behind it: '}) : (in) -> out'.
    arrow = text.index('->', match.end())
    end = text.find('\n', arrow)
    operation = text[match.start() : end if end >= 0 else len(text)]
    types = operation[operation.rindex(' : (') :]
    inputs, outputs = (_TENSOR.findall(part) for part in types.split('->'))
    size = max(
      sum(_bytes(dtype, shape.split('x')) for shape, dtype in side) for side in (inputs, outputs)
    )
    groups = _DENSE_GROUPS.search(operation)
    dtype = outputs[0][1] if outputs else ''
    yield Collective(match['kind'].replace('_', '-'), size, dtype, int(groups[1]) if groups else 0)


def _bytes(dtype: str, shape: list[str]) -> int:
  """Bytes of an array, its type spelt as in HLO ('pred', 'bf16', 's32') or StableHLO ('i1')."""
  digits = re.search(r'\d+', dtype)
  bits = 8 if dtype in ('pred', 'i1') or not digits else int(digits[0])
  return math.ceil(math.prod(int(n) for n in shape if n) * bits / 8)
