"""The weights that a config names to start from, found and checked but not yet read."""

from collections.abc import Mapping
from typing import Any

from exedit import systems
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.systems import System
from exedit.weights.formats.tensor import Tensor


def given_weights(system: System, config: Mapping[str, Any]) -> dict[str, Tensor]:
  """Unread tensors by the paths of the parameters.

  With `init_parts`, `init_from` may hold weights of any system: its parts of the same names are
  taken, if their complete settings are equal. Systems whose `start` knows more take whole weights.

  Raises:
    UserError: if they are missing or of another model.
  """
  model, init_parts = config['model'], config.get('init_parts') or ''
  init_from, init_clip = config.get('init_from'), config.get('init_clip')
  if not init_from and not init_clip:
    if init_parts:
      raise UserError(
        f"config.init_parts is '{init_parts}', but no weights are given to take that from:"
        ' set --config.init_from=...'
      )
    return {}
  found: dict[str, Tensor] = {}
  if init_from and (system.start is None or (init_parts and _is_foreign(system, init_from))):
    found = _parts(system, model, init_from, init_parts)
    init_from = None
  if init_from or init_clip:
    if system.start is None:
      raise UserError(f'--config.init_clip is a tower of CLIP, which {system.name} has none of')
    found |= system.start(init_from, init_clip, model)
  return parameters.split_trainable(found, init_parts, 'init_parts')[0] if init_parts else found


def _is_foreign(system: System, init_from: str) -> bool:
  """Whether these weights are of a system that `system.start` does not know."""
  from exedit.weights import find

  kind = find.kind(init_from)
  return kind in systems.all_systems() and kind not in (system.name, *system.starts_from)


def _parts(
  system: System, model: Mapping[str, Any], init_from: str, init_parts: str
) -> dict[str, Tensor]:
  """The tensors of the parts that both models have.

  Raises:
    UserError: if there are none, or their settings differ.
  """
  from exedit import latent_diffusion  # here, because most starts of a run read no other weights
  from exedit.weights import find, initial

  weights = find.weights(init_from)
  source = systems.of(weights)
  _, shapes = latent_diffusion.abstract(system.build, model)
  if init_parts:
    shapes = parameters.split_trainable(shapes, init_parts, 'init_parts')[0]
  wanted = {name.split('.')[0] for name in shapes}
  there = {ours.split('.')[0] for _, ours, _ in weights.table if ours}
  if source.name != system.name and not (init_parts and wanted & there):
    raise UserError(
      f'{init_from} holds weights of {source.name}, with the parts {", ".join(sorted(there))}: '
      f'name those that {system.name} has too as --config.init_parts'
    )
  parts = sorted(wanted & there) if init_parts else sorted(wanted)
  theirs = source.complete(weights.config['model'])
  initial.require_same(theirs, system.complete(model), parts, init_from)
  like = {name: shape for name, shape in shapes.items() if name.split('.')[0] in parts}
  return weights.without(*there.difference(parts)).fit(like)
