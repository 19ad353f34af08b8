"""One run of the sample door: weights found, the model on its devices, outputs with recipes."""

import contextlib
import dataclasses
import functools
import glob
import inspect
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from exedit import images, systems
from exedit import paint_by_example as pbe
from exedit.editing import edits, repaint, room
from exedit.editing import recipe as recipes
from exedit.models.clip import CLIPVision
from exedit.weights import find

THREADS = 4  # decode and encode files; Pillow lets go of the interpreter while it does


@dataclasses.dataclass(frozen=True)
class Made:
  """One written output."""

  job: edits.Job
  path: str
  recipe: recipes.Recipe


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model on its devices."""

  edit: Callable[..., jax.Array]
  multiple: int  # of pixels, that the sides of what it sees must be
  devices: int


@dataclasses.dataclass
class Pace:
  """Seconds by the clock, the first batch apart: it waits for the compiler."""

  began: float = 0.0
  first: float = 0.0
  first_count: int = 0
  count: int = 0
  last: float = 0.0

  def start(self) -> None:
    """Now the first batch begins."""
    self.began = time.perf_counter()

  def made(self, count: int) -> None:
    """Now a batch of so many is done."""
    self.last = time.perf_counter() - self.began
    if not self.count:
      self.first, self.first_count = self.last, count
    self.count += count

  def text(self) -> str:
    """'first 12.3 s with compiling, then 2.1 s each'."""
    batch = 'first' if self.first_count == 1 else f'first {self.first_count} in'
    words = f'{batch} {self.first:.1f} s with compiling'
    rest = self.count - self.first_count
    return words + (f', then {(self.last - self.first) / rest:.2g} s each' if rest else '')


class Session:
  """Weights to edit with: looked at when made, loaded when work begins."""

  def __init__(
    self,
    weights: str,
    *,
    which: str = 'ema',
    revision: str | None = None,
    precision: str | None = None,
    keep_recipes: bool = True,
  ):
    self.found = find.weights(weights, which, revision)
    self.config = self.found.config
    self.system = systems.of(self.found)
    self.trained = systems.trained_on(self.system, self.config, 'size')
    self.most_steps = systems.most_steps(self.config)
    sizes = inspect.signature(CLIPVision.__init__).parameters['image_size'].default
    self.exemplar_size = self.config['model'].get('clip', {}).get('image_size', sizes)
    self.precision = precision or self.config['model'].get('dtype', 'float32')
    self.keep_recipes = keep_recipes
    self._weights = weights
    self._named = dict(which=which, revision=revision, step=self.found.step)
    self._lock, self._digest = threading.Lock(), ''
    self._fingerprint = functools.cache(recipes.fingerprint)

  @property
  def digest(self) -> str:
    """What names the weights in a recipe; hashed once, whichever thread asks first."""
    with self._lock:
      if not self._digest:
        model = self.system.complete(self.config['model'])
        self._digest = recipes.identity(self.found.digest(), model)
    return self._digest

  @functools.cached_property
  def versions(self) -> dict[str, Any]:
    return recipes.versions()

  def settings(self, *, steps=None, scale=None, sampler=None, **given: Any) -> edits.Settings:
    """The settings given, else the weights' own, else the defaults; UserError for a wrong one."""
    where = self.found.where
    own = systems.edit_settings(
      self.system, self.config, where, steps=steps, scale=scale, sampler=sampler
    )
    return edits.defaults(own | given)

  def asked(self, edit: edits.Edit) -> dict[str, Any]:
    """`Recipe.asked` of an output that this session would make."""
    return dict(
      weights=self.digest,
      inputs={name: self._fingerprint(path) for name, path in edit.inputs().items()},
      settings=dataclasses.asdict(edit.settings),
      precision=self.precision,
    )

  def state(self, job: edits.Job) -> str:
    """'yes', 'no' or 'changed': see `recipe.finished`."""
    if not os.path.exists(images.recipe_path(job.edit.output)):
      return 'no'
    with room.PHOTOS.taken(job.pixels):
      return recipes.finished(job.edit.output, self.asked(job.edit))

  def load(self, devices: Sequence[Any]) -> Loaded:
    """Read the weights onto these devices; UserError where that cannot be."""
    model = pbe.load(self.found, dtype=self.precision)
    return Loaded(repaint.program(model, devices), model.multiple(), len(devices))

  def run(
    self,
    loaded: Loaded,
    work: Sequence[repaint.Batch],
    *,
    bad: Callable[[edits.Job, str], Any],
    pace: Pace,
    known: tuple[repaint.Originals, repaint.Inputs] | None = None,
    lag: int = 0,
  ) -> Iterator[list[Made]]:
    """Make these batches; yields each once its files are written.

    Args:
      bad: gets each job whose files cannot be decoded, and why.
      pace: counts each batch when the device is done with it.
      known: the decoded files of all jobs, where they are one photo's samples. Else each photo is
        decoded twice, before and after the device's work, so that those that wait for it take up
        no memory: at most `room.PIXELS` are in work at once, whatever the list holds.
      lag: batches that may still be being written while the next is computed.
    Raises:
      UserError: for a result that is not finite.
    """
    own, inputs = known or (None, None)
    read = lambda job: inputs or self.read(job)
    with workers() as pool:
      pool.submit(lambda: self.keep_recipes and self.digest)  # while the compiler works
      pace.start()
      writing: deque[list[Future]] = deque()
      results = repaint.run(work, loaded.edit, read, pool, multiple=loaded.multiple, bad=bad)
      for batch in results:
        pace.made(len(batch))
        writing.append([pool.submit(self.write, result, loaded.devices, own) for result in batch])
        if len(writing) > lag:
          yield [future.result() for future in writing.popleft()]
      while writing:
        yield [future.result() for future in writing.popleft()]

  def read(self, job: edits.Job) -> repaint.Inputs:
    """What the network sees of one job's files; UserError where one is damaged."""
    with room.PHOTOS.taken(job.pixels):
      return repaint.see(job, repaint.originals(job), self.exemplar_size)

  def write(
    self, result: repaint.Result, devices: int, own: repaint.Originals | None = None
  ) -> Made:
    """Save one output, its recipe in it and beside it."""
    with room.PHOTOS.taken(result.job.pixels):
      return self._write(result, devices, own or repaint.originals(result.job))

  def _write(self, result, devices, own) -> Made:
    edit = result.job.edit
    pixels = repaint.pixels(result, own)
    folder = os.path.dirname(edit.output)
    recipe = recipes.Recipe(
      weights=dict(
        source=recipes.relative(self._weights, folder),
        **self._named,
        digest=self.digest if self.keep_recipes else '',
      ),
      inputs={
        name: dict(path=recipes.relative(path, folder), sha256=self._fingerprint(path))
        for name, path in edit.inputs().items()
      },
      settings=edit.settings,
      precision=self.precision,
      frame=result.job.frame,
      batch=result.rows // devices,
      versions=self.versions,
      output=recipes.describe(edit.output, pixels),
    )
    text = recipe.text() if self.keep_recipes else None
    if text is None:
      recipes.forget(edit.output)
    path = images.save(pixels, edit.output, icc_profile=own.photo.icc_profile, recipe=text)
    return Made(result.job, path, recipe)


