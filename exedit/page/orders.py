"""Orders of edits: what was asked for, how far it is, and the queue of those that wait.

An order is one JSON file beside the files that it is made of, so that the queue and every finished
candidate survive the server. Progress within a candidate is kept in memory only.
"""

import collections
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exedit.page import store
from exedit.page.store import Missing, Store
from exedit.runtime import files
from exedit.runtime.errors import UserError, explain

LOG = logging.getLogger('exedit.page')
RECORD = '.order.json'  # the end of the name of an order's file
ENDED = ('done', 'failed', 'cancelled')


class Busy(UserError):
  """The queue is full: the same request can succeed later."""


@dataclasses.dataclass
class Candidate:
  """One picture of an order."""

  seed: int
  result: str | None = None
  seconds: float | None = None
  score: float | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far the candidate is that is computed now. frame: the window, as left, top, right, bottom.

  looked: makes the preview, a PNG, or None as long as there is nothing to see.
  """

  candidate: int
  region: int
  regions: int
  step: int = 0
  steps: int = 0
  frame: tuple[int, int, int, int] = (0, 0, 0, 0)
  looked: Any = None


@dataclasses.dataclass
class Order:
  """One order. asked: what the client sent, checked, with names of files in `folder`.

  version: grows with every change, for those who follow. cancelled: ends it at the next step.
  """

  id: str
  session: str
  folder: Path
  asked: dict[str, Any]
  candidates: list[Candidate]
  created: float
  state: str = 'waiting'
  notes: list[str] = dataclasses.field(default_factory=list)
  error: str | None = None
  progress: Progress | None = None
  version: int = 0
  cancelled: bool = False

  def path(self, *parts: str) -> Path:
    """A file of this order: 'ID-part-part'."""
    return self.folder / '-'.join([self.id, *parts])

  def result(self, index: int) -> Path:
    """The file of one candidate."""
    return self.path(f'{index}.png')

  def save(self) -> None:
    """Writes the order; raises OSError if the disk does not take it."""
    kept = dict(
      id=self.id, created=self.created, state=self.state, asked=self.asked, notes=self.notes,
      error=self.error, candidates=[dataclasses.asdict(c) for c in self.candidates],
    )  # fmt: skip
    files.write_json(self.folder / f'{self.id}{RECORD}', kept)

  def remove(self) -> None:
    """Removes all files of the order."""
    for path in self.folder.glob(f'{self.id}*'):
      path.unlink(missing_ok=True)

  def changed(self) -> None:
    """Tells those who follow the order that there is something new."""
    self.version += 1

  def events(self) -> list[tuple[str, dict[str, Any]]]:
    """What has come to pass and stays: (name, data) of each, in an order that never changes."""
    made = [(i, c) for i, c in enumerate(self.candidates) if c.result]
    found: list[tuple[str, dict[str, Any]]] = [
      ('candidate', dict(candidate=i, **dataclasses.asdict(c))) for i, c in made
    ]
    if self.state == 'done':
      found.append(('done', dict(candidates=[dataclasses.asdict(c) for c in self.candidates])))
    elif self.state == 'failed':
      found.append(('failed', dict(error=self.error)))
    elif self.state == 'cancelled':
      found.append(('cancelled', {}))
    return found


class Queue:
  """All orders of a store, and those that wait, oldest first. Every method may be called anywhere.

  most: orders that may wait, of all sessions and of one.
  """

  def __init__(self, store: Store, most: int = 200, most_of_one: int = 16):
    self.store, self.most, self.most_of_one = store, most, most_of_one
    self._orders: dict[str, Order] = {}
    self._waiting: collections.deque[Order] = collections.deque()
    self._changed = threading.Condition()
    self._open, self._running = True, 0  # whether the worker goes on, and the orders that it has
    for order in sorted(self._read(), key=lambda order: order.created):
      self._orders[order.id] = order
      if order.state not in ENDED:  # a server that ended while it computed begins the rest again
        order.state = 'waiting'
        self._waiting.append(order)

  def _read(self) -> Iterator[Order]:
    for path in self.store.sessions.glob(f'*/*/*{RECORD}'):
      found = store.read_record(path) or {}
      try:
        candidates = [Candidate(**one) for one in found.pop('candidates')]
        session = path.parent.parent.name
        order = Order(**found, session=session, folder=path.parent, candidates=candidates)
      except (KeyError, TypeError) as error:  # its results stay in the folder
        LOG.warning('%s is damaged and left out (%s)', path, error)
        continue
      yield order

  def new(self, session: str, folder: Path, asked: dict[str, Any], seeds: list[int]) -> Order:
    """An order that is not yet in the queue; its files can be written."""
    candidates = [Candidate(seed) for seed in seeds]
    return Order(secrets.token_hex(16), session, folder, asked, candidates, time.time())

  def add(self, order: Order) -> int:
    """Puts an order in the queue; returns the number of orders before it.

    Raises:
      Busy: if too many wait. OSError: if the disk is full.
    """
    with self._changed:
      self.room(order.session)
      order.save()
      self._orders[order.id] = order
      self._waiting.append(order)
      self._changed.notify_all()
      return self.position(order) or 0

  def room(self, session: str) -> None:
    """Raises Busy as `add` would, before the work of an upload is done."""
    with self._changed:
      mine = sum(other.session == session for other in self._waiting)
      if mine >= self.most_of_one:
        raise Busy(f'{mine} jobs of yours wait already: try again when one is done')
      if len(self._waiting) >= self.most:
        raise Busy(f'{len(self._waiting)} jobs wait already: try again later')

  def take(self) -> Order | None:
    """Waits for the next order, which is now running; None when the queue is closed."""
    with self._changed:
      self._changed.wait_for(lambda: self._waiting or not self._open)
      if not self._open:
        return None
      order = self._waiting.popleft()
      order.state, self._running = 'running', 1
      for other in [order, *self._waiting]:
        other.changed()
      return order

  def close(self) -> None:
    """Ends the worker: `take` gives no more orders, and the running one ends at its next step."""
    with self._changed:
      self._open = False
      self._changed.notify_all()

  @property
  def is_open(self) -> bool:
    return self._open

  def __len__(self) -> int:
    return len(self._waiting)

  def position(self, order: Order) -> int | None:
    """The number of orders before this one, with the running one; None if it does not wait."""
    with self._changed:
      for place, other in enumerate(self._waiting):
        if other is order:
          return place + self._running
    return None

  def get(self, session: str, name: str) -> Order:
    """An order of this session."""
    order = self._orders.get(name)
    if order is None or order.session != session:
      raise Missing(f'there is no job {name!r:.40} in this session')
    return order

  def any(self, name: str) -> Order | None:
    """An order of any session, for a link that carries its own key."""
    return self._orders.get(name)

  def of(self, session: str) -> list[Order]:
    """The orders of a session, the newest first."""
    with self._changed:
      found = [order for order in self._orders.values() if order.session == session]
    return sorted(found, key=lambda order: -order.created)

  def finish(self, order: Order, state: str, error: str | None = None) -> None:
    """Ends an order. A full disk keeps this from the file, but not from those who follow it."""
    with self._changed:
      if order.state == 'running':
        self._running = 0
      order.state, order.error, order.progress = state, error, None
      try:
        order.save()
      except OSError as problem:
        order.notes.append(explain(problem) or str(problem))
      order.changed()

  def cancel(self, order: Order) -> None:
    """Ends an order that waits or runs; removes one that has ended, with its results."""
    with self._changed:
      if order.state == 'waiting':
        self._waiting.remove(order)
        self.finish(order, 'cancelled')
        for other in self._waiting:
          other.changed()
      elif order.state == 'running':
        order.cancelled = True
      else:
        del self._orders[order.id]
        order.remove()
