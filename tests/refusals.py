"""The one line with which a command refuses what it was given."""

from collections.abc import Callable

import pytest


def refusal(capsys, call: Callable, *argv, status: int = 2, **how) -> str:
  """Calls the command, checks that it ends with this status and one line, and returns the line.

  Progress bars, which begin with a carriage return, do not count as lines.
  """
  capsys.readouterr()
  with pytest.raises(SystemExit) as stop:
    call(*argv, **how)
  said = capsys.readouterr().err
  lines = [line for line in said.split('\n') if not line.startswith('\r')]
  assert stop.value.code == status, said
  assert lines[0].startswith('error: ') and lines[1:] == [''], said
  return lines[0]
