"""Checkpoints of a run: asynchronous, atomic, verified, restorable onto another mesh.

`WORKDIR/checkpoints/STEP/state` is Orbax's. `digest` beside it stores every array's shape, type and
checksum (see runtime/checksums.py). The parameters that do not train are written once, to
`WORKDIR/frozen.safetensors`; a run with an outcome (`systems.System`) writes only what they are, to
`WORKDIR/frozen.json`.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from exedit.runtime import checksums, files, processes, remote, signals
from exedit.runtime.checksums import Damaged
from exedit.runtime.errors import disk_is_full
from exedit.training.state import TrainState
from exedit.training.workdir import path_of, trouble
from exedit.weights.formats.run import (
  FROZEN,
  REFERENCE,
  CheckpointError,
  crc32,
  damage,
  newest_good,
  read_frozen,
)
from exedit.weights.formats.safetensors import save_tensors

# Words of errors of a network, which may be gone at the next attempt.
PASSING = 'UNAVAILABLE|DEADLINE_EXCEEDED|HttpError|Client[A-Za-z]*Error|Timeout'
REMEDY = 'keep fewer checkpoints (--config.checkpoint.keep), or choose another workdir'


class Checkpoints:
  """Saves and restores the state of the run in `workdir`.

  keep: number of the newest checkpoints to keep. keep_every: also keep each checkpoint whose step
  is a multiple of this. say: prints a line for people.
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
    make = lambda: ocp.CheckpointManager(self.folder, options=options)
    with signals.delayed():
      try:
        self._manager = make()
      except FileNotFoundError:
        # A thread of Orbax removes half-written checkpoints while Orbax lists them. A store's
        # folder with nothing else in it disappears then.
        self._manager = make()

  def save(self, step: int, state: TrainState) -> None:
    """Starts to write; returns as soon as the arrays are copied from the devices.

    Raises:
      UserError: if the disk has no space, or a store refuses.
    """
    if step in self._manager.all_steps():
      return
    self.require_space(state)
    seal = checksums.seal(checksums.named(state))
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), digest=ocp.args.JsonSave(seal))
    self._writing(lambda: self._manager.save(step, args=items))

  def wait(self) -> None:
    """Waits until everything saved so far is written."""
    self._writing(self._manager.wait_until_finished)

  def close(self) -> None:
    """Waits, and frees Orbax's threads."""
    self._writing(self._manager.close)

  @signals.delayed()
  def restore(self, like: TrainState) -> TrainState | None:
    """The newest undamaged checkpoint, with the shardings of `like`; None if there is none.

    like: arrays, or shapes with shardings. A damaged checkpoint is reported and set aside, and the
    one before it is used.

    Raises:
      CheckpointError: if all are damaged, or of another model or optimizer.
    """
    steps = self._manager.all_steps()
    if not steps:
      return None
    read = lambda step: self._read(step, like)
    state, _, damaged = newest_good(self.folder, steps, read, self._say)
    for step in damaged:
      self._set_aside(step)
    return state

  def tidy(self) -> None:
    """Removes old checkpoints as the next save would; a killed run may not have done so."""
    for step in sorted(self._manager.all_steps())[: -self._keep]:
      if not self._keep_every or step % self._keep_every:
        self._manager.delete(step)

  def _read(self, step: int, like: TrainState) -> TrainState:
    path = self.folder / str(step)
    target = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like
    )
    try:
      seal = checksums.read_seal(path)
      _require_same_model(seal, checksums.named(like), path)
      items = ocp.args.Composite(state=ocp.args.StandardRestore(target))
      state = self._manager.restore(step, args=items)['state']
    except (Damaged, CheckpointError):
      raise
    except Exception as error:
      raise _damage_or_not(error, self.folder) from error
    checksums.verify(checksums.named(state), seal)
    return state

  def _set_aside(self, step: int) -> None:
    """Moves a damaged checkpoint to `damaged_checkpoints`, so that this step can be saved again."""
    if jax.process_index() == 0:
      aside = self.folder.parent / 'damaged_checkpoints' / str(step)
      if aside.exists():
        aside.rmtree()
      if remote.is_remote(aside):
        remote.move(f'{self.folder}/{step}', os.fspath(aside))
      else:
        aside.parent.mkdir(exist_ok=True)
        (self.folder / str(step)).rename(aside)
    processes.wait_for_others(f'set aside checkpoint {step}')
    self._manager.reload()

  def require_space(self, state: TrainState) -> None:
    """Checks that the disk has space for a checkpoint and a little for the logs.

    Raises:
      UserError: if it does not.
    """
    if remote.is_remote(self.folder):
      return
    arrays = jax.tree.leaves(state)
    need = sum(a.size * a.dtype.itemsize for a in arrays) // jax.process_count()
    need = int(1.05 * need) + 4096 * len(arrays) + 2**20
    files.require_space(self.folder, need, REMEDY)

  def _writing(self, action: Callable[[], Any]) -> None:
    """Runs `action`; a full disk becomes a UserError, and half-written files are removed."""
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
      raise files.no_space(self.folder, remedy=REMEDY) from error


