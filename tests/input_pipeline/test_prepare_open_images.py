"""Open Images to shards: the pure functions, and the pipeline if apache_beam is installed.

In Beam's own environment (requirements-prepare.txt and pytest):
  python -m pytest -o addopts= --noconftest tests/input_pipeline/test_prepare_open_images.py
"""

import csv
import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline import tf_example, tfrecord
from exedit.input_pipeline.errors import DataError
from launch import prepare_open_images as prepare
from tests import FIXTURES, ROOT

HEADER = (
  'ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,'
  'IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside'
)
COLUMNS = tuple(HEADER.split(','))


def jpeg(seed, size=(40, 30), orientation=1):
  pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  file = io.BytesIO()
  PIL.Image.fromarray(pixels).resize(size).save(file, 'JPEG', exif=exif)
  return file.getvalue()


def row(image_id, x0, x1, y0, y1, label='/m/011k07', source='xclick'):
  return f'{image_id},{source},{label},1,{x0},{x1},{y0},{y1},0,1,0,0,-1'


@pytest.fixture
def layout(tmp_path):
  """Writes a small Open Images: 12 sound photos and one of each kind of trouble."""
  root = tmp_path / 'open-images'
  (root / 'annotations').mkdir(parents=True)
  ids = [f'{digit}{n:015x}' for n in range(6) for digit in '0a']
  rows = [HEADER]
  for seed, image_id in enumerate(ids):
    folder = root / 'images' / f'train_{image_id[0]}'
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{image_id}.jpg').write_bytes(jpeg(seed))
    rows.append(row(image_id, 0.1, 0.6, 0.2, 0.7))
    rows.append(row(image_id, 0.1, 0.2, 0.2, 0.3))  # 1 %
  sound = root / 'images' / 'train_0' / f'{ids[0]}.jpg'
  (root / 'images' / 'train_0' / '0cut.jpg').write_bytes(sound.read_bytes()[:-60])
  (root / 'images' / 'train_0' / '0turned.jpg').write_bytes(jpeg(99, orientation=6))
  rows += [row('0cut', 0.1, 0.6, 0.2, 0.7), row('0turned', 0.1, 0.6, 0.2, 0.7)]
  rows += [row('0gone', 0.1, 0.6, 0.2, 0.7), row('0gone', 0.2, 0.6, 0.2, 0.7)]
  rows += [row('5elsewhere', 0.1, 0.6, 0.2, 0.7)]  # there is no folder train_5
  rows += [row('0large', 0, 1, 0, 1), row('0bad', 0.6, 0.1, 0.2, 0.7), row('0bad', '?', 1, 0, 1)]
  (root / 'annotations' / 'oidv6-train-annotations-bbox.csv').write_text('\n'.join(rows) + '\n')
  (root / 'annotations' / 'class-descriptions-boxable.csv').write_text(
    '/m/011k07,Tortoise\n/m/011q46kg,Container\n'
  )
  return root


def split_of(layout, output, *flags):
  argv = [f'--input={layout}', f'--output={output}', '--splits=train', '--shards=3', *flags]
  return prepare.find_split(prepare.arguments(argv)[0], 'train')


def lines_of(layout):
  table = layout / 'annotations' / 'oidv6-train-annotations-bbox.csv'
  return table.read_text().splitlines()[1:]


def test_an_image_has_one_shard_for_ever():
  assert [prepare.shard_of(f'{i:016x}', 8) for i in range(6)] == [3, 1, 6, 5, 2, 4]
  counts = np.bincount([prepare.shard_of(f'{i:016x}', 16) for i in range(16000)], minlength=16)
  assert abs(counts - 1000).max() < 130  # four standard deviations


