"""Read the text of a program: its collectives, and the bytes that it moves through memory.

The text is HLO (`jax.stages.Compiled.as_text`), or for collectives also StableHLO
(`Lowered.as_text`). `hbm_bytes` replaces the compiler's own `cost_analysis`, which counts the body
of a loop once, counts on-chip memory as HBM and ignores padding. The text says where each array
lies ('S(1)' is on the chip), how it is tiled, and how often a loop runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')

# Instructions that move nothing: they name existing arrays, or only order other instructions.
FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
  'partition-id',
  'iota',
}
SLICES = ('slice', 'dynamic-slice', 'gather')

_HEAD = re.compile(r'(ENTRY )?%?([\w.-]+) .*\{$')
_NAME_AND_TYPE = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = ')
_CODE = re.compile(r'\s*([\w-]+)\(')
_OPERAND = re.compile(r'%([\w.-]+)')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([\d,]*):?([^}]*)\})?')
_TILE = re.compile(r'T\((\d+),(\d+)\)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r'constant\((\d+)\)')
# Groups of devices are lists, a number of groups and their size, or a mesh and some of its axes.
_GROUPS = re.compile(
  r'replica_groups=(?:\{\{?([\d,]*)\}|\[\d+,(\d+)\]|mesh\[(.*?)\][^{]*\{([^}]*)\})'
)
_CHAIN = re.compile(r'chain_id="(\d+)"')
_STABLEHLO = re.compile(rf'"?stablehlo\.(?P<kind>{"|".join(KINDS).replace("-", "_")})"?\(')
_TENSOR = re.compile(r'tensor<((?:\d+x)*)(\w+)>')
_STABLEHLO_GROUPS = re.compile(
  r'replica_groups = (?:dense<.*?> : tensor<\d+x(\d+)xi64>|'
  r'#stablehlo\.replica_group_mesh_axes<mesh = (.*?), axes = \[(#stablehlo\.axis_ref.*?)\]>)'
)
# Both spellings of an axis: 'x'=4 or name = "x", size = 4; and of its part of 2 devices: 'x':(1)2.
_AXIS_OF_MESH = re.compile(r"""['"]([^'"]*)['"](?:=|, size = )(\d+)""")
_AXIS = re.compile(r"""['"]([^'"]*)['"](?:(?::|, sub_axis_info = )\(\d+\)(\d+))?""")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO: `name = type code(operands)`, and the attributes after it in `rest`."""

  name: str
  code: str
  type: str
  operands: tuple[str, ...]
  rest: str
  root: bool


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[str, dict[str, Computation]]:
  """The name of the entry computation, and all computations by name."""
  computations: dict[str, Computation] = {}
  entry, current = '', None
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      match = _HEAD.match(line)
      current = match and computations.setdefault(match[2], {})
      entry = match[2] if match and match[1] else entry
    elif current is not None and (instruction := _instruction(line)):
      current[instruction.name] = instruction
  return entry, computations


def _instruction(line: str) -> Instruction | None:
  head = _NAME_AND_TYPE.match(line)
  if not head:
    return None
  start = head.end()
  end = _closing(line, start) + 1 if line[start] == '(' else line.index(' ', start)
  code = _CODE.match(line, end)
  if not code:
    return None
  close = _closing(line, code.end() - 1)
  operands = tuple(_OPERAND.findall(line[code.end() : close]))
  # The parentheses of a constant contain its value, which `_trips` needs.
  rest = line[code.end() :] if code[1] == 'constant' else line[close:]
  return Instruction(
    head[1], code[1], line[start:end], operands, rest, line.lstrip().startswith('ROOT ')
  )


def _closing(line: str, start: int) -> int:
  """The index of the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(line)):
    depth += (line[i] == '(') - (line[i] == ')')
    if not depth:
      return i
  return len(line)


def _bits(dtype: str) -> int:
  """Bits of one number, its type spelled as in HLO ('pred', 'bf16', 's32') or StableHLO ('i1')."""
  digits = re.search(r'\d+', dtype)
  return 8 if dtype in ('pred', 'i1') or not digits else int(digits[0])


def _bytes(dtype: str, shape: list[str]) -> int:
  return math.ceil(math.prod(int(n) for n in shape if n) * _bits(dtype) / 8)


# Collectives.


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation, as each of its devices sees it.

  kind: one of KINDS. bytes: the larger of the bytes that a device sends in and gets back. In a ring
  of n devices, (n - 1) / n of it goes over each link, or twice that for an all-reduce. dtype: as in
  the text ('bf16'). group: the number of devices that take part, 0 for all.
  """

  kind: str
  bytes: int
  dtype: str
  group: int