@contextlib.contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
  """Threads for files; what is queued is dropped when the work ends early."""
  pool = ThreadPoolExecutor(THREADS, 'files')
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def share_out(
  batch_size: int | None, per_device: int, count: int
) -> tuple[list[Any], int, list[str]]:
  """Devices for so many edits, rows of a batch, and a note where these are not what was asked for.

  No more devices than edits, each with the same number of rows: `per_device` unless a batch size
  for all together is given.
  """
  devices = jax.local_devices()[: max(count, 1)]
  rows = -(-(batch_size or per_device * len(devices)) // len(devices)) * len(devices)
  if batch_size is None or rows == batch_size:
    return devices, rows, []
  shared = f'as many for each of {len(devices)} devices'
  return devices, rows, [f'batches of {rows}, not {batch_size}: {shared}']


def sweep(outputs: Sequence[str]) -> None:
  """Remove what a killed run left under a temporary name in the place of these outputs."""
  for output in outputs:
    for path in (output, images.recipe_path(output)):
      for left in glob.glob(f'{glob.escape(path)}.*.tmp'):
        found = re.fullmatch(r'\.(\d+)\.\d+\.tmp', left[len(path) :])
        if found and not _runs(int(found[1])):
          with contextlib.suppress(OSError):
            os.remove(left)


def _runs(process: int) -> bool:
  """Whether it is running on this machine, and not this one itself."""
  try:
    os.kill(process, 0)
  except (ProcessLookupError, OverflowError):
    return False
  except OSError:  # somebody else's
    return True
  return process != os.getpid()
