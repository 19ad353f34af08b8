"""Reads pickles without importing or calling anything that they name.

Python's unpickler imports and calls whatever a file names. This one knows the opcodes
(docs.python.org, pickletools) and builds lists, tuples and pairs. Its caller lists the names that
it builds objects for, and the names that become inert placeholders; any other name is refused.
"""

import struct
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from exedit.runtime.errors import UserError
from exedit.weights.formats.tensor import damaged, quoted

# Limits on what a small hostile pickle can cost. 1,500 tensors with Adam's moments need about 0.1
# million steps; 3 million need seconds and at most about 300 MB.
MOST_STEPS = 3_000_000
LONGEST_INTEGER = 1024  # bytes
LONGEST_NAME = 500  # characters
MOST_ARGUMENTS = 32

_PLAIN = (str, int, float, bool, bytes, type(None))


class Name(NamedTuple):
  """The name of a class or function in the pickle. It stays text."""

  module: str
  name: str

  def __str__(self) -> str:
    return f'{self.module}.{self.name}'


class Placeholder:
  """An object that the reader does not build: the name of its class, without its content."""

  __slots__ = ('name',)

  def __init__(self, name: str):
    self.name = name


class Object:
  """An object whose attributes are kept, in `state`. A builder may return one."""

  __slots__ = ('state',)

  def __init__(self):
    self.state: Any = None


class Pairs:
  """A dict of the pickle as a list of (key, value). Keys are not hashed: they could all collide."""

  __slots__ = ('items',)

  def __init__(self, items: list[tuple[Any, Any]]):
    self.items = items


class Names(NamedTuple):
  """The names that a pickle may contain; any other name is refused.

  builders: functions that are called instead of the named ones. A builder refuses with ValueError.
  inert: names that become placeholders. packages: all their classes become placeholders.
  persistent: returns the object that a persistent id stands for.
  """

  builders: Mapping[str, Callable[..., Any]]
  inert: Collection[str]
  packages: Collection[str]
  persistent: Callable[[Any], Any]


def unpickle(data: bytes, path: str, names: Names) -> Any:
  """Returns the value of a pickle, made of Pairs, lists, tuples, plain values and placeholders.

  path: the file around the pickle, for messages.
  Raises:
    UserError: if it contains a name that is not in `names`, or is damaged.
  """
  return _Machine(data, path, names).run()


def kind(value: Any) -> str:
  """Returns a value for a message; of a container only its kind, because it may be endless."""
  if isinstance(value, _PLAIN):
    return quoted(value)
  if isinstance(value, (Name, Placeholder)):
    return quoted(str(value) if isinstance(value, Name) else value.name)
  return 'a dict' if isinstance(value, Pairs) else f'a {type(value).__name__}'


