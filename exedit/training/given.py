"""The weights that a config names to start from, found and checked but not yet read."""

from collections.abc import Iterable, Mapping
from typing import Any

from exedit import systems
from exedit.models import parameters
from exedit.runtime.errors import UserError
from exedit.systems import System
from exedit.weights.formats.tensor import Tensor

TOWERS = ('clip', 'text')  # the parts that `init_clip` can give
AROUND = ('schedule', 'context_dim', 'dim')  # settings beside the parts that decide what they mean


def given_weights(system: System, config: Mapping[str, Any]) -> dict[str, Tensor]:
  """Unread tensors by the paths of the parameters.

  With `init_parts`, `init_from` may hold weights of any system: its parts of the same names are
  taken, if their complete settings are equal. Systems whose `start` knows more take whole weights.
  `init_clip` gives every tower that the system has.

  Raises:
    UserError: if they are missing or of another model, or if nothing of them would be taken.
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
  rest = init_from
  if init_from and (system.start is None or _is_foreign(system, init_from)):
    found, rest = _parts(system, model, init_from, init_parts), None
  if init_clip:
    _require_once(found, init_from)
  if system.start and (rest or init_clip):
    found |= system.start(rest, init_clip, model)
  elif init_clip:
    found |= _towers(system, model, init_clip, init_parts)
  if not init_parts:
    return system.completed(found, config)
  kept = parameters.split_trainable(found, init_parts, 'init_parts')[0]
  _require_used(found, kept, init_parts, init_clip)
  return system.completed(kept, config)


def _is_foreign(system: System, init_from: str) -> bool:
  """Whether these weights are of a system that `system.start` does not know."""
  from exedit.weights import find

  return find.kind(init_from) not in (None, system.name, *system.starts_from)


def _parts(
  system: System, model: Mapping[str, Any], init_from: str, init_parts: str
) -> dict[str, Tensor]:
  """The tensors of the parts that both models have.

  Raises:
    UserError: if there are none, or their settings differ.
  """
  from exedit.weights import find, initial  # here: most starts of a run read no other weights

  weights = find.weights(init_from)
  source, shapes = systems.of(weights), _shapes(system, model)
  wanted = _tops(parameters.split_trainable(shapes, init_parts or '.*', 'init_parts')[0])
  there = {ours.split('.')[0] for _, ours, _ in weights.table if ours}
  if source.name != system.name and not (init_parts and wanted & there):
    raise UserError(
      f'{init_from} holds weights of {source.name}, with the parts {", ".join(sorted(there))}: '
      f'name those that {system.name} has too as --config.init_parts'
    )
  parts = sorted(wanted & there) if init_parts else sorted(wanted)
  ours, theirs = system.complete(model), source.complete(weights.config['model'])
  around = AROUND if not init_parts or 'unet' in parts else ()
  compared = [name for name in (*parts, *around) if name in ours and name in theirs]
  initial.require_same(theirs, ours, compared, init_from)
  like = {name: shape for name, shape in shapes.items() if _top(name) in parts}
  return weights.without(*there.difference(parts)).fit(like)


def _towers(
  system: System, model: Mapping[str, Any], init_clip: str, init_parts: str
) -> dict[str, Tensor]:
  """The tensors of the towers of CLIP that the system has and `init_parts` does not leave out.

  Raises:
    UserError: if it has none, or their settings differ.
  """
  from exedit.weights import find, initial

  shapes, ours = _shapes(system, model), system.complete(model)
  towers = {name: shape for name, shape in shapes.items() if _top(name) in TOWERS}
  if not towers:
    raise UserError(
      f'--config.init_clip is {init_clip}, but {system.name} has no tower of CLIP: leave it out'
    )
  wanted = parameters.split_trainable(shapes, init_parts or '.*', 'init_parts')[0]
  found: dict[str, Tensor] = {}
  for part in sorted(_tops(towers) & _tops(wanted) or _tops(towers)):
    tower = find.clip_tower(init_clip, ours[part]['heads'] if part == 'clip' else None, part)
    initial.require_same(system.complete(tower.config['model']), ours, (part,), init_clip)
    found |= tower.fit({name: shape for name, shape in towers.items() if _top(name) == part})
  return found


def _shapes(system: System, model: Mapping[str, Any]) -> dict[str, Any]:
  """The shapes of the model's parameters."""
  from exedit import latent_diffusion  # here: most starts of a run read no other weights

  return latent_diffusion.abstract(system.build, model)[1]


def _top(path: str) -> str:
  """The part of the model that a parameter belongs to."""
  return path.split('.')[0]


def _tops(paths: Iterable[str]) -> set[str]:
  return {_top(path) for path in paths}


def _require_once(found: Mapping[str, Tensor], init_from: str | None) -> None:
  """Raises UserError if `init_from` gives a tower that `init_clip` would give too."""
  if towers := sorted(_tops(found) & {*TOWERS}):
    name = dict(clip='image', text='text')[towers[0]]
    raise UserError(
      f'{init_from} has its own {name} tower: leave out --config.init_clip, or name only other '
      'parts as --config.init_parts'
    )


def _require_used(
  found: Mapping[str, Tensor], kept: Mapping[str, Tensor], init_parts: str, init_clip: str | None
) -> None:
  """Raises UserError if `init_parts` leaves nothing of one of the sources.

  The towers come from `init_clip` if that is given, and everything else from `init_from`.
  """
  lost = _tops(found) - _tops(kept)
  towers = {*TOWERS} if init_clip else set()
  for flag, given in (('init_clip', _tops(found) & towers), ('init_from', _tops(found) - towers)):
    if given and given <= lost:
      raise UserError(
        f"config.init_parts is '{init_parts}', which takes nothing from --config.{flag}: leave "
        f"that out, or set --config.init_parts='{init_parts}|{'|'.join(sorted(given))}'"
      )