def count_collectives(text: str) -> dict[str, tuple[int, int]]:
  """{kind: (number, bytes together)} of a program's collectives, without kinds that do not occur.

  A collective inside a loop counts once, however often the loop runs. A lowered program contains
  only the collectives of `jax.shard_map`, because the compiler has not added its own yet.
  """
  counts: dict[str, tuple[int, int]] = {}
  for one in collectives(text):
    number, size = counts.get(one.kind, (0, 0))
    counts[one.kind] = number + 1, size + one.bytes
  return counts


def collectives(text: str) -> Iterator[Collective]:
  """All collectives of a program's text (HLO or StableHLO), in their order."""
  return _in_stablehlo(text) if 'stablehlo.' in text else _in_hlo(text)


def _in_hlo(text: str) -> Iterator[Collective]:
  """The collectives that the program asked for, although TPU compilers rewrite two of them.

  The compiler may spread one gather over several fusions; all parts have the same chain_id. And it
  writes some reduce-scatters as all-reduce and slice, in a computation 'all-reduce-scatter'.
  """
  chains = set()
  for name, computation in parse(text)[1].items():
    for one in computation.values():
      kind, group, chain = (
        one.code.removesuffix('-start'),
        _group(one.rest),
        _CHAIN.search(one.rest),
      )
      if kind not in KINDS or (chain and (kind, chain[1]) in chains):
        continue
      if chain:
        chains.add((kind, chain[1]))
      started = one.code != kind
      arrays = [(dtype, shape) for dtype, shape, *_ in _ARRAY.findall(one.type)]
      if started:  # an asynchronous pair counts once; its scalars are handles
        arrays = [(dtype, shape) for dtype, shape in arrays if shape]
      sizes = [_bytes(dtype, shape.split(',')) for dtype, shape in arrays]
      if started and kind != 'all-reduce':  # the type is (inputs, outputs)
        half = len(sizes) // 2
        size = max(sum(sizes[:half]), sum(sizes[half:]))
      else:
        size = sum(sizes) * (max(group, 1) if kind == 'reduce-scatter' else 1)
      if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
      yield Collective(kind, size, arrays[0][0] if arrays else '', group)


def _group(rest: str) -> int:
  match = _GROUPS.search(rest)
  if not match:
    return _no_groups(rest)
  listed, size, mesh, axes = match.groups()
  if mesh is not None:
    return _along(mesh, axes)
  return int(size) if size else len([n for n in listed.split(',') if n])


def _no_groups(operation: str) -> int:
  """0, for all devices. Groups that nothing here can read would give wrong bytes silently."""
  if found := re.search(r'replica_groups ?= ?.{,80}', operation):
    raise ValueError(f'the compiler wrote groups of devices in an unknown form: {found[0]}')
  return 0


def _along(mesh: str, axes: str) -> int:
  """The number of devices along these axes of a mesh, or along parts of them."""
  sizes = dict(_AXIS_OF_MESH.findall(mesh))
  return math.prod(int(part or sizes[name]) for name, part in _AXIS.findall(axes))


def _in_stablehlo(text: str) -> Iterator[Collective]:
  for match in _STABLEHLO.finditer(text):
    # A reducing operation contains a region; its types stand after it: '}) : (in) -> out'.
    arrow = text.index('->', match.end())
    end = text.find('\n', arrow)
    operation = text[match.start() : end if end >= 0 else len(text)]
    types = operation[operation.rindex(' : (') :]
    inputs, outputs = (_TENSOR.findall(part) for part in types.split('->'))
    size = max(
      sum(_bytes(dtype, shape.split('x')) for shape, dtype in side) for side in (inputs, outputs)
    )
    dtype = outputs[0][1] if outputs else ''
    group = _group_in_stablehlo(operation, text)
    yield Collective(match['kind'].replace('_', '-'), size, dtype, group)


def _group_in_stablehlo(operation: str, text: str) -> int:
  match = _STABLEHLO_GROUPS.search(operation)
  if not match:
    return _no_groups(operation)
  size, mesh, axes = match.groups()
  if size:
    return int(size)
  if mesh.startswith('@'):  # the name of a mesh that has a line of its own
    line = re.search(rf'mesh {re.escape(mesh)} = (.*)', text)
    mesh = line[1] if line else ''
  return _along(mesh, axes)


# Memory traffic.


