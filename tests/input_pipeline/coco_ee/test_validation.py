"""The report of a benchmark names every kind of fault and oddity, and nothing else."""

import json

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import own_pictures, validation
from tests import bench as layout


@pytest.fixture
def root(tmp_path):
  return layout.write(tmp_path / 'bench')


@pytest.fixture
def door(capsys):
  return layout.door(capsys)


def test_a_sound_bench_has_nothing_to_report(root, door, tmp_path):
  status, out, _ = door('validate', f'--bench={root}', f'--size={layout.SIZE}')
  assert status == 0 and 'nothing is missing or odd' in out
  coco_ee.pack(str(root), str(tmp_path / 'packed'))
  found = validation.validate(str(tmp_path / 'packed'), layout.SIZE)
  assert found['counts'] == {} and found['edits'] == 4
  shares = sorted((x1 - x0) * (y1 - y0) / layout.SIZE**2 for x0, y0, x1, y1 in layout.BOXES)
  expected = [shares[0], (shares[1] + shares[2]) / 2, shares[3]]
  np.testing.assert_allclose(found['repainted'], expected, atol=1e-9)
  assert found['exemplar_sides'] == [30, 43]


def odd_mask(root, pixels):
  PIL.Image.fromarray(pixels).save(root / 'Mask_bbox_4' / '000000000283_mask.png')


def frame():
  pixels = np.full((24, 24), 255, np.uint8)
  pixels[10:14, 10:14] = 0
  pixels[12:] = 0
  return pixels


def grey():
  pixels = np.asarray(layout.mask((4, 4, 9, 9))).copy()
  pixels[4, 4:9] = 130
  return pixels


@pytest.mark.parametrize(
  'what, where, spoil',
  [
    ('id occurs more than once', 283, lambda r: layout.save_ids(r, [*layout.IDS, 283])),
    ('file is missing', 'Ref', lambda r: (r / 'Ref_4' / '000000000283_ref.png').unlink()),
    (
      'file is unreadable', 'GT_4',
      lambda r: (r / 'GT_4' / '000000000283_GT.png').write_bytes(b'\x89PNG'),
    ),
    (
      'source is of another size', 'GT_4',
      lambda r: layout.picture(1, (24, 30)).save(r / 'GT_4' / '000000000283_GT.png'),
    ),
    (
      'mask is of another size than its source', 'Mask',
      lambda r: odd_mask(r, np.asarray(layout.mask((1, 1, 5, 5), 12))),
    ),
    ('mask is empty', 'Mask', lambda r: odd_mask(r, np.full((24, 24), 127, np.uint8))),
    ('mask is not a rectangle', 'Mask', lambda r: odd_mask(r, frame())),
    ('mask has values other than 0 and 255', 'Mask', lambda r: odd_mask(r, grey())),
    (
      'more than half of the source is repainted', 'Mask',
      lambda r: odd_mask(r, np.asarray(layout.mask((0, 0, 24, 13)))),
    ),
    ('file belongs to no id', 'GT_4/notes.txt', lambda r: (r / 'GT_4/notes.txt').write_text('')),
    ("folder's name gives another count", 'Ref_9', lambda r: (r / 'Ref_4').rename(r / 'Ref_9')),
    ('the benchmark cannot be read', '', lambda r: (r / 'id_list.npy').unlink()),
  ],
)  # fmt: skip
def test_what_is_wrong_is_counted_and_named(root, tmp_path, door, what, where, spoil):
  spoil(root)
  report = tmp_path / 'report.json'
  flags = (f'--bench={root}', f'--size={layout.SIZE}', f'--report={report}')
  status, out, line = door('validate', *flags)
  found = json.loads(report.read_text())
  assert found['counts'][what] == 1, found['counts']
  finding = next(f for f in found['findings'] if f['what'] == what)
  assert finding['id'] == where if isinstance(where, int) else finding['file'].startswith(where)
  assert what in out
  faulty = what in validation.FAULTS
  assert status == (2 if faulty else 0) and (f'{found["faults"]} faults' in line) == faulty
  assert set(found['counts']) <= {what, "folder's name gives another count"} | (
    {'source is of another size', 'mask is of another size than its source'}
    if 'size' in what
    else set()
  )


def test_the_size_of_the_published_sources_is_asked_for_by_default(root, door):
  status, out, line = door('validate', f'--bench={root}')
  assert status == 2 and '24x24, not 512x512' in out and '4 faults in 4 edits' in line
  assert 'and 1 more' in out


def test_a_file_that_was_changed_after_building_is_found(tmp_path):
  layout.own_pictures(tmp_path / 'own')
  own_pictures.from_pictures(str(tmp_path / 'own'), str(tmp_path / 'bench'), size=16)
  path = tmp_path / 'bench' / 'Ref_3' / '000000000002_ref.png'
  layout.picture(5, (9, 9)).save(path)
  found = validation.validate(str(tmp_path / 'bench'), 16)
  assert found['counts'] == {'file is not the one in the manifest': 1}
  assert found['findings'][0]['file'] == 'Ref_3/000000000002_ref.png'
