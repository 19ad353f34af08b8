"""The drawn world, second version: subjects, words, held-out looks, records, vocabulary."""

import dataclasses
import itertools
import os

import cv2
import numpy as np
import pytest

from exedit.input_pipeline import scenes, synthetic, tf_example, tfrecord, vocabulary, world
from exedit.input_pipeline.errors import DataError
from exedit.input_pipeline.tokenizer import Tokenizer

SMALL = dict(version=2, scenes=5, val_scenes=2, shards=1)
# Data sets and weights of version 2 hold these pixels: other ones are another version.
MEANS = [(156.47, 183.86, 171.04), (167.07, 170.72, 163.45), (209.09, 206.26, 210.03)]
LOOK = world.Look('teapot', 'striped', 'red', 'white')


def scenes_of(split, count, **options):
  return [synthetic.scene_at(0, split, i, 2, **options) for i in range(count)]


@pytest.mark.parametrize('index, mean', [*enumerate(MEANS)])
def test_a_version_keeps_its_pixels(index, mean):
  scene, looks = synthetic.scene_at(0, 'train', index, 2)
  np.testing.assert_allclose(world.draw(scene, looks).mean((0, 1)), mean, atol=0.3)


def test_one_to_three_objects_do_not_overlap_and_the_first_is_large():
  counts = set()
  for scene, looks in scenes_of('train', 300):
    boxes = [pose.box for pose in scene.poses]
    counts.add(len(boxes))
    assert len(looks) == len(boxes)
    covered = np.zeros((scenes.GRID, scenes.GRID), int)
    for y0, x0, y1, x1 in boxes:
      assert 0 < y0 < y1 < scenes.GRID and 0 < x0 < x1 < scenes.GRID
      assert 0.02 <= (y1 - y0) * (x1 - x0) / scenes.GRID**2 <= 0.8
      covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    y0, x0, y1, x1 = boxes[0]
    assert min(y1 - y0, x1 - x0) >= 0.4 * scenes.GRID
  assert counts == {1, 2, 3}


def test_subjects_fit_their_boxes_tightly_and_show_their_looks():
  for name, angle in itertools.product(world.SHAPES, (-world.MAX_ANGLE, 0.0, world.MAX_ANGLE)):
    index, palette = world.silhouette(dataclasses.replace(LOOK, shape=name), angle, 90, 99, 2)
    border = [index[:2], index[-2:], index[:, :2], index[:, -2:]]
    assert all(edge.any() for edge in border), name
    assert (index > 0).mean() > 0.2 and index.max() < len(palette), name
    assert (index == 1).sum() > 250 and (index == 2).sum() > 150, name


def test_patterns_share_their_colours_about_evenly_and_differ():
  drawn = [
    world.silhouette(world.Look('ball', p, 'red', 'white'), 0.0, 96, 96, 1)[0]
    for p in world.PATTERNS[1:]
  ]
  for i, one in enumerate(drawn):
    assert 0.25 < (one == 2).sum() / ((one == 1) | (one == 2)).sum() < 0.6
    assert all((one != other).mean() > 0.12 for other in drawn[:i])


def test_captions_are_plain_english_of_a_closed_vocabulary():
  scene = dataclasses.replace(scenes_of('train', 1)[0][0], ground='planks', color='blue')
  assert world.caption(scene, [LOOK]) == 'a striped red and white teapot on blue planks'
  looks = [
    world.Look('apple', 'plain', 'orange', 'orange'),
    world.Look('cat', 'plain', 'red', 'red'),
  ]
  scene = dataclasses.replace(scene, ground='sand', color='')
  assert world.caption(scene, looks) == 'an orange apple and a red cat on sand'
  known, used = set(world.words()), set()
  for split in ('train', 'validation'):
    for scene, looks in scenes_of(split, 300):
      used |= set(world.caption(scene, looks).split())
  assert used == known
  assert all(word.isalpha() and word == word.lower() for word in known)


def test_looks_of_training_and_the_rest_are_disjoint():
  halves = []
  for split in ('train', 'validation'):
    looks = [look for _, looks in scenes_of(split, 500) for look in looks]
    halves.append({(look.shape, look.pattern, look.color, look.color2) for look in looks})
    assert {look.shape for look in looks} == set(world.SHAPES)
    assert {look.pattern for look in looks} == set(world.PATTERNS)
    assert {look.color for look in looks} == set(world.COLORS)
  assert not halves[0] & halves[1]


