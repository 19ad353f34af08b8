"""The settings of a training."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from exedit import systems
from exedit.runtime import settings
from exedit.runtime.errors import UserError
from exedit.training import optimizer
from exedit.training.checkpoint import Checkpoints
from exedit.training.sharding import make_mesh
from exedit.training.state import Ema

Group = Mapping[str, Any]
GROUPS: dict[str, Callable[..., Any]] = dict(
  optimizer=optimizer.make_optimizer, ema=Ema, mesh=make_mesh, checkpoint=Checkpoints
)
LIMITS = dict(
  steps=(1, 2**31 - 1),
  batch_size=(1, 2**31 - 1),
  accumulate=(1, None),
  log_every=(1, None),
  save_every=(1, None),
  edit_every=(0, None),
  fixed_every=(0, None),
  fixed_examples=(1, None),
  max_bad_steps=(1, None),
  seed=(0, 2**32 - 1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The settings of a training; the keys of a config file are these fields.

  system: name of the editing system. model: arguments of its `build`.
  steps: train up to this step.
  batch_size: of all devices together. accumulate: compute it in this number of equal parts, one
    after the other.
  seed: of all random numbers.
  data: arguments of the system's `data.batches`; `System.data_settings` adds to them.
  trainable: a regular expression that the paths of the parameters that train begin with; see
    `parameters.split_trainable`.
  init_from, init_clip: weights to start from instead of random ones. `System.start` reads them.
  init_parts: a pattern of the parameters to take from them; '': all.
  log_every: steps between two log lines. save_every: between two checkpoints. edit_every: between
    two grids of edits; 0: no grids.
  max_bad_steps: end the run after this number of steps in a row without finite loss and gradient.
  compile_cache: keep compiled programs in the user's cache folder.
  optimizer: arguments of `make_optimizer`. ema: of `Ema`. mesh: of `make_mesh`.
  checkpoint: arguments of `Checkpoints`.
  fixed_every: steps between two values of fixed_loss, the loss of held-out examples with the same
    noise and timesteps each time; 0: none. The last step has one. fixed_examples: their number.
  concept: arguments of `concept_examples.concept`, of a system that learns concepts.
  edit: settings of the edits in a grid, and `count`, the number of held-out examples in it.
  synthetic: arguments of `synthetic.settings`, to draw scenes into an empty data.root first; empty
    or None: nothing is drawn.
  """

  system: str
  steps: int
  batch_size: int
  data: Group
  model: Group
  seed: int = 0
  trainable: str = 'unet|conditioner'
  init_from: str | None = None
  init_clip: str | None = None
  init_parts: str = ''
  accumulate: int = 1
  log_every: int = 100
  save_every: int = 2000
  edit_every: int = 0
  fixed_every: int = 0
  fixed_examples: int = 16
  max_bad_steps: int = 10
  compile_cache: bool = True
  optimizer: Group = dataclasses.field(default_factory=dict)
  ema: Group = dataclasses.field(default_factory=dict)
  mesh: Group = dataclasses.field(default_factory=dict)
  checkpoint: Group = dataclasses.field(default_factory=dict)
  edit: Group = dataclasses.field(default_factory=dict)
  concept: Group = dataclasses.field(default_factory=dict)
  synthetic: Group | None = None

  def as_dict(self) -> dict[str, Any]:
    """The settings by name, as they are stored in config.json."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def read_config(values: Mapping[str, Any]) -> Config:
  """The settings from the keys of a config file, checked as far as that needs no data or weights.

  Raises:
    UserError: for an unknown key or a missing one, and for a value that is not allowed.
  """
  values = settings.training(values)
  settings.check_names(values, [*Config.__dataclass_fields__], 'config')
  values |= {n: {} for n in ('data', 'model', *GROUPS) if n in values and values[n] is None}
  settings.check_complete(values, Config, 'config')
  settings.check(values, Config, 'config')
  settings.check_finite(values, 'config')
  config = Config(**values)
  system = systems.training(config.system)
  for name, function in GROUPS.items():
    settings.check(getattr(config, name), function, f'config.{name}')
  settings.check_limits(values, LIMITS, 'config')
  settings.check_limits(config.edit, dict(count=(1, None)), 'config.edit')
  settings.check_limits(
    config.checkpoint, dict(keep=(1, None), keep_every=(1, None)), 'config.checkpoint'
  )
  settings.check_limits(config.optimizer, optimizer.LIMITS, 'config.optimizer')
  rates = config.optimizer.get('lr_multipliers', {})
  settings.check_limits(rates, dict.fromkeys(rates, (0, None)), 'config.optimizer.lr_multipliers')
  settings.check(config.model, system.build, 'config.model')
  _check_concept(config, system)
  if config.synthetic:
    from exedit.input_pipeline import synthetic  # a training on photos does not need it

    settings.check(config.synthetic, synthetic.settings, 'config.synthetic')
    synthetic.settings(**config.synthetic)
  patterns = dict(trainable=config.trainable, init_parts=config.init_parts)
  for name, pattern in patterns.items():
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(f"config.{name} is '{pattern}', no regular expression: {error}") from error
  settings.check_names(
    config.edit, [*systems.network_settings(system.settings()), 'count'], 'config.edit'
  )
  systems.edit_settings(system, config.as_dict())
  if not config.data.get('root'):
    raise UserError('data.root is not set: give --config.data.root=DIR, the folder of the shards')
  return config


def _check_concept(config: Config, system: systems.System) -> None:
  """Checks the group `concept`, which only a system with an outcome takes."""
  if system.outcome is None:
    if config.concept:
      raise UserError(
        f'config.concept is set, and {system.name} learns no concepts: leave it out, or start from '
        'configs/custom_edit.py'
      )
    return
  from exedit.input_pipeline import concept_examples  # other trainings do not need it

  settings.check(config.concept, concept_examples.concept, 'config.concept')
  concept_examples.words_of(config.concept)
  if keeps_best(config) and not config.fixed_every:
    raise UserError(
      "concept.keep is 'best' and config.fixed_every 0, so that no step is known to be the best: "
      'set --config.fixed_every=25, or --config.concept.keep=last'
    )


def keeps_best(config: Config) -> bool:
  """Whether the outcome of the run is that of the step with the least fixed_loss."""
  return config.concept.get('keep', 'best') == 'best'
