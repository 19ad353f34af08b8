"""Checks the groups of a config against the functions that take them: a wrong key is one line."""

import contextlib
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from exedit.runtime.errors import DataError, UserError, one_line

WORDS = {int: 'a whole number', float: 'a number', bool: 'True or False', str: 'text'}


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
    UserError: for a key that it does not take, and for a value of another type than its argument.
  """
  known = {p.name: p for p in arguments(function)}
  check_names(group, [*known], path)
  for name, value in group.items():
    p = known[name]
    kind = p.annotation
    if kind is p.empty and p.default not in (None, p.empty):
      kind = type(p.default)
    if not _fits(value, kind):
      raise UserError(f'{path}.{name} is {value!r:.60}: it must be {_words(kind)}')


def _words(kind: Any) -> str:
  """The type of an annotation in words: 'a whole number or None'."""
  base, inner = typing.get_origin(kind), typing.get_args(kind)
  if base in (typing.Union, types.UnionType):
    return ' or '.join(map(_words, inner))
  if kind is type(None):
    return 'None'
  if base is Mapping:
    return 'a group of settings'
  return WORDS.get(kind, 'a list of numbers')


def _fits(value: Any, kind: Any) -> bool:
  """Whether a value of a config is of the type that an annotation says; True if it says nothing."""
  base, inner = typing.get_origin(kind), typing.get_args(kind)
  if base in (typing.Union, types.UnionType):
    return any(_fits(value, one) for one in inner)
  if base is typing.Literal:
    return value in inner
  if kind is type(None):
    return value is None
  if kind is int or kind is float:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
  if kind in (bool, str):
    return isinstance(value, kind)
  if kind is tuple or base in (tuple, Sequence):
    return isinstance(value, list | tuple) and all(_fits(v, k) for v in value for k in inner[:1])
  if base is Mapping:
    return isinstance(value, Mapping) and all(_fits(v, inner[1]) for v in value.values())
  return True


def check_finite(values: Any, path: str) -> None:
  """Checks that all numbers in nested settings are finite.

  Raises:
    UserError: for the first that is not.
  """
  inner = values.items() if isinstance(values, Mapping) else ()
  if isinstance(values, list | tuple):
    inner = enumerate(values)
  for name, value in inner:
    check_finite(value, f'{path}.{name}')
  if isinstance(values, float) and not math.isfinite(values):
    raise UserError(f'{path} is {values}: it must be a finite number')


def check_limits(
  group: Mapping[str, Any], limits: Mapping[str, tuple[Any, Any]], path: str
) -> None:
  """Checks numbers of a group that are given: {name: (least, greatest)}; None: no bound.

  Raises:
    DataError: for the first that is out of its bounds.
  """
  for name, (low, high) in limits.items():
    value = group.get(name)
    if value is None:
      continue
    if not low <= value or (high is not None and value > high):  # NaN is not at least anything
      bound = f'at least {low}' if high is None else f'from {low} to {high}'
      raise DataError(f'{path}.{name} is {value}: it must be {bound}')


def training(config: Any) -> dict[str, Any]:
  """The settings of a training from the flag --config.

  Raises:
    UserError: for a config of another kind.
  """
  values = _plain(config)
  if 'bench' in values or not {'system', 'data'} & values.keys():
    other = 'of a benchmark, which exedit.evaluate takes' if 'bench' in values else 'of no training'
    raise UserError(f'this config is {other}: name one of a training, such as configs/pbe.py:tiny')
  return values


def benchmark(config: Any) -> dict[str, Any]:
  """The settings of a benchmark from the flag --config.

  Raises:
    UserError: for the config of a training.
  """
  values = _plain(config)
  if 'system' in values:
    raise UserError(
      'this is the config of a training, which exedit.train takes: name one of a benchmark, '
      'configs/synthetic_bench.py or configs/coco_ee.py'
    )
  return values


def _plain(config: Any) -> dict[str, Any]:
  values = config.to_dict() if hasattr(config, 'to_dict') else config
  if not isinstance(values, Mapping):
    raise UserError(
      f'get_config() of the config file returned {type(values).__name__}: it must return a '
      'ml_collections.ConfigDict, as in configs/pbe.py'
    )
  return dict(values)


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