def test_a_set_of_subjects_is_kept_out_of_training_only():
  without = world.SHAPES[1:]
  for split, all_of_them in (('train', False), ('validation', True)):
    found = {look.shape for _, looks in scenes_of(split, 60, without=without) for look in looks}
    assert (len(found) > 1) == all_of_them and (world.SHAPES[0] in found)


@pytest.mark.parametrize('ground', world.GROUNDS)
def test_every_ground_is_drawn_at_any_multiple_and_the_object_stands_out(ground):
  scene, looks = scenes_of('train', 1)[0]
  color = (*world.GROUNDS[ground][1], '')[0]
  scene = dataclasses.replace(scene, ground=ground, color=color)
  small, large = world.draw(scene, looks), world.draw(scene, looks, 128)
  assert small.shape == (64, 64, 3) and large.shape == (128, 128, 3) and small.dtype == np.uint8
  np.testing.assert_array_equal(small, world.draw(scene, looks))
  reduced = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
  assert np.abs(reduced - small).mean() < 6
  other = dataclasses.replace(looks[0], shape='star' if looks[0].shape != 'star' else 'ball')
  changed = np.abs(world.draw(scene, [other, *looks[1:]]).astype(int) - small).max(-1) > 0
  reach = synthetic._reach(scene.poses[0].box, 64) > 0
  assert changed.any() and not changed[~reach].any()


def test_records_have_captions_and_a_data_set_its_vocabulary(tmp_path):
  root = str(tmp_path)
  manifest = synthetic.write(root, **SMALL)
  records = tfrecord.Source(tfrecord.shard_paths(root, 'train'))
  assert records[3] == synthetic.record(0, 'train', 3, version=2)
  scene, looks = synthetic.scene_at(0, 'train', 3, 2)
  features = tf_example.parse_example(records[3])
  assert features['caption'] == [world.caption(scene, looks).encode()]
  assert features['bobjects/caption'] == [world.phrase(look).encode() for look in looks]
  assert [world.SHAPES[i] for i in features['bobjects/label']] == [look.shape for look in looks]
  # Without its vocabulary, or half of it, the data set is not whole.
  drawn = {path.name for path in tmp_path.iterdir()}
  (tmp_path / 'tokenizer' / 'merges.txt').unlink()
  assert synthetic.ensure(root, **SMALL) == manifest
  assert (tmp_path / 'tokenizer' / 'merges.txt').exists()
  synthetic._remove(root)
  assert drawn >= {'tokenizer', 'manifest.json'} and os.listdir(root) in ([], ['.lock'])


def test_every_word_is_one_token_of_clips_tokenizer(tmp_path):
  words = world.words()
  count = vocabulary.write(tmp_path, words)
  tokenize = Tokenizer(tmp_path, count, length=4)
  tokens = [tokenize(word) for word in words]
  assert all(row[2] == count - 1 for row in tokens)
  assert len({row[1] for row in tokens}) == len(words)


def test_words_that_hold_each_others_pairs_stay_one_token():
  words = ('an', 'can', 'candy', 'and', 'banana', 'aa', 'aaa', 'aaaa')
  tokens, merges = vocabulary.make(words)
  ranks = {tuple(line.split()): i for i, line in enumerate(merges[1:])}
  assert [vocabulary.split(word, ranks) for word in words] == [[word + '</w>'] for word in words]
  assert len(set(tokens)) == len(tokens) and set(word + '</w>' for word in words) <= set(tokens)


@pytest.mark.parametrize(
  'settings, says',
  [
    (dict(version=3), 'version=3: must be one of 1, 2'),
    (dict(without='cat'), 'only version=2 has subjects'),
    (dict(version=2, without='dog'), 'dog is none of ball, star'),
    (dict(version=2, without=','.join(world.SHAPES)), 'leave at least one'),
  ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
  with pytest.raises(DataError, match=says):
    synthetic.settings(**settings)


def test_settings_of_the_first_version_are_what_older_manifests_hold():
  first = synthetic.settings()
  assert first == dict(version=1, scenes=20000, val_scenes=1000, seed=0, size=64, shards=4)
  second = synthetic.settings(version=2, without=' fish,cat,')
  assert second == {**first, 'version': 2, 'without': 'cat,fish'}
