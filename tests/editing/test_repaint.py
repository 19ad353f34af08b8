import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from exedit import images
from exedit.editing import edits, framing, repaint
from exedit.runtime import parallel
from exedit.runtime.errors import UserError

OWN = edits.Settings(steps=3, scale=2.0, sampler='ddim')


def job(i=0, size=(16, 16), **settings):
  edit = edits.Edit('i', 'm', 'e', f'{i}.png', dataclasses.replace(OWN, **settings))
  return edits.Job(edit, framing.Frame(0, 0, *size, size))


def originals(rgba=None, h=16, w=16):
  rgb = np.full((h, w, 3), 100, np.uint8)
  mask = np.zeros((h, w), bool)
  mask[4:9, 3:12] = True
  return repaint.Originals(images.Photo(rgb, rgba, None), mask)


def inputs(h=16, w=16):
  own, seen = originals(None, h, w), framing.Frame(0, 0, h, w, (h, w))
  return repaint.Inputs(
    framing.cut(seen, own.photo.rgb),
    framing.cut_mask(seen, own.mask),
    np.zeros((8, 8, 3), np.float32),
  )


# batches


def test_groups_share_size_and_what_is_compiled_in():
  jobs = [
    job(0),
    job(1, seed=4, feather=1.0),  # neither is compiled in
    job(2, steps=4),
    job(3, (15, 13)),  # grown to 16 x 16
    job(4, (15, 17)),
  ]
  groups = list(repaint.groups(jobs, 8).values())
  assert groups == [[jobs[0], jobs[1], jobs[3]], [jobs[2]], [jobs[4]]]


def test_the_rows_of_a_batch_do_not_depend_on_what_is_wanted():
  jobs = [job(i) for i in range(7)]
  groups = repaint.groups(jobs, 8)
  assert [len(b.jobs) for b in repaint.batches(groups, 3)] == [3, 3, 1]
  [batch] = repaint.batches(groups, 3, wanted=lambda job: job in jobs[4:6])
  assert batch == repaint.Batch((jobs[4], jobs[5]), 3)
  assert repaint.batches(groups, 32)[0].rows == 7
  assert repaint.batches(groups, 32, devices=4)[0].rows == 8
  assert repaint.batches(groups, 3, wanted=lambda job: False) == []


def test_the_last_edit_fills_the_empty_rows():
  seen = {}

  def edit(*arrays, **settings):
    seen.update(arrays=arrays, settings=settings)
    return jax.numpy.zeros((3, 16, 16, 3))

  ready = [(job(i, (15, 13), seed=i), inputs(h=15, w=13)) for i in range(2)]
  repaint.start(ready, 3, edit, 8)
  source, hole, exemplar, keys = seen['arrays']
  assert source.shape == (3, 16, 16, 3) and hole.shape[:3] == (3, 16, 16) and len(exemplar) == 3
  expected = [jax.random.fold_in(jax.random.key(i), 0) for i in (0, 1, 1)]
  np.testing.assert_array_equal(
    jax.random.key_data(keys), [jax.random.key_data(key) for key in expected]
  )
  assert seen['settings'] == dict(steps=3, scale=2.0, sampler='ddim', mask_resize='bilinear')


# reading ahead


def test_ahead_keeps_the_order_and_begins_no_more_than_it_may():
  begun, lock = [], threading.Lock()

  def slow(i):
    with lock:
      begun.append(i)
    time.sleep(0.01 * (i % 3))
    return i

  with ThreadPoolExecutor(4) as pool:
    items = parallel.ahead(pool, slow, range(20), 4)
    assert next(items) == 0
    time.sleep(0.2)
    assert max(begun) == 4
    assert list(items) == list(range(1, 20))


def test_ahead_turns_what_a_person_can_mend_into_a_line_and_raises_the_rest():
  def fail(error):
    raise error

  with ThreadPoolExecutor(2) as pool:
    assert list(parallel.ahead(pool, fail, [UserError('mend it')], 1)) == ['mend it']
    with pytest.raises(KeyError):
      list(parallel.ahead(pool, fail, [KeyError('a bug')], 1))


def test_a_job_whose_files_are_damaged_is_left_out_of_its_batch():
  jobs = [job(i) for i in range(5)]
  calls, bad = [], []

  def read(job):
    if job in (jobs[1], jobs[2]):
      raise UserError(f'{job.edit.output} is damaged')
    return inputs()

  def edit(source, *_, **__):
    calls.append(len(source))
    return jax.numpy.zeros(source.shape)

  work = repaint.batches({(): jobs}, 2) + [repaint.Batch((jobs[1],), 1)]
  with ThreadPoolExecutor(2) as pool:
    results = repaint.run(work, edit, read, pool, multiple=8, bad=lambda *what: bad.append(what))
    outputs = [[result.job for result in batch] for batch in results]
  assert outputs == [[jobs[0]], [jobs[3]], [jobs[4]]]
  assert calls == [2, 2, 2] and bad[0] == (jobs[1], '1.png is damaged') and len(bad) == 3


# pixels


def pixels(value, rgba=None, **settings):
  raw = np.full((16, 16, 3), value, np.float32)
  return repaint.pixels(repaint.Result(job(**settings), raw, 1), originals(rgba))


def test_pixels_inside_are_the_results_and_outside_the_files():
  out = pixels(1.0, feather=0.0, match='none')
  mask = originals().mask
  assert (out[mask] == 255).all() and (out[~mask] == 100).all() and out.shape[-1] == 3
  out = pixels(1.0, paste=False)
  assert (out == 255).all()


def test_pixels_of_a_transparent_photo():
  rgba = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
  mask = originals().mask
  out = pixels(1.0, rgba, feather=0.0, match='none')
  np.testing.assert_array_equal(out[~mask], rgba[~mask])
  assert (out[mask] == 255).all()


def test_a_result_that_is_not_finite_names_its_output():
  with pytest.raises(UserError, match='0.png is not written: the result is not finite'):
    pixels(np.nan)
