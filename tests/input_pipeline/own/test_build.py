"""Own pictures to shards: every kind of label, what is left out, and going on."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from exedit.input_pipeline import open_images
from exedit.input_pipeline.own import build as builder
from tests import own_folder as own
from tests import pictures
from tests.refusals import refusal


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return own.write(tmp_path_factory.mktemp('photos'))


WAYS = dict(
  coco=lambda root: own.coco(root / 'labels.json'),
  outlines=lambda root: own.coco(root / 'labels.json', outlines=True),
  voc=lambda root: own.voc(root / 'labels'),
  yolo=lambda root: own.yolo(root / 'labels'),
  pixels=lambda root: own.table(root / 'labels.csv'),
  shares=lambda root: own.table(root / 'labels.csv', shares=True),
  masks=lambda root: own.masks(root / 'labels'),
)


@pytest.mark.parametrize('way', WAYS)
def test_every_way_to_say_the_subjects_gives_the_same_shards(way, folder, tmp_path):
  WAYS[way](tmp_path)
  where = next(str(path) for path in tmp_path.iterdir())
  flags = ['--units=shares'] if way == 'shares' else []
  found = own.build(
    folder, tmp_path / 'out', f'--{"masks" if way == "masks" else "boxes"}={where}', *flags
  )
  assert sorted(found) == sorted(own.NAMES)
  for number, name in enumerate(own.NAMES):
    record, (x0, y0, x1, y1) = found[name], own.box_of(number)
    assert record['image'] == [(folder / name).read_bytes()]
    size = np.float32([own.HEIGHT, own.WIDTH] * 2)
    np.testing.assert_allclose(record['bobjects/bbox'] * size, (y0, x0, y1, x1), atol=1e-4)
    assert record['bobjects/caption'][0].decode() == own.label_of(name)
    assert own.LABELS[int(record['bobjects/label'][0])] == own.label_of(name)
    assert (open_images.MASKS in record) == (way in ('masks', 'outlines'))
    if open_images.MASKS in record:
      mask = open_images.subject_of(record, 0, (own.HEIGHT, own.WIDTH))
      np.testing.assert_array_equal(mask, 255 * pictures.box(own.HEIGHT, own.WIDTH, y0, x0, y1, x1))
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert manifest['pictures']['counts'] == manifest['subjects']['counts'] == {}
  assert manifest['classes'] == sorted(own.LABELS)
  assert {n: s['pictures'] for n, s in manifest['splits'].items()} == dict(train=6, validation=2)
  assert Image.open(tmp_path / 'out' / 'sheet.png').width > 1000


def test_what_is_left_out_is_counted_with_the_first_example(tmp_path, capsys):
  folder = own.write(tmp_path / 'photos', [f'{i}.jpg' for i in range(9)])
  (folder / '5.jpg').write_bytes((folder / '5.jpg').read_bytes()[:300])
  own.write(folder / 'more', ['1.jpg'])
  rows = ['image,x0,y0,x1,y1', '0.jpg,5,5,40,40', '1.jpg,5,5,40,40', 'more/1.jpg,5,5,40,40']
  rows += ['2.jpg,5,5,5,40', '2.jpg,70,5,90,40', '2.jpg,1,1,3,3', '2.jpg,0,0,64,48']
  rows += ['3.jpg,a,5,40,40', '4.jpg,-30,5,40,40', '5.jpg,5,5,40,40', 'gone.jpg,5,5,40,40']
  rows += ['6.jpg,5,5,nan,40', '7.jpg,-1,5,40,40']
  (tmp_path / 'boxes.csv').write_text('\n'.join(rows))
  kept = own.build(folder, tmp_path / 'out', f'--boxes={tmp_path / "boxes.csv"}', '--held_out=0.3')
  assert sorted(kept) == ['0.jpg', '1.jpg', '4.jpg', '7.jpg', 'more/1.jpg']
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert manifest['pictures']['counts'] == dict(
    no_subject=3, no_usable_subject=1, unreadable=1
  )  # 3, 6, 8; 2; 5
  assert manifest['subjects']['counts'] == dict(
    malformed=2, no_picture=1, no_area=1, outside=1, too_small=1, too_large=1
  )
  examples = manifest['subjects']['examples']
  assert examples['no_picture'] == 'gone.jpg is not among the pictures'
  assert 'line 6: 100% of the box lie outside the 64x48 picture' in examples['outside']
  said = capsys.readouterr().out
  assert '3 no_subject (the first is 3.jpg' in said and 'are few' in said
  lines = (tmp_path / 'out' / 'dropped.csv').read_text().splitlines()
  assert lines[0] == 'picture,reason,detail' and len(lines) == 6
  np.testing.assert_allclose(kept['4.jpg']['bobjects/bbox'][1], 0)


def test_names_that_fit_two_pictures_are_refused(folder, tmp_path, capsys):
  (tmp_path / 'b.csv').write_text('image,x0,y0,x1,y1\n1.jpg,5,5,40,40\n1,5,5,40,40\n')
  flags = (f'--pictures={folder}', f'--output={tmp_path / "out"}', f'--boxes={tmp_path / "b.csv"}')
  own.call(*flags)
  assert '1 ambiguous_name (the first is 1 may be teapot/1.jpg and чашка/1.png' in (
    capsys.readouterr().out
  )


def turned(path, orientation):
  """Saves a picture so that a viewer turns it, with a box at the upright 8..40, 4..36."""
  upright = np.zeros((own.HEIGHT, own.WIDTH, 3), np.uint8)
  upright[4:36, 8:40] = 255
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
  assert orientation == 6
  stored.save(path, quality=95, exif=exif)
  return np.asarray(stored)


@pytest.mark.parametrize('of', ['upright', 'stored', 'another'])
def test_a_turned_photo_is_stored_upright_with_its_boxes(of, tmp_path, capsys):
  (tmp_path / 'p').mkdir()
  for i in range(2):
    turned(tmp_path / 'p' / f'{i}.jpg', 6)
  box, size = dict(
    upright=([8, 4, 32, 32], (own.WIDTH, own.HEIGHT)),
    stored=([4, 24, 32, 32], (own.HEIGHT, own.WIDTH)),
    another=([8, 4, 32, 32], (640, 480)),
  )[of]
  images = [dict(id=i, file_name=f'{i}.jpg', width=size[0], height=size[1]) for i in range(2)]
  rows = [dict(image_id=i, bbox=box) for i in range(2)]
  (tmp_path / 'l.json').write_text(json.dumps(dict(images=images, annotations=rows)))
  flags = (f'--boxes={tmp_path / "l.json"}', '--held_out=0', '--largest=64')
  if of == 'another':
    line = refusal(
      capsys, own.call, f'--pictures={tmp_path / "p"}', f'--output={tmp_path / "out"}', *flags
    )
    assert '2 another_size' in line and 'a picture of 640x480, and 0.jpg is 64x48' in line
    assert not (tmp_path / 'out').exists()
    return
  own.call(f'--pictures={tmp_path / "p"}', f'--output={tmp_path / "out"}', *flags)
  assert '2 pictures to train on, 0 held out' in capsys.readouterr().out
  record = own.records(tmp_path / 'out', 'train')['0.jpg']
  pixels = open_images.codec.decode(record['image'][0])
  assert pixels.shape == (own.HEIGHT, own.WIDTH, 3) and pixels[8:32, 12:36].min() > 200
  np.testing.assert_allclose(record['bobjects/bbox'] * [48, 64, 48, 64], [4, 8, 36, 40], atol=1e-4)


def test_transparent_pictures_masks_of_another_size_and_large_pictures(tmp_path, capsys):
  folder = tmp_path / 'p'
  folder.mkdir()
  for i in range(3):
    rgba = np.full((200, 300, 4), 40 + i, np.uint8)
    rgba[..., 3] = 0
    rgba[50:150, 60 + i : 200, 3] = 255
    Image.fromarray(rgba).save(folder / f'{i}.png')
  found = own.build(folder, tmp_path / 'alpha', '--masks=alpha', '--largest=150')
  record = found['0.png']
  assert open_images.codec.decode(record['image'][0]).shape == (100, 150, 3)
  mask = open_images.subject_of(record, 0, (100, 150))
  assert (mask[25:75, 30:100] == 255).all() and not mask[:24].any()
  np.testing.assert_allclose(record['bobjects/bbox'], [0.25, 0.2, 0.75, 2 / 3], atol=1e-6)
  (tmp_path / 'm').mkdir()
  Image.new('L', (30, 20), 255).save(tmp_path / 'm' / '0_1.png')
  Image.new('L', (300, 200), 0).save(tmp_path / 'm' / '1.png')
  Image.new('L', (300, 200), 0).save(tmp_path / 'm' / 'x.png')
  line = refusal(
    capsys, own.call, f'--pictures={folder}', f'--output={tmp_path / "o"}',
    f'--masks={tmp_path / "m"}',
  )  # fmt: skip
  for part in ('1 mask_of_another_size', 'is 30x20, and 0.png is 300x200', '1 mask_empty',
    '1 mask_without_picture (the first is x.png', '1 no_subject'):  # fmt: skip
    assert part in line


def test_near_duplicates_stay_on_one_side_and_the_choice_depends_on_names(tmp_path):
  folder = own.write(tmp_path / 'p', [f'{i}.png' for i in range(12)])
  for i in range(6):  # copies, smaller and saved again
    Image.open(folder / f'{i}.png').resize((128, 96)).save(folder / f'{i}-copy.jpg', quality=80)
  own.build(folder, tmp_path / 'out', '--whole', '--held_out=0.4', '--largest=64')
  held = {name.split('.')[0] for name in own.records(tmp_path / 'out', 'validation')}
  train = {name.split('.')[0] for name in own.records(tmp_path / 'out', 'train')}
  assert len(held) == 7 and len(train) == 11
  assert not {n.split('-')[0] for n in held} & {n.split('-')[0] for n in train}


def test_an_interrupted_build_goes_on_and_gives_equal_bytes(folder, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(builder, 'CHUNK', 3)
  monkeypatch.setattr(builder, 'SHARD_BYTES', 10000)
  flags = (f'--pictures={folder}', '--whole', '--threads=1')
  own.call(*flags, f'--output={tmp_path / "a"}')
  examine, calls, stop = builder.examine, [], [0]

  def stops(*given):
    calls.append(given[1])
    if len(calls) == stop[0]:
      raise KeyboardInterrupt
    return examine(*given)

  monkeypatch.setattr(builder, 'examine', stops)
  for stop[0] in (5, 9):  # while it looks, while it writes
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
      builder.build(str(folder), str(tmp_path / 'b'), whole=True, threads=1)
  stop[0] = 0
  calls.clear()
  own.call(*flags, f'--output={tmp_path / "b"}')
  assert len(calls) < len(own.NAMES)
  shards = sorted(name for name in os.listdir(tmp_path / 'a') if name[-5:].isdigit())
  assert len(shards) > 3
  for name in (*shards, 'manifest.json', 'dropped.csv'):
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes(), name
  calls.clear()
  own.call(*flags, f'--output={tmp_path / "b"}')  # finished: only the report
  assert not calls and '6 pictures to train on, 2 held out' in capsys.readouterr().out
  line = refusal(capsys, own.call, *flags, f'--output={tmp_path / "b"}', '--seed=1')
  assert 'was begun with seed 0, now it is 1' in line


BAD = {
  'is given: say where the subjects are': [],
  '--boxes and --whole is given': ['--boxes=b.csv', '--whole'],
  'gone.json does not exist': ['--boxes=gone.json'],
  'notes.md is no label file': ['--boxes=notes.md'],
  'bad.json is not a COCO file': ['--boxes=bad.json'],
  'empty holds no labels': ['--boxes=empty'],
  'it has no column y0': ['--boxes=columns.csv'],
  'add --units=shares': ['--boxes=shares.csv'],
  'says itself what it counts': ['--boxes=l.json', '--units=shares'],
  'held_out=0.9': ['--whole', '--held_out=0.9'],
  'names a share': ['--whole', '--min_area=0.5', '--max_area=0.2'],
  'full holds x.txt': ['--whole', '--output=full'],
  'name a new .csv file': ['--propose'],
  'empty holds no pictures': ['--whole', '--pictures=empty'],
}


@pytest.mark.parametrize('part', BAD)
def test_bad_input_is_one_line_and_leaves_nothing(part, folder, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  for name, text in {
    'notes.md': '', 'bad.json': '[1, 2]', 'full/x.txt': 'x', 'columns.csv': 'image,x0\na,1\n',
    'shares.csv': 'image,x0,y0,x1,y1\n1.jpg,0,0,0.5,0.5\n',
  }.items():  # fmt: skip
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  (tmp_path / 'empty').mkdir()
  own.coco(tmp_path / 'l.json')
  before = sorted(tmp_path.rglob('*'))
  line = refusal(capsys, own.call, f'--pictures={folder}', '--output=out', *BAD[part])
  assert part in line or part == 'names a share' and '0 <= min < max <= 1' in line
  assert sorted(tmp_path.rglob('*')) == before


def test_captions_come_along_and_labels_of_yolo_are_none(tmp_path):
  folder = own.write(tmp_path / 'p', ['a.jpg', 'b.jpg', 'c.jpg'])
  (folder / 'a.txt').write_text('ein Teekännchen\nauf Gras', 'utf-8')
  (folder / 'b.txt').write_text('0 0.5 0.5 0.4 0.4\n')
  found = own.build(folder, tmp_path / 'out', '--whole')
  assert found['a.jpg']['caption'] == ['ein Teekännchen auf Gras'.encode()]
  assert 'caption' not in found['b.jpg'] and 'bobjects/caption' not in found['a.jpg']
  own.call(f'--pictures={folder}', f'--output={tmp_path / "yolo"}', f'--boxes={folder}')
  assert own.records(tmp_path / 'yolo', 'train').keys() == {'b.jpg'}
