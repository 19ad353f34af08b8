"""Bytes that a program for TPUs moves through its memory (HBM), read from its compiled text.

The compiler's own count (cost_analysis, 'bytes accessed') takes a loop's body once, takes on-chip
memory for HBM, and knows no padding. The text says where each array lies ('S(1)' is on the chip),
how it is tiled, and how often a loop runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_HEAD = re.compile(r'(ENTRY )?%?([\w.-]+) .*\{$')
_LINE = re.compile(r'\s+(?:ROOT )?%?([\w.-]+) = ')
_CODE = re.compile(r'\s*([\w-]+)\(')
_NAME = re.compile(r'%([\w.-]+)')
_ARRAY = re.compile(r'\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](?:\{([\d,]*):?([^}]*)\})?')
_TILE = re.compile(r'T\((\d+),(\d+)\)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r'constant\((\d+)\)')

# What moves nothing itself: names for what is there, and the ends of what was begun before.
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


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  code: str
  type: str
  operands: tuple[str, ...]
  rest: str
  root: bool


Computation = dict[str, Instruction]


def count(text: str) -> int:
  """Bytes read from and written to HBM by one run of a program, for one device.

  Args:
    text: `jax.stages.Compiled.as_text` of a program for a TPU. A fusion reads of an array that it
      slices only the slice, and writes of one that it updates in place only the update. Of
      branches all count.
  """
  entry, computations = parse(text)
  return sum(
    times * moved(one, computation, computations)
    for name, times in _times(entry, computations)
    for computation in [computations[name]]
    for one in computation.values()
  )


def parse(text: str) -> tuple[str, dict[str, Computation]]:
  """(name of the entry, every computation by its name)."""
  computations: dict[str, Computation] = {}
  entry, here = '', None
  for line in text.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      match = _HEAD.match(line)
      here = match and computations.setdefault(match[2], {})
      entry = match[2] if match and match[1] else entry
    elif here is not None and (one := _instruction(line)):
      here[one.name] = one
  return entry, computations


def moved(one: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
  """Bytes that one instruction moves; of those with two halves, the first counts."""
  if one.code in FREE or one.code.endswith('-done'):
    return 0
  given = [computation[name].type for name in one.operands if name in computation]
  inside = computations.get(_called(one, 'calls'))
  if one.code == 'fusion' and inside:
    return _fusion(inside)
  read, written = sum(map(size, given)), size(one.type)
  if one.code.endswith('-start'):  # its type names what goes in beside what comes out
    return max(read, written)
  if one.code in SLICES:
    return 2 * written
  if one.code == 'dynamic-update-slice':
    return 2 * size(given[1])
  return read + written


@functools.cache
def size(type_: str) -> int:
  """Bytes of a type's arrays in HBM, padded to their tiles."""
  total = 0
  for dtype, shape, order, layout in _ARRAY.findall(type_):
    if 'S(' in layout:
      continue
    dims = [int(n) for n in shape.split(',') if n]
    minor = [int(n) for n in order.split(',') if n]
    tile = _TILE.search(layout)
    if tile and len(minor) >= 2:
      for axis, least in zip(minor, (int(tile[2]), int(tile[1]))):
        dims[axis] = -(-dims[axis] // least) * least
    digits = re.search(r'\d+', dtype)
    total += math.prod(dims) * (int(digits[0]) if digits else 8) // 8
  return total


def _instruction(line):
  head = _LINE.match(line)
  if not head:
    return None
  end = _type_end(line, head.end())
  code = _CODE.match(line, end)
  if not code:
    return None
  close = _closing(line, code.end() - 1)
  operands = tuple(_NAME.findall(line[code.end() : close]))
  # A constant's value and a parameter's number stand where operands would.
  rest = line[code.end() :] if code[1] == 'constant' else line[close:]
  kind = line[head.end() : end]
  return Instruction(head[1], code[1], kind, operands, rest, line.lstrip().startswith('ROOT '))


def _type_end(line, start):
  return _closing(line, start) + 1 if line[start] == '(' else line.index(' ', start)


def _closing(line, start):
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for i in range(start, len(line)):
    depth += (line[i] == '(') - (line[i] == ')')
    if not depth:
      return i
  return len(line)


def _called(one, what):
  match = re.search(rf'\b{what}=%?([\w.-]+)', one.rest)
  return match[1] if match else ''


def _times(entry: str, computations) -> Iterator[tuple[str, int]]:
  """Every computation that is run as it stands (not fused into another), and how often."""
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
        ways = _NAME.findall(listed[1]) if listed else []
        ways += [_called(one, f'{way}_computation') for way in ('true', 'false')]
        waiting += [(way, times) for way in ways if way]


def _trips(loop, condition):
  """How often a loop runs: as the compiler says, else the bound of its condition."""
  match = _TRIPS.search(loop.rest)
  if match:
    return int(match[1])
  bounds = [_CONSTANT.search(f'constant({c.rest}') for c in condition.values()]
  return max([1, *(int(b[1]) for b in bounds if b)])


def _fusion(inside):
  """Bytes that a fusion reads through its parameters and writes through its root."""
  users: dict[str, list] = {}
  for one in inside.values():
    for place, name in enumerate(one.operands):
      users.setdefault(name, []).append((one, place))

  def read(name, whole):
    total = 0
    for one, place in users.get(name, []):
      if one.code == 'bitcast':
        total += read(one.name, whole)
      elif one.code in SLICES and place == 0:
        total += size(one.type)
      elif not (one.code == 'dynamic-update-slice' and place == 0):
        return whole
    return min(total, whole)

  def written(one):
    if one.code == 'tuple':
      return sum(written(inside[name]) for name in one.operands if name in inside)
    if one.code == 'bitcast' and one.operands[0] in inside:
      return min(written(inside[one.operands[0]]) or size(one.type), size(one.type))
    if one.code == 'dynamic-update-slice' and one.operands[1] in inside:
      return min(size(inside[one.operands[1]].type), size(one.type))
    return size(one.type)

  read_in = sum(read(p.name, size(p.type)) for p in inside.values() if p.code == 'parameter')
  return read_in + sum(written(one) for one in inside.values() if one.root)