@pytest.mark.parametrize(
  'box, reason',
  [
    ((0, 0.1, 0, 0.2), None),  # exactly 2 %
    ((0, 0.8, 0, 1), None),  # exactly 80 %
    ((0, 0.1, 0, 0.199), 'too_small'),
    ((0, 0.801, 0, 1), 'too_large'),
    ((0.5, 0.5, 0, 1), 'malformed'),
    ((0.1, 1.01, 0, 0.5), 'malformed'),
    (('nan', 1, 0, 0.5), 'malformed'),
    (('', 1, 0, 0.5), 'malformed'),
    (('0,1', 1, 0, 0.5), 'malformed'),
    (('-0.0000001', 0.5, 0.5, '1.0000001'), None),  # rounded
    ((16, 96, 12, 72), 'in_pixels'),
  ],
)
def test_boxes_are_sorted_by_their_share_of_the_image(layout, box, reason):
  split = split_of(layout, 'out')
  kept, dropped = prepare.sort_boxes([row('a', *box).split(',')], split)
  assert len(kept) == (reason is None) and dropped == ({reason: 1} if reason else {})
  assert prepare.sort_boxes([['a', 'xclick', '0.5']], split) == ([], {'malformed': 1})


@pytest.mark.parametrize('text', ['0', '0.0', '', 'nan', '-1', '1.0', 'false', 'True'])
def test_flags_are_read_as_tools_write_them(layout, text):
  cells = ['a', 'xclick', '/m/01', '1', '0', '0.5', '0', '0.5', *[text] * 5]
  [box], dropped = prepare.sort_boxes([cells], split_of(layout, 'out'))
  wanted = {'0': 0, '0.0': 0, '': -1, 'nan': -1, '-1': -1, '1.0': 1, 'false': 0, 'True': 1}[text]
  assert not dropped and set(box['flags'].values()) == {wanted}


def small_layout(root, change=lambda lines: lines, ending='.jpg', kind='JPEG', encoding='utf-8'):
  """Writes Open Images with 12 sound photos and one box each; `change` gets the table's lines."""
  (root / 'annotations').mkdir(parents=True)
  (root / 'images' / 'train').mkdir(parents=True)
  lines = [HEADER]
  for i in range(12):
    lines.append(row(f'{i:016x}', 0.1, 0.6, 0.2, 0.7))
    photo = PIL.Image.open(io.BytesIO(jpeg(i)))
    if ending:
      photo.save(root / 'images' / 'train' / f'{i:016x}{ending}', kind)
  text = '\n'.join(change(lines)) + '\n'
  table = root / 'annotations' / 'train-annotations-bbox.csv'
  table.write_bytes(text.encode(encoding))
  return root


def cells(change):
  """Changes every row of the table as a list of cells, the header too."""
  return lambda lines: [change(number, line.split(',')) for number, line in enumerate(lines)]


WRITTEN = dict(
  blanks=lambda lines: [line.replace(',0,1,0,0,-1', ',0,1,0,0,') for line in lines],
  tabs_and_blanks=cells(lambda n, row: '\t'.join([*row[:-1], row[-1] if not n else ''])),
  semicolons=cells(lambda n, row: ';'.join(row)),
  tabs=cells(lambda n, row: '\t'.join(row)),
  spaces=cells(lambda n, row: ', '.join(row)),
  quotes=cells(lambda n, row: ','.join(f'"{cell}"' for cell in row)),
  index=cells(lambda n, row: ','.join([str(n) if n else '', *row])),
  another_order=cells(lambda n, row: ','.join(row[::-1])),
  bom=lambda lines: ['\ufeff' + lines[0], *lines[1:]],
  crlf=lambda lines: [line + '\r' for line in lines],
  floats=lambda lines: [line.replace(',0,1,0,0,-1', ',0.0,1.0,0.0,0.0,-1.0') for line in lines],
  ids_with_endings=cells(lambda n, row: ','.join([row[0] + '.jpg' * (n > 0), *row[1:]])),
)


@pytest.mark.parametrize('how', WRITTEN)
def test_a_table_is_read_as_tools_write_it(tmp_path, how):
  plain, other = small_layout(tmp_path / 'a'), small_layout(tmp_path / how, WRITTEN[how])
  made = {}
  for root in (plain, other):
    split = split_of(root, tmp_path / 'out')
    prepare.check_table(split)
    text = next((root / 'annotations').iterdir()).read_bytes().decode('utf-8-sig')
    lines = text.split('\n')[1:]
    keyed = [pair for line in lines for pair in prepare.by_shard(line, split, frozenset(range(3)))]
    made[root] = list(prepare.records([line for _, line in sorted(keyed)], split, {}))
    assert len(made[root]) == 12
    if how != 'ids_with_endings':
      shards = [shard for shard, _ in keyed]
      assert shards == [prepare.shard_of(f'{i:016x}', 3) for i in range(12)]
  assert made[plain] == made[other]


