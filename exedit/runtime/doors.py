"""The one library of the command-line doors: flags, `--help`, one-line errors, exit statuses.

A door describes its flags by `Flag` rows and calls `call`, or `call_one` if it has several
commands. It imports JAX and other large packages inside the functions that use them, because
`--help` and a misspelt flag are answered before these are imported.
"""

import ast
import contextlib
import keyword
import math
import os
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from exedit.runtime import signals
from exedit.runtime.errors import UserError, explain, one_line

HELP = ('-h', '-help', '--help', '--helpshort', '--helpfull')
REQUIRED = object()  # the default of a flag that must be given and not be empty
WIDTH = 100  # characters of a line of `--help`


class Flag(NamedTuple):
  """One flag of a command.

  default: REQUIRED for a string that must be given.

  kind: str, int, float, bool, list (may be given several times), 'config' (a config file whose keys
  are flags too), or the allowed words; None: the type of `default`. least, most: of a number.
  shown: the default in words, where `default` does not tell it.
  """

  name: str
  default: Any
  help: str
  kind: Any = None
  least: Any = None
  most: Any = None
  shown: str = ''

  def line(self) -> str:
    """The lines of `--help` about this flag."""
    kind = str if self.default is REQUIRED else self.kind or type(self.default)
    if isinstance(kind, type | str):
      texts = {int: '=N', float: '=X', bool: '', 'config': '=FILE.py'}
      value = texts.get(kind, f'={self.name.upper()}')
    else:
      value = f'={"|".join(kind)}'
    head = f'--{"[no]" if kind is bool else ""}{self.name}{value}'
    default = self.shown
    if not default and self.default is not None and self.default not in ('', [], REQUIRED):
      default = str(self.default).lower() if kind is bool else f'{self.default}'
    notes = ['required'] if self.default is REQUIRED else [f'default: {default}'] * bool(default)
    notes = ', '.join(filter(None, [*notes, bounds(self.least, self.most)]))
    return entry(head, f'{self.help} ({notes})' if notes else self.help)


def bounds(least: Any, most: Any) -> str:
  """The bounds of a number in words; empty if there are none."""
  if None not in (least, most):
    return f'from {least} to {most}'
  return '' if least is most else f'at most {most}' if least is None else f'at least {least}'


def entry(head: str, about: str, column: int = 26) -> str:
  """An indented entry of a listing: the head, and behind or below it what it is about."""
  lines = textwrap.wrap(about, WIDTH - column) or ['']
  first = f'  {head}'.ljust(column)
  if len(first) == column:
    first, lines = first + lines[0], lines[1:]
  return '\n'.join([first.rstrip(), *(' ' * column + line for line in lines)]).rstrip()


class Command(NamedTuple):
  """One of the commands of a door.

  main: called as main(name=value, ...) with every flag. words: the name of the argument that takes
  the words which are not flags; empty: there are none.
  """

  main: Callable[..., Any]
  help: str
  flags: Sequence[Flag | tuple]
  words: str = ''


def call(
  main: Callable[..., Any],
  rows: Sequence[Flag | tuple],
  about: str | None = None,
  argv: Sequence[str] | None = None,
  words: str = '',
  keys: Callable[[Any], str] | None = None,
) -> None:
  """Reads these flags and calls main(name=value, ...) with every one of them.

  about: printed by `--help` before the flags. argv: the program and its arguments; None: this
  process's. words: see `Command`. keys: makes the last part of `--help` from the config, which is
  None if none is given. What the operating system refuses is one line too. Ctrl-C ends the command
  with one line and status 130.
  """
  rows = [Flag(*row) for row in rows]
  given_argv = [python_name(word) for word in (sys.argv if argv is None else argv)]
  door = main.__code__.co_filename if argv is None else None
  with _answered(argv is None), signals.Stop(True, (signal.SIGINT,), door):
    values = flag_values(rows, given_argv)
    if any(word in HELP for word in given_argv[1:]):
      print(_help(values, rows, about, given_argv, keys), flush=True)
      sys.exit(0)
    rest = read(values, given_argv, bool(words))
    given = {row.name: values[row.name].value for row in rows}
    require(rows, given)
    main(**given, **({words: rest[1:]} if words else {}))


def call_one(
  commands: Mapping[str, Command], about: str | None, argv: Sequence[str] | None = None
) -> None:
  """Calls the command that the first argument names, with the flags behind it."""
  program, *rest = sys.argv if argv is None else argv
  if rest and rest[0] in commands:
    command = commands[rest[0]]
    call(command.main, command.flags, about, [f'{program} {rest[0]}', *rest[1:]], command.words)
    return
  with _answered():
    if not any(word in HELP for word in rest):
      wrong = f'{rest[0]!r} is not a command: ' if rest else ''
      raise UserError(f'{wrong}name a command, {", ".join(commands)}; --help tells more')
    listing = '\n'.join(entry(name, command.help) for name, command in commands.items())
    print(f'{installed(about or "")}\nCommands (COMMAND --help tells more):\n{listing}', flush=True)


