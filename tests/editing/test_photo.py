"""One edit before and after the network, for systems with several kinds of inputs."""

import dataclasses

import numpy as np
import pytest

from exedit import images
from exedit.editing import framing, photo, settings
from exedit.paint_by_example import SYSTEM
from exedit.runtime.errors import UserError
from exedit.systems import Input

WINDOW = framing.Frame(0, 0, 16, 16, (16, 16))
PLAIN = dict(feather=0.0, match='none')


def inputs_of_a_photo():
  rgb, mask = np.full((16, 16, 3), 100, np.uint8), np.zeros((16, 16), bool)
  mask[4:9, 3:12] = True
  return rgb, mask


def finish(value, rgba=None, **settings):
  rgb, mask = inputs_of_a_photo()
  raw, how = np.full((16, 16, 3), value, np.float32), SYSTEM.settings(**settings)
  return photo.finish(WINDOW, raw, images.Photo(rgb, rgba, None), mask, how, name='0.png')


def test_pixels_inside_are_the_results_and_outside_the_files():
  mask = inputs_of_a_photo()[1]
  out = finish(1.0, **PLAIN)
  assert (out[mask] == 255).all() and (out[~mask] == 100).all() and out.shape[-1] == 3
  assert (finish(1.0, paste=False) == 255).all()


def test_pixels_of_a_transparent_photo():
  rgba = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
  mask = inputs_of_a_photo()[1]
  out = finish(1.0, rgba, **PLAIN)
  np.testing.assert_array_equal(out[~mask], rgba[~mask])
  assert (out[mask] == 255).all()


def test_a_result_that_is_not_finite_names_its_output():
  with pytest.raises(UserError, match='0.png is not written: the result is not finite'):
    finish(np.nan)


def test_a_photo_without_a_mask_is_repainted_whole():
  rgb, _ = inputs_of_a_photo()
  inputs = (Input('photo', 'photo', ''), Input('prompt', 'text', ''))
  given, how = dict(photo=rgb, prompt='a dog'), settings.PhotoSettings()
  tokens = lambda text: np.array([len(text)])
  seen = photo.prepare(inputs, given, how, trained=16, tokens=tokens)
  assert set(seen.arrays) == {'photo', 'prompt'} and seen.arrays['prompt'] == [5]
  region = photo.painted_region(inputs, given)
  plain = dataclasses.replace(how, **PLAIN)
  out = photo.finish(seen.frame, np.ones((16, 16, 3)), images.Photo(rgb, None, None), region, plain)
  assert (out == 255).all()
  optional = (*inputs, Input('mask', 'mask', '', required=False))
  assert photo.prepare(optional, given, how, trained=16, tokens=tokens).arrays['mask'].all()


def test_without_a_photo_the_pixels_are_the_networks_at_the_trained_size():
  seen = photo.prepare((), {}, settings.EditSettings(), trained=24)
  assert seen.frame.size == (24, 24) and seen.arrays == {}
  assert (photo.finish(seen.frame, -np.ones((24, 24, 3)), None, None, None) == 0).all()


def test_values_by_kind_go_to_the_inputs_of_that_kind():
  values = dict(photo=1, mask=2, picture=3, text=None)
  assert photo.by_kind(SYSTEM.inputs, **values) == dict(image=1, mask=2, exemplar=3)