class _Machine:
  """The pickle machine: a stack, the stacks below each mark, and a memo."""

  def __init__(self, data: bytes, path: str, names: Names):
    self.data, self.path, self.names, self.at = data, path, names, 0
    self.steps_left = MOST_STEPS
    self.stack: list[Any] = []
    self.marked: list[list[Any]] = []
    self.memo: dict[int, Any] = {}

  def run(self) -> Any:
    try:
      while self.steps_left > 0:
        self.steps_left -= 1
        opcode = self.take(1)[0]
        if opcode == ord('.'):
          return self.stack.pop()
        if opcode not in _OPCODES:
          raise ValueError(f'opcode 0x{opcode:02x}, which no file of weights needs')
        _OPCODES[opcode](self)
    except (ValueError, struct.error) as error:
      raise damaged(self.path, f'its pickle, byte {self.at}: {str(error)[:150]}') from None
    except (IndexError, KeyError):
      raise damaged(self.path, f'its pickle, byte {self.at}: nothing there to take') from None
    raise damaged(self.path, f'its pickle has more than {MOST_STEPS} steps')

  # bytes

  def take(self, count: int) -> bytes:
    """Returns the next bytes; ValueError if the pickle ends before."""
    if count > len(self.data) - self.at:
      raise ValueError(f'{count} bytes asked for, {len(self.data) - self.at} left')
    self.at += count
    return self.data[self.at - count : self.at]

  def number(self, code: str) -> Any:
    """Returns the next number, by its code in `struct`."""
    code = '<' + code if code != 'd' else '>d'
    return struct.unpack(code, self.take(struct.calcsize(code)))[0]

  def line(self) -> bytes:
    """Returns the bytes up to the next line break."""
    end = self.data.find(b'\n', self.at)
    if end < 0:
      raise ValueError('a line without an end')
    return self.take(end + 1 - self.at)[:-1]

  # stack and memo

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def mark(self) -> None:
    self.marked.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list[Any]:
    """Returns what was pushed since the last mark."""
    items, self.stack = self.stack, self.marked.pop()
    return items

  def pop(self) -> None:
    if self.stack:
      self.stack.pop()
    else:
      self.pop_mark()

  def pop_tuple(self, count: int) -> None:
    items = [self.stack.pop() for _ in range(count)]
    self.push(tuple(reversed(items)))

  def put(self, index: int) -> None:
    """Stores the top of the stack in the memo."""
    self.memo[index] = self.stack[-1]

  # containers

  def append(self, items: list[Any]) -> None:
    """Appends to the list on top of the stack; a placeholder ignores it."""
    target = self.stack[-1]
    if isinstance(target, list):
      target.extend(items)
    elif not isinstance(target, Placeholder):
      raise ValueError(f'items added to {kind(target)}')

  def set_items(self, items: list[Any]) -> None:
    """Adds alternating keys and values to the dict on top of the stack."""
    target = self.stack[-1]
    if len(items) % 2:
      raise ValueError('a key without a value')
    if isinstance(target, Pairs):
      target.items.extend(zip(items[::2], items[1::2]))
    elif not isinstance(target, Placeholder):
      raise ValueError(f'keys set in {kind(target)}')

  def push_frozenset(self) -> None:
    self.pop_mark()
    self.push(Placeholder('frozenset'))

  # names and objects

  def push_name(self, module: Any, name: Any) -> None:
    """Pushes a name if the pickle may contain it."""
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError('a name that is no text')
    if len(module) + len(name) > LONGEST_NAME:
      raise ValueError(f'a name of {len(module) + len(name)} characters')
    full = f'{module}.{name}'
    known = full in self.names.builders or full in self.names.inert
    package = any(module == p or module.startswith(p + '.') for p in self.names.packages)
    if not known and not (package and name.isidentifier()):
      raise UserError(
        f'{self.path} is refused: its pickle asks for {quoted(full)}, which is neither a tensor nor'
        ' known to be harmless; if you trust it, load it with torch and save its state_dict alone'
      )
    self.push(Name(module, name))

  def call(self, function: Any, args: Any) -> None:
    """Pushes what the builder of `function` returns, or a placeholder."""
    if not isinstance(function, Name) or type(args) is not tuple or len(args) > MOST_ARGUMENTS:
      raise ValueError(f'a call of {kind(function)} with {kind(args)}')
    if (build := self.names.builders.get(str(function))) is None:
      return self.push(Placeholder(str(function)))
    # A builder may walk through its arguments.
    self.steps_left -= sum(len(a) for a in args if type(a) in (list, tuple))
    try:
      self.push(build(*args))
    except TypeError:
      raise ValueError(f'{function} with {len(args)} arguments') from None

  def reduce(self) -> None:
    args, function = self.stack.pop(), self.stack.pop()
    self.call(function, args)

  def push_global(self) -> None:
    name, module = self.stack.pop(), self.stack.pop()
    self.push_name(module, name)

  def set_state(self) -> None:
    """Sets the attributes of an `Object`; those of other objects are ignored."""
    state = self.stack.pop()
    if isinstance(self.stack[-1], Object):
      self.stack[-1].state = state
    elif isinstance(self.stack[-1], Name) or type(self.stack[-1]) in (*_PLAIN, list, tuple):
      raise ValueError(f'state set on {kind(self.stack[-1])}')

  def push_persistent(self) -> None:
    """Pushes the object that a persistent id stands for."""
    self.push(self.names.persistent(self.stack.pop()))


