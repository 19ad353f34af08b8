import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit import images
from exedit import paint_by_example as pbe
from exedit.editing import framing
from exedit.models import parameters
from tests import small
from tests.networks import keys
from tests.pictures import box, noise

# exemplars


def test_squash_is_what_training_does():
  picture = noise(np.random.default_rng(0), 40, 90)
  expected = images.squash(images.from_uint8(picture), 24)
  np.testing.assert_array_equal(framing.fit_exemplar(picture, None, 24, 'squash'), expected)


def test_crop_keeps_the_middle_and_pad_keeps_everything():
  picture = np.zeros((20, 60, 3), np.uint8)
  picture[:, 20:40], picture[:, 40:] = 100, 200
  crop = images.to_uint8(framing.fit_exemplar(picture, None, 20, 'crop'))
  assert (crop == 100).all()
  pad = images.to_uint8(framing.fit_exemplar(picture, None, 60, 'pad'))
  np.testing.assert_array_equal(pad[20:40], picture)
  assert (pad[:20] == framing.GREY).all() and (pad[40:] == framing.GREY).all()
  tall = images.to_uint8(framing.fit_exemplar(picture.swapaxes(0, 1).copy(), None, 60, 'pad'))
  np.testing.assert_array_equal(tall, pad.swapaxes(0, 1))


def test_the_mask_drops_the_background_and_crops_to_the_subject():
  rng = np.random.default_rng(0)
  picture, mask = noise(rng, 90, 120), box(90, 120, 30, 40, 70, 60)
  mask[30, 40] = False
  seen = images.to_uint8(framing.fit_exemplar(picture, mask, 44, 'pad'))
  expected = np.full((44, 44, 3), framing.GREY, np.uint8)  # 40 long, a margin of 2 on each side
  expected[2:42, 12:32] = picture[30:70, 40:60]
  expected[2, 12] = framing.GREY
  np.testing.assert_array_equal(seen, expected)
  other = picture.copy()
  other[~mask] = 255 - other[~mask]
  for how in framing.FITS:
    one, two = (framing.fit_exemplar(p, mask, 32, how) for p in (picture, other))
    np.testing.assert_array_equal(one, two)


def test_fit_exemplar_refuses_what_it_cannot_mean():
  for mask, how, says in (
    (None, 'stretch', "how is 'stretch'"),
    (np.ones((8, 9), bool), 'pad', r'exemplar_mask has shape \(8, 9\)'),
    (np.zeros((9, 9), bool), 'pad', 'empty'),
  ):
    with pytest.raises(ValueError, match=says):
      framing.fit_exemplar(np.zeros((9, 9, 3), np.uint8), mask, 8, how)


# the whole edit


def mask_of(*where):
  return jnp.asarray(box(*where), jnp.float32)[None, ..., None]


@functools.cache
def model():
  graph, _ = parameters.flatten(nnx.eval_shape(lambda: pbe.build(**small.MODEL, rngs=keys())))
  return parameters.merge(graph, {name: jnp.asarray(a) for name, a in small.params().items()})


def edit_photo(source, mask, exemplar, seed=0, **settings):
  settings = dict(trained=small.SIZE, steps=2, sampler='ddim') | settings
  return pbe.edit_photo(model(), source, mask, exemplar, jax.random.key(seed), **settings)


def photo(rng, height, width):
  return jnp.asarray(images.from_uint8(noise(rng, height, width)))[None]


def test_edit_photo_repaints_the_mask_and_nothing_else():
  rng = np.random.default_rng(0)
  exemplar, mask = photo(rng, 20, 13), mask_of(61, 83, 40, 50, 52, 58)
  hidden = np.asarray(mask[0, ..., 0]) > 0
  for scale in (1.0, 0.999):  # also a source whose pixels are not those of any file
    source = photo(rng, 61, 83) * scale
    out = edit_photo(source, mask, exemplar)
    changed = np.asarray(out != source).any(-1)[0]
    assert not changed[~hidden].any() and changed[hidden].mean() > 0.9
    assert out.shape == source.shape and out.dtype == source.dtype


def test_at_the_trained_size_edit_photo_is_edit():
  rng = np.random.default_rng(0)
  source, exemplar = photo(rng, small.SIZE, small.SIZE), photo(rng, 8, 8)
  mask = mask_of(small.SIZE, small.SIZE, 3, 3, 13, 13)
  plain = dict(zoom='off', feather=0.0, match='none')
  out = edit_photo(source, mask, exemplar, **plain)
  expected = pbe.edit(model(), source, mask, exemplar, jax.random.key(0), steps=2, sampler='ddim')
  np.testing.assert_array_equal(images.to_uint8(out), images.to_uint8(expected))
  assert (edit_photo(source, mask, exemplar, seed=1, **plain) != out).any()
  assert (edit_photo(source, mask, exemplar, zoom='off', feather=0.0) != out).any()


def test_edit_photo_sees_no_more_of_the_exemplar_than_its_mask():
  rng = np.random.default_rng(0)
  source, exemplar = photo(rng, 16, 16), photo(rng, 20, 20)
  mask, subject = mask_of(16, 16, 3, 3, 13, 13), mask_of(20, 20, 5, 5, 15, 12)
  other = jnp.where(subject > 0, exemplar, -exemplar)
  one, two = (edit_photo(source, mask, e, exemplar_mask=subject) for e in (exemplar, other))
  np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
  assert (edit_photo(source, mask, exemplar) != one).any()
  assert (edit_photo(source, mask, exemplar, exemplar_mask=subject, fit='pad') != one).any()


def test_edit_photo_refuses_what_it_cannot_mean_before_the_work(monkeypatch):
  monkeypatch.setattr(pbe, 'edit', None)
  rng = np.random.default_rng(0)
  source, exemplar, mask = photo(rng, 16, 16), photo(rng, 8, 8), mask_of(16, 16, 3, 3, 13, 13)
  for given, says in (
    (dict(mask=mask[:, 1:]), 'mask has shape'),
    (dict(mask=mask * 0), 'empty'),
    (dict(exemplar_mask=mask), 'exemplar_mask has shape'),
    (dict(zoom='in'), 'in'),
    (dict(match='color'), 'color'),
    (dict(feather=-1.0), '-1.0'),
    (dict(fit='stretch'), 'stretch'),
  ):
    with pytest.raises(ValueError, match=says):
      edit_photo(source, **dict(mask=mask, exemplar=exemplar) | given)
