"""The COCOEE layout is read as published and packed alike; the door of all its commands."""

import hashlib
import pickle
import shutil

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline import tf_example, tfrecord
from exedit.input_pipeline.coco_ee import bench as coco_ee
from exedit.input_pipeline.errors import DataError
from tests import bench as layout


@pytest.fixture
def root(tmp_path):
  return layout.write(tmp_path / 'bench')


@pytest.fixture
def door(capsys):
  return layout.door(capsys)


# Reading.


def test_edits_come_in_the_published_order_and_under_their_published_names(root):
  edits = coco_ee.Bench(str(root))
  assert [edits[i]['id'] for i in range(4)] == list(layout.IDS) == edits.ids.tolist()
  assert edits.ids.dtype == np.int64 and len(edits) == 4
  assert edits.names(1) == dict(
    source='000000000283_GT.png', mask='000000000283_mask.png', exemplar='000000000283_ref.png'
  )
  with pytest.raises(IndexError):
    edits[4]


def test_pictures_are_what_the_released_loader_reads(root):
  pixels = np.linspace(0, 255, layout.SIZE**2).astype(np.uint8).reshape(layout.SIZE, -1)
  PIL.Image.fromarray(pixels).save(root / 'Mask_bbox_4' / '000000000283_mask.png')  # grey
  edits = coco_ee.Bench(str(root))
  for k, edit_id in enumerate(layout.IDS):
    edit, stem = edits[k], f'{edit_id:012d}'
    source = PIL.Image.open(root / 'GT_4' / f'{stem}_GT.png').convert('RGB')
    np.testing.assert_array_equal(edit['source'], np.asarray(source))
    mask = PIL.Image.open(root / 'Mask_bbox_4' / f'{stem}_mask.png').convert('L')
    np.testing.assert_array_equal(edit['mask'], np.asarray(mask))
    exemplar = PIL.Image.open(root / 'Ref_4' / f'{stem}_ref.png')
    if exemplar.mode == 'RGBA':  # the released loader shows the colours of transparent pixels
      exemplar = PIL.Image.alpha_composite(PIL.Image.new('RGBA', exemplar.size, 'white'), exemplar)
    expected = np.asarray(exemplar.resize((224, 224)).convert('RGB'))
    np.testing.assert_array_equal(edit['exemplar'], expected)
    assert all(edit[name].dtype == np.uint8 for name in ('source', 'mask', 'exemplar'))
  # The order of resize and RGB matters for a palette, of which Pillow takes the nearest pixel.
  late = PIL.Image.open(root / 'Ref_4' / '000000000283_ref.png').convert('RGB').resize((224, 224))
  assert (np.asarray(late) != edits[1]['exemplar']).mean() > 0.1
  assert coco_ee.Bench(str(root), exemplar_size=None)[3]['exemplar'].shape == (30, 43, 3)


@pytest.mark.parametrize('shards', [1, 3])
def test_packed_edits_are_the_same_edits(root, tmp_path, shards):
  manifest = coco_ee.pack(str(root), str(tmp_path / 'packed'), shards)
  folders, packed = coco_ee.Bench(str(root)), coco_ee.Bench(str(tmp_path / 'packed'))
  assert len(manifest['files']) == shards and len(packed) == len(folders) == 4
  for k in range(4):
    assert packed.encoded(k) == folders.encoded(k)
    assert packed[k].keys() == folders[k].keys()
    for name, value in folders[k].items():
      np.testing.assert_array_equal(packed[k][name], value)
  for name, file in manifest['files'].items():
    data = (tmp_path / 'packed' / name).read_bytes()
    assert file['sha256'] == hashlib.sha256(data).hexdigest() and file['bytes'] == len(data)
  again = pickle.loads(pickle.dumps(packed))  # grain sends it to its workers
  np.testing.assert_array_equal(again[2]['source'], folders[2]['source'])
  assert coco_ee.pack(str(tmp_path / 'packed'), str(tmp_path / 'again'), shards) == manifest


@pytest.mark.parametrize(
  'spoil, line',
  [
    (lambda r: (r / 'id_list.npy').unlink(), 'id_list.npy is missing'),
    (lambda r: (r / 'id_list.npy').write_bytes(b'no'), 'not a plain array of integers'),
    (lambda r: layout.save_ids(r, [{}], allow_pickle=True), 'not a plain array of integers'),
    (lambda r: layout.save_ids(r, [283.0, 17.0]), r'holds float64 \(2,\); it must be int64'),
    (lambda r: layout.save_ids(r, [[283, 17]]), r'holds int64 \(1, 2\)'),
    (lambda r: layout.save_ids(r, np.zeros(0, int)), 'holds no id'),
    (lambda r: layout.save_ids(r, [283, -5]), 'ids from -5 to 283; they must be at least 0'),
    (lambda r: layout.save_ids(r, [283, 17, 283]), '1 ids occur more than once, the first is 283'),
    (
      lambda r: layout.save_ids(r, [283, 18, 19]),
      'lacks 2 of 3 files, the first is 0+18_GT.png',
    ),
    (lambda r: (r / 'GT_9').mkdir(), r'one folder GT_<count> of the sources; found several'),
    (lambda r: shutil.rmtree(r / 'Ref_4'), 'one folder Ref_<count> of the exemplars; found none'),
    (lambda r: shutil.rmtree(r), 'is not a folder'),
  ],
)
def test_a_bench_that_is_not_whole_does_not_open(root, spoil, line):
  spoil(root)
  with pytest.raises(DataError, match=line):
    coco_ee.Bench(str(root))