# The opcodes of protocols 2 to 5 (pickletools.opcodes), also as Python 2 writes them. The extension
# registry and out-of-band buffers are missing and so are refused.


def _text(data: bytes) -> str:
  return data.decode('utf-8', 'surrogatepass')


def _latin(data: bytes) -> str:
  return data.decode('latin-1')


def _integer(data: bytes) -> int:
  if len(data) > LONGEST_INTEGER:
    raise ValueError(f'an integer of {len(data)} bytes')
  return int.from_bytes(data, 'little', signed=True)


_Step = Callable[[_Machine], None]


def _constant(value: Any) -> _Step:
  return lambda m: m.push(value)


def _number(code: str) -> _Step:
  return lambda m: m.push(m.number(code))


def _sized(code: str, convert: Callable[[bytes], Any]) -> _Step:
  """Bytes with their count, of type `code`, before them."""
  return lambda m: m.push(convert(m.take(m.number(code))))


_BY_CHARACTER: dict[str, _Step] = {
  # values
  **{'N': _constant(None), '\x88': _constant(True), '\x89': _constant(False)},
  **{'J': _number('i'), 'K': _number('B'), 'M': _number('H'), 'G': _number('d')},
  **{'\x8a': _sized('B', _integer), '\x8b': _sized('I', _integer)},
  **{'X': _sized('I', _text), '\x8c': _sized('B', _text), '\x8d': _sized('Q', _text)},
  **{'T': _sized('I', _latin), 'U': _sized('B', _latin)},
  **{'B': _sized('I', bytes), 'C': _sized('B', bytes), '\x8e': _sized('Q', bytes)},
  '\x96': _sized('Q', bytes),
  # stack and memo
  '(': _Machine.mark,
  '0': _Machine.pop,
  '1': lambda m: m.pop_mark().clear(),
  'q': lambda m: m.put(m.number('B')),
  'r': lambda m: m.put(m.number('I')),
  '\x94': lambda m: m.put(len(m.memo)),
  'h': lambda m: m.push(m.memo[m.number('B')]),
  'j': lambda m: m.push(m.memo[m.number('I')]),
  # containers
  ')': _constant(()),
  '\x85': lambda m: m.pop_tuple(1),
  '\x86': lambda m: m.pop_tuple(2),
  '\x87': lambda m: m.pop_tuple(3),
  't': lambda m: m.push(tuple(m.pop_mark())),
  ']': lambda m: m.push([]),
  'a': lambda m: m.append([m.stack.pop()]),
  'e': lambda m: m.append(m.pop_mark()),
  '}': lambda m: m.push(Pairs([])),
  's': lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
  'u': lambda m: m.set_items(m.pop_mark()),
  '\x8f': lambda m: m.push(Placeholder('set')),
  '\x90': lambda m: m.append(m.pop_mark()),
  '\x91': _Machine.push_frozenset,
  # names and objects
  'c': lambda m: m.push_name(_text(m.line()), _text(m.line())),
  '\x93': _Machine.push_global,
  'R': _Machine.reduce,
  '\x81': _Machine.reduce,
  '\x92': lambda m: (m.stack.pop(), m.reduce())[1],
  'b': _Machine.set_state,
  'Q': _Machine.push_persistent,
  # protocol and frame
  '\x80': lambda m: m.number('B') and None,
  '\x95': lambda m: m.number('Q') and None,
}
_OPCODES = {ord(character): step for character, step in _BY_CHARACTER.items()}