@contextlib.contextmanager
def _answered(alone: bool = False) -> Iterator[None]:
  """Prints an error that the user can fix as one line, and exits with its status (2 by default).

  Ctrl-C is one line and status 130. If the reader of the output is gone (`... | head`), the program
  ends silently, with status 1. alone: the process has no other work, so that Ctrl-C need not wait
  for threads that compute; every block of ours has been left.
  """
  try:
    yield
    sys.stdout.flush()
  except KeyboardInterrupt:
    line_break = '\n' if sys.stderr.isatty() else ''  # behind ^C, or a progress bar
    print(f'{line_break}stopped; the same command goes on', file=sys.stderr, flush=True)
    if alone:
      with contextlib.suppress(OSError):
        sys.stdout.flush()
      os._exit(130)
    sys.exit(130)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except Exception as error:
    line = explain(error) or (one_line(error) if isinstance(error, OSError) else None)
    if line is None:
      raise
    print(f'error: {installed(line)}', file=sys.stderr)
    sys.exit(getattr(error, 'status', 2))


def installed(text: str) -> str:
  """A text whose commands are right for this place: an installed package, or a checkout.

  Only a checkout has `input_pipeline` and the requirements' files outside the package.
  """
  if (Path(__file__).parents[1] / 'input_pipeline').is_symlink():
    return text
  text = text.replace('python -m input_pipeline', 'python -m exedit.input_pipeline')
  return re.sub(r'-r requirements-(\w+)\.txt', r"'exedit[\1]'", text)


# Flags


def python_name(word: str) -> str:
  """An argument with `class_` for `class`, as `--config.concept.class=dog`, and so on.

  ml_collections reads the path of a key as Python, where such words are no names.
  """
  path, equals, value = word.partition('=')
  if not path.startswith('--config.'):
    return word
  parts = (part + '_' * keyword.iskeyword(part) for part in path.split('.'))
  return f'{".".join(parts)}{equals}{value}'


def flag_values(
  rows: Sequence[Flag | tuple], argv: Sequence[str] | None = None
) -> flags.FlagValues:
  """The described flags in a FlagValues of their own; argv holds the overrides of a config."""
  values = flags.FlagValues()
  for row in rows:
    name, default, about, kind, least, most, _ = Flag(*row)
    if default is REQUIRED:
      default, kind = None, str
    kind: Any = type(default) if kind is None else kind
    if kind == 'config':
      from ml_collections import ConfigDict, config_flags

      config_flags.register_flag_parser_for_type(ConfigDict, _GroupParser())
      config_flags.DEFINE_config_file(
        name, default, about, values, sys_argv=list(argv) if argv else None
      )
      values[name].parser = _ConfigParser(values[name].parser)
    elif kind in (int, float):
      flags.DEFINE(_Number(kind, least, most), name, default, about, values)
    elif kind is bool:
      flags.DEFINE_bool(name, default, about, values)
    elif kind is str:
      flags.DEFINE_string(name, default, about, values)
    elif kind is list:
      flags.DEFINE_multi_string(name, default, about, values)
    else:
      flags.DEFINE_enum(name, default, [*kind], about, values)
  return values


class _Number(flags.ArgumentParser):
  """A finite number within bounds."""

  def __init__(self, kind: type, least: Any, most: Any):
    self.kind, self.least, self.most = kind, least, most

  def parse(self, argument: Any) -> Any:
    try:
      value = self.kind(argument)
      fits = -math.inf < value < math.inf
      fits &= self.least is None or value >= self.least
      fits &= self.most is None or value <= self.most
    except (TypeError, ValueError):
      fits = False
    if not fits:
      words = 'a whole number' if self.kind is int else 'a number'
      raise ValueError(f'it must be {words} {bounds(self.least, self.most)}'.strip())
    return value

  def flag_type(self) -> str:
    return self.kind.__name__


class _GroupParser(flags.ArgumentParser):
  """The parser of a whole group: `{'scenes': 64}`, or None to switch it off."""

  def parse(self, argument: Any) -> Any:
    from ml_collections import ConfigDict

    if not isinstance(argument, str):  # the group as it stands in the config
      return argument
    if argument.lower() in ('', 'none', 'off', 'false', 'no', '0'):
      return None
    try:
      return ConfigDict(ast.literal_eval(argument))
    except (SyntaxError, ValueError, TypeError, AttributeError):
      raise ValueError(
        f"{argument!r} is no group of settings: write {{'key': value}}, or None for none"
      ) from None

  def flag_type(self) -> str:
    return 'config group'


