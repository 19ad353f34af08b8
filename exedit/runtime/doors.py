"""The one library of the command-line doors: absl flags, `--help`, one-line errors, exit statuses.

A door of one command defines its flags in `flags.FLAGS` and calls `run(main)`. A module that other
programs import keeps its flags to itself: it describes them by `Flag` rows and calls `call`, or
`call_one` if it has several commands.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging

from exedit.runtime.errors import UserError, explain, one_line

HELP = ('-h', '-help', '--help', '--helpshort', '--helpfull')

flags.disclaim_key_flags()  # the flags that this module defines belong to the module that calls it


def run(main: Callable[[list[str]], None], words: bool = False) -> None:
  """Reads `flags.FLAGS` and calls `main(argv)`: absl's `app.run` with one-line errors.

  words: allow arguments that are not flags; they are argv[1:].
  """
  with quiet_pipe():
    app.run(door(main), flags_parser=door(functools.partial(parse, words=words)))


def door(main: Callable) -> Callable:
  """Wraps `main(argv)`: prints an error that the user can fix as one line, and exits with status 2.

  The exit status is the error's own `status` if it has one.
  """

  def guarded(argv):
    try:
      return main(argv)
    except Exception as error:
      line = explain(error)
      if line is None:
        raise
      print(f'error: {line}', file=sys.stderr)
      sys.exit(getattr(error, 'status', 2))

  return guarded


@contextlib.contextmanager
def quiet_pipe() -> Iterator[None]:
  """Ends the program silently, with status 1, if the reader of its output is gone: `... | head`."""
  try:
    yield
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


REQUIRED = object()  # the default of a flag that must be given and not be empty


class Flag(NamedTuple):
  """One flag of a command.

  default: REQUIRED for a string that must be given.

  kind: str, int, float, bool, list (may be given several times), 'config' (a config file whose keys
  are flags too), or the allowed words; None: the type of `default`. least: of a number.
  """

  name: str
  default: Any
  help: str
  kind: Any = None
  least: Any = None


class Command(NamedTuple):
  """One of the commands of a door.

  main: called as main(name=value, ...) with every flag. words: the name of the argument that takes
  the words which are not flags; empty: there are none.
  """

  main: Callable[..., Any]
  help: str
  flags: Sequence[Flag | tuple]
  words: str = ''


def flag_values(rows: Sequence[Flag | tuple]) -> flags.FlagValues:
  """The described flags in a FlagValues of their own."""
  values = flags.FlagValues()
  for row in rows:
    name, default, about, kind, least = Flag(*row)
    if default is REQUIRED:
      default, kind = None, str
    kind: Any = type(default) if kind is None else kind
    if kind == 'config':
      define_config(about, name, default, values)
    elif kind is int:
      flags.DEFINE_integer(name, default, about, lower_bound=least, flag_values=values)
    elif kind is float:
      flags.DEFINE_float(name, default, about, lower_bound=least, flag_values=values)
    elif kind is bool:
      flags.DEFINE_bool(name, default, about, values)
    elif kind is str:
      flags.DEFINE_string(name, default, about, values)
    elif kind is list:
      flags.DEFINE_multi_string(name, default, about, values)
    else:
      flags.DEFINE_enum(name, default, [*kind], about, values)
  return values


def define_config(
  about: str,
  name: str = 'config',
  default: str | None = None,
  values: flags.FlagValues | None = None,
) -> None:
  """Defines a flag that names a config file, and `--config.KEY=VALUE` for each of its keys.

  Its value is a path and optionally a variant: configs/pbe.py:tiny. See `find_config`.
  """
  from ml_collections import config_flags

  values = flags.FLAGS if values is None else values
  config_flags.DEFINE_config_file(name, default, about, flag_values=values)
  values[name].parser = _ConfigParser(values[name].parser)


class _ConfigParser(flags.ArgumentParser):
  """ml_collections' parser of a config file, with the path that `find_config` returns."""

  def __init__(self, parser: flags.ArgumentParser):
    self.parser = parser

  def parse(self, argument: str) -> Any:
    return self.parser.parse(find_config(argument))

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


