"""The settings of a training."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from exedit import systems
from exedit.runtime import settings
from exedit.runtime.errors import UserError
from exedit.training.checkpoint import Checkpoints
from exedit.training.optimizer import make_optimizer
from exedit.training.sharding import make_mesh
from exedit.training.state import Ema

Group = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """The settings of a training; the keys of a config file are these fields.

  system: name of the editing system. model: arguments of its `build`.
  steps: train up to this step.
  batch_size: of all devices together. accumulate: compute it in this number of equal parts, one
    after the other.
  seed: of all random numbers.
  data: arguments of the system's `data.batches`.
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
  edit: settings of the edits in a grid, and `count`, the number of held-out examples in it.
  synthetic: arguments of `synthetic.ensure`, to draw the data first.
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
  max_bad_steps: int = 10
  compile_cache: bool = True
  optimizer: Group = dataclasses.field(default_factory=dict)
  ema: Group = dataclasses.field(default_factory=dict)
  mesh: Group = dataclasses.field(default_factory=dict)
  checkpoint: Group = dataclasses.field(default_factory=dict)
  edit: Group = dataclasses.field(default_factory=dict)
  synthetic: Group | None = None

  def as_dict(self) -> dict[str, Any]:
    """The settings by name, as they are stored in config.json."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def read_config(values: Mapping[str, Any]) -> Config:
  """The settings from the keys of a config file, checked as far as that needs no data or weights.

  Raises:
    UserError: for an unknown key or a missing one, and for a value that is not allowed.
  """
  settings.check(values, Config, 'config')
  settings.check_complete(values, Config, 'config')
  config = Config(**values)
  system = systems.get(config.system)
  least = dict.fromkeys(
    ('steps', 'batch_size', 'accumulate', 'log_every', 'save_every', 'max_bad_steps'), 1
  )
  least |= {'edit_every': 0, 'edit.count': 1, 'checkpoint.keep': 1}
  for name, bound in least.items():
    group, _, key = name.rpartition('.')
    value = getattr(config, group).get(key, bound) if group else getattr(config, name)
    if value < bound:
      raise UserError(f'config.{name} is {value}; it must be at least {bound}')
  settings.check(config.model, system.build, 'config.model')
  settings.check(config.optimizer, make_optimizer, 'config.optimizer')
  settings.check(config.ema, Ema, 'config.ema')
  settings.check(config.mesh, make_mesh, 'config.mesh')
  settings.check(config.checkpoint, Checkpoints, 'config.checkpoint')
  if config.synthetic is not None:
    from exedit.input_pipeline import synthetic  # a training on photos does not need it

    settings.check(config.synthetic, synthetic.settings, 'config.synthetic')
  settings.check_names(
    config.edit, [*systems.network_settings(system.settings()), 'count'], 'config.edit'
  )
  systems.edit_settings(system, config.as_dict())
  if not config.data.get('root'):
    raise UserError('data.root is not set: give --config.data.root=DIR, the folder of the shards')
  return config
