"""Checks the groups of a config against the functions that take them: a wrong key is one line."""

import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from exedit.runtime.errors import UserError, one_line


def arguments(function: Callable[..., Any]) -> list[inspect.Parameter]:
  """The parameters of a function, or of the constructor of a class, without **kwargs."""
  if inspect.isclass(function):  # a metaclass may hide the constructor's signature
    _, *found = inspect.signature(function.__init__).parameters.values()
  else:
    found = list(inspect.signature(function).parameters.values())
  return [p for p in found if p.kind != p.VAR_KEYWORD]


def check(group: Mapping[str, Any], function: Callable[..., Any], path: str) -> None:
  """Checks that `function` takes every key of the group, which is at `path` in the config.

  Raises:
    UserError: for a key that it does not take.
  """
  check_names(group, [p.name for p in arguments(function)], path)


def check_names(group: Mapping[str, Any], known: Sequence[str], path: str) -> None:
  """Checks that every key of the group is known.

  Raises:
    UserError: for the first key that is not.
  """
  for name in group:
    if name not in known:
      raise UserError(unknown(f'{path}.{name}', known))


def check_complete(group: Mapping[str, Any], function: Callable[..., Any], path: str) -> None:
  """Checks that the group has every key that `function` requires.

  Raises:
    UserError: for the first key that is missing.
  """
  for p in arguments(function):
    if p.kind == p.KEYWORD_ONLY and p.default is p.empty and p.name not in group:
      raise UserError(f'{path}.{p.name} is not set, and it has no default')


@contextlib.contextmanager
def fixable(config: Mapping[str, Any]) -> Iterator[None]:
  """Around code that builds things from a config: a refused key or value becomes a UserError."""
  try:
    yield
  except UserError:
    raise
  except TypeError as error:
    found = re.search(r"got an unexpected keyword argument '(\w+)'", str(error))
    path = find(config, found[1]) if found else None
    if path is None:
      raise
    raise UserError(unknown(f'config.{path}', ())) from error
  except (ValueError, re.error) as error:
    raise UserError(one_line(error)) from error


def unknown(path: str, known: Sequence[str]) -> str:
  """The line about an unknown key: its path, and the nearest known key or all of them."""
  near = difflib.get_close_matches(path.rsplit('.', 1)[-1], known, 1)
  if near:
    return f"{path} is not a setting: did you mean '{near[0]}'?"
  return f'{path} is not a setting' + (f'; there are: {", ".join(known)}' if known else '')


def find(config: Mapping[str, Any], name: str) -> str | None:
  """The dotted path of a key anywhere in nested settings; None if there is none."""
  for key, value in config.items():
    if key == name:
      return name
    inner = find(value, name) if isinstance(value, Mapping) else None
    if inner:
      return f'{key}.{inner}'
  return None


def differences(old: Any, new: Any, path: str = '') -> list[str]:
  """The changes between two settings, such as 'optimizer.lr 1e-05 -> 3e-05'."""
  if isinstance(old, dict) and isinstance(new, dict):
    return [
      line
      for n in {**old, **new}
      for line in differences(old.get(n), new.get(n), f'{path}.{n}' if path else n)
    ]
  return [] if old == new else [f'{path} {old} -> {new}']
