"""A folder of a few pictures as people keep it: upright, whole squares, captions, masks, litter."""

import numpy as np
import pytest
from PIL import Image

from exedit.input_pipeline import few_pictures
from exedit.input_pipeline.errors import DataError
from tests import few_pictures as folders
from tests.pictures import strew


def ramp(height, width):
  """A picture whose red is the column and whose green is the row."""
  rows, columns = np.mgrid[:height, :width]
  return np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)


def test_a_photo_is_upright_and_its_middle_is_not_squashed(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # stored lying on its side
  Image.fromarray(np.rot90(ramp(50, 20), 1)).save(tmp_path / 'a.png', exif=exif)
  (found,) = few_pictures.read(str(tmp_path))
  np.testing.assert_array_equal(found.pixels, ramp(50, 20)[15:35])


def test_captions_and_masks_stand_beside_their_pictures(tmp_path):
  folders.write(tmp_path, 3)
  (tmp_path / '0.TXT').write_text('a {} on\n a table\n')
  mask = np.zeros((24, 18), np.uint8)
  mask[8:12] = 255
  Image.fromarray(mask).save(tmp_path / '1.mask.png')
  strew(tmp_path)
  first, second, third = few_pictures.read(str(tmp_path))
  assert (first.caption, second.caption, third.caption) == ('a {} on a table', '', '')
  assert first.mask is None and second.mask.shape == (18, 18)
  assert np.flatnonzero(second.mask.any(1)).tolist() == [5, 6, 7, 8]
  assert few_pictures.survey(str(tmp_path)).records == 3


def test_a_table_of_captions_does_too(tmp_path):
  folders.write(tmp_path, 2)
  (tmp_path / 'captions.csv').write_text('image,caption\n1.png,"a {}, red"\n')
  assert [p.caption for p in few_pictures.read(str(tmp_path))] == ['', 'a {}, red']


def test_the_description_changes_with_every_file_and_not_with_a_run_beside(tmp_path):
  folders.write(tmp_path, 2)
  first = few_pictures.survey(str(tmp_path))
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'metrics.jsonl').write_text('{}')
  assert few_pictures.survey(str(tmp_path)) == first
  (tmp_path / '0.txt').write_text('a {}')
  assert few_pictures.survey(str(tmp_path)) != first


def test_the_description_has_a_folder_for_each_concept_and_that_of_the_prior(tmp_path):
  for i, name in enumerate(('new1', 'new2', 'other', 'prior')):
    folders.write(tmp_path / name, 1 + i, seed=i)
  how = dict(words=(('<new1>', 'a'), ('<new2>', 'b')), prior_root=f'{tmp_path}/prior')
  found = lambda prior='pictures', root=tmp_path: few_pictures.survey(f'{root}', prior=prior, **how)
  first, without = found(), found('prediction')
  assert first.records == without.records == 3 and first.digest == without.digest
  assert first.prior and not without.prior and found(root=f'file://{tmp_path}') == first
  (tmp_path / 'prior' / '0.txt').write_text('a')
  changed = found()
  assert changed.prior != first.prior and changed.digest == first.digest
  assert found('prediction') == without
  (tmp_path / 'new2' / '0.txt').write_text('a {}')
  assert found().digest != first.digest


def other_size(folder):
  Image.fromarray(np.full((9, 9), 255, np.uint8)).save(folder / '0.mask.png')


def black(folder):
  Image.fromarray(np.zeros((18, 24), np.uint8)).save(folder / '0.mask.png')


@pytest.mark.parametrize(
  'spoil, says',
  [
    (lambda f: [p.unlink() for p in f.iterdir()], 'holds no pictures: name a folder'),
    (lambda f: (f / '0.png').write_text('no'), '0.png'),
    (
      lambda f: (f / '7.txt').write_text('a'),
      'has a caption that belongs to no picture, 7.txt: rename',
    ),
    (lambda f: Image.new('RGB', (9, 9)).save(f / '0.jpg'), r'has several pictures 0\.\*'),
    (other_size, '9x9 and 24x18: give the mask the size'),
    (black, 'is black in the middle square'),
    (lambda f: (f / 'captions.csv').write_text('picture,text\n0.png,a\n'), 'image and caption'),
  ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, spoil, says):
  folders.write(tmp_path, 1)
  spoil(tmp_path)
  with pytest.raises(DataError, match=says):
    few_pictures.read(str(tmp_path))