@pytest.mark.parametrize(
  'ending, kind', [('.JPG', 'JPEG'), ('.jpeg', 'JPEG'), ('.png', 'PNG'), ('.JPEG', 'JPEG')]
)
def test_photos_may_have_other_endings(tmp_path, ending, kind):
  root, report = small_layout(tmp_path / 'a', ending=ending, kind=kind), {}
  lines = next((root / 'annotations').iterdir()).read_text().splitlines()[1:]
  assert len(list(prepare.records(lines, split_of(root, 'out'), report))) == 12
  assert report['images'] == dict(kept=12)


@pytest.mark.parametrize(
  'change, line',
  [
    (lambda lines: lines[:1], 'no row is a box: there are none'),
    (
      cells(lambda n, row: ','.join(row[:5] if n else row)),
      '12 malformed .the first is 0{16}: 5 cells in 13 columns',
    ),
    (
      lambda lines: [line.replace('0.1,0.6,0.2,0.7', '16,96,12,72') for line in lines],
      "12 in_pixels .the first is 0{16}: XMin is '16', which looks like pixels",
    ),
    (
      lambda lines: [line.replace(',0,1,0,0,-1', ',0,1,x,0,-1') for line in lines],
      "12 malformed .the first is 0{16}: IsGroupOf is 'x': it must be 1, 0 or -1",
    ),
    (
      lambda lines: [line.replace('0.1,0.6', '"0,1","0,6"') for line in lines],
      "XMin is '0,1': it must be from 0 to 1, with a point",
    ),
  ],
)
def test_a_table_without_a_box_is_refused_before_anything_is_written(tmp_path, change, line):
  root = small_layout(tmp_path / 'a', change)
  with pytest.raises(DataError, match=line):
    prepare.check_table(split_of(root, tmp_path / 'out'))


def test_a_table_in_utf_16_is_refused(tmp_path):
  with pytest.raises(DataError, match='zero bytes.*save it as UTF-8'):
    split_of(small_layout(tmp_path / 'a', encoding='utf-16'), 'out')


def test_the_number_of_shards_fits_the_photos(layout, tmp_path):
  argv = [f'--input={layout}', f'--output={tmp_path / "out"}', '--splits=train']
  found = lambda: prepare.find_split(prepare.arguments(argv)[0], 'train')
  assert found().shards == 1
  folder = layout / 'images' / 'train_0'
  for i in range(3500):
    (folder / f'{i}.jpg').touch()
  assert found().shards == 1  # the table names fewer images
  with (layout / 'annotations' / 'oidv6-train-annotations-bbox.csv').open('a') as table:
    table.write((row('0', 0.1, 0.6, 0.2, 0.7) + '\n') * 5000)
  assert found().shards == 3
  prepare.check_settings(found())
  (folder / '1.jpg').rename(tmp_path / 'gone.jpg')
  for i in range(1700):
    (folder / f'{i}.jpg').unlink(missing_ok=True)
  assert found().shards == 3  # a run that was begun goes on with its number


def test_every_image_and_box_is_accounted_for(layout, tmp_path):
  report = {}
  records = list(prepare.records(lines_of(layout), split_of(layout, tmp_path), report))
  assert len(records) == 13
  backwards = prepare.records(lines_of(layout)[::-1], split_of(layout, tmp_path), {})
  assert records == list(backwards)
  assert report['images'] == dict(
    kept=13, missing=1, unreadable=1, folder_absent=1, no_fitting_box=2
  )
  assert report['boxes'] == dict(
    kept=13, too_small=12, too_large=1, malformed=2, of_lost_images=1 + 2 + 1
  )
  assert sum(report['boxes'].values()) == len(lines_of(layout))
  assert report['exif_rotated'] == 1
  [[missing, path]], [[unreadable, why]] = report['missing'], report['unreadable']
  assert missing == '0gone' and path.endswith('images/train_0/0gone.jpg')
  assert unreadable == '0cut' and '0cut.jpg' in why


