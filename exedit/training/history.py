"""What the earlier starts of a run were told, what has changed since, and how far its data came."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exedit import systems
from exedit.input_pipeline import tokenizer
from exedit.runtime import remote, settings
from exedit.runtime.errors import UserError
from exedit.training.config import GROUPS, Config
from exedit.training.workdir import trouble

CONFIG, DATA = 'config.json', 'data.json'
# Settings that decide what is learned; and so do `model` and `data`.
LEARNED = ('system', 'seed', 'trainable', 'concept')
READING = ('workers', 'threads', 'prefetch', 'on_corrupt')  # how data are read, not which


@dataclasses.dataclass(frozen=True)
class History:
  """The record of the earlier starts of a run.

  config: the settings of the last one; empty if there was none. data: the description of its data;
  empty if there was none, or an older program's. batches: (first step, batch size) of every stretch
  of steps with one batch size, in order.
  """

  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  batches: tuple[tuple[int, int], ...] = ()

  def examples(self, step: int) -> int:
    """The number of examples that the first `step` steps have seen."""
    ends = [first for first, _ in self.batches[1:]] + [step]
    pairs = zip(self.batches, ends)
    return sum(max(0, min(end, step) - first) * size for (first, size), end in pairs)

  def going_on(self, step: int, batch_size: int) -> tuple[tuple[int, int], ...]:
    """`batches` of a run that goes on from a step with this batch size."""
    before = tuple(part for part in self.batches if part[0] < step)
    same = before and before[-1][1] == batch_size
    return before if same else (*before, (step, batch_size))

  def changes(self, config: Config) -> tuple[list[str], list[str]]:
    """(changes of what is learned, other changes), each such as 'optimizer.lr 1e-05 -> 3e-05'.

    A key that is missing has its default. The folder of the data counts as learned only if an older
    program has not described the data; see `other_data`. That of the tokenizer never does; see
    `other_tokenizer`.
    """
    if not self.config:
      return [], []
    new = config.as_dict()
    if self.config.get('system', new['system']) != new['system']:
      was, now = ({'system': c['system']} for c in (self.config, new))
      return settings.differences(was, now), []
    base = {**defaults(Config), 'system': new['system']}
    was, now = (_by_kind({n: c.get(n, base.get(n)) for n in new}) for c in (self.config, new))
    for learned, other in (was, now):
      for name in ('root', 'tokenizer') if self.data else ('tokenizer',):
        other['data'][name] = learned['data'].pop(name, None)
    learned, other = (settings.differences(a, b) for a, b in zip(was, now))
    return learned, other

  def other_data(self, root: str, survey: Mapping[str, Any]) -> list[str]:
    """The change of the data themselves since the last start; the folder's name may change."""
    known = {name: value for name, value in self.data.items() if name in survey}
    changed = settings.differences(known, {name: survey[name] for name in known})
    where = f'{self.data.get("root")} -> {root}' if self.data.get('root') != root else root
    return [f'the files in data.root {where} ({", ".join(changed)})'] if changed else []


def other_tokenizer(workdir: str, folder: str | None) -> list[str]:
  """The change of the tokenizer since the last start of a run that has checkpoints.

  The workdir holds a copy of the run's.
  """
  own = f'{workdir.rstrip("/")}/{tokenizer.FOLDER}'
  if not folder or not tokenizer.is_there(own):
    return []
  same = tokenizer.digest(own) == tokenizer.digest(folder)
  return [] if same else [f'the tokenizer {own} -> {folder}']


def read(workdir: str, batch_size: int) -> History:
  """The history of a run that has checkpoints.

  batch_size: of a run that has not written its own.

  Raises:
    UserError: for a damaged file, or a store that cannot be read.
  """
  config, data = (_json(workdir, name) for name in (CONFIG, DATA))
  first = [(0, config.get('batch_size', batch_size))]
  batches = tuple((int(step), int(size)) for step, size in data.get('batches', first))
  return History(config, data, batches)


def _json(workdir: str, name: str) -> dict[str, Any]:
  """A file of the run; empty if it is missing."""
  path = f'{workdir.rstrip("/")}/{name}'
  try:
    found = json.loads(remote.read(path))
    [(int(step), int(size)) for step, size in found.get('batches', ())]
    return found
  except FileNotFoundError:
    return {}
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path} is damaged ({error}): restore it, or choose another workdir'
    ) from error
  except OSError as error:
    raise trouble(workdir, error) from error


def require_same(workdir: str, changed: Sequence[str], allowed: bool) -> None:
  """Refuses changes of what is learned.

  Raises:
    UserError: names every change.
  """
  if changed and not allowed:
    raise UserError(
      f'{workdir} was begun with other settings: {", ".join(changed)}; go on with those of its '
      f'{CONFIG}, choose another --workdir, or add --allow_changes to go on with these'
    )


def _by_kind(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """(what decides what is learned, everything else) of a config, with every default.

  What only says how networks compute is in neither; `model.dtype` is in the second.
  """
  system = systems.get(config['system'])
  data = {**defaults(system.data.batches), **system.data.defaults(), **(config.get('data') or {})}
  model = {**defaults(system.build), **(config.get('model') or {})}
  dtype = model.pop('dtype', None)
  with contextlib.suppress(KeyError, TypeError, AttributeError):  # settings of an older program
    model = system.complete(model)
  learned = {name: config[name] for name in LEARNED} | dict(data=data, model=model)
  other = {n: None if v == {} else v for n, v in config.items() if n not in learned}
  other |= {name: {**defaults(f), **(config[name] or {})} for name, f in GROUPS.items()}
  other |= dict(model=dict(dtype=dtype), data={n: data.pop(n) for n in READING if n in data})
  return _plain(learned), _plain(other)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
  """The default values of a function's arguments, without those that no config can hold."""
  values = {p.name: p.default for p in settings.arguments(function) if p.default is not p.empty}
  plain = bool | int | float | str | tuple | Mapping | None
  return {name: value if isinstance(value, plain) else {} for name, value in values.items()}


def _plain(tree: Any) -> Any:
  """A tree as JSON gives it: tuples are lists."""
  return json.loads(json.dumps(tree))
