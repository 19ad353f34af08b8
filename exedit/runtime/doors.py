"""What doors share: flags are read, a mistake in them is one line, `--help` exits with 0."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from absl import app, flags, logging

from exedit import paint_by_example as pbe
from exedit.diffusion.schedule import Schedule
from exedit.input_pipeline import open_images
from exedit.runtime.errors import UserError, door
from exedit.weights import settings as configs

HELP = ('-h', '-help', '--help', '--helpshort', '--helpfull')


def run(main: Callable[[list[str]], None]) -> None:
  """absl's `app.run`, except that what a person can mend is one line and exit status 2."""
  try:
    app.run(door(main), flags_parser=door(parse))
  except BrokenPipeError:  # whoever read the output has seen enough: `... | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def parse(argv: list[str]) -> list[str]:
  """Read `flags.FLAGS`, the overrides of `--config` included.

  Raises:
    UserError: for an unknown flag or config key, a value that does not fit, a config file that is
      missing or does not run, and a word that is no flag.
  """
  if any(word in HELP for word in argv[1:]):
    print(f'{sys.modules["__main__"].__doc__}\n{flags.FLAGS.main_module_help()}')
    sys.exit(0)
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS.config is not None:
      dir(flags.FLAGS.config.keys)  # a config file that failed to load says so when it is touched
  except (flags.Error, OSError) as error:
    raise UserError(_last_line(error).replace('[Errno 2] ', '')) from None
  except (AttributeError, KeyError) as error:  # ml_collections' word for an unknown key
    raise UserError(_unknown_key(str(error.args[0]))) from None
  except SyntaxError as error:
    raise UserError(f'the config file is not Python: {error}') from None
  if len(rest) > 1:
    raise UserError(f'{rest[1]!r} is not a flag: flags are written --name=value')
  if 'verbosity' in flags.FLAGS and flags.FLAGS['verbosity'].using_default_value:
    flags.FLAGS.verbosity = logging.WARNING  # libraries' INFO is no news to a person
  return rest


def edit_settings(
  config: Mapping[str, Any],
  where: str = '',
  *,
  steps: int | None,
  scale: float | None,
  sampler: str | None,
) -> dict[str, Any]:
  """Arguments of `edit`: those given, else what the weights' config says, else its defaults.

  Raises:
    UserError: for one that cannot be, with `where` the config stands if it came from there.
  """
  given = dict(steps=steps, scale=scale, sampler=sampler)
  told = {name: value for name, value in config.get('edit', {}).items() if name in given}
  settings = {name: inspect.signature(pbe.edit).parameters[name].default for name in given}
  settings |= told | {name: value for name, value in given.items() if value is not None}

  def named(name):
    return f'{where}: {name}' if where and name in told and given[name] is None else name

  check_steps(settings['steps'], most_steps(config), named('steps'))
  if not configs.finite(settings['scale']):
    raise UserError(f'{named("scale")} is {settings["scale"]!r:.50}: it must be a number such as 5')
  settings['scale'] = float(settings['scale'])
  if settings['sampler'] not in pbe.SAMPLERS:
    raise UserError(
      f'{named("sampler")} is {settings["sampler"]!s:.50}: use one of {", ".join(pbe.SAMPLERS)}'
    )
  return settings


def most_steps(config: Mapping[str, Any]) -> int:
  """Steps at most with these weights: timestep 0 is the end, so one less than were trained on.

  Neither the original nor diffusers, with its offset of 1, can make as many (facts 3.2).
  """
  schedule = config.get('model', {}).get('schedule', {})
  return schedule.get('num_steps', Schedule.num_steps) - 1


def check_steps(steps: Any, most: int, name: str = 'steps') -> None:
  """UserError for steps that the weights' schedule does not have."""
  if type(steps) is not int or not 1 <= steps <= most:
    raise UserError(
      f"{name} is {steps!r:.50}: it must be between 1 and {most}, for the weights' schedule has"
      f' {most + 1} steps'
    )


def trained_on(config: Mapping[str, Any], name: str) -> Any:
  """What the data pipeline was set to, or its default: `size`, `exemplar_size`, ..."""
  default = inspect.signature(open_images.make_example).parameters[name].default
  return config['data'].get(name, default)


def _last_line(error):
  """The sentence at the end of a message that may hold a whole traceback."""
  line = str(error).strip().splitlines()[-1].strip()
  kind, _, rest = line.partition(': ')
  return rest if kind.endswith('Error') and rest else line


def _unknown_key(text):
  """ml_collections' complaint, quoted twice over, as a sentence."""
  path, name = re.search(r'lookup: ([\w.]+)', text), re.search(r'\w+', text)
  known = re.search(r'Did you mean "(\w+)"', text)
  key = path[1] if path else name[0] if name else text
  return f"the config has no key '{key}'" + (f": did you mean '{known[1]}'?" if known else '')
