"""Doors with subcommands: what one can mend is one line and exit status 2."""

import argparse
import functools
import sys
from collections.abc import Callable

from exedit.input_pipeline.errors import DataError


class Parser(argparse.ArgumentParser):
  """Raises DataError for wrong arguments, and takes no flag for another that begins alike."""

  def __init__(self, **settings):
    settings.setdefault('formatter_class', argparse.RawDescriptionHelpFormatter)
    super().__init__(allow_abbrev=False, **settings)

  def error(self, message):
    raise DataError(message)


def door(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """`main(argv)` as a door."""

  @functools.wraps(main)
  def guarded(argv):
    try:
      main(argv)
    except (DataError, OSError) as error:
      print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
      sys.exit(2)

  return guarded