def test_records_hold_the_photo_as_it_is_and_boxes_as_tfds_names_them(layout, tmp_path):
  first, *_ = prepare.records(lines_of(layout), split_of(layout, tmp_path), {})
  features = tf_example.parse_example(first)
  name = features['image/filename'][0].decode()
  assert features['image'][0] == (layout / 'images' / 'train_0' / name).read_bytes()
  np.testing.assert_array_equal(features['bobjects/bbox'], np.float32([0.2, 0.1, 0.7, 0.6]))
  assert features['bobjects/label'].tolist() == [0] and features['bobjects/source'].tolist() == [4]
  flags = [features[f'bobjects/{name}'].tolist() for name in prepare.FLAGS.values()]
  assert flags == [[0], [1], [0], [0], [-1]]


def test_a_table_with_few_columns_gives_records_without_the_others(layout, tmp_path):
  table = layout / 'annotations' / 'oidv6-train-annotations-bbox.csv'
  table.write_text('ImageID,XMin,XMax,YMin,YMax\n0000000000000000,0.1,0.6,0.2,0.7\n')
  (layout / 'annotations' / 'class-descriptions-boxable.csv').unlink()
  [record] = prepare.records(lines_of(layout), split_of(layout, tmp_path), {})
  features = tf_example.parse_example(record)
  assert features['bobjects/label'].tolist() == [-1]
  assert 'bobjects/is_occluded' not in features


def table(features, names):
  """The boxes as rows, in an order of their own."""
  count = len(features['bobjects/label'])
  return sorted(zip(*[features[name].reshape(count, -1).tolist() for name in names], strict=True))


def test_our_records_are_those_of_tensorflow_datasets(tmp_path):
  """The same table and photos through the published builder (the fixture) and through ours."""
  made = importlib.util.spec_from_file_location('made', FIXTURES / 'make_tfds_fixture.py')
  fixture = importlib.util.module_from_spec(made)
  made.loader.exec_module(fixture)
  shard = tmp_path / fixture.SHARD
  shard.write_bytes((FIXTURES / fixture.SHARD).read_bytes())
  source = tfrecord.Source([str(shard)])
  theirs = {}
  folder = tmp_path / 'images' / 'train_0'
  folder.mkdir(parents=True)
  for i in range(len(source)):
    features = tf_example.parse_example(source[i])
    name = features['image/filename'][0].decode()
    theirs[name] = features
    (folder / name).write_bytes(features['image'][0])

  header, *lines = fixture.BOXES.splitlines()
  labels = {'/m/011k07': 0, '/m/011q46kg': 1, '/m/012074': 2, '/m/0zvk5': 600}
  split = prepare.Split(
    'train', '', tuple(header.split(',')), str(tmp_path / 'images'), ('train_0',), labels,
    str(tmp_path), 1, min_area=0, max_area=1
  )  # fmt: skip
  ours = [tf_example.parse_example(record) for record in prepare.records(lines, split, {})]
  assert len(ours) == 3  # the fourth photo has no box: it trains nothing
  for features in ours:
    other = theirs[features['image/filename'][0].decode()]
    assert features['image'] == other['image']
    names = sorted(name for name in other if name.startswith('bobjects/'))
    assert names == sorted(name for name in features if name.startswith('bobjects/'))
    assert table(features, names) == table(other, names)
    assert all(features[name].dtype == other[name].dtype for name in names)


def test_a_shard_is_finished_when_it_and_its_report_are_there(layout, tmp_path):
  split = split_of(layout, tmp_path / 'out')
  assert prepare.finished(split) == []
  for shard in (0, 2):
    prepare.make_shard((shard, lines_of(layout)[shard::3]), split)
  assert prepare.finished(split) == [0, 2]
  os.unlink(split.report_path(0))  # stopped between the two
  assert prepare.finished(split) == [2]


def test_another_run_into_the_same_folder_must_have_the_same_settings(layout, tmp_path):
  prepare.check_settings(split_of(layout, tmp_path / 'out'))
  prepare.check_settings(split_of(layout, tmp_path / 'out'))
  with pytest.raises(DataError, match=r'begun with min_area 0\.02, now it is 0\.1'):
    prepare.check_settings(split_of(layout, tmp_path / 'out', '--min_area=0.1'))


