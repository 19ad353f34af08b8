"""The one line with which a command refuses what it was given."""

import re
from collections.abc import Callable

import pytest

BAR = re.compile(r'\d+(/\d+|\w+) \[\d\d:\d\d')


def refusal(capsys, call: Callable, *argv, status: int = 2, **how) -> str:
  """Calls the command, checks that it ends with this status and one line, and returns the line.

  Lines of progress bars do not count.
  """
  capsys.readouterr()
  with pytest.raises(SystemExit) as stop:
    call(*argv, **how)
  said = capsys.readouterr().err
  lines = [line for line in said.split('\n') if not BAR.search(line)]
  assert stop.value.code == status, said
  assert lines[0].startswith('error: ') and lines[1:] == [''], said
  return lines[0]
