"""Runs many edits through a few compiled functions: batches, devices, reading ahead, writing."""

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from exedit import images
from exedit.runtime import devices as on_devices
from exedit.runtime import parallel
from exedit.runtime.errors import UserError
from exedit.systems import System

THREADS = 4  # decode and encode files; Pillow releases the interpreter while it does


@dataclasses.dataclass(frozen=True)
class Work:
  """One edit to make.

  item: whatever `read` and `write` of `Engine.run` take.
  size: height and width of the pictures that the network sees.
  settings: the network's (`systems.network_settings`).
  given: names of the optional inputs that the edit has; only edits with the same share a batch.
  """

  item: Any
  size: tuple[int, int]
  settings: Mapping[str, Any]
  given: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Batch:
  """Edits that go through one compiled function together, filled up to `rows`.

  size: the pictures' size, grown to the network's multiple.
  """

  works: tuple[Work, ...]
  rows: int
  size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Result:
  """The network's answer to one edit, raw, at the size of the work.

  kept: the second value of `read`. per_device: the rows of the batch on each device. seen: what
  else `System.edit` tells of this edit.
  """

  item: Any
  raw: Float[np.ndarray, 'h w 3']
  kept: Any
  per_device: int
  seen: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Engine:
  """A system's model on devices of this process."""

  def __init__(self, system: System, model: Any, devices: Sequence[Any]):
    assert system.edit is not None  # `systems.editing` refuses other systems
    self.system, self.model, self.devices = system, model, devices
    self.multiple = model.multiple()
    if len(devices) > 1:
      graph, params = nnx.split(model)
      params = on_devices.everywhere(params, devices)
      self._compiled = functools.cache(functools.partial(_compile, system, graph, params, devices))

  def edit(
    self,
    arrays: Mapping[str, np.ndarray],
    keys: jax.Array,
    size: tuple[int, int],
    settings: Mapping[str, Any],
  ) -> Any:
    """`System.edit`, without waiting for it. The devices must share out the rows evenly.

    The result does not depend on the number of devices, only on the rows of each.
    """
    if len(self.devices) > 1:
      return self._compiled(size, tuple(sorted(settings.items())))(dict(arrays), keys)
    on_device = {name: jnp.asarray(array) for name, array in arrays.items()}
    assert self.system.edit is not None
    return self.system.edit(self.model, on_device, keys, size, **settings)

  def groups(self, works: Sequence[Work]) -> dict[Hashable, list[Work]]:
    """The works that share a compiled function: one size, grown to the multiple, one setting."""
    found: dict[Hashable, list[Work]] = {}
    for work in works:
      key = (self._grown(work.size), tuple(sorted(work.settings.items())), work.given)
      found.setdefault(key, []).append(work)
    return found

  def batches(
    self, works: Sequence[Work], rows: int, wanted: Callable[[Any], bool] = lambda item: True
  ) -> list[Batch]:
    """The works whose item is wanted, in batches of `rows`, or of the group if that is smaller.

    The number of rows is a multiple of the number of devices. It does not depend on what is wanted,
    so the rest of an interrupted run goes through the same compiled functions as the whole run.
    """
    found = []
    for group in self.groups(works).values():
      size = min(rows, len(group) + -len(group) % len(self.devices))
      left = [work for work in group if wanted(work.item)]
      grown = self._grown(group[0].size)
      found += [Batch(tuple(left[i : i + size]), size, grown) for i in range(0, len(left), size)]
    return found

  def run(
    self,
    batches: Sequence[Batch],
    read: Callable[[Any], tuple[Mapping[str, np.ndarray], Any]],
    write: Callable[[Result], Any],
    *,
    key: Callable[[Any], jax.Array],
    bad: Callable[[Any, str], Any] | None = None,
    arrived: Callable[[int], Any] = lambda count: None,
    lag: int = 0,
  ) -> Iterator[list[Any]]:
    """Makes the batches; yields what `write` returned for each batch, once it is written.

    A batch is made in parts if `read` gives its edits arrays of different names.

    The inputs of the next batches are read, and the last results are written, by threads while the
    devices compute. The results of an edit depend on no other edit of its batch.

    Args:
      read: an item -> its arrays by input name, and a value for `Result.kept`. write: saves one
        result. Both run in threads.
      key: the random key of an item.
      bad: gets an item that `read` refused with a UserError or OSError, and the reason; the item is
        left out. None: the reason is raised.
      arrived: gets the number of results of each batch when the devices have computed it.
      lag: the number of batches that may still be being written while the next one is computed.
    Raises:
      UserError: of `write`, or of `read` if `bad` is None.
    """
    with threads() as pool:
      writing: deque[list[Future]] = deque()
      for results in self._computed(batches, read, key, bad or _refuse, pool):
        arrived(len(results))
        writing.append([pool.submit(write, result) for result in results])
        if len(writing) > lag:
          yield [future.result() for future in writing.popleft()]
      while writing:
        yield [future.result() for future in writing.popleft()]

  def _computed(self, batches, read, key, bad, pool: Executor) -> Iterator[list[Result]]:
    """The results of each batch, while the next batch is on the devices."""
    depth = 2 * max((batch.rows for batch in batches), default=1)
    works = [work.item for batch in batches for work in batch.works]
    inputs = parallel.ahead(pool, read, works, depth)
    waiting = None
    for batch in batches:
      ready = []
      for work, found in zip(batch.works, inputs):
        if isinstance(found, str):
          bad(work.item, found)
        else:
          ready.append((work, *found))
      for part in _alike(ready):
        started = (batch, part, self._start(batch, part, key))
        if waiting is not None:
          yield self._arrived(*waiting)
        waiting = started
    if waiting is not None:
      yield self._arrived(*waiting)

  def _start(self, batch, ready, key) -> Any:
    """Starts one batch on the devices; its last edit fills the empty rows."""
    filled = [*ready, *[ready[-1]] * (batch.rows - len(ready))]
    keys = jnp.stack([key(work.item) for work, _, _ in filled])
    grow = {entry.name for entry in self.system.inputs_of('photo', 'mask')}
    stacked = {
      name: np.stack(
        [
          images.pad_to_multiple(arrays[name], self.multiple) if name in grow else arrays[name]
          for _, arrays, _ in filled
        ]
      )
      for name in filled[0][1]
    }
    return self.edit(stacked, keys, batch.size, filled[0][0].settings)

  def _arrived(self, batch, ready, raw) -> list[Result]:
    per_device = batch.rows // len(self.devices)
    pictures, seen = jax.tree.map(np.asarray, raw if isinstance(raw, tuple) else (raw, {}))
    return [
      Result(
        work.item, pictures[i, : work.size[0], : work.size[1]], kept, per_device,
        {name: array[i] for name, array in seen.items()},
      )
      for i, (work, _, kept) in enumerate(ready)
    ]  # fmt: skip

  def _grown(self, size):
    return tuple(side + -side % self.multiple for side in size)


