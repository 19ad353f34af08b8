"""Weight tables: one list of (theirs, ours, transform) per network, read in both directions.

A table names tensors of networks of any size: `{i}` stands for a number that both sides share. On
their side `[a|b]` means that either spelling is read and the first is written. A row whose `ours`
is None names a tensor of theirs that carries nothing (a buffer).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Transform(NamedTuple):
  """How the array behind one row changes: `read` from their layout to ours, `write` back."""

  read: Callable[[np.ndarray], np.ndarray]
  write: Callable[[np.ndarray], np.ndarray]


Row = tuple[str, str | None, Transform]


def _squeezed(x: np.ndarray) -> np.ndarray:
  """The matrix inside a 1x1 convolution's kernel; a matrix stays as it is."""
  return x[:, :, 0, 0] if x.ndim == 4 and x.shape[2:] == (1, 1) else x


SAME = Transform(lambda x: x, lambda x: x)
CONV = Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW, HWIO
LINEAR = Transform(lambda x: _squeezed(x).transpose(1, 0), lambda x: x.transpose(1, 0))
CONV1X1 = Transform(LINEAR.read, lambda x: x.transpose(1, 0)[:, :, None, None])  # ours is a matrix


def linear(theirs: str, ours: str, transform: Transform = LINEAR, bias: bool = True) -> list[Row]:
  """The rows of a linear layer."""
  rows: list[Row] = [(f'{theirs}.weight', f'{ours}.kernel', transform)]
  return rows + [(f'{theirs}.bias', f'{ours}.bias', SAME)] if bias else rows


def conv(theirs: str, ours: str, bias: bool = True) -> list[Row]:
  """The rows of a convolution."""
  return linear(theirs, ours, CONV, bias)


def norm(theirs: str, ours: str) -> list[Row]:
  """The rows of a LayerNorm or GroupNorm."""
  return [(f'{theirs}.weight', f'{ours}.scale', SAME), (f'{theirs}.bias', f'{ours}.bias', SAME)]


def resnet(theirs: str, ours: str) -> list[Row]:
  """The rows of a ResBlock as diffusers names it; those that a block lacks match nothing."""
  return [
    *norm(f'{theirs}.norm1', f'{ours}.norm1'),
    *conv(f'{theirs}.conv1', f'{ours}.conv1'),
    *linear(f'{theirs}.time_emb_proj', f'{ours}.time_proj'),
    *norm(f'{theirs}.norm2', f'{ours}.norm2'),
    *conv(f'{theirs}.conv2', f'{ours}.conv2'),
    *conv(f'{theirs}.conv_shortcut', f'{ours}.shortcut'),
  ]


def under(theirs: str, ours: str, table: Sequence[Row]) -> list[Row]:
  """A network's table as part of a larger model: both sides behind a prefix such as 'model.'."""
  return [(theirs + a, None if b is None else ours + b, transform) for a, b, transform in table]


def to_ours(
  table: Sequence[Row], theirs: Mapping[str, np.ndarray], like: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
  """Their state dict as our flat dict {dotted path: array}.

  `like` ({dotted path: anything with a shape}) says what has to come out. Raises ValueError with
  one listing of all that is missing (-), unexpected (+), set twice (=) or of another shape (!).
  """
  return _translate(_reading(table), _writing(table), theirs, like)


def to_theirs(
  table: Sequence[Row], ours: Mapping[str, np.ndarray], like: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
  """Our flat dict as their state dict; `like` and errors as in `to_ours`, the other way round."""
  return _translate(_writing(table), _reading(table), ours, like)


class _Rule(NamedTuple):
  pattern: re.Pattern
  template: str | None
  apply: Callable[[np.ndarray], np.ndarray]


def _reading(table: Sequence[Row]) -> list[_Rule]:
  return [_Rule(_pattern(theirs), ours, t.read) for theirs, ours, t in table]


def _writing(table: Sequence[Row]) -> list[_Rule]:
  rows = [(theirs, ours, t) for theirs, ours, t in table if ours is not None]
  return [_Rule(_pattern(ours), _first_spelling(theirs), t.write) for theirs, ours, t in rows]


def _pattern(template: str) -> re.Pattern:
  """The regular expression of a template: `{i}` is a number, `[a|b]` one of two spellings."""
  text = re.escape(template).replace(r'\[', '(?:').replace(r'\]', ')').replace(r'\|', '|')
  return re.compile(re.sub(r'\\\{(\w+)\\\}', r'(?P<\1>\\d+)', text))


def _first_spelling(template: str) -> str:
  return re.sub(r'\[([^|\]]*)\|[^\]]*\]', r'\1', template)


def _find(rules: Sequence[_Rule], name: str) -> tuple[_Rule, str | None] | None:
  """The first rule that knows this name, and the name on the other side (None where ignored)."""
  for rule in rules:
    if match := rule.pattern.fullmatch(name):
      return rule, None if rule.template is None else rule.template.format(**match.groupdict())
  return None


def _translate(
  rules: Sequence[_Rule],
  back: Sequence[_Rule],
  source: Mapping[str, np.ndarray],
  like: Mapping[str, Any] | None,
) -> dict[str, np.ndarray]:
  result, origin, trouble = {}, {}, []
  for name, value in source.items():
    found = _find(rules, name)
    target = found and found[1]
    if found is None or (target is not None and like is not None and target not in like):
      trouble.append(f'+ {name}')
    elif target in result:
      trouble.append(f'= {name} and {origin[target]} both set {target}')
    elif target is not None:
      result[target], complaint = _converted(found[0], name, value, like and like[target])
      origin[target] = name
      trouble += [complaint] if complaint else []
  for target in sorted(set(like or ()) - set(result)):
    found = _find(back, target)
    trouble.append(f'- {found[1] if found else target}')
  if trouble:
    raise ValueError(
      'the weights do not fit the network'
      ' (- missing, + unexpected, = set twice, ! wrong shape):\n  '
      + '\n  '.join(sorted(trouble, key=lambda line: '-+=!'.index(line[0])))
    )
  return result


def _converted(
  rule: _Rule, name: str, value: np.ndarray, like: Any
) -> tuple[np.ndarray, str | None]:
  """The array in its new layout and, where its shape is not the wanted one, the complaint."""
  try:
    new = np.require(rule.apply(value), requirements='C')
  except ValueError:  # another number of axes than the row is for
    return value, f'! {name}: shape {value.shape} is of another kind of layer'
  if like is not None and new.shape != tuple(like.shape):
    return new, f'! {name}: shape {value.shape}, here {new.shape}, should be {tuple(like.shape)}'
  return new, None
