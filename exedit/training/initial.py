"""The state that a training starts from: its own checkpoint, given weights, or random numbers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from exedit.models.parameters import Params
from exedit.runtime import remote
from exedit.runtime.errors import UserError
from exedit.training import latent_encoder
from exedit.training.checkpoint import (
  FROZEN,
  Checkpoints,
  load_frozen,
  require_reference,
  save_frozen,
  save_reference,
)
from exedit.training.config import Config
from exedit.training.given import given_weights
from exedit.training.state import TrainState
from exedit.training.step import Program
from exedit.training.workdir import Workdir, path_of, trouble
from exedit.weights.formats.run import steps_in
from exedit.weights.formats.tensor import Tensor


def initial_state(
  program: Program,
  config: Config,
  workdir: Workdir,
  checkpoints: Checkpoints,
  tensors: Mapping[str, Tensor] | None,
  say: Callable[[str], None],
) -> tuple[TrainState, Params]:
  """(state, frozen parameters): the workdir's own, else the given weights, else random ones.

  tensors: the result of `given_weights`; None if the workdir held checkpoints.

  Raises:
    UserError: if the checkpoints or the weights are damaged or of another model, or if the data
      were encoded with another autoencoder.
  """
  restored = checkpoints.restore(program.state)
  if restored is not None:
    frozen = _frozen_again(program, config, workdir)
    latent_encoder.require_same(config.as_dict(), restored.params, frozen)
    return restored, frozen
  # No step has this number, so the first weights share no random number with a step.
  key = jax.random.fold_in(jax.random.key(config.seed, impl='threefry2x32'), 2**32 - 1)
  tensors = given_weights(program.system, config.as_dict()) if tensors is None else tensors
  everything = {**program.state.params, **program.frozen}
  where = ' and '.join(filter(None, (config.init_from, config.init_clip)))
  placed = place(tensors, {n: shape for n, shape in everything.items() if n in tensors}, where)
  if tensors:
    random = {name: shape for name, shape in everything.items() if name not in tensors}
    say(f'from {where}: {sizes(placed)}; random: {sizes(random)}')
  elif program.frozen:
    say(f'random and frozen, because config.init_from is not set: {sizes(program.frozen)}')
  state, frozen = program.init(key, placed)
  latent_encoder.require_same(config.as_dict(), state.params, frozen)
  if program.system.outcome is None:
    save_frozen(workdir.name, frozen)
  else:
    save_reference(workdir.name, frozen, str(config.init_from))
  return state, frozen


def _frozen_again(program: Program, config: Config, workdir: Workdir) -> Params:
  """The frozen parameters of a run that goes on: its copy, or those of the weights it names."""
  if program.system.outcome is None:
    return place(load_frozen(workdir.name), program.frozen, f'{workdir.name}/{FROZEN}')
  given = given_weights(program.system, config.as_dict())
  found = {name: given[name] for name in program.frozen if name in given}
  frozen = place(found, program.frozen, str(config.init_from))
  require_reference(workdir.name, frozen, config.init_from)
  return frozen


def has_checkpoints(name: str) -> bool:
  """Whether a run has saved in this workdir, so that no other weights are needed."""
  try:
    return bool(steps_in(path_of(name) / 'checkpoints'))
  except Exception as error:
    if not remote.is_remote(name):
      raise
    raise trouble(name, error) from error


def place(arrays: Mapping[str, Any], like: Params, where: str) -> Params:
  """Puts arrays or unread tensors onto the mesh as `like` says; every process reads each once.

  Raises:
    UserError: if names or shapes differ, because they belong to another model.
  """
  for name in sorted(set(arrays) | set(like)):
    found = tuple(arrays[name].shape) if name in arrays else 'absent'
    wanted = tuple(like[name].shape) if name in like else 'absent'
    if found != wanted:
      raise UserError(
        f'{where} holds another model ({name}: there {found}, in the config {wanted}): '
        'use the config it was made with'
      )
  return {name: _place_one(arrays[name], shape) for name, shape in like.items()}


def _place_one(array: Any, like: Any) -> jax.Array:
  """Gives each device its part of one array, and frees the host's copy."""
  host = np.asarray(array.read() if isinstance(array, Tensor) else array, like.dtype)
  placed = jax.make_array_from_callback(like.shape, like.sharding, lambda part: host[part])
  return placed.block_until_ready()


def sizes(params: Params) -> str:
  """The number of parameters by part: 'unet 859,535,364, conditioner 63,770,368'."""
  parts: dict[str, int] = {}
  for name, array in params.items():
    part = name.split('.')[0]
    parts[part] = parts.get(part, 0) + int(np.prod(array.shape))
  return ', '.join(f'{part} {count:,}' for part, count in parts.items()) or 'nothing'
