"""Checkpoints of one run: asynchronous, atomic, verified when read, restorable onto another mesh.

`<workdir>/checkpoints/<step>/state` is Orbax's; beside it stands `digest`, a JSON of every array's
shape, type and checksum, because Orbax restores flipped bits without an error (engineering facts
3.4). The frozen parameters are written once, to `<workdir>/frozen.safetensors`.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from safetensors.numpy import save_file

from exedit.runtime import checksums, remote, signals
from exedit.runtime.checksums import Damaged
from exedit.runtime.errors import disk_is_full
from exedit.training.state import TrainState
from exedit.training.workdir import path_of, trouble
from exedit.weights.formats.run import FROZEN, CheckpointError, crc32, damage, read_frozen

PASSING = 'UNAVAILABLE|DEADLINE_EXCEEDED|HttpError|Client[A-Za-z]*Error|Timeout'  # of a network


class Checkpoints:
  """Saves and restores the state of the run in `workdir`.

  keep: how many of the newest stay. keep_every: also every checkpoint whose step is a multiple.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    keep: int = 3,
    keep_every: int | None = None,
    say: Callable[[str], None] = print,
  ):
    self.folder = path_of(workdir) / 'checkpoints'
    self._say, self._keep, self._keep_every = say, keep, keep_every
    logging.getLogger('absl').addFilter(_not_orbax)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, keep_period=keep_every, cleanup_tmp_directories=True
    )
    with signals.held():
      self._manager = ocp.CheckpointManager(self.folder, options=options)

  def save(self, step: int, state: TrainState) -> None:
    """Start writing; returns as soon as the arrays are copied from the devices."""
    if step in self._manager.all_steps():
      return
    self.require_space(state)
    seal = checksums.seal(checksums.named(state))
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave(seal))
    self._writing(lambda: self._manager.save(step, args=items))

  def wait(self) -> None:
    """Return when everything saved so far is on the disk."""
    self._writing(self._manager.wait_until_finished)

  def close(self) -> None:
    self._writing(self._manager.close)

  @signals.held()
  def restore(self, like: TrainState) -> TrainState | None:
    """The newest good checkpoint, laid out as `like` (arrays or shapes with shardings) says.

    None where there is none. A damaged one is said aloud, set aside and the one before it used;
    CheckpointError if all are damaged, or if they belong to another model or optimizer.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    damaged = {}
    for step in steps:
      try:
        state = self._read(step, like)
      except Damaged as why:
        damaged[step] = why
        continue
      for other, why in damaged.items():
        self._say(f'checkpoint {other} is damaged ({why}): using checkpoint {step} instead')
        self._set_aside(other)
      return state
    if damaged:
      step, why = next(iter(damaged.items()))
      raise CheckpointError(
        f'none of the {len(damaged)} checkpoints in {self.folder} can be read '
        f'({step}: {why}): restore the folder from a copy, or start in another workdir'
      )
    return None

  def tidy(self) -> None:
    """Remove what the next save would: a run that was killed as it did so may be at its end."""
    for step in sorted(self._manager.all_steps())[: -self._keep]:
      if not self._keep_every or step % self._keep_every:
        self._manager.delete(step)

  def _read(self, step: int, like: TrainState) -> TrainState:
    seal = _seal(self.folder / str(step))
    _compare(seal, checksums.named(like), self.folder / str(step))
    target = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like
    )
    try:
      items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
      state = self._manager.restore(step, args=items)['state']
    except Exception as error:
      raise _damage_or_not(error, self.folder) from error
    checksums.verify(checksums.named(state), seal)
    return state

  def _set_aside(self, step: int) -> None:
    """Move a damaged checkpoint out of the way, to where a person can look at it."""
    if jax.process_index() == 0:
      aside = self.folder.parent / 'damaged_checkpoints' / str(step)
      if aside.exists():
        aside.rmtree()
      if remote.is_remote(aside):
        remote.move(f'{self.folder}/{step}', os.fspath(aside))
      else:
        aside.parent.mkdir(exist_ok=True)
        (self.folder / str(step)).rename(aside)
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      multihost_utils.sync_global_devices(f'set aside checkpoint {step}')
    self._manager.reload()

  def require_space(self, state: TrainState) -> None:
    """Refuse early what has no room: a checkpoint, its bookkeeping, and a little for the logs."""
    if remote.is_remote(self.folder):
      return
    arrays = jax.tree.leaves(state)
    need = sum(a.size * a.dtype.itemsize for a in arrays) // jax.process_count()
    need = int(1.05 * need) + 4096 * len(arrays) + 2**20
    free = shutil.disk_usage(self.folder).free
    if need > free:
      raise CheckpointError(_no_space(self.folder, need, free))

  def _writing(self, action: Callable[[], Any]) -> None:
    """Do it; where the disk is full say so in one line and leave nothing half-written."""
    try:
      action()
    except Exception as error:
      if remote.is_remote(self.folder):
        raise trouble(self.folder.parent, error) from error
      if not disk_is_full(error):
        raise
      if jax.process_index() == 0:
        for path in self.folder.glob('*orbax-checkpoint-tmp*'):
          shutil.rmtree(path, ignore_errors=True)
      free = shutil.disk_usage(self.folder).free
      raise CheckpointError(_no_space(self.folder, None, free)) from error


def save_frozen(
  workdir: str | os.PathLike, params: Mapping[str, jax.Array], scratch: str | None = None
) -> None:
  """Write the frozen parameters, atomically, each with its CRC-32 in the header.

  scratch: a folder of this machine, on their way to a store.
  """
  if jax.process_index() != 0:
    return
  path = path_of(workdir) / FROZEN
  arrays = {name: np.asarray(value) for name, value in params.items()}
  crc = {name: crc32(a) for name, a in arrays.items()}
  folder = (scratch or tempfile.gettempdir()) if remote.is_remote(path) else path.parent
  temporary = Path(folder, f'{FROZEN}.{os.getpid()}.tmp')
  try:
    save_file(arrays, temporary, metadata={'crc32': json.dumps(crc)})
    temporary.chmod(0o644)  # safetensors writes for the owner alone
    if remote.is_remote(path):
      remote.put(str(temporary), os.fspath(path))
    else:
      os.replace(temporary, path)
  except Exception as error:
    if not disk_is_full(error):
      if not remote.is_remote(path):
        raise
      raise trouble(workdir, error) from error
    need = sum(a.nbytes for a in arrays.values())
    raise CheckpointError(_no_space(temporary, need, shutil.disk_usage(folder).free)) from error
  finally:
    temporary.unlink(missing_ok=True)


def load_frozen(workdir: str | os.PathLike, scratch: str | None = None) -> dict[str, np.ndarray]:
  """The frozen parameters of a run, verified; CheckpointError where they are missing or damaged.

  scratch: a folder of this machine, on their way from a store.
  """
  path = path_of(workdir) / FROZEN
  if not remote.is_remote(path):
    return read_frozen(path)
  try:
    with tempfile.TemporaryDirectory(suffix='.tmp', dir=scratch) as folder:
      local = os.path.join(folder, FROZEN)
      with contextlib.suppress(FileNotFoundError):
        remote.get(os.fspath(path), local)
      return read_frozen(local, os.fspath(path))
  except OSError as error:
    raise trouble(workdir, error) from error


def _seal(path: epath.Path) -> dict[str, dict]:
  """`read_seal`, what a store raises in words."""
  try:
    return checksums.read_seal(path)
  except Damaged:
    raise
  except Exception as error:
    raise _damage_or_not(error, path.parent) from error


def _compare(seal: Mapping[str, dict], wanted: Mapping[str, Any], path: epath.Path) -> None:
  """Refuse a checkpoint of another model or optimizer, naming the first difference."""
  for name in sorted(set(seal) | set(wanted)):
    saved = str(seal[name]['shape']) if name in seal else 'absent'
    here = str(tuple(wanted[name].shape)) if name in wanted else 'absent'
    if saved != here:
      raise CheckpointError(
        f'{path} was written with other settings ({name}: there {saved}, here {here}): '
        'use the settings in its config.json, or another workdir'
      )


def _damage_or_not(error: Exception, folder: epath.Path) -> Exception:
  """A failed read is damage, except where machine, network or rights failed a good checkpoint."""
  found = damage(error)
  if found is error:
    return error
  if remote.is_remote(folder) and not isinstance(error, FileNotFoundError):
    words = f'{type(error).__name__}: {error}'.replace(str(folder), '')
    if isinstance(error, OSError) or remote.refused(error) or re.search(PASSING, words):
      return trouble(folder.parent, error)
  return found


def _no_space(path: os.PathLike, need: int | None, free: int) -> str:
  needs = '' if need is None else f'needs {_size(need)}, '
  return (
    f'no space left for {path}: {needs}{_size(free)} free; free some, keep fewer '
    'checkpoints (--config.checkpoint.keep), or choose another workdir'
  )


def _not_orbax(record: logging.LogRecord) -> bool:
  """Orbax logs every file it writes, and prints each error that it raises as well."""
  return f'{os.sep}orbax{os.sep}' not in record.pathname


def _size(count: int) -> str:
  power = min(int(math.log(max(count, 1), 1000)), 4)
  return f'{count / 1000**power:.3g} {("B", "kB", "MB", "GB", "TB")[power]}'