@pytest.mark.parametrize(
  'break_it, message',
  [
    (lambda root: (root / 'annotations').rename(root / 'x'), "no folder '.*annotations'"),
    (lambda root: next((root / 'annotations').glob('*train*')).unlink(), 'found none'),
    (lambda root: (root / 'images').rename(root / 'x'), 'no image folder train or train_0'),
    (
      lambda root: next((root / 'annotations').glob('*train*')).write_text('ImageID,XMin\n'),
      'needs the columns ImageID, XMin, XMax.*it has ImageID, XMin',
    ),
    (
      lambda root: (root / 'annotations' / 'train-annotations-bbox.csv').touch(),
      r'must hold one \*train-annotations-bbox\.csv; found \[',
    ),
  ],
)
def test_what_is_wrong_with_the_input_is_said_in_one_line(layout, break_it, message):
  break_it(layout)
  with pytest.raises(DataError, match=message) as caught:
    split_of(layout, 'out')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--min_are=0.1'], '--min_are; did you mean --min_area'),
    (['--min_area=0.9'], r'--min_area 0\.9 and --max_area 0\.8'),
    (['--splits=train,val'], "unknown split 'val'.*train, validation, test"),
    (['--shards=-1'], '--shards -1'),
  ],
)
def test_a_wrong_flag_is_named(flags, message):
  with pytest.raises(DataError, match=message):
    prepare.arguments(['--input=a', '--output=b', *flags])
  beam = ['--runner=FlinkRunner', '--flink_master=host:8081', '--parallelism', '64']
  assert prepare.arguments(['--input=a', '--output=b', *beam])[1] == beam


def run_command(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'launch.prepare_open_images', *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )


def test_the_command_ends_a_wrong_input_with_one_line_and_status_2(tmp_path):
  done = run_command(f'--input={tmp_path / "none"}', f'--output={tmp_path / "out"}')
  assert done.returncode == 2
  assert done.stderr.splitlines() == [
    f'prepare_open_images: --input {str(tmp_path / "none")!r} is not a folder'
  ]
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('lost', ['missing', 'folder_absent', 'small'])
def test_a_split_without_images_is_an_error_and_leaves_nothing(tmp_path, lost):
  root = small_layout(tmp_path / 'a', ending='')
  if lost == 'folder_absent':
    (root / 'images' / 'train').rename(root / 'images' / 'train_f')
  split = split_of(root, tmp_path / 'out', *['--min_area=0.5'] * (lost == 'small'))
  prepare.check_settings(split)
  lines = next((root / 'annotations').iterdir()).read_text().splitlines()[1:]
  for shard in range(3):
    prepare.make_shard((shard, lines[shard::3]), split)
  reason = dict(missing='12 missing .the first is 0{16}: .*/train/0{16}.jpg')
  reason |= dict(folder_absent='12 folder_absent .*its folder train_0 is not there')
  reason |= dict(small='12 no_fitting_box; boxes: 12 too_small .*its box covers 0.25 of')
  with pytest.raises(DataError, match=f'train keeps no image.*{reason[lost]}'):
    prepare.refuse_empty([(split, prepare.summary(split))])
  assert not (tmp_path / 'out').exists()


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


SHARD = 'open_images-train.tfrecord-00000-of-00003'
OURS = {'reports/train.settings.json': dict(shards=3, annotations='train.csv')}