def save_frozen(workdir: str | os.PathLike, params: Mapping[str, jax.Array]) -> None:
  """Writes the frozen parameters, whole or not at all, with a CRC-32 for each in the header.

  Raises:
    UserError: if the disk has no space, or a store refuses.
  """
  if jax.process_index() != 0:
    return
  path = path_of(workdir) / FROZEN
  arrays = {name: np.asarray(value) for name, value in params.items()}
  metadata = {'crc32': json.dumps({name: crc32(a) for name, a in arrays.items()})}
  if not remote.is_remote(path):
    save_tensors(path, arrays, metadata)
    return
  with tempfile.TemporaryDirectory() as folder:
    local = os.path.join(folder, FROZEN)
    save_tensors(local, arrays, metadata)
    try:
      remote.put(local, os.fspath(path))
    except OSError as error:
      raise trouble(workdir, error) from error


def save_reference(
  workdir: str | os.PathLike, params: Mapping[str, jax.Array], source: str
) -> None:
  """Writes, instead of the frozen parameters, their source and a CRC-32 of each."""
  if jax.process_index() == 0:
    sums = {name: crc32(np.asarray(value)) for name, value in params.items()}
    text = files.json_text({'source': source, 'crc32': sums})
    path = path_of(workdir) / REFERENCE
    if remote.is_remote(path):
      remote.write(os.fspath(path), text.encode())
    else:
      files.write_text(path, text)


def require_reference(
  workdir: str | os.PathLike, arrays: Mapping[str, Any], source: str | None
) -> None:
  """Checks that arrays are the frozen parameters that the run was begun with.

  Raises:
    CheckpointError: if they are not.
  """
  path = f'{os.fspath(workdir).rstrip("/")}/{REFERENCE}'
  try:
    known = json.loads(remote.read(path))
    sums, begun = known['crc32'], known['source']
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise CheckpointError(f'{path} is missing or damaged ({error}): restore it') from error
  for name in sorted(sums.keys() | arrays.keys()):
    if name not in sums or name not in arrays or sums[name] != crc32(np.asarray(arrays[name])):
      raise CheckpointError(
        f'{workdir} was begun with other weights ({begun}) than {source} ({name} differs): name '
        'those as --config.init_from'
      )


def load_frozen(workdir: str | os.PathLike) -> dict[str, np.ndarray]:
  """The frozen parameters of a run, verified.

  Raises:
    CheckpointError: if they are missing or damaged. UserError: if a store refuses.
  """
  path = path_of(workdir) / FROZEN
  if not remote.is_remote(path):
    return read_frozen(path)
  try:
    with tempfile.TemporaryDirectory() as folder:
      local = os.path.join(folder, FROZEN)
      with contextlib.suppress(FileNotFoundError):
        remote.get(os.fspath(path), local)
      return read_frozen(local, os.fspath(path))
  except OSError as error:
    raise trouble(workdir, error) from error


def _require_same_model(
  seal: Mapping[str, dict], wanted: Mapping[str, Any], path: epath.Path
) -> None:
  """Refuses a checkpoint of another model or optimizer, and names the first difference."""
  for name in sorted(set(seal) | set(wanted)):
    saved = str(seal[name]['shape']) if name in seal else 'absent'
    here = str(tuple(wanted[name].shape)) if name in wanted else 'absent'
    if saved != here:
      raise CheckpointError(
        f'{path} was written with other settings ({name}: there {saved}, here {here}): '
        'use the settings in its config.json, or another workdir'
      )


def _damage_or_not(error: Exception, folder: epath.Path) -> Exception:
  """`Damaged` for a failed read, unless memory, network or rights were the reason."""
  found = damage(error)
  if found is error:
    return error
  if remote.is_remote(folder) and not isinstance(error, FileNotFoundError):
    words = f'{type(error).__name__}: {error}'.replace(str(folder), '')
    if isinstance(error, OSError) or remote.refused(error) or re.search(PASSING, words):
      return trouble(folder.parent, error)
  return found


def _not_orbax(record: logging.LogRecord) -> bool:
  """Drops Orbax's log lines: it logs each file that it writes and each error that it raises."""
  return f'{os.sep}orbax{os.sep}' not in record.pathname
