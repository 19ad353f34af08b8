"""From vectors to one score per edit: what all benchmarks' metrics share.

The value of a metric is the mean of its scores.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit.evaluation import networks, vectors
from exedit.evaluation.benchmark import Scored
from exedit.evaluation.columns import VERSION
from exedit.evaluation.vectors import Column, Store
from exedit.metrics import confidence
from exedit.runtime.errors import UserError, one_line

Values = tuple[Float[np.ndarray, ' n'], dict[int, str]]  # scores; the reasons of the NaN among them


@dataclasses.dataclass(frozen=True)
class Plan:
  """A metric before its computation.

  columns: the vectors that it needs. score: computes the scores from them; it raises ValueError if
  the set of edits as a whole has none. basis: names everything besides the pictures on which the
  scores depend, because only scores of one basis can be compared. missing: the resource that is not
  given, and how to get it, or ''. least: the lowest possible value.
  """

  name: str
  better: str  # 'higher' or 'lower'
  about: str
  columns: tuple[Column, ...] = ()
  score: Callable[[], Values] = lambda: (np.zeros(0), {})
  basis: str = ''
  missing: str = ''
  least: float = -np.inf


@dataclasses.dataclass(frozen=True)
class Metric:
  """The scores of a plan in the order of the edits: NaN, with a reason, if an edit has no score."""

  plan: Plan
  scores: Float[np.ndarray, ' n']
  reasons: dict[int, str]
  missing: str = ''  # why there is no score at all

  def summary(self) -> dict[str, Any]:
    """Return the value, its 95 % interval, n, and a note about missing scores."""
    defined = self.scores[np.isfinite(self.scores)]
    basis = '' if self.missing else self.plan.basis
    found = dict(better=self.plan.better, about=self.plan.about, n=len(defined), basis=basis)
    found |= dict(value=None, low=None, high=None, note=self.note())
    if len(defined) > 1:
      interval = confidence.mean_interval(defined)
      low = max(interval.low, self.plan.least)
      found |= dict(value=interval.value, low=low, high=interval.high)
    elif len(defined):
      found |= dict(value=float(defined[0]), note='one edit has no interval')
    return found

  def note(self) -> str:
    """Say in one line why scores are missing, or return ''."""
    if self.missing or not self.reasons:
      return self.missing
    first = next(iter(self.reasons.values()))
    if len(self.reasons) == len(self.scores):
      return f'undefined for every edit; the first: {first}'
    return f'undefined for {len(self.reasons)} of {len(self.scores)} edits; the first: {first}'


class Scorer:
  """Computes the metrics of one set of pictures; the vectors are kept in a folder.

  A benchmark says in `plans` which they are; `missing` is set in those whose network or file is
  not given.
  """

  def __init__(self, folder: str, scored: Sequence[Scored]):
    self.folder, self.scored = folder, scored
    self._stores: dict[str, Store] = {}

  def plans(self) -> list[Plan]:
    """Every metric of the benchmark."""
    raise NotImplementedError

  def metrics(self) -> Iterator[Metric]:
    """Yield every metric, and compute the vectors that the folder lacks."""
    none = np.full(len(self.scored), np.nan)
    for plan in self.plans():
      if plan.missing:
        yield Metric(plan, none, {}, plan.missing)
        continue
      for column in plan.columns:
        vectors.fill(self.store(column), column)
      try:
        yield Metric(plan, *plan.score())
      except ValueError as error:
        yield Metric(plan, none, {}, f'undefined: {one_line(error)}')

  def summary(self) -> dict[str, Any]:
    """Return the entries of results.json about all metrics and every edit."""
    metrics = list(self.metrics())
    plain = lambda score: float(score) if np.isfinite(score) else None
    edits = [
      dict(
        id=item.edit.id,
        sha256=item.sha256,
        metrics={m.plan.name: plain(m.scores[i]) for m in metrics if not m.missing},
      )
      for i, item in enumerate(self.scored)
    ]
    return dict(metrics={m.plan.name: m.summary() for m in metrics}, edits=edits)

  def plan(self, of: tuple[str, str, str], function, basis: str, *columns: Column) -> Plan:
    """A metric whose scores are a function of the rows of some columns."""
    return Plan(*of, columns, functools.partial(self.mapped, function, *columns), basis)

  def store(self, column: Column) -> Store:
    """The vectors of a column that the folder has."""
    if column.digest not in self._stores:
      self._stores[column.digest] = Store(self.folder, column)
    return self._stores[column.digest]

  def mapped(self, function: Callable[..., np.ndarray], *columns: Column) -> Values:
    """Apply a function to the rows of the columns; NaN for an edit that lacks one of its rows."""
    found = [self.store(column).read(column.keys) for column in columns]
    whys = {i: why for _, reasons in reversed(found) for i, why in reasons.items()}
    scores, good = np.full(len(self.scored), np.nan), np.ones(len(self.scored), bool)
    good[[*whys]] = False
    if good.any():
      try:
        scores[good] = function(*(rows[good] for rows, _ in found))
      except ValueError as error:
        raise UserError(one_line(error)) from error
    return scores, {i: f'{self.scored[i].edit.name}: {whys[i]}' for i in sorted(whys)}


def basis_of(name: str, *sha256s: str) -> str:
  """Names what the scores of a metric depend on besides the pictures."""
  return vectors.digest(VERSION, name, *sha256s)


def only(rows: Float[np.ndarray, 'n 1']) -> Float[np.ndarray, ' n']:
  """The scores of a column that holds one number per edit."""
  return rows[:, 0].astype(np.float64)


def named(metric: str, network: Any, usual: str) -> str:
  """The metric's name, with the network's name unless it is the usual one or not given."""
  return metric if network is None or network.name == usual else f'{metric}_{network.name}'


def how_to_get(setting: str, network: str) -> str:
  """Say which setting is missing and which files of the network to get."""
  return f'config.features.{setting} is not set; get {networks.needed(network)}'
