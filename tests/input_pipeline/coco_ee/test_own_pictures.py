"""A benchmark from own pictures: ids, lists, equal bytes, all or nothing."""

import csv
import json
import shutil

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import own_pictures, validation
from tests import bench as layout
from tests import pictures


@pytest.fixture
def door(capsys):
  return layout.door(capsys)


def test_a_bench_from_a_folder_validates_and_reads_among_what_systems_leave(tmp_path, door):
  layout.own_pictures(tmp_path / 'own')
  pictures.strew(tmp_path / 'own')
  flags = (f'--pictures={tmp_path / "own"}', f'--output={tmp_path / "bench"}', '--size=16')
  assert door('build', *flags)[0] == 0
  pictures.strew(tmp_path / 'bench')
  assert validation.validate(str(tmp_path / 'bench'), 16)['counts'] == {}
  edits = coco_ee.Bench(str(tmp_path / 'bench'), exemplar_size=None)
  assert edits.ids.tolist() == [1, 2, 3]
  for k in range(3):
    assert edits[k]['source'].shape == (16, 16, 3)
    stored = PIL.Image.open(tmp_path / 'own' / 'exemplar' / f'{k + 1}.png')
    np.testing.assert_array_equal(edits[k]['exemplar'], np.asarray(stored))
  manifest = json.loads((tmp_path / 'bench' / 'manifest.json').read_text())
  assert manifest['settings'] == dict(size=16, rectangles=False)
  assert [edit['image'] for edit in manifest['edits']] == [f'image/{k}.jpg' for k in (1, 2, 3)]
  assert len(manifest['sha256']) == 9 and str(tmp_path) not in json.dumps(manifest)


def test_the_same_pictures_give_the_same_bytes(tmp_path):
  layout.own_pictures(tmp_path / 'own')
  digests = []
  for name in 'ab':
    own_pictures.from_pictures(str(tmp_path / 'own'), str(tmp_path / name), size=16)
    files = sorted(p for p in (tmp_path / name).rglob('*') if p.is_file())
    digests.append([(p.relative_to(tmp_path / name), p.read_bytes()) for p in files])
  assert digests[0] == digests[1] and len(digests[0]) == 11
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b', 'own']


def test_rectangles_fills_the_bounding_box_and_pictures_of_the_right_size_stay(tmp_path):
  layout.own_pictures(tmp_path / 'own', ((16, 16),))
  (tmp_path / 'own' / 'image' / '1.jpg').unlink()
  layout.picture(3, (16, 16)).save(tmp_path / 'own' / 'image' / '1.png')
  pixels = np.zeros((16, 16), np.uint8)
  pixels[3, 4] = pixels[9, 12] = 255
  PIL.Image.fromarray(pixels).save(tmp_path / 'own' / 'mask' / '1.png')
  for rectangles, pixel_count in ((False, 2), (True, 7 * 9)):
    output = str(tmp_path / str(rectangles))
    own_pictures.from_pictures(str(tmp_path / 'own'), output, size=16, rectangles=rectangles)
    edit = coco_ee.Bench(output)[0]
    assert (edit['mask'] == 255).sum() == pixel_count
    np.testing.assert_array_equal(edit['source'], np.asarray(layout.picture(3, (16, 16))))


def write_list(root, kind, rows):
  path = root / f'edits.{kind}'
  if kind == 'jsonl':
    path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  else:
    with open(path, 'w', newline='') as file:
      writer = csv.DictWriter(file, list(rows[0]))
      writer.writeheader()
      writer.writerows(rows)
  return path


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_a_list_gives_what_its_folder_gives(tmp_path, kind):
  root = layout.own_pictures(tmp_path / 'own')
  row = lambda k: dict(image=f'image/{k}.jpg', mask=f'mask/{k}.png', exemplar=f'exemplar/{k}.png')
  path = write_list(root, kind, [row(k) | {'id': str(10 * k)} for k in (3, 1, 2)])
  own_pictures.from_pictures(str(path), str(tmp_path / 'list'), size=16)
  own_pictures.from_pictures(str(root), str(tmp_path / 'folder'), size=16)
  ours, theirs = coco_ee.Bench(str(tmp_path / 'list')), coco_ee.Bench(str(tmp_path / 'folder'))
  assert ours.ids.tolist() == [10, 20, 30]
  assert [ours.encoded(k) for k in range(3)] == [theirs.encoded(k) for k in range(3)]


