"""The worker: one thread that owns the device and makes the edits of the queue, as the shell would.

Each candidate goes through `Session.run`, as an edit of `exedit.sample` does, so that its file is
the same byte for byte. The program is a watched one (`diffusion.watch`): it tells its steps, and
ends between two of them.
"""

import dataclasses
import logging
import os
import re
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exedit import systems
from exedit.diffusion import watch
from exedit.editing import edit_files, jobs
from exedit.editing.engine import Engine
from exedit.editing.session import Pace, Session
from exedit.page.look import Colours
from exedit.page.orders import Order, Progress, Queue
from exedit.page.ranking import Ranking
from exedit.runtime.errors import UserError, explain

LOG = logging.getLogger('exedit.page')
PROGRAMS = 32  # compiled for different settings and sizes; with more, all are forgotten


class Ended(Exception):
  """The watcher of an order ends its program."""


class Editor:
  """Weights to edit with; `load` reads them onto the device."""

  def __init__(self, name: str, session: Session):
    self.name, self.session, self.system = name, session, session.system
    self.engine: Engine | None = None
    self.colours: Colours | None = None

  def load(self) -> Engine:
    if self.engine is None:
      self.engine = self.session.load(jax.local_devices()[:1])
      self.colours = Colours(self.engine.model)
    return self.engine

  def forget(self) -> None:
    """Frees the device for other weights."""
    self.engine = self.colours = None

  def check(self, given: Mapping[str, Any], output: Path) -> jobs.Job:
    """One edit whose files were checked. given: inputs (files as paths) and settings by name.

    Raises:
      UserError: the shell's, with the names of files without their folder.
    """
    session = self.session
    own = lambda settings: session.settings(**settings)
    try:
      return edit_files.check_once(
        session.system, own, given, str(output), session.trained, session.tokenizer, session.grid
      )[1]
    except UserError as error:
      raise UserError(plain(str(error), output.parent)) from None

  def check_seeds(self, job: jobs.Job, seeds: Sequence[int]) -> None:
    """Raises UserError if all seeds would give one picture."""
    if why := edit_files.why_equal(job.edit, self.system, len(set(seeds))):
      raise UserError(why)

  def inputs(self, region: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The inputs of a region, whose files lie in this folder."""
    texts = {entry.name for entry in self.system.inputs_of('text')}
    return {n: v if n in texts else os.path.join(folder, v) for n, v in region.items()}

  @property
  def photo(self) -> str | None:
    """The name of the system's photo input."""
    return next((entry.name for entry in self.system.inputs_of('photo')), None)


def plain(message: str, folder: Path) -> str:
  """A message without the folder of an order and its id."""
  message = message.replace(f'{folder}{os.sep}', '').replace(str(folder), 'the data folder')
  return re.sub(r'\b[0-9a-f]{32}-', '', message)


def open_editors(weights: Sequence[str], **how: Any) -> dict[str, Editor]:
  """The editors of these weights by name: the last part of the path, numbered if it is not unique.

  how: arguments of `Session`.

  Raises:
    UserError: for weights that cannot be edited with.
  """
  found: dict[str, Editor] = {}
  for path in weights:
    stem = os.path.basename(os.path.normpath(path)) or path
    name, number = stem, 1
    while name in found:
      number += 1
      name = f'{stem}-{number}'
    found[name] = Editor(name, Session(path, **how))
  return found


class Worker:
  """The thread that makes the orders of a queue.

  seconds: the longest time for one order. ranking: gives each candidate a score, if there is one.
  """

  def __init__(
    self,
    editors: Mapping[str, Editor],
    queue: Queue,
    seconds: float,
    ranking: Ranking | None = None,
  ):
    self.editors, self.queue, self.seconds, self.ranking = editors, queue, seconds, ranking
    self.ready = threading.Event()
    self.ended: dict[str, int] = {}  # orders by how they ended
    self.times: list[float] = [0, 0.0]  # candidates, and their seconds
    self._programs: set[Hashable] = set()
    self._thread = threading.Thread(target=self._run, name='worker', daemon=True)

  def start(self) -> None:
    logging.getLogger('jax._src.callback').addFilter(_unexpected)
    self._thread.start()

  def stop(self, timeout: float = 20) -> None:
    """Ends the thread, between two steps of the running order, which then waits for a restart."""
    self.queue.close()
    if self._thread.is_alive():
      self._thread.join(timeout)

  @property
  def alive(self) -> bool:
    return self._thread.is_alive()

  def _run(self) -> None:
    try:
      next(iter(self.editors.values())).load()
      self.ready.set()
    except Exception as error:  # told again by the first order
      LOG.error('the weights cannot be loaded: %s', explain(error) or error)
    while (order := self.queue.take()) is not None:
      state, error = self._order(order)
      if state:
        self.ended[state] = self.ended.get(state, 0) + 1
        self.queue.finish(order, state, error)

  def _order(self, order: Order) -> tuple[str, str | None]:
    """Makes an order; returns how it ended, and why; '' if the server ends."""
    until = time.monotonic() + self.seconds
    try:
      editor = self._editor(order.asked['weights'])
      for index, candidate in enumerate(order.candidates):
        if candidate.result is None:
          self._candidate(editor, order, index, until)
      return 'done', None
    except Exception as error:
      if order.cancelled:
        return 'cancelled', None
      if not self.queue.is_open:
        return '', None
      if time.monotonic() > until:
        limit = f'it took longer than the {self.seconds:.0f} seconds that a job may take'
        return 'failed', f'{limit}: take fewer steps, or fewer seeds'
      if (why := explain(error)) is not None:
        return 'failed', plain(why, order.folder)
      LOG.exception('an edit failed')
      return 'failed', f'the edit failed ({type(error).__name__}); the log of the server has more'

  def _editor(self, name: str) -> Editor:
    """The loaded editor of these weights; the others leave the device."""
    if name not in self.editors:
      raise UserError(f'the weights {name} are no longer served: use {", ".join(self.editors)}')
    for other in self.editors.values():
      if other.name != name:
        other.forget()
    self.editors[name].load()
    self.ready.set()
    return self.editors[name]

  def _candidate(self, editor: Editor, order: Order, index: int, until: float) -> None:
    """Makes one picture: its regions one after the other, each on the result of the one before."""
    started, regions, before = time.perf_counter(), order.asked['regions'], None
    candidate = order.candidates[index]
    for number, region in enumerate(regions):
      given = editor.inputs(region, order.folder)
      if before is not None:
        given[editor.photo or ''] = str(before)
      last = number == len(regions) - 1
      output = order.result(index) if last else order.path(str(index), f'{number}.png')
      job = editor.check(given | order.asked['settings'] | dict(seed=candidate.seed), output)
      self._edit(editor, order, job, Progress(index, number, len(regions)), until)
      before = output
    if self.ranking is not None:
      candidate.score = self.ranking.score(output, regions, editor.system)
    candidate.seconds = round(time.perf_counter() - started, 3)
    candidate.result = f'{order.id}-{index}'
    self.times[0] += 1
    self.times[1] += candidate.seconds
    order.save()
    order.changed()

  def _edit(
    self, editor: Editor, order: Order, job: jobs.Job, progress: Progress, until: float
  ) -> None:
    """Makes one edit."""
    engine, session = editor.load(), editor.session
    frame = job.frame
    place = frame.left, frame.top, frame.right, frame.bottom
    progress = dataclasses.replace(progress, frame=place)
    seen: list[tuple[np.ndarray, int]] = []

    def check():
      if order.cancelled or not self.queue.is_open or time.monotonic() > until:
        raise Ended

    def told(x, done, reached):
      check()
      t = reached[done - 1]
      before = [one for one in seen[-2:] if done > 1 and one[1] != t]  # PLMS reaches one twice
      seen[:] = [*before[-1:], (np.array(x[0], np.float32), t)]
      look = _look(editor.colours, [*seen], frame.size) if len(seen) > 1 else None
      steps = len(reached)
      order.progress = dataclasses.replace(progress, step=done, steps=steps, looked=look)
      order.changed()

    check()
    order.progress = progress
    order.changed()
    works = session.works([job])
    batches = engine.batches(works, 1)
    self._programs.update((editor.name, key) for key in engine.groups(works))
    if len(self._programs) > PROGRAMS:
      jax.clear_caches()
      self._programs.clear()
    with watch.watching(told):
      for _ in session.run(engine, batches, pace=Pace()):
        pass


def _unexpected(record: logging.LogRecord) -> bool:
  """Whether JAX's report of a callback that raised is worth a line in the log."""
  return record.exc_info is None or not isinstance(record.exc_info[1], Ended)


def _look(colours, seen, size):
  """A function that makes the preview of what was seen, when somebody asks for it."""
  return lambda: colours.png(*seen, size)


def defaults(editor: Editor) -> dict[str, Any]:
  """The settings of these weights where a user gives none."""
  return dataclasses.asdict(editor.session.settings())


def network(editor: Editor) -> tuple[str, ...]:
  """The names of the settings that the network takes."""
  return tuple(systems.network_settings(editor.session.settings()))
