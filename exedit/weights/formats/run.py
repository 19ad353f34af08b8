"""The parameters in the workdir of a run: Orbax's checkpoints and the frozen parameters.

Every array is compared with the checksum that training stored beside it, because Orbax restores
flipped bits without an error.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from exedit.runtime import checksums
from exedit.runtime.checksums import Damaged
from exedit.runtime.errors import UserError
from exedit.weights.formats.safetensors import open_safetensors, read_metadata
from exedit.weights.formats.tensor import File

FROZEN, REFERENCE = 'frozen.safetensors', 'frozen.json'
T = TypeVar('T')


class CheckpointError(UserError, ValueError):
  """A checkpoint that cannot be used or written."""


def restore_params(
  workdir: str | os.PathLike, which: str = 'ema', say: Callable[[str], None] = print
) -> tuple[dict[str, np.ndarray], int]:
  """Returns all parameters of a run as arrays on the host, and their step.

  The newest checkpoint that is not damaged is used, and `say` gets a line for each newer one.

  which: 'ema' (the parameters themselves if the run keeps no average) or 'params'.
  Raises:
    CheckpointError: if no checkpoint or no frozen parameters can be read.
  """
  if which not in ('ema', 'params'):
    raise ValueError(f"which is '{which}'; use 'ema' or 'params'")
  workdir = Path(workdir).absolute()
  folder = workdir / 'checkpoints'
  steps = steps_in(folder)
  if not steps:
    raise CheckpointError(f'{workdir} holds no checkpoints: train there first, or name another')
  read = lambda step: _read_part(folder / str(step), which)
  params, step, _ = newest_good(folder, steps, read, say)
  return {**read_frozen(workdir / FROZEN), **params}, step


def newest_good(
  folder: os.PathLike,
  steps: Iterable[int],
  read: Callable[[int], T],
  say: Callable[[str], None],
) -> tuple[T, int, list[int]]:
  """Reads the newest checkpoint that is not damaged; `say` gets a line for each newer one.

  Returns:
    What `read` returned, the step of that checkpoint, and the steps of the damaged ones.

  Raises:
    CheckpointError: if all are damaged.
  """
  damaged: dict[int, Damaged] = {}
  for step in sorted(steps, reverse=True):
    try:
      found = read(step)
    except Damaged as why:
      damaged[step] = why
      continue
    for other, why in damaged.items():
      say(f'checkpoint {other} is damaged ({why}): using checkpoint {step} instead')
    return found, step, [*damaged]
  step, why = next(iter(damaged.items()))
  raise CheckpointError(
    f'none of the {len(damaged)} checkpoints in {folder} can be read ({step}: {why}): restore the '
    'folder from a copy, or use another workdir'
  )


def _read_part(path: Path, which: str) -> dict[str, np.ndarray]:
  """The parameters or their average of one checkpoint, verified."""
  import orbax.checkpoint as ocp

  try:
    seal = checksums.read_seal(path)
  except OSError as error:
    raise damage(error) from error
  part = {name: entry for name, entry in seal.items() if name.startswith(f'{which}/')}
  if not part and which == 'ema':
    return _read_part(path, 'params')
  want = {
    which: {
      name.split('/', 1)[1]: jax.ShapeDtypeStruct(entry['shape'], jnp.dtype(entry['dtype']))
      for name, entry in part.items()
    }
  }
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), want)
  args: Any = ocp.args.PyTreeRestore(item=want, restore_args=as_numpy, partial_restore=True)
  try:
    tree = ocp.PyTreeCheckpointer().restore(path / 'state', args=args)
  except Exception as error:
    raise damage(error) from error
  checksums.verify(checksums.named(tree), part)
  return tree[which]


def read_frozen(file: str | os.PathLike, where: str = '') -> dict[str, np.ndarray]:
  """Returns the frozen parameters of a run, verified by their CRC-32.

  where: the name of the file in messages, if it is not its path.
  Raises:
    CheckpointError: if the file is missing or damaged.
  """
  where = where or os.fspath(file)
  if not os.path.exists(file) and os.path.exists(Path(file).with_name(REFERENCE)):
    raise CheckpointError(
      f'{Path(file).parent} is the run of a concept and holds no whole weights: name it as '
      '--concept beside the weights that it was learned from'
    )
  if not os.path.exists(file):
    raise CheckpointError(f'{where} is missing: copy it from where the run was started')
  try:
    arrays = {name: tensor.read() for name, tensor in open_safetensors(File(file)).items()}
    crc = json.loads(read_metadata(File(file)).get('crc32', '{}'))
  except (UserError, ValueError) as error:
    raise CheckpointError(f'{where} is damaged ({error}): restore it from a copy') from error
  for name, array in arrays.items():
    if crc32(array) != crc.get(name):
      raise CheckpointError(f'{where} is damaged (checksum of {name}): restore it from a copy')
  return arrays


def crc32(array: np.ndarray) -> int:
  """The CRC-32 of an array's bytes."""
  return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def steps_in(folder: Path | epath.Path) -> list[int]:
  """Returns the steps of the checkpoints in a folder that were written completely."""
  import orbax.checkpoint as ocp

  if not folder.is_dir():
    return []
  steps = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
  return [int(path.name) for path in steps if ocp.utils.is_checkpoint_finalized(path)]


def damage(error: Exception) -> Exception:
  """Returns `Damaged` for an error of reading, unless this machine lacks memory."""
  text = f'{type(error).__name__}: {error}'
  if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in text:
    return error
  return Damaged(' '.join(text.split())[:200])
