"""Labels as tools write them: names of classes, files of other pictures, run lengths, masks."""

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline.own import alike, labels, names, subjects
from exedit.input_pipeline.reports import Odd, Reasons
from tests import own_folder as own
from tests import pictures


def read(path, paths, units=''):
  reasons = Reasons()
  return labels.read(str(path), names.Names(paths), units, reasons)[0], reasons


@pytest.mark.parametrize(
  'label, picture',
  [
    ('a/1.jpg', 'a/1.jpg'),
    ('/home/me/x/A/1.JPG', 'a/1.jpg'),
    ('C:\\photos\\b\\1', 'b/1.png'),
    ('b/1.jpeg', 'b/1.png'),  # saved with another ending
    ('2.png', 'b/2.png'),
    ('Cafe\u0301.jpg', 'Caf\u00e9.jpg'),  # as macOS writes names
    ('c/2.png', 'no_picture'),
    ('1', 'ambiguous_name'),
    ('', 'no_name'),
  ],
)
def test_a_label_finds_its_picture(label, picture):
  known = names.Names(['a/1.jpg', 'b/1.png', 'b/2.png', 'Caf\u00e9.jpg'])
  try:
    assert known.find(label) == picture
  except Odd as odd:
    assert odd.reason == picture


@pytest.mark.parametrize(
  'mask, picture',
  [
    ('a.png', 'a.jpg'),
    ('a_mask.png', 'a.jpg'),
    ('a.mask-2.png', 'a.jpg'),
    ('a-2.png', 'a-2.jpg'),
    ('a-3.png', 'a.jpg'),
    ('a/anything.png', 'a.jpg'),
    ('b.png', 'mask_without_picture'),
  ],
)
def test_a_mask_finds_its_picture(mask, picture):
  try:
    assert names.Names(['a.jpg', 'a-2.jpg']).of_mask(mask) == picture
  except Odd as odd:
    assert odd.reason == picture


def test_voc_of_another_picture_and_of_none(tmp_path):
  own.voc(tmp_path / 'v', ['a.jpg', 'b.jpg', 'c.jpg'])
  (tmp_path / 'v' / 'label0.xml').rename(tmp_path / 'v' / 'b.xml')  # says a.jpg
  (tmp_path / 'v' / 'x.xml').write_text('<annotation>')
  (tmp_path / 'v' / 'y.xml').write_text('<annotation><filename>b.jpg</filename></annotation>')
  table, reasons = read(tmp_path / 'v', ['a.jpg', 'b.jpg'])
  assert table.keys() == {'b.jpg'} and table['b.jpg'][0].size == (own.WIDTH, own.HEIGHT)
  assert reasons.counts == dict(names_two_pictures=1, no_picture=1, label_unreadable=1, no_object=1)
  assert reasons.examples['names_two_pictures'].startswith('b.xml says it is of a.jpg')


def test_yolo_names_come_from_yaml_or_are_numbers(tmp_path, capsys):
  (tmp_path / 'labels').mkdir()
  lines = ['0 .5 .5 .2 .2', '1 .5 .5 .2 .2 .93', '2 0 0 .5 0 .5 .5', '1 .5', '0 50 50 20 20 20 20']
  (tmp_path / 'labels' / 'a.txt').write_text('\n'.join(lines))
  (tmp_path / 'labels' / 'b.txt').write_text('')
  table, reasons = read(tmp_path / 'labels', ['a.jpg', 'b.jpg'])
  assert [s.label for s in table['a.jpg']] == ['0', '1', '2'] and table['b.jpg'] == []
  assert reasons.counts == dict(malformed=1, in_pixels=1)
  assert 'labels are numbers' in capsys.readouterr().err
  (tmp_path / 'data.yaml').write_text('names:\n  0: cat\n  1: dog\n')
  table, reasons = read(tmp_path / 'labels', ['a.jpg', 'b.jpg'])
  assert [s.label for s in table['a.jpg']] == ['cat', 'dog']
  assert reasons.counts['unknown_class'] == 1


def test_run_lengths_as_lists_and_as_text():
  mask = np.zeros((5, 4), np.uint8)
  mask[1:3, 1:3] = 255
  assert (subjects.run_lengths(dict(size=[5, 4], counts=[6, 2, 3, 2, 7]), 'x') == mask).all()
  # The texts follow maskApi.c by hand: 5 bits a piece, the fourth run less the second, and so on.
  for text, runs in (('62304', [6, 2, 3, 2, 7]), ('591I2', [5, 9, 1, 2, 3])):
    as_list = subjects.run_lengths(dict(size=[5, 4], counts=runs), 'x')
    assert (subjects.run_lengths(dict(size=[5, 4], counts=text), 'x') == as_list).all()
  long = subjects.run_lengths(dict(size=[8, 5], counts='U13'), 'x')  # 37 and 3
  assert (long.T.ravel() == [0] * 37 + [255] * 3).all()
  with pytest.raises(Odd, match='add up to 3 of 20 pixels'):
    subjects.run_lengths(dict(size=[5, 4], counts=[1, 2]), 'x')


def test_copies_are_alike_and_other_pictures_are_not():
  rng = np.random.default_rng(0)
  many = [np.kron(pictures.noise(rng, 6, 8), np.ones((8, 8, 1), np.uint8)) for _ in range(40)]
  noisy = np.clip(many[3].astype(int) + rng.integers(-3, 4, many[3].shape), 0, 255)
  many.append(noisy.astype(np.uint8))
  other = many[4].copy()
  other[16:40, 16:48] = 255 - other[16:40, 16:48]  # another subject in the same place
  many.append(other)
  found = alike.groups([alike.signature(pixels) for pixels in many])
  assert found == [*range(40), 3, 41]


def test_proposals_are_a_table_that_boxes_takes(tmp_path, capsys):
  folder = tmp_path / 'p'
  for i, (top, left) in enumerate([(12, 10), (8, 30), (20, 20)]):
    pixels = np.full((48, 64, 3), (60, 120, 60), np.uint8)
    pixels += np.random.default_rng(i).integers(0, 12, pixels.shape, np.uint8)
    pixels[top : top + 20, left : left + 20] = (200, 40, 40)
    (folder / 'cup').mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(folder / 'cup' / f'{i}.png')
  output = tmp_path / 'boxes.csv'
  own.call(f'--pictures={folder}', '--propose', f'--output={output}')
  rows = [line.split(',') for line in output.read_text().splitlines()]
  assert rows[0] == ['image', 'x0', 'y0', 'x1', 'y1', 'label'] and rows[1][5] == 'cup'
  np.testing.assert_allclose(np.array(rows[1][1:5], float), [10, 12, 30, 32], atol=2)
  assert (tmp_path / 'boxes.png').exists()
  found = own.build(folder, tmp_path / 'out', f'--boxes={output}')
  assert len(found) == 3
