"""Batches of edits through a model: grouping, padding, reading ahead, and what is left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit.editing import engine
from exedit.editing.engine import Batch, Engine, Work
from exedit.paint_by_example import SYSTEM
from exedit.runtime.errors import UserError

OWN = dict(steps=3, scale=2.0)


class Model:
  """A model that is never called."""

  def multiple(self):
    return 8


def free_engine(devices=('one',)):
  """An engine whose edits cost nothing, and the list of their arguments."""
  seen = []

  def edit(model, arrays, keys, size, **settings):
    seen.append(dict(arrays=arrays, keys=keys, size=size, settings=settings))
    return jnp.zeros((len(keys), *size, 3))

  made = Engine(dataclasses.replace(SYSTEM, edit=edit), Model(), devices[:1])
  made.devices = devices
  return made, seen


def work(i=0, size=(16, 16), **changes):
  return Work(i, size, OWN | changes)


def arrays(size=(16, 16)):
  return dict(image=np.zeros((*size, 3)), mask=np.ones((*size, 1)), exemplar=np.zeros((5, 5, 3)))


def key(item):
  return jax.random.key(item)


def test_works_of_one_grown_size_and_setting_share_a_compiled_function():
  works = [
    work(0),
    work(1, steps=4),
    work(2, (15, 13)),  # grown to 16 x 16
    work(3, (15, 17)),
    dataclasses.replace(work(4), given=('prompt',)),
  ]
  groups = list(free_engine()[0].groups(works).values())
  assert [[w.item for w in group] for group in groups] == [[0, 2], [1], [3], [4]]


def test_the_rows_of_a_batch_do_not_depend_on_what_is_wanted():
  works = [work(i) for i in range(7)]
  one, four = free_engine()[0], free_engine(devices=tuple('abcd'))[0]
  assert [len(b.works) for b in one.batches(works, 3)] == [3, 3, 1]
  [batch] = one.batches(works, 3, lambda i: i in (4, 5))
  assert batch == Batch((works[4], works[5]), 3, (16, 16))
  assert one.batches(works, 32)[0].rows == 7
  assert four.batches(works, 32)[0].rows == 8
  assert one.batches(works, 3, lambda i: False) == []


def test_the_last_edit_fills_the_empty_rows():
  made, seen = free_engine()
  batch = Batch((work(0, (15, 13)), work(1, (15, 13))), 3, (16, 16))
  read = lambda i: (arrays((15, 13)), 'kept')
  [[first, second]] = made.run([batch], read, lambda result: result, key=key)
  assert first.raw.shape == (15, 13, 3) and (second.item, second.kept) == (1, 'kept')
  assert second.per_device == 3
  [call] = seen
  assert {n: a.shape for n, a in call['arrays'].items()} == dict(
    image=(3, 16, 16, 3), mask=(3, 16, 16, 1), exemplar=(3, 5, 5, 3)
  )
  expected = [jax.random.key_data(key(i)) for i in (0, 1, 1)]
  np.testing.assert_array_equal(jax.random.key_data(call['keys']), expected)
  assert call['size'] == (16, 16) and call['settings'] == OWN


def test_an_item_whose_files_are_damaged_is_left_out_of_its_batch():
  made, seen = free_engine()
  bad, arrived = [], []

  def read(i):
    if i in (1, 2):
      raise UserError(f'{i} is damaged')
    return arrays(), None

  batches = made.batches([work(i) for i in range(5)], 2)
  batches.append(Batch((work(1),), 1, (16, 16)))
  write = lambda result: result.item
  note = lambda *what: bad.append(what)
  written = list(made.run(batches, read, write, key=key, bad=note, arrived=arrived.append, lag=1))
  assert written == [[0], [3], [4]] and arrived == [1, 1, 1]
  assert [len(call['keys']) for call in seen] == [2, 2, 2]
  assert bad == [(1, '1 is damaged'), (2, '2 is damaged'), (1, '1 is damaged')]
  with pytest.raises(UserError, match='1 is damaged'):
    list(made.run(batches, read, write, key=key))


@pytest.mark.parametrize(
  'asked, per_device, count, devices, rows, noted',
  [
    (None, 4, 100, 4, 16, False),
    (None, 1, 1, 1, 1, False),
    (None, 4, 2, 2, 8, False),  # no more devices than edits
    (6, 4, 100, 4, 8, True),
    (8, 4, 100, 4, 8, False),
    (1, 4, 100, 4, 4, True),
  ],
)
def test_a_batch_is_shared_out_evenly(monkeypatch, asked, per_device, count, devices, rows, noted):
  monkeypatch.setattr(jax, 'local_devices', lambda: ['a', 'b', 'c', 'd'])
  found, size, notes = engine.share_out(asked, per_device, count)
  assert (len(found), size, len(notes)) == (devices, rows, noted)