@pytest.mark.parametrize(
  'there, named',
  [
    ({'IMG_1.jpg': 0}, 'IMG_1.jpg'),
    ({'reports/2023.json': 0}, 'reports'),
    ({'dropped.csv': 'mine'}, 'dropped.csv'),
    ({SHARD: 0, 'manifest.json': dict(schema=prepare.SCHEMA)}, 'manifest.json'),
    (OURS | {SHARD.replace('train', 'validation'): 0}, 'open_images-validation'),
    (OURS | {'manifest.json': dict(made_by='input_pipeline.synthetic')}, 'manifest.json'),
    (OURS | {'manifest.json': [1]}, 'manifest.json'),
    ({'reports/test.settings.json': dict(mine=1)}, 'test.settings.json'),
    (OURS | {f'reports/{SHARD}.json': dict(split='train')}, f'{SHARD}.json'),
  ],
)
def test_nothing_is_written_where_other_files_lie(layout, tmp_path, there, named):
  for name, value in there.items():
    path = tmp_path / 'out' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
  before = contents(tmp_path / 'out')
  with pytest.raises(DataError, match=f'{named}.* name a.* --output') as caught:
    prepare.prepare([f'--input={layout}', f'--output={tmp_path / "out"}', '--splits=train'])
  assert '\n' not in str(caught.value) and contents(tmp_path / 'out') == before


def test_a_damaged_manifest_is_refused_and_a_folder_of_ours_is_not(layout, tmp_path):
  out = tmp_path / 'out'
  (out / 'reports').mkdir(parents=True)  # left by a full disk
  (out / '.DS_Store').touch()
  prepare.require_ours(str(out))
  split = split_of(layout, out)
  prepare.check_settings(split)
  for shard in range(3):
    prepare.make_shard((shard, lines_of(layout)[shard::3]), split)
  prepare.write_manifest([split])
  (out / 'notes.txt').touch()
  prepare.require_ours(str(out))
  (out / 'manifest.json').write_text('{"schema": ')
  with pytest.raises(DataError, match='manifest.json. is damaged or was not made by prepare_open'):
    prepare.require_ours(str(out))


def test_all_splits_without_images_are_told_and_removed(tmp_path):
  root = small_layout(tmp_path / 'a', ending='')
  train = split_of(root, tmp_path / 'out', '--shards=1')
  splits = [train, dataclasses.replace(train, name='test', folders=('test',))]
  lines = next((root / 'annotations').iterdir()).read_text().splitlines()[1:]
  for split in splits:
    prepare.check_settings(split)
    prepare.make_shard((0, lines), split)
  with pytest.raises(DataError, match='^train keeps no image.*; test keeps no image'):
    prepare.refuse_empty([(split, prepare.summary(split)) for split in splits])
  assert not (tmp_path / 'out').exists()


def test_ids_that_a_spreadsheet_shortened_are_named(tmp_path):
  shorten = cells(lambda n, row: ','.join([row[0].lstrip('0') or '0', *row[1:]]))
  root, report = small_layout(tmp_path / 'a', shorten), {}
  lines = next((root / 'annotations').iterdir()).read_text().splitlines()[1:]
  assert list(prepare.records(lines, split_of(root, 'out'), report)) == []
  assert 'has not the 16 hexadecimal digits' in report['examples']['missing']


# With Beam.


@pytest.fixture
def beam():
  return pytest.importorskip('apache_beam')


def command(layout, output, *flags):
  return run_command(
    f'--input={layout}', f'--output={output}', '--splits=train', '--shards=3', *flags
  )


@pytest.mark.parametrize(
  'flags', [[], ['--direct_running_mode=multi_processing', '--direct_num_workers=2']]
)
def test_the_whole_pipeline(beam, layout, tmp_path, flags):
  done = command(layout, tmp_path / 'out', *flags)
  assert done.returncode == 0, done.stderr
  assert (
    'images: kept 13, folder_absent 1, missing 1, no_fitting_box 2, unreadable 1' in done.stdout
  )
  assert '3/3' in done.stderr
  source = tfrecord.Source(tfrecord.shard_paths(str(tmp_path / 'out'), 'train'))
  expected = list(prepare.records(lines_of(layout), split_of(layout, tmp_path / 'x'), {}))
  assert sorted(source[i] for i in range(len(source))) == sorted(expected)
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())['train']
  assert manifest['settings']['min_area'] == 0.02
  for shard in manifest['shards']:
    assert os.path.getsize(tmp_path / 'out' / shard['shard']) == shard['bytes']
  assert sum(shard['records'] for shard in manifest['shards']) == 13
  dropped = list(csv.DictReader((tmp_path / 'out' / 'dropped.csv').open()))
  assert {(d['image'], d['reason']) for d in dropped} == {
    ('0gone', 'missing'),
    ('0cut', 'unreadable'),
  }