@pytest.mark.parametrize(
  'name, content, line',
  [
    ('GT_4/000000000283_GT.png', b'no picture', '000000000283_GT.png is not an image'),
    ('Ref_4/000000000283_ref.png', None, '000000000283_ref.png cannot be decoded'),
    ('Mask_bbox_4/000000000283_mask.png', layout.mask((0, 0, 0, 0)), 'empty: .* pixel is 0 of 255'),
    (
      'Mask_bbox_4/000000000283_mask.png',
      layout.mask((1, 1, 3, 3), 8),
      r'283_mask.png: .* it is 8x8, the source 24x24',
    ),
  ],
)
def test_an_edit_that_cannot_be_used_is_named_and_the_others_are_read(root, name, content, line):
  if isinstance(content, PIL.Image.Image):
    content.save(root / name)
  else:
    (root / name).write_bytes(content or (root / name).read_bytes()[:-40])
  edits = coco_ee.Bench(str(root))
  with pytest.raises(DataError, match=line):
    edits[1]
  assert edits[0]['id'] == layout.IDS[0]


def test_damaged_shards_are_named(root, tmp_path):
  packed = tmp_path / 'packed'
  coco_ee.pack(str(root), str(packed), 2)
  np.save(packed / 'id_list.npy', np.array([17, 283, 2231413, 900100065455]))
  with pytest.raises(DataError, match='record 0 is of edit 900100065455, id_list.npy says 17'):
    coco_ee.Bench(str(packed))[0]
  np.save(packed / 'id_list.npy', np.array([17, 283]))
  with pytest.raises(DataError, match='has 2 ids, its shards 4'):
    coco_ee.Bench(str(packed))
  shard = packed / 'coco_ee-test.tfrecord-00001-of-00002'
  shard.write_bytes(shard.read_bytes()[:-7])
  with pytest.raises(DataError, match='shard cut short'):
    coco_ee.Bench(str(packed))
  shard.unlink()
  with pytest.raises(DataError, match='holds 1 of the 2 shards'):
    coco_ee.Bench(str(packed))


def test_shards_of_something_else_are_refused(tmp_path):
  record = tf_example.serialize_example({'image': b'x', 'id': np.array([5])})
  tfrecord.write_shard(str(tmp_path / 'x-test.tfrecord-00000-of-00001'), [record])
  np.save(tmp_path / 'id_list.npy', np.array([5]))
  with pytest.raises(DataError, match='holds no edits; it has the features id, image'):
    coco_ee.Bench(str(tmp_path))[0]


# The door.


def test_the_door_packs(root, tmp_path, door):
  packed = tmp_path / 'packed'
  status, out, _ = door('pack', f'--bench={root}', f'--output={packed}', '--shards=2')
  assert status == 0 and '4 edits in 2 shards' in out
  assert len(coco_ee.Bench(str(packed))) == 4


@pytest.mark.parametrize(
  'argv, line',
  [
    ([], 'name a command, validate, pack, build, build_coco'),
    (['validate'], '--bench=... is missing'),
    (['pack', '--bench=x'], '--output=... is missing'),
    (['pack', '--bench=nowhere', '--output=y'], 'nowhere is not a folder'),
    (['validate', '--bench=nowhere'], 'nowhere is not a folder'),
    (['build_coco', '--annotations=x', '--output=y'], '--images=... is missing'),
  ],
)
def test_the_door_refuses_in_one_line(door, argv, line, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  status, _, said = door(*argv)
  assert status == 2 and line in said and not list(tmp_path.iterdir())


def test_help_tells_of_the_commands_and_of_their_flags(door):
  assert 'build_coco' in door('--help')[1]
  assert '--exemplar_side' in door('build_coco', '--help')[1].replace('--[no]', '--')


def test_nothing_is_written_over(root, tmp_path, door):
  (tmp_path / 'taken').mkdir()
  (tmp_path / 'taken' / 'file').write_text('mine')
  layout.own_pictures(tmp_path / 'own')
  for argv in (['pack', f'--bench={root}'], ['build', f'--pictures={tmp_path / "own"}']):
    status, _, line = door(*argv, f'--output={tmp_path / "taken"}')
    assert status == 2 and 'is a folder with files in it' in line
  assert [p.name for p in (tmp_path / 'taken').iterdir()] == ['file']
  status, _, line = door('pack', f'--bench={root}', f'--output={tmp_path / "p"}', '--shards=5')
  assert status == 2 and 'must be between 1 and the 4 edits' in line
