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
  assert len(again['edits']) == 6 and 'its pictures cannot be used' in again['passed_over']
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


@pytest.mark.parametrize('text', ['{}', '[]', 'no', '{"images": 3, "annotations": []}'])
def test_a_file_that_is_no_coco(tmp_path, text):
  coco(tmp_path)
  (tmp_path / 'instances.json').write_text(text)
  with pytest.raises(DataError, match='is not a COCO instances file'):
    from_coco(tmp_path, tmp_path / 'bench')


BOX = dict(category_id=3, bbox=[1, 1, 30, 30], iscrowd=0)
ODD = {  # an annotation that is added -> why it is passed over
  'it has no bbox': dict(BOX, id=200, image_id=50, bbox=[]),
  'it has no category': dict(BOX, id=200, image_id=50, category_id=None),
  'its image is not listed': dict(BOX, id=200, image_id=77),
  'it is a crowd': dict(BOX, id=200, image_id=77, iscrowd=1.0),
  'its bbox is not four numbers': dict(BOX, id=200, image_id=50, bbox=[1, 2, 3]),
  'its bbox is not finite': dict(BOX, id=200, image_id=50, bbox=[float('nan')] * 4),
  'its bbox is empty or outside the image': dict(BOX, id=200, image_id=50, bbox=[5, 5, -9, 9]),
  'its id is no whole number from 0 up': dict(BOX, id='a-b', image_id=50),
  'its id occurs twice': dict(BOX, id=FIRST, image_id=51),
  'it is no object': None,
}


def written(root, table):
  (root / 'instances.json').write_text(json.dumps(table))
  return root


@pytest.mark.parametrize('why', ODD)
def test_an_odd_annotation_is_passed_over_and_counted(tmp_path, why):
  table = coco(tmp_path)
  plain = from_coco(tmp_path, tmp_path / 'plain')
  table['annotations'] += [ODD[why], ODD[why]]
  manifest = from_coco(written(tmp_path, table), tmp_path / 'bench')
  assert manifest['edits'] == plain['edits']
  count = 2 + (why == 'it is a crowd')
  name = f'annotation {ODD[why]["id"]}' if ODD[why] else 'row 27'
  first = 'annotation 1' if why == 'it is a crowd' else name
  assert manifest['passed_over'][why] == f'{count}, the first is {first}'


def texts(rows, *names):
  for row in rows:
    row.update({name: f'{row[name]}' for name in names})


WRITTEN = dict(
  text_ids=lambda t: (texts(t['images'], 'id'), texts(t['categories'], 'id')),
  text_crowds=lambda t: texts(t['annotations'], 'iscrowd', 'image_id'),
  float_sizes=lambda t: [image.update(width='64.0', height=48.0) for image in t['images']],
  no_sizes=lambda t: [image.pop('width') for image in t['images']],
  null_sizes=lambda t: [image.update(height=None) for image in t['images']],
  null_rows=lambda t: [t[name].append(None) for name in ('images', 'annotations', 'categories')],
  folders=lambda t: [i.update(file_name=f'data\\val/{i["file_name"]}') for i in t['images']],
  absolute=lambda t: [i.update(file_name=f'/home/me/{i["file_name"]}') for i in t['images']],
  lvis=lambda t: [i.update(coco_url=f'http://h/val/{i.pop("file_name")}') for i in t['images']],
)


@pytest.mark.parametrize('how', WRITTEN)
def test_a_file_is_read_as_tools_write_it(tmp_path, how):
  table = coco(tmp_path)
  plain = from_coco(tmp_path, tmp_path / 'plain')
  WRITTEN[how](table)
  assert from_coco(written(tmp_path, table), tmp_path / 'bench')['edits'] == plain['edits']


def test_images_that_cannot_be_told_apart_are_passed_over(tmp_path):
  table = coco(tmp_path)
  names = [image['file_name'] for image in table['images']]
  for image, folder in zip(table['images'], 'aabbcc' * 2):
    image['file_name'] = f'{folder}/{names[0]}' if folder < 'c' else f'x/{image["file_name"]}'
  table['images'].append(dict(table['images'][4], file_name='x/another.png'))
  manifest = from_coco(written(tmp_path, table), tmp_path / 'bench', count=2)
  assert {edit['image'] for edit in manifest['edits']} <= {names[5], names[10], names[11]}
  passed = manifest['passed_over']
  assert passed['its file name is that of another image'].startswith('17, the first is annotation')
  assert passed['its image id occurs twice'].startswith('2, ')


def test_a_swapped_size_and_a_photo_cut_short_give_way(tmp_path):
  table = coco(tmp_path)
  for image in table['images'][:3]:
    image.update(width=48, height=64)
  cut = tmp_path / 'val' / table['images'][4]['file_name']
  cut.write_bytes(cut.read_bytes()[:200])
  manifest = from_coco(written(tmp_path, table), tmp_path / 'bench', count=4)
  odd = {image['file_name'] for image in table['images'][:3]} | {cut.name}
  assert not odd & {edit['image'] for edit in manifest['edits']}
  assert not odd & {edit['exemplar_image'] for edit in manifest['edits']}
  assert 'its pictures cannot be used' in manifest['passed_over']


def test_a_refusal_names_the_annotations(tmp_path):
  table = coco(tmp_path)
  for row in table['annotations']:
    row.pop('bbox')
  line = (
    r'no annotation that can be used; passed over: it has no bbox \(25, the first is annotation 9'
  )
  with pytest.raises(DataError, match=line):
    from_coco(written(tmp_path, table), tmp_path / 'bench')
  table = coco(tmp_path / 'b')
  table['annotations'].append(dict(BOX, id=200, image_id=77))
  line = r'only 12 of the 40 edits.*its image is not listed \(1, the first is annotation 200\)'
  with pytest.raises(DataError, match=line):
    from_coco(written(tmp_path / 'b', table), tmp_path / 'bench', count=40)
