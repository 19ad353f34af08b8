"""The looks that pictures of texts show: drawings are known, other drawings are at chance."""

import dataclasses

import cv2
import numpy as np
import pytest

from exedit.evaluation import drawn_text
from exedit.input_pipeline import synthetic, world
from exedit.metrics import confidence

COUNT = 7


@pytest.fixture(scope='module')
def bench():
  return list(synthetic.texts(COUNT, seed=3, size=64))


@pytest.fixture(scope='module')
def drawings(bench):
  return np.stack([edit['truth'] for edit in bench])


def test_texts_name_their_looks_which_are_held_out_and_all_different(bench):
  for edit in bench:
    own = edit['looks'][edit['answer']]
    assert edit['caption'].startswith(world.phrase(own) + ' ')
    assert len(edit['looks']) == 10
    assert all(map(world.is_held_out, edit['looks']))
  assert len({edit['answer'] for edit in bench}) > 3
  first = next(synthetic.texts(1, seed=3, size=64))
  assert first['caption'] == bench[0]['caption'] and (first['truth'] == bench[0]['truth']).all()


def test_no_two_truths_have_one_name():
  for seed in range(150):
    looks = synthetic._truths(np.random.default_rng(seed), 10, world.VERSION, 'look')
    assert len(set(map(world.phrase, looks[:10]))) == 10 and len(looks) == 11


def test_drawings_of_the_captions_are_known(bench, drawings):
  found = drawn_text.score(drawings, bench)
  assert found['gains'].shape == (COUNT, 10) and found['identified'].all()
  blurred = np.stack([cv2.GaussianBlur(picture, (0, 0), 1.5) for picture in drawings[:4]])
  assert drawn_text.score(blurred, bench[:4])['identified'].sum() >= 3


def test_drawings_of_other_captions_and_grounds_alone_are_at_chance(bench, drawings):
  found = drawn_text.score(np.roll(drawings, 1, 0), bench)
  low, _ = confidence.wilson(int(found['identified'].sum()), COUNT)
  assert low < 0.1
  grey = np.full_like(drawings[:2], 128)
  assert not drawn_text.score(grey, bench[:2])['identified'].any()


def test_the_place_and_the_size_of_the_object_do_not_count(bench):
  look = bench[0]['looks'][0]
  scene = world.sample_scene(np.random.default_rng(0), most=1)
  for box in ((1, 1, 33, 33), (14, 12, 60, 58), (30, 2, 62, 34)):
    pose = world.Pose(box, 0.0)
    picture = world.draw(dataclasses.replace(scene, poses=(pose,)), [look])
    assert drawn_text.gains(picture, bench[0]['looks'][:3]).argmax() == 0
