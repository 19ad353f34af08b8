"""The memory that a training needs at least, and the refusal before anything is allocated."""

import jax
import pytest

from configs import pbe
from exedit import systems
from exedit.runtime import memory as machine
from exedit.runtime.errors import UserError
from exedit.training import memory
from exedit.training.step import make_program
from tests import runs, toy_config


def program(config, **changes):
  names = ('model', 'optimizer', 'ema', 'mesh', 'trainable', 'seed', 'steps', 'accumulate')
  settings = {name: config[name] for name in names} | dict(batch_size=len(jax.devices()))
  return make_program(systems.get(config['system']), **settings | changes)


def test_the_need_of_the_published_model_is_counted_from_shapes():
  """Four numbers of four bytes for each trained parameter, one for each that is frozen."""
  made = program(pbe.get_config().to_dict())
  trained, frozen = (
    sum(a.size for a in tree.values()) for tree in (made.state.params, made.frozen)
  )
  assert trained > 0.9e9 and frozen > 0.3e9
  assert memory.needed(made) == pytest.approx(16 * trained + 4 * frozen, rel=1e-3)
  averaged = program(pbe.get_config().to_dict(), ema=dict(decay=0.9))
  assert memory.needed(averaged) == pytest.approx(20 * trained + 4 * frozen, rel=1e-3)


def test_a_training_that_is_too_large_is_refused_before_anything_is_written(
  tmp_path, monkeypatch, capsys
):
  settings = {**toy_config.get_config(str(tmp_path / 'data')).to_dict(), 'steps': 1}
  monkeypatch.setattr(memory, 'available', lambda device: 1000)
  words = r'719 parameters need 0.0 GB .*this machine has 0.0 GB.*--ignore_memory tries it anyway'
  with pytest.raises(UserError, match=words):
    runs.train(tmp_path / 'run', **settings)
  assert not any(tmp_path.iterdir())
  runs.train(tmp_path / 'run', ignore_memory=True, **settings)


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
  device = jax.devices()[0]
  whole = memory.available(device)
  assert whole > 2**28
  limit = tmp_path / 'memory.max'
  monkeypatch.setattr(machine, 'LIMITS', (str(limit),))
  for text, expected in (('max\n', whole), (f'{2**20}\n', 2**20)):
    limit.write_text(text)
    assert memory.available(device) == pytest.approx(expected, rel=0.9)
  assert memory.available(device) == 2**20
