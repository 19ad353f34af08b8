"""A config's groups against the arguments they become: a wrong key or value is one line."""

import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exedit.runtime.errors import UserError, one_line


def check(group: Mapping[str, Any], function: Callable, path: str, also: Sequence[str] = ()):
  """UserError for a key of the group that the function does not take; `also` are others'."""
  parameters = inspect.signature(function).parameters.values()
  known = [p.name for p in parameters if p.kind != p.VAR_KEYWORD] + list(also)
  for name in group:
    if name not in known:
      raise UserError(unknown(f'{path}.{name}', known))


def check_complete(group: Mapping[str, Any], function: Callable, path: str):
  """UserError for a key that the function cannot do without and the group does not have."""
  for p in inspect.signature(function).parameters.values():
    if p.kind == p.KEYWORD_ONLY and p.default is p.empty and p.name not in group:
      raise UserError(f'{path}.{p.name} is not set, and it has no default')


@contextlib.contextmanager
def mendable(config: Mapping[str, Any]):
  """Around what is built from a config: a key or value refused inside becomes a UserError."""
  try:
    yield
  except TypeError as error:
    line = wrong_key(error, config)
    if line is None:
      raise
    raise UserError(line) from error
  except (ValueError, re.error) as error:
    raise UserError(one_line(error)) from error


def wrong_key(error: TypeError, config: Mapping[str, Any]) -> str | None:
  """One line for a group's key that no argument answers to, None for any other TypeError."""
  found = re.search(r"(\w+)[\w.<>]*\(\) got an unexpected keyword argument '(\w+)'", str(error))
  path = find(config, found[2]) if found else None
  if found is None or path is None:
    return None
  known: list[str] = []
  trace = error.__traceback__
  while trace is not None:  # whoever made the call knows the function by its name
    frame, trace = trace.tb_frame, trace.tb_next
    function = frame.f_locals.get(found[1]) or frame.f_globals.get(found[1])
    known = [*inspect.signature(function).parameters] if callable(function) else known
  return unknown(f'config.{path}', known)


def unknown(path: str, known: Sequence[str]) -> str:
  """The line about a wrong key: its path and the nearest key that exists, or all of them."""
  near = difflib.get_close_matches(path.rsplit('.', 1)[-1], known, 1)
  if near:
    return f"{path} is not a setting: did you mean '{near[0]}'?"
  return f'{path} is not a setting' + (f'; there are: {", ".join(known)}' if known else '')


def find(config: Mapping[str, Any], name: str) -> str | None:
  """The dotted path of a key, anywhere in nested settings."""
  for key, value in config.items():
    if key == name:
      return name
    inner = find(value, name) if isinstance(value, Mapping) else None
    if inner:
      return f'{key}.{inner}'
  return None


def differences(old: Any, new: Any, path: str = '') -> list[str]:
  """What changed between two settings, as 'optimizer.lr 1e-05 -> 3e-05'."""
  if isinstance(old, dict) and isinstance(new, dict):
    names = [n for n in {**old, **new}]
    return [
      line
      for n in names
      for line in differences(old.get(n), new.get(n), f'{path}.{n}' if path else n)
    ]
  return [] if old == new else [f'{path} {old} -> {new}']
