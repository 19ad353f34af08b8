"""A benchmark from COCO's boxes: exemplars of the same category, chosen by the seed alone."""

import json

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.coco_ee import instances as coco_ee_instances
from exedit.input_pipeline.coco_ee import validation
from exedit.input_pipeline.errors import DataError
from tests import bench as layout

FIRST = 900100000000  # beyond 32 bits, as among the published ids


def coco(root, images=12, seed=0):
  """Writes a small COCO: two categories, a crowd, one box that is too small; 64x48 photos."""
  rng = np.random.default_rng(seed)
  (root / 'val').mkdir(parents=True)
  table: dict = dict(categories=[dict(id=3, name='cat'), dict(id=8, name='dog')])
  table |= dict(images=[], annotations=[])
  for k in range(images):
    name = f'{k:012d}.png'
    layout.picture(1000 + k, (64, 48)).save(root / 'val' / name)
    table['images'].append(dict(id=50 + k, file_name=name, width=64, height=48))
    for j, category in enumerate((3, 8)):
      x, y = rng.uniform(0, 30), rng.uniform(0, 20)
      box = [x, y, rng.uniform(18, 30), rng.uniform(18, 26)]
      table['annotations'].append(
        dict(id=FIRST + 10 * k + j, image_id=50 + k, category_id=category, bbox=box, iscrowd=0)
      )
  table['annotations'] += [
    dict(id=1, image_id=50, category_id=3, bbox=[1, 1, 30, 30], iscrowd=1),
    dict(id=2, image_id=51, category_id=3, bbox=[1, 1, 2, 2], iscrowd=0),
  ]
  (root / 'instances.json').write_text(json.dumps(table))
  return table


def from_coco(root, output, **changes):
  settings: dict = dict(count=6, size=48, exemplar_side=10, exemplar_pad=2) | changes
  return coco_ee_instances.from_coco(
    str(root / 'instances.json'), str(root / 'val'), str(output), **settings
  )


def test_coco_boxes_become_edits_with_another_of_their_kind(tmp_path):
  table = coco(tmp_path)
  manifest = from_coco(tmp_path, tmp_path / 'bench')
  assert validation.validate(str(tmp_path / 'bench'), 48)['counts'] == {}
  annotations = {a['id']: a for a in table['annotations']}
  edits = coco_ee.Bench(str(tmp_path / 'bench'), exemplar_size=None)
  assert len(edits) == len({edit['image'] for edit in manifest['edits']}) == 6
  assert (np.diff(edits.ids) > 0).all()
  for k, about in enumerate(manifest['edits']):
    source, exemplar = annotations[about['id']], annotations[about['exemplar_id']]
    assert about['id'] == edits.ids[k] and not source['iscrowd']
    assert source['category_id'] == exemplar['category_id']
    assert source['image_id'] != exemplar['image_id']
    assert 0.02 <= (edits[k]['mask'] == 255).mean() <= 0.5
    x, y, w, h = exemplar['bbox']
    photo = PIL.Image.open(tmp_path / 'val' / about['exemplar_image'])
    window = (max(0, int(x) - 2), max(0, int(y) - 2))
    end = (min(64, int(np.ceil(x + w)) + 2), min(48, int(np.ceil(y + h)) + 2))
    np.testing.assert_array_equal(edits[k]['exemplar'], np.asarray(photo.crop((*window, *end))))


def test_the_choice_is_a_function_of_the_seed(tmp_path):
  coco(tmp_path)
  first = from_coco(tmp_path, tmp_path / 'a')
  assert from_coco(tmp_path, tmp_path / 'b') == first
  assert from_coco(tmp_path, tmp_path / 'c', seed=1)['edits'] != first['edits']
  all_ = from_coco(tmp_path, tmp_path / 'd', count=12)['edits']
  assert all(edit in all_ for edit in first['edits'])
  assert len({edit['exemplar_id'] for edit in all_}) == 12  # none twice before all are used


def test_a_photo_that_cannot_be_read_gives_way_to_the_next(tmp_path):
  coco(tmp_path)
  first = from_coco(tmp_path, tmp_path / 'a')
  (tmp_path / 'val' / first['edits'][0]['image']).write_bytes(b'no')
  again = from_coco(tmp_path, tmp_path / 'b')
  assert len(again['edits']) == 6 and again['passed_over'] >= 1
  assert first['edits'][0]['id'] not in [edit['id'] for edit in again['edits']]


@pytest.mark.parametrize(
  'settings, line',
  [
    (dict(count=40), 'only 12 of the 40 edits can be made'),
    (dict(min_area=0.4, max_area=0.41), 'edits can be made from these boxes'),
    (dict(exemplar_side=60), 'only 0 of the 6 edits'),
    (dict(min_area=0.5, max_area=0.2), 'must be 0 <= min < max <= 1'),
  ],
)
def test_settings_that_cannot_be_met_leave_nothing(tmp_path, settings, line):
  coco(tmp_path)
  before = sorted(p.name for p in tmp_path.iterdir())
  with pytest.raises(DataError, match=line):
    from_coco(tmp_path, tmp_path / 'bench', **settings)
  assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  'text', ['{}', '[]', 'no', '{"images": [], "annotations": [{"id": 1, "image_id": 4}]}']
)
def test_a_file_that_is_no_coco(tmp_path, text):
  coco(tmp_path)
  (tmp_path / 'instances.json').write_text(text)
  with pytest.raises(DataError, match='is not a COCO instances file'):
    from_coco(tmp_path, tmp_path / 'bench')
