"""Synthetic data: equal bytes, held-out looks, tight boxes, truths that differ in masks only."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from exedit.input_pipeline import scenes, synthetic, tf_example, tfrecord
from exedit.input_pipeline.errors import DataError
from exedit.runtime import doors
from tests.refusals import refusal

SMALL = dict(scenes=7, val_scenes=3, shards=2)


def door(*flags):
  doors.call(synthetic.main, synthetic.FLAGS, synthetic.__doc__, ['synthetic', *flags])


def test_every_scene_has_a_usable_box_and_most_are_large():
  areas = []
  for i in range(300):
    scene, looks = synthetic.scene_at(0, 'train', i)
    assert len(looks) == len(scene.poses) in (1, 2)
    boxes = np.array([pose.box for pose in scene.poses]) / scenes.GRID
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert (area >= 0.02).all() and (area <= 0.8).all()
    assert (boxes > 0).all() and (boxes < 1).all()
    areas.append(area[0])
  assert 0.3 < np.mean(areas) < 0.45


def test_boxes_are_tight():
  for i in range(60):
    scene, looks = synthetic.scene_at(0, 'validation', i)
    for pose, look in zip(scene.poses, looks, strict=True):
      y0, x0, y1, x1 = (3 * c for c in pose.box)
      alpha = scenes._silhouette(look.shape, pose.angle, y1 - y0, x1 - x0)
      assert all(edge.any() for edge in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))
      assert alpha.mean() > 0.35


def test_looks_of_training_and_the_rest_are_disjoint():
  key = lambda look: (look.shape, look.pattern, look.repeats, look.color, look.color2)
  looks = {
    split: [look for i in range(400) for look in synthetic.scene_at(0, split, i)[1]]
    for split in ('train', 'validation')
  }
  assert not any(map(scenes.is_held_out, looks['train']))
  assert all(map(scenes.is_held_out, looks['validation']))
  assert not set(map(key, looks['train'])) & set(map(key, looks['validation']))
  for part in looks.values():  # both halves know every shape and every pattern
    assert {look.shape for look in part} == set(scenes.SHAPES)
    assert {look.pattern for look in part} == set(scenes.PATTERNS)


def test_write_is_deterministic_complete_and_described_by_the_manifest(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  door('--output=a', '--scenes=7', '--val_scenes=3', '--shards=2')
  assert capsys.readouterr().out == 'a: 10 scenes in 3 shards\n'
  again = synthetic.write(str(tmp_path / 'b'), **SMALL)
  with open(tmp_path / 'a' / 'manifest.json') as file:
    first = json.load(file)
  assert first == again and first['settings'] | SMALL == first['settings']
  paths = tfrecord.shard_paths(str(tmp_path / 'a'), 'train')
  assert len(paths) == 2
  records = [tfrecord.Source(paths)[i] for i in range(7)]
  assert records == [synthetic.record(0, 'train', i) for i in range(7)]
  features = tf_example.parse_example(records[0])
  assert {'image', 'image/filename', 'bobjects/bbox', 'bobjects/label'} <= features.keys()
  assert features['bobjects/bbox'].dtype == np.float32
  assert len(features['bobjects/bbox']) == 4 * len(features['bobjects/label'])
  assert len(tfrecord.Source(tfrecord.shard_paths(str(tmp_path / 'a'), 'validation'))) == 3


def test_ensure_writes_once_and_repairs_but_does_not_mix_settings(tmp_path):
  root = str(tmp_path / 'data')
  manifest = synthetic.ensure(root, **SMALL)
  shard = os.path.join(root, 'synthetic-train.tfrecord-00000-of-00002')
  stamp = os.stat(shard).st_mtime_ns
  assert synthetic.ensure(root, **SMALL) == manifest
  assert os.stat(shard).st_mtime_ns == stamp
  with open(shard, 'r+b') as file:
    file.truncate(10)
  assert synthetic.ensure(root, **SMALL) == manifest
  assert os.path.getsize(shard) > 10
  with pytest.raises(DataError, match='was made with scenes=7, not scenes=8; remove it or name'):
    synthetic.ensure(root, **SMALL | dict(scenes=8))


def test_of_several_at_once_one_draws_and_the_others_wait(tmp_path, monkeypatch, capfd):
  root, write, drawn = str(tmp_path / 'data'), synthetic.write, []

  def slowly(*args, **kwargs):
    drawn.append(args)
    time.sleep(0.5)  # the others are there by then
    return write(*args, **kwargs)

  monkeypatch.setattr(synthetic, 'write', slowly)
  with ThreadPoolExecutor(4) as pool:
    manifests = list(pool.map(lambda _: synthetic.ensure(root, **SMALL), range(4)))
  assert len(drawn) == 1 and all(manifest == manifests[0] for manifest in manifests)
  assert f'{root}: another run is drawing the same scenes (' in capfd.readouterr().err
  assert {*os.listdir(root)} == {'.lock', 'manifest.json', *manifests[0]['files']}


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_several_processes_draw_the_same(tmp_path):
  alone, together = tmp_path / 'alone', tmp_path / 'together'
  synthetic.ensure(str(alone), **SMALL)
  synthetic.ensure(str(together), processes=2, **SMALL)
  assert contents(alone) == {**contents(together), '.lock': (alone / '.lock').read_bytes()}


@pytest.mark.parametrize(
  'there',
  [
    ['manifest.json'],
    ['IMG_1.jpg', 'IMG_2.jpg'],
    ['photos-train.tfrecord-00000-of-00001'],
    ['synthetic-train.tfrecord-00000-of-00002', 'synthetic-train.tfrecord-00001-of-00002'],
    ['.lock', 'synthetic-train.tfrecord-00000-of-00001.idx.npy'],
  ],
)
def test_nothing_is_drawn_or_removed_where_other_files_lie(tmp_path, there):
  for name in there:
    (tmp_path / name).write_text('{"made_by": "somebody"}')
  before = contents(tmp_path)
  for f in (synthetic.write, synthetic.ensure):
    words = f'holds {there[-1] if there[0] == ".lock" else there[0]}.* was not made by '
    with pytest.raises(DataError, match=words + 'input_pipeline.synthetic.* name another'):
      f(str(tmp_path), **SMALL)
  assert contents(tmp_path) == before


@pytest.mark.parametrize('lost', ['', 'synthetic-*'])
def test_our_manifest_does_not_make_other_shards_ours(tmp_path, lost):
  synthetic.write(str(tmp_path), **SMALL)
  for shard in tmp_path.glob(lost) if lost else ():
    shard.unlink()
  (tmp_path / 'photos-train.tfrecord-00000-of-00001').write_text('mine')
  before = contents(tmp_path)
  for f in (synthetic.write, synthetic.ensure, lambda root, **made: synthetic.provide(root, made)):
    with pytest.raises(DataError, match='holds photos-train.*name another.*synthetic=None'):
      f(str(tmp_path), **SMALL)
  assert synthetic.provide(str(tmp_path), None) == 'existing shards'
  assert contents(tmp_path) == before


def test_shards_that_are_there_win(tmp_path):
  made = tmp_path / 'made'
  assert synthetic.provide(str(made), SMALL) == 'scenes drawn by input_pipeline.synthetic'
  assert synthetic.provide(str(made), None) == 'scenes drawn by input_pipeline.synthetic'
  (made / 'manifest.json').unlink()
  before = contents(made)
  assert synthetic.provide(str(made), SMALL) == 'existing shards; no scenes were drawn'
  assert synthetic.provide(str(made), None) == 'existing shards'
  assert contents(made) == before
  for nothing in (None, {}):
    synthetic.provide(str(tmp_path / 'none'), nothing)
  assert not (tmp_path / 'none').exists()


def test_a_killed_drawing_is_made_again_and_other_files_stay(tmp_path):
  whole = synthetic.write(str(tmp_path), **SMALL)
  drawn = contents(tmp_path)
  (tmp_path / 'manifest.json').write_text(json.dumps({**whole, 'files': {}}))
  (tmp_path / 'synthetic-train.tfrecord-00001-of-00002').unlink()
  (tmp_path / '.synthetic-train.tfrecord-00001-of-00002.1.0.tmp').write_text('half')
  (tmp_path / 'synthetic-train.tfrecord-of-mine').write_text('mine')
  assert synthetic.ensure(str(tmp_path), **SMALL) == whole
  after = contents(tmp_path)
  assert after.pop('synthetic-train.tfrecord-of-mine') == b'mine' and after.pop('.lock')
  assert after == drawn


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
  draw = synthetic.record

  def fail(seed, split, index, size, **options):
    if index == 5:
      raise OSError(28, 'No space left on device')
    return draw(seed, split, index, size, **options)

  monkeypatch.setattr(synthetic, 'record', fail)
  with pytest.raises(DataError, match='cannot be written .No space left on device'):
    synthetic.write(str(tmp_path), **SMALL)
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
  'version, size, scene_size', [(1, 32, 64), (1, 64, 64), (1, 48, 64), (1, 64, 128), (2, 64, 64)]
)
def test_truths_differ_inside_the_mask_only(version, size, scene_size):
  kw = dict(seed=4, size=size, exemplar_size=32, scene_size=scene_size, version=version)
  first = next(synthetic.bench(1, **kw))  # a longer benchmark begins with the same edits
  for number, edit in enumerate(synthetic.bench(12, **kw)):
    for name in first if number == 0 else ():
      np.testing.assert_array_equal(edit[name], first[name])
    assert edit['truths'].shape == (10, size, size, 3) and edit['mask'].shape == (size, size)
    assert edit['source'].dtype == edit['exemplar'].dtype == edit['mask'].dtype == np.uint8
    outside = edit['mask'] == 0
    np.testing.assert_array_equal(
      edit['truths'][:, outside], edit['source'][None, outside].repeat(10, 0)
    )
    inside = edit['truths'][:, ~outside].astype(int)
    difference = np.abs(inside[:, None] - inside[None]).mean((2, 3)) + 99 * np.eye(10)
    assert difference.min() > 1  # no two truths are the same picture
    assert set(np.unique(edit['mask'])) == {0, 255}
    rows, columns = np.nonzero(edit['mask'])
    box = edit['mask'][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (box == 255).all()


def test_bench_answers_are_spread_and_told_by_the_exemplar_alone():
  """The exemplar, put into the box, is nearest to its truth far above chance; the source is not."""
  right, chance, answers = [], [], []
  for edit in synthetic.bench(80, seed=0, size=32, exemplar_size=32):
    mask, answer = edit['mask'] > 0, edit['answer']
    rows, columns = np.nonzero(mask)
    inner = slice(rows.min() + 2, rows.max() - 1), slice(columns.min() + 2, columns.max() - 1)
    guess = edit['source'].copy()
    height, width = guess[inner].shape[:2]
    guess[inner] = cv2.resize(edit['exemplar'], (width, height))
    right.append(_nearest(guess, edit, mask) == answer)
    chance.append(_nearest(edit['source'], edit, mask) == answer)
    answers.append(answer)
  assert np.mean(right) > 0.5
  assert np.mean(chance) < 0.2
  assert set(answers) == set(range(10))


@pytest.mark.parametrize(
  'flags, line',
  [
    ([], '--output=... is missing'),
    (['--output=x', '--scenes=0'], 'scenes=0: must be at least 1'),
    (['--output=x', '--size=50'], 'size=50: must be a multiple of 64'),
    (['--output=x', '--seed=-1'], 'seed=-1: must be at least 0'),
  ],
)
def test_the_door_refuses_in_one_line(tmp_path, monkeypatch, capsys, flags, line):
  monkeypatch.chdir(tmp_path)
  assert line in refusal(capsys, door, *flags)
  assert os.listdir(tmp_path) == []


def _nearest(picture, edit, mask):
  difference = (edit['truths'].astype(float) - picture)[:, mask]
  return int(np.argmin((difference**2).mean((1, 2))))


def test_example_is_the_benchs_edit_in_files(tmp_path):
  synthetic.main(str(tmp_path), example=2, seed=5, size=64)
  *_, edit = synthetic.bench(3, seed=5, size=64, exemplar_size=64)
  for name, pixels in (('image', edit['source']), ('exemplar', edit['exemplar'])):
    read = cv2.imread(str(tmp_path / f'{name}.png'))
    np.testing.assert_array_equal(read[..., ::-1], pixels)
  mask = cv2.imread(str(tmp_path / 'mask.png'), cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(mask, edit['mask'])
  synthetic.main(str(tmp_path), example=2, seed=5, size=64)  # the same again
  with pytest.raises(DataError, match='image.png is there already and another picture'):
    synthetic.main(str(tmp_path), example=0, seed=0, size=32)
  synthetic.main(str(tmp_path / 'other'), example=0, seed=0, size=32)
  assert cv2.imread(str(tmp_path / 'other' / 'image.png')).shape == (32, 32, 3)
  with pytest.raises(DataError, match='size 0 between 8 and 4096'):
    synthetic.main(str(tmp_path), example=0, seed=0, size=0)