class _ConfigParser(flags.ArgumentParser):
  """ml_collections' parser of a config file, with the path that `find_config` returns."""

  def __init__(self, parser: flags.ArgumentParser):
    self.parser = parser

  def parse(self, argument: str) -> Any:
    path = find_config(argument)
    if not path.split(':', 1)[0].endswith('.py') or not os.path.isfile(path.split(':', 1)[0]):
      raise ValueError('there is no such file; name one, such as configs/pbe.py:tiny')
    try:
      return self.parser.parse(path)
    except AttributeError as error:
      if 'get_config' not in str(error):
        raise
      raise ValueError('it has no get_config; name one, such as configs/pbe.py:tiny') from None
    except (NameError, ImportError, LookupError, ArithmeticError) as error:
      raise ValueError(f'it fails with {type(error).__name__}: {one_line(error)}') from error

  def flag_type(self) -> str:
    return 'config file'


def find_config(argument: str) -> str:
  """The path of a config file, with its variant.

  A file at this path wins, such as configs/pbe.py in a checkout. If there is none, configs/NAME.py
  means the file that is installed with exedit, so that it is found from any working folder.
  """
  path, *variant = argument.split(':', 1)
  folder, _, name = path.rpartition('/')
  installed = Path(__file__).parents[1] / 'configs' / name
  if folder == 'configs' and not os.path.exists(path) and installed.is_file():
    path = str(installed)
  return ':'.join([path, *variant])


def require(rows: Sequence[Flag], given: Mapping[str, Any]) -> None:
  """UserError for the first flag that must be given and is not set."""
  for row in rows:
    if row.default is REQUIRED and not given[row.name]:
      raise UserError(f'--{row.name}=... is missing: {row.help}')


def read(values: flags.FlagValues, argv: Sequence[str], words: bool = False) -> list[str]:
  """Reads flags, including the overrides of a config; returns the arguments that are not flags.

  words: allow such arguments. They are returned behind the program's name.

  Raises:
    UserError: for an unknown flag or config key, a value that does not fit, a config file that is
      missing or fails, and an argument that is not a flag.
  """
  names = list(values)
  values.set_gnu_getopt(words or values.is_gnu_getopt())
  try:
    rest = values(list(argv))
    for name in names:
      getattr(values[name].value, 'to_dict', None)  # a config that failed to load raises when used
  except (flags.Error, OSError, ValueError, TypeError) as error:
    raise UserError(_wrong_flag(error, argv)) from None
  except (AttributeError, KeyError) as error:  # ml_collections raises these for an unknown key
    raise UserError(_unknown_key(str(error.args[0]))) from None
  except SyntaxError as error:
    raise UserError(f'the config file is not Python: {error}') from None
  if len(rest) > 1 and not words:
    raise UserError(f'{rest[1]!r} is not a flag: flags are written --name=value')
  return rest


def _help(values, rows, about, argv, keys) -> str:
  """The text of `--help`: what the door does, its flags, and the keys of the config."""
  parts = [installed(about or '').rstrip(), 'Flags:\n' + '\n'.join(row.line() for row in rows)]
  if keys is not None:
    with_config = [word for word in argv if word not in HELP]
    read(values, with_config, words=True)
    parts.append(keys(values['config'].value))
  return '\n\n'.join(parts)


def _wrong_flag(error, argv) -> str:
  """A sentence made of absl's or ml_collections' message about a flag."""
  text = _last_line(error)
  if isinstance(error, flags.UnrecognizedFlagError):
    if error.flagname.startswith('config.'):
      return f'--{error.flagname} is a key of a config: give --config=FILE too'
    near = re.search(r'Did you mean: (\S+)', text)
    return f'--{error.flagname} is not a flag' + (f': did you mean --{near[1]}?' if near else '')
  if missing := re.fullmatch(r'Missing value for flag (\S+)', text):
    return f'{missing[1]} has no value: write {missing[1]}=VALUE'
  if 'Non-boolean argument' in text:
    name, value = re.findall(r'--([\w.]+)=([^:]*)', text)[0]
    return f'--{name}={value}: write --{name}=true or --{name}=false'
  if 'get_config() takes 0 positional' in text:
    given = next((word for word in argv if '.py:' in word), 'the config')
    return f'{given}: this config has no variants, leave out what follows the colon'
  for pattern, plain in (
    (r'^flag ', ''),
    (r'\[Errno \d+\] ', ''),
    (r'value should be one of <(.*)>', lambda found: f'use one of {found[1].replace("|", ", ")}'),
    (r'could not convert string to float: .*', 'it must be a number'),
    (r'invalid literal for int\(\).*', 'it must be a whole number'),
  ):
    text = re.sub(pattern, plain, text)
  return text


def _last_line(error):
  """The last sentence of a message that may contain a whole traceback."""
  line = one_line(error) if isinstance(error, OSError) else str(error).strip().splitlines()[-1]
  kind, _, rest = line.strip().partition(': ')
  return rest if kind.endswith('Error') and rest else line.strip()


def _unknown_key(text):
  """A sentence made of ml_collections' message about an unknown key."""
  path, name = re.search(r'lookup: ([\w.]+)', text), re.search(r'\w+', text)
  known = re.search(r'Did you mean "(\w+)"', text)
  key = path[1] if path else name[0] if name else text
  return f"the config has no key '{key}'" + (f": did you mean '{known[1]}'?" if known else '')
