"""How this package's commands run: their own flags; one line, exit status 2, for what one can mend.

The flags live in a FlagValues of their own: programs with flags of the same names import these
modules.
"""

import re
import sys
from collections.abc import Callable

from absl import flags

from .errors import DataError


def run(
  main: Callable[..., None], values: flags.FlagValues, about: str | None, argv: list[str]
) -> None:
  """Calls main(name=value, ...) with every flag; `--help` prints `about` and the flags."""
  try:
    arguments = _parse(values, argv)
    if values.help:
      print(f'{about}\n{values.get_help(include_special_flags=False)}')
    else:
      main(**arguments)
  except (DataError, OSError) as error:
    print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
    sys.exit(2)


def _parse(values: flags.FlagValues, argv: list[str]) -> dict:
  """The flags' values by name; DataError for a command line, or a config, that cannot be read."""
  names = list(values)  # parsing adds one for every --config.key=value
  flags.DEFINE_bool('help', False, 'print this and stop', flag_values=values)
  try:
    stray = values(argv)[1:]
    arguments = {name: values[name].value for name in names}
    for value in arguments.values():
      getattr(value, 'to_dict', None)  # a config whose file is missing raises only when touched
  except (flags.Error, OSError) as error:
    # ml_collections wraps a whole traceback; what the person needs stands behind its last colon.
    line = ' '.join(str(error).split())
    inner = re.search(r'.*(?:\w+Error: |\[Errno \d+\] )(.*)$', line)
    raise DataError(f'--config: {inner[1]}' if inner else line) from error
  except (AttributeError, KeyError) as error:  # --config.key=value with a key that is not there
    key, near = (re.search(p, str(error)) for p in (r'\w+', r'mean \W*(\w+)'))
    hint = f'; did you mean {near[1]}?' if near else ''
    raise DataError(f'the config has no key {key[0] if key else ""}{hint}') from error
  if stray:
    raise DataError(f'{stray[0]!r} is not a flag; write --name=value')
  return arguments