def test_nothing_kept_is_status_2_and_another_split_stays(beam, tmp_path):
  root = small_layout(tmp_path / 'a')
  table = (root / 'annotations' / 'train-annotations-bbox.csv').read_text()
  (root / 'annotations' / 'validation-annotations-bbox.csv').write_text(table)
  (root / 'images' / 'validation').mkdir()
  done = run_command(f'--input={root}', f'--output={tmp_path / "out"}')
  assert done.returncode == 2, done.stderr
  assert done.stderr.splitlines()[-1].startswith(
    'prepare_open_images: validation keeps no image, and nothing of it was written: images: 12 mis'
  )
  assert 'train: 1 shards' in done.stdout
  names = sorted(path.name for path in (tmp_path / 'out').iterdir())
  shard = 'open_images-train.tfrecord-00000-of-00001'
  assert names == ['dropped.csv', 'manifest.json', shard, 'reports']


def test_only_what_is_missing_is_made_again(beam, layout, tmp_path):
  assert command(layout, tmp_path / 'out').returncode == 0
  shards = sorted((tmp_path / 'out').glob('*.tfrecord-*'))
  before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in shards]
  shards[1].unlink()
  (tmp_path / 'out' / f'.{shards[1].name}.12345.0.tmp').write_bytes(b'half')  # what SIGKILL leaves
  done = command(layout, tmp_path / 'out')
  assert done.returncode == 0 and 'kept 13' in done.stdout
  assert not list((tmp_path / 'out').glob('.*'))
  after = [(path.read_bytes(), path.stat().st_mtime_ns) for path in shards]
  assert [a[0] for a in after] == [b[0] for b in before]
  assert [a[1] == b[1] for a, b in zip(after, before, strict=True)] == [True, False, True]


def test_a_full_disk_is_one_line_and_status_2(beam, layout, tmp_path):
  """A limit on the size of files stands in for the disk."""
  line = (
    f'ulimit -f 1; exec {sys.executable} -m launch.prepare_open_images '
    f'--input={layout} --output={tmp_path / "out"} --splits=train --shards=1'
  )
  done = subprocess.run(
    ['bash', '-c', line],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 2
  assert 'File too large' in done.stderr.splitlines()[-1] and 'Traceback' not in done.stderr
  assert not list((tmp_path / 'out').glob('*tfrecord*')) and not list((tmp_path / 'out').glob('.*'))


def test_stores_are_reached_through_fsspec_and_beam(beam, layout, tmp_path):
  """The local disk under another scheme takes the place of gs://."""
  import fsspec
  from apache_beam.io import filesystem, localfilesystem
  from fsspec.implementations.local import LocalFileSystem

  class Table(localfilesystem.LocalFileSystem):
    """Beam reads the table of boxes."""

    @classmethod
    def scheme(cls):
      return 'mirror'

    def open(self, path, *args, **options):
      return super().open(path[9:], *args, **options)

    def metadata(self, path):
      return filesystem.FileMetadata(path, os.path.getsize(path[9:]))

    def exists(self, path):
      return os.path.exists(path[9:])

    def _list(self, folder):
      for path in pathlib.Path(folder[9:]).glob('*'):
        yield self.metadata(f'mirror://{path}')

  class Store(LocalFileSystem):
    """fsspec reads and writes everything else."""

    protocol = 'mirror'

    @classmethod
    def _strip_protocol(cls, path):
      return path.removeprefix('mirror://').rstrip('/')

  fsspec.register_implementation('mirror', lambda **options: Store(auto_mkdir=True), clobber=True)
  prepare.prepare(
    [f'--input=mirror://{layout}', f'--output=mirror://{tmp_path}/out', '--splits=train']
    + ['--shards=3', '--verbose']
  )
  here = tmp_path / 'here'
  prepare.prepare([f'--input={layout}', f'--output={here}', '--splits=train', '--shards=3'])
  there = sorted((tmp_path / 'out').glob('*.tfrecord-*'))
  assert [p.read_bytes() for p in there] == [
    p.read_bytes() for p in sorted(here.glob('*.tfrecord-*'))
  ]
  assert len(there) == 3