def hbm_bytes(text: str) -> int:
  """Bytes that one run of a compiled TPU program reads from and writes to one device's HBM.

  A fusion that slices an array reads only the slice, and one that updates an array in place writes
  only the update. All branches of a conditional count.
  """
  entry, computations = parse(text)
  return sum(
    times * _moved(instruction, computations[name], computations)
    for name, times in _runs(entry, computations)
    for instruction in computations[name].values()
  )


def _runs(entry: str, computations: dict[str, Computation]) -> Iterator[tuple[str, int]]:
  """Yields each computation that is not fused into another, and the number of its runs."""
  waiting = [(entry, 1)]
  while waiting:
    name, times = waiting.pop()
    yield name, times
    for one in computations[name].values():
      if one.code == 'while':
        trips = _trips(one, computations.get(_called(one, 'condition'), {}))
        waiting.append((_called(one, 'body'), times * trips))
      elif one.code == 'call':
        waiting.append((_called(one, 'to_apply'), times))
      elif one.code == 'conditional':
        listed = re.search(r'branch_computations=\{([^}]*)\}', one.rest)
        branches = _OPERAND.findall(listed[1]) if listed else []
        branches += [_called(one, f'{branch}_computation') for branch in ('true', 'false')]
        waiting += [(branch, times) for branch in branches if branch]


def _trips(loop: Instruction, condition: Computation) -> int:
  """How often a loop runs: the compiler's own count, else the largest constant of its condition."""
  match = _TRIPS.search(loop.rest)
  if match:
    return int(match[1])
  bounds = [_CONSTANT.search(f'constant({one.rest}') for one in condition.values()]
  return max([1, *(int(bound[1]) for bound in bounds if bound)])


def _called(one: Instruction, attribute: str) -> str:
  match = re.search(rf'\b{attribute}=%?([\w.-]+)', one.rest)
  return match[1] if match else ''


def _moved(one: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
  """Bytes that one instruction moves; an asynchronous pair counts with its first half."""
  if one.code in FREE or one.code.endswith('-done'):
    return 0
  operands = [computation[name].type for name in one.operands if name in computation]
  fused = computations.get(_called(one, 'calls'))
  if one.code == 'fusion' and fused:
    return _moved_by_fusion(fused)
  read, written = sum(map(padded_bytes, operands)), padded_bytes(one.type)
  if one.code.endswith('-start'):  # its type names the inputs beside the outputs
    return max(read, written)
  if one.code in SLICES:
    return 2 * written
  if one.code == 'dynamic-update-slice':
    return 2 * padded_bytes(operands[1])
  return read + written


@functools.cache
def padded_bytes(type_: str) -> int:
  """Bytes of a type's arrays in HBM, padded to their tiles; arrays on the chip count 0."""
  total = 0
  for dtype, shape, order, layout in _ARRAY.findall(type_):
    if 'S(' in layout:
      continue
    dims = [int(n) for n in shape.split(',') if n]
    minor = [int(n) for n in order.split(',') if n]
    tile = _TILE.search(layout)
    if tile and len(minor) >= 2:
      for axis, size in zip(minor, (int(tile[2]), int(tile[1]))):
        dims[axis] = -(-dims[axis] // size) * size
    total += math.prod(dims) * _bits(dtype) // 8
  return total


def _moved_by_fusion(fused: Computation) -> int:
  """Bytes that a fusion reads through its parameters and writes through its root."""
  users: dict[str, list[tuple[Instruction, int]]] = {}
  for one in fused.values():
    for place, name in enumerate(one.operands):
      users.setdefault(name, []).append((one, place))

  def read(name, whole):
    total = 0
    for one, place in users.get(name, []):
      if one.code == 'bitcast':
        total += read(one.name, whole)
      elif one.code in SLICES and place == 0:
        total += padded_bytes(one.type)
      elif not (one.code == 'dynamic-update-slice' and place == 0):
        return whole
    return min(total, whole)

  def written(one):
    whole = padded_bytes(one.type)
    inside = [fused[name] for name in one.operands if name in fused]
    if one.code == 'tuple':
      return sum(map(written, inside))
    if one.code == 'bitcast' and inside:
      return min(written(inside[0]) or whole, whole)
    if one.code == 'dynamic-update-slice' and one.operands[1] in fused:
      return min(padded_bytes(fused[one.operands[1]].type), whole)
    return whole

  parameters = [one for one in fused.values() if one.code == 'parameter']
  reads = sum(read(one.name, padded_bytes(one.type)) for one in parameters)
  return reads + sum(written(one) for one in fused.values() if one.root)