def call(
  main: Callable[..., Any],
  values: flags.FlagValues | Sequence[Flag | tuple],
  about: str | None = None,
  argv: Sequence[str] | None = None,
  words: str = '',
) -> None:
  """Reads these flags and calls main(name=value, ...) with every one of them.

  about: printed by `--help` before the flags. argv: the program and its arguments; None: this
  process's. words: see `Command`. What the operating system refuses is one line too.
  """
  rows = () if isinstance(values, flags.FlagValues) else [Flag(*row) for row in values]
  own = values if isinstance(values, flags.FlagValues) else flag_values(rows)
  names = list(own)  # parsing adds one flag for every --config.key=value

  def guarded(argv):
    rest = read(own, argv, f'{about}\n{own.get_help(include_special_flags=False)}', bool(words))
    given = {name: own[name].value for name in names} | ({words: rest[1:]} if words else {})
    require(**{row.name: given[row.name] for row in rows if row.default is REQUIRED})
    try:
      main(**given)
    except BrokenPipeError:
      raise
    except OSError as error:
      raise UserError(explain(error) or one_line(error)) from error

  with quiet_pipe():
    door(guarded)(list(sys.argv if argv is None else argv))


def call_one(
  commands: Mapping[str, Command], about: str | None, argv: Sequence[str] | None = None
) -> None:
  """Calls the command that the first argument names, with the flags behind it."""
  program, *rest = sys.argv if argv is None else argv
  if rest and rest[0] in commands:
    command = commands[rest[0]]
    call(command.main, command.flags, about, [f'{program} {rest[0]}', *rest[1:]], command.words)
    return
  listing = '\n'.join(f'  {name}: {command.help}' for name, command in commands.items())
  if any(word in HELP for word in rest):
    with quiet_pipe():
      print(f'{about}\nCommands (COMMAND --help tells more):\n{listing}', flush=True)
    return

  def refuse(_):
    raise UserError(f'name a command: {", ".join(commands)}; --help tells more')

  door(refuse)(rest)


def require(**given: Any) -> None:
  """UserError for the first of these flags that is not set."""
  for name, value in given.items():
    if not value:
      raise UserError(f'--{name}=... is missing')


def parse(argv: list[str], words: bool = False) -> list[str]:
  """Reads `flags.FLAGS` as `read` does, and silences libraries' INFO unless -v asks for it."""
  about = sys.modules['__main__'].__doc__
  rest = read(flags.FLAGS, argv, f'{about}\n{flags.FLAGS.main_module_help()}', words)
  if 'verbosity' in flags.FLAGS and flags.FLAGS['verbosity'].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING
  return rest


def read(
  values: flags.FlagValues, argv: Sequence[str], about: str, words: bool = False
) -> list[str]:
  """Reads flags, including the overrides of a config; `--help` prints `about` and exits with 0.

  words: allow arguments that are not flags. They are returned behind the program's name.

  Raises:
    UserError: for an unknown flag or config key, a value that does not fit, a config file that is
      missing or fails, and an argument that is not a flag.
  """
  if any(word in HELP for word in argv[1:]):
    print(about)
    sys.exit(0)
  names = list(values)
  values.set_gnu_getopt(words or values.is_gnu_getopt())
  try:
    rest = values(list(argv))
    for name in names:
      getattr(values[name].value, 'to_dict', None)  # a config that failed to load raises when used
  except (flags.Error, OSError) as error:
    raise UserError(_last_line(error).replace('[Errno 2] ', '')) from None
  except (AttributeError, KeyError) as error:  # ml_collections raises these for an unknown key
    raise UserError(_unknown_key(str(error.args[0]))) from None
  except SyntaxError as error:
    raise UserError(f'the config file is not Python: {error}') from None
  if len(rest) > 1 and not words:
    raise UserError(f'{rest[1]!r} is not a flag: flags are written --name=value')
  return rest


def _last_line(error):
  """The last sentence of a message that may contain a whole traceback."""
  line = str(error).strip().splitlines()[-1].strip()
  kind, _, rest = line.partition(': ')
  return rest if kind.endswith('Error') and rest else line


def _unknown_key(text):
  """A sentence made of ml_collections' message about an unknown key."""
  path, name = re.search(r'lookup: ([\w.]+)', text), re.search(r'\w+', text)
  known = re.search(r'Did you mean "(\w+)"', text)
  key = path[1] if path else name[0] if name else text
  return f"the config has no key '{key}'" + (f": did you mean '{known[1]}'?" if known else '')