def test_names_that_are_no_numbers_are_counted(tmp_path):
  root = layout.own_pictures(tmp_path / 'own')
  for path in [*root.glob('*/2.*')]:
    path.rename(path.with_stem('cat'))
  own_pictures.from_pictures(str(root), str(tmp_path / 'b'), size=16)
  assert coco_ee.Bench(str(tmp_path / 'b')).ids.tolist() == [0, 1, 2]


def spoil_mask(size, box, k=2):
  return lambda r: layout.mask(box, size).save(r / 'mask' / f'{k}.png')


@pytest.mark.parametrize(
  'spoil, line',
  [
    (lambda r: (r / 'mask' / '2.png').unlink(), '2: {root}/image/2.jpg has no partner mask/2.*'),
    (lambda r: shutil.rmtree(r / 'exemplar'), 'has no folder exemplar/'),
    (
      lambda r: (r / 'image' / '2.jpg').write_bytes(b'no'),
      '2.jpg is not an image of a kind that Pillow reads',
    ),
    (spoil_mask(9, (1, 1, 5, 5)), 'is 9x9 (width x height), its image 20x36'),
    (spoil_mask(30, (0, 0, 0, 0), 3), '3.png is empty: no pixel is at least half bright (edit 3)'),
    (
      lambda r: layout.picture(0, (9, 9)).save(r / 'image' / '2.png'),
      '2.png have one name: keep one of them',
    ),
    (
      lambda r: PIL.Image.new('L', (40, 20), 255).save(r / 'mask' / '1.png'),
      'no 20x20 square of the 40x20 image holds the region, which is 40x20',
    ),
  ],
)
def test_one_bad_picture_and_nothing_is_written(tmp_path, door, spoil, line):
  layout.own_pictures(tmp_path / 'own')
  spoil(tmp_path / 'own')
  flags = (f'--pictures={tmp_path / "own"}', f'--output={tmp_path / "bench"}', '--size=16')
  status, _, said = door('build', *flags)
  assert status == 2 and line.format(root=tmp_path / 'own') in said
  assert [p.name for p in tmp_path.iterdir()] == ['own']


@pytest.mark.parametrize(
  'name, text, line',
  [
    ('x.csv', 'image,mask\na,b\n', "line 2: it has no 'exemplar'"),
    ('x.csv', '', 'lists no edits'),
    ('x.csv', 'image,mask,exemplar,id\na,b,c,1\na,b,c,1\n', 'no two alike'),
    ('x.csv', 'image,mask,exemplar,id\na,b,c,1\na,b,c,\n', '1 of 2 edits have an id'),
    ('x.csv', 'image,mask,exemplar,id\na,b,c,7.5\n', 'whole numbers of at most 12 digits'),
    ('x.csv', 'image,mask,exemplar\na,b,c\n', 'a does not exist'),
    ('x.jsonl', '[1]\n', 'line 1: is [1]: it must be an object'),
    ('x.jsonl', '{"image": \n', 'line 1: is not JSON'),
    ('x.txt', 'a b c', 'name a .jsonl or .csv file, or a folder'),
    ('x.csv', None, 'does not exist'),
  ],
)
def test_a_list_that_cannot_be_used(tmp_path, door, name, text, line):
  if text is not None:
    (tmp_path / name).write_text(text)
  flags = (f'--pictures={tmp_path / name}', f'--output={tmp_path / "bench"}')
  status, _, said = door('build', *flags)
  assert status == 2 and line in said and not (tmp_path / 'bench').exists()
