"""The loss of fixed examples with fixed noise and timesteps, so that two steps can be compared."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exedit.models.parameters import Params
from exedit.training.sharding import replicated
from exedit.training.state import TrainState
from exedit.training.step import Program
from exedit.training.workdir import METRICS

NAME = 'fixed_loss'
NUMBER = 2**32 - 2  # of the random key: no step has it


class FixedLoss:
  """`fixed_loss(state, frozen)` is the mean of each array that the loss gives by example.

  It takes the moving average if there is one.

  batches: the examples; each process has all of them, and each device computes all.
  """

  def __init__(self, program: Program, batches: Sequence[Mapping[str, np.ndarray]], seed: int):
    everywhere = replicated(program.mesh)
    self._batches = [jax.device_put(dict(batch), everywhere) for batch in batches]
    key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), NUMBER)

    def means(params: Params, frozen: Params, batch: Mapping[str, Any]) -> dict[str, Any]:
      _, aux = program.loss(params, frozen, batch, key)
      return {name: rows.mean() for name, rows in aux.items() if name != 't'}

    self._means = jax.jit(means, out_shardings=everywhere)

  def __call__(self, state: TrainState, frozen: Params) -> dict[str, float]:
    """The means as numbers: NAME, and `fixed_` and the name of each other array."""
    params = state.ema or state.params
    found = jax.device_get([self._means(params, frozen, batch) for batch in self._batches])
    means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    own = means.pop('per_example')
    return {NAME: own, **{f'fixed_{name}': value for name, value in means.items()}}


def least(folder: str, step: int) -> float:
  """The least value that the run in this folder has logged up to a step; infinity if none."""
  path, found = Path(folder) / METRICS, math.inf
  for line in path.read_text(encoding='utf-8').splitlines() if path.exists() else ():
    entry = json.loads(line)
    if entry['step'] <= step and entry.get(NAME) is not None:
      found = min(found, entry[NAME])
  return found