def _compile(system, graph, params, devices, size, settings):
  """`System.edit` of (arrays, keys) over several devices."""

  def share(params, arrays, keys):
    return system.edit(nnx.merge(graph, params), arrays, keys, size, **dict(settings))

  return on_devices.over_devices(share, params, devices)


def _alike(ready):
  """The works of a batch in parts with arrays of the same names: an older edit may leave some."""
  parts: dict[Hashable, list] = {}
  for one in ready:
    parts.setdefault(frozenset(one[1]), []).append(one)
  return parts.values()


def _refuse(item, why):
  raise UserError(why)


def share_out(
  batch_size: int | None, per_device: int, count: int
) -> tuple[list[Any], int, list[str]]:
  """The devices for `count` edits, the rows of a batch, and notes for the user.

  There are no more devices than edits, and each gets the same number of rows: `per_device`, unless
  a batch size for all devices together is given.
  """
  devices = jax.local_devices()[: max(count, 1)]
  rows = -(-(batch_size or per_device * len(devices)) // len(devices)) * len(devices)
  if batch_size is None or rows == batch_size:
    return devices, rows, []
  shared = f'as many for each of {len(devices)} devices'
  return devices, rows, [f'batches of {rows}, not {batch_size}: {shared}']


@contextlib.contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
  """Threads for files; work that has not begun is dropped when the block ends."""
  pool = ThreadPoolExecutor(THREADS, 'files')
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)
