r"""Prints the size and the structure of the repository, next to the targets that it should keep.

  python -m tests.measure            # the table
  python -m tests.measure --check    # exit status 1 if a target is missed

Only files that git tracks count. A room is a folder of `exedit/`, a module directly in `exedit/`,
or another folder at the top. An arrow is a pair of rooms in which the first imports the second.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests import ROOT

LONGEST_FUNCTION = 80  # lines
DOCUMENT = re.compile(r'\bdocs/[\w/]+\.md\b')
FOREIGN = re.compile(r'\bfacts \d|engineering\s+facts|\bdesign[:] |(?<![\w.])/work[/]')
TEXT = ('.py', '.sh', '.toml', '.md', '.txt', '.html')


class Row(NamedTuple):
  """One measured number. most: the target, if there is one. names: the places that it counts."""

  what: str
  count: int
  most: int | None = None
  names: Sequence[str] = ()


def tracked(root: Path = ROOT) -> list[Path]:
  """The files that git tracks and that exist, relative to the root."""
  listed = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, check=True)
  paths = map(Path, listed.stdout.decode().split('\0')[:-1])
  return [path for path in paths if (root / path).is_file()]


def is_test(path: Path) -> bool:
  return path.parts[0] == 'tests'


def lines(root: Path, paths: Sequence[Path]) -> int:
  return sum((root / path).read_bytes().count(b'\n') for path in paths)


def module_of(path: Path) -> str:
  """The name under which a file is imported; `input_pipeline` and `configs` are inside `exedit`."""
  parts = path.with_suffix('').parts
  parts = ('exedit', *parts) if parts[0] in ('input_pipeline', 'configs') else parts
  return '.'.join(parts).removesuffix('.__init__')


def room_of(module: str) -> str:
  parts = module.split('.')
  return '.'.join(parts[:2]) if parts[0] == 'exedit' else parts[0]


def imported(tree: ast.AST, module: str, package: bool, inside: bool) -> Iterator[str]:
  """The names that a module imports, most specific first. inside: also those inside functions.

  Imports for type checkers (`if TYPE_CHECKING:`) do not count.
  """
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test):
      continue
    if isinstance(node, ast.Import):
      yield from (name.name for name in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = module.split('.')[: None if package else -1]
      base = base[: len(base) - node.level + 1] if node.level else []
      source = '.'.join([*base, *filter(None, [node.module])])
      for name in node.names:
        yield f'{source}.{name.name}'
    elif inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
      yield from imported(node, module, package, inside)


def import_graph(root: Path, paths: Sequence[Path], inside: bool) -> dict[str, set[str]]:
  """The modules of this repository that each module imports."""
  modules = {module_of(path): path for path in paths}
  graph = {}
  for module, path in modules.items():
    tree = ast.parse((root / path).read_text())
    found = set()
    for name in imported(tree, module, path.name == '__init__.py', inside):
      name = re.sub(r'^(input_pipeline|configs)\b', r'exedit.\1', name)
      found |= {m for m in (name, name.rpartition('.')[0]) if m in modules and m != module}
    # `from exedit import images` imports the module `images`; the package itself is no target.
    graph[module] = {m for m in found if modules[m].name != '__init__.py'}
  return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
  """Groups of nodes that reach each other."""
  reach = {}
  for start in graph:
    seen, left = set(), [start]
    while left:
      for after in graph.get(left.pop(), set()) - seen:
        seen.add(after)
        left.append(after)
    reach[start] = seen
  groups = {tuple(sorted(n for n in graph if n in reach[m] and m in reach[n])) for m in graph}
  return [list(group) for group in groups if len(group) > 1]


def loaded_by(root: Path, module: str) -> list[Path]:
  """The tracked files that `import <module>` loads in a fresh process."""
  code = (
    f'import sys, json, {module}\n'
    'print(json.dumps([m.__file__ for m in list(sys.modules.values())'
    " if getattr(m, '__file__', None)]))"
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, check=True)
  files = {Path(file).resolve() for file in json.loads(done.stdout.splitlines()[-1])}
  return [path for path in tracked(root) if (root / path).resolve() in files]


def long_functions(root: Path, paths: Sequence[Path]) -> Iterator[str]:
  for path in paths:
    for node in ast.walk(ast.parse((root / path).read_text())):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > LONGEST_FUNCTION:
          yield f'{path}:{node.lineno} {node.name} ({length})'


def foreign_citations(root: Path, paths: Sequence[Path]) -> Iterator[str]:
  """Lines that cite a document which is not in the repository."""
  for path in paths:
    if path.suffix not in TEXT:
      continue
    for number, line in enumerate((root / path).read_text(errors='replace').splitlines(), 1):
      missing = [name for name in DOCUMENT.findall(line) if not (root / name).is_file()]
      if missing or FOREIGN.search(line):
        yield f'{path}:{number}'


def measure(root: Path = ROOT) -> list[Row]:
  files = tracked(root)
  code = [path for path in files if path.suffix == '.py']
  source = [path for path in code if not is_test(path)]
  tests = [path for path in code if is_test(path)]
  everything = import_graph(root, source, inside=True)
  arrows = {(room_of(a), room_of(b)) for a, found in everything.items() for b in found}
  knots = circles(import_graph(root, source, inside=False))
  pbe = 'exedit.paint_by_example'
  users = sorted(m for m, found in everything.items() if pbe in found)
  # The registry may; a benchmark measures one system, as a test does.
  users = [m for m in users if m != 'exedit.systems' and not m.startswith('benchmarks.')]
  doors = [path for path in source if len(path.parts) == 2 and path.parts[0] == 'exedit']
  doors = [path for path in doors if "__name__ == '__main__'" in (root / path).read_text()]
  training, library = (loaded_by(root, m) for m in ('exedit.training.loop', 'exedit.runtime.doors'))
  readme = (root / 'README.md').read_bytes()
  long, foreign = list(long_functions(root, source)), list(foreign_citations(root, files))
  return [
    Row('source files', len(source)),
    Row('source lines', lines(root, source), 22_000),
    Row('test files', len(tests)),
    Row('test lines', lines(root, tests), 19_000),
    Row('files that a training imports', len(training), 60),
    Row('  their lines', lines(root, training)),
    Row('files that exedit.runtime.doors imports', len(library)),
    Row('  their lines', lines(root, library)),
    Row('lines of the longest door', max(lines(root, [path]) for path in doors)),
    Row('arrows between rooms', len({(a, b) for a, b in arrows if a != b})),
    Row('circles of imports', len(knots), 0, [' <-> '.join(knot) for knot in knots]),
    Row(f'functions over {LONGEST_FUNCTION} lines', len(long), 0, long),
    Row('README lines', readme.count(b'\n'), 120),
    Row('README bytes', len(readme), 9 * 1024),
    Row('modules that import paint_by_example', len(users), 0, users),
    Row('citations of documents that are not here', len(foreign), 0, foreign),
  ]


def main(argv: Sequence[str]) -> int:
  missed = 0
  for row in measure():
    late = row.most is not None and row.count > row.most
    target = '' if row.most is None else f'at most {row.most:,}{" MISSED" if late else ""}'
    print(f'{row.what:<42}{row.count:>8,}   {target}'.rstrip())
    for name in row.names:
      print(f'    {name}')
    missed += late
  return int(missed > 0 and '--check' in argv)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
