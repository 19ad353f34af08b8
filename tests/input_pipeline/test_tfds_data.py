"""Data sets that tensorflow-datasets prepared give the same examples as shards do."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from exedit.input_pipeline import (
  captioned,
  loader,
  show,
  synthetic,
  tf_example,
  tfds_data,
  tfrecord,
)
from exedit.input_pipeline.errors import DataError
from exedit.runtime.errors import UserError
from exedit.training import encode_latents
from tests import FIXTURES, tfds_sets, vocabulary

FIXTURE = FIXTURES / 'open_images_v4-train.tfrecord-00000-of-00001'  # TFDS wrote it
SETTINGS = dict(size=32, exemplar_size=16)


@pytest.fixture(scope='module')
def open_images(tmp_path_factory):
  return tfds_sets.open_images(tmp_path_factory.mktemp('open_images'))


@pytest.fixture(scope='module')
def captions(tmp_path_factory):
  return tfds_sets.coco_captions(tmp_path_factory.mktemp('coco'))


@pytest.fixture(scope='module')
def numbers(tmp_path_factory):
  return tfds_sets.numbers(tmp_path_factory.mktemp('numbers'), range(37))


@pytest.fixture
def as_tfrecord(open_images, tmp_path):
  """What TFDS prepares with --file_format=tfrecord, which it cannot without TensorFlow."""
  folder = tmp_path / 'open_images_v4' / 'original' / '2.0.0'
  folder.mkdir(parents=True)
  info = json.loads(Path(open_images, tfds_data.INFO).read_text())
  (folder / tfds_data.INFO).write_text(json.dumps(info | dict(fileFormat='tfrecord')))
  shutil.copy(Path(open_images, tfds_data.FEATURES), folder)
  shutil.copy(FIXTURE, folder)
  shutil.copy(FIXTURE, folder / FIXTURE.name.replace('train', 'validation'))
  return str(folder)


def everything(source):
  return [tfds_data.features(source[i]) for i in range(len(source))]


@pytest.mark.parametrize('above', [0, 1, 2])
def test_open_images_of_either_format_has_the_records_that_tfds_wrote_with_tensorflow(
  open_images, as_tfrecord, above
):
  shard = tfrecord.Source([str(FIXTURE)])
  wanted = [tf_example.parse_example(shard[i]) for i in range(len(shard))]
  for folder in (open_images, as_tfrecord):
    source = tfds_data.source(str(Path(folder, *['..'] * above).resolve()), 'train')
    assert not source.damaged and len(source) == len(wanted) == 4
    for ours, theirs in zip(everything(source), wanted, strict=True):
      assert ours.keys() == theirs.keys()
      for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value)


def test_both_formats_and_plain_shards_give_the_same_batches(open_images, as_tfrecord, tmp_path):
  plain = tmp_path / 'plain'
  plain.mkdir()
  shutil.copy(FIXTURE, plain)
  batches = [
    next(loader.batches(str(folder), 'train', 8, **SETTINGS))
    for folder in (open_images, as_tfrecord, plain)
  ]
  for name, rows in batches[0].items():
    for other in batches[1:]:
      np.testing.assert_array_equal(rows, other[name])
  assert batches[0]['image'].any() and not batches[0]['corrupt'].any()


def test_captions_and_boxes_of_coco_have_our_names(captions):
  source = tfds_data.source(captions, 'train')
  records = {record['image/filename'][0].decode(): record for record in everything(source)}
  for i, texts in enumerate(tfds_sets.CAPTIONS):
    found = records[f'train_{i}.jpg'].get('caption', [])
    assert [text.decode() for text in found] == texts
  np.testing.assert_allclose(records['train_0.jpg']['bobjects/bbox'], [0.25, 0.25, 0.75, 0.75])
  assert not len(records['train_1.jpg']['bobjects/bbox'])
  batch = next(loader.batches(captions, 'train', 4, **SETTINGS))
  assert not batch['corrupt'].any()  # the pictures without a box are passed over


def test_texts_are_trained_on_captions_of_coco(captions, tmp_path):
  size = vocabulary.write(tmp_path, ('a', 'cat'))  # and letters, but no umlaut
  text = dict(tokenizer=str(tmp_path), vocabulary=size, length=30, size=32, texts=True)
  batch = next(loader.batches(captions, 'train', 12, make_example=captioned.make_example, **text))
  assert {said.decode() for said in batch['caption']} == set(tfds_sets.CAPTIONS[0])
  assert batch['image'].any() and 0 < batch['corrupt'].sum() < 12


def test_splits_are_those_of_tfds(captions, numbers):
  (first, *_) = everything(tfds_data.source(captions, 'validation'))
  assert first['image/filename'][0].startswith(b'val_')
  assert loader.held_out(2, root=captions, split='train', **SETTINGS)['image'].any()
  assert len(tfds_data.source(captions, 'val+test')) == 4
  part = tfds_data.source(numbers, 'train[10:25]')
  assert [int(record['number'][0]) for record in everything(part)] == [*range(10, 25)]
  with pytest.raises(tfrecord.CorruptRecord, match='00000-of-00003 at record 11'):
    raise part.corrupt(1, 'why')


def test_a_shard_cut_short_is_left_out_and_named(numbers, tmp_path):
  folder = shutil.copytree(numbers, tmp_path / 'numbers')
  whole = loader.survey(str(folder), 'train')
  assert whole == loader.survey(numbers, 'train')
  _, second, _ = tfds_data.source(str(folder), 'train').paths
  os.truncate(second, 2**16)  # ArrayRecord reads empty records from such a file
  source = tfds_data.source(str(folder), 'train')
  (error,) = source.damaged
  assert error.shard == second and '0 of 13 records are there' in str(error)
  left = [int(record['number'][0]) for record in everything(source)]
  assert left == [*range(12), *range(25, 37)]
  torn = loader.survey(str(folder), 'train')
  assert (torn.records, torn.truncated) == (24, 1) and torn.digest != whole.digest
  with pytest.raises(tfrecord.CorruptRecord, match='0 of 13'):
    loader.batches(str(folder), 'train', 2, on_corrupt='fatal', **SETTINGS)


def test_nothing_is_drawn_where_a_data_set_lies(open_images):
  said = synthetic.provide(open_images, dict(scenes=4))
  assert said == 'open_images_v4, which tensorflow-datasets prepared as array_record'
  batch = next(loader.batches(open_images, 'train', 4, **SETTINGS))
  _, lines = show.statistics(open_images, 'train', batch)
  assert '4 records; of the first 4: 0 unreadable, 6 boxes, 3 of them usable' in lines[0]


def edited(folder, name, **changes):
  path = Path(folder, name)
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
  'damage, message',
  [
    (
      lambda f: edited(f, tfds_data.INFO, fileFormat='riegeli'),
      'prepared as riegeli.*array_rec',
    ),
    (lambda f: os.remove(f / tfds_data.FEATURES), 'features.json.*prepare the data set again'),
    (
      lambda f: (f / tfds_data.INFO).write_text('{'),
      'dataset_info.json.*prepare the data',
    ),
    (lambda f: edited(f, tfds_data.INFO, version='newest'), "cannot open split 'train'.*newest"),
    (lambda f: next(f.glob('*00001-of-*')).unlink(), 'holds 2 of the 3 shards.*00001-of-00003'),
  ],
)
def test_a_damaged_data_set_is_refused_in_one_line(numbers, tmp_path, damage, message):
  folder = shutil.copytree(numbers, tmp_path / 'numbers')
  damage(folder)
  with pytest.raises(DataError, match=message) as caught:
    tfds_data.source(str(folder), 'train')
  assert '\n' not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize('split', ['test', 'train[', 'train[:0]'])
def test_a_split_that_is_not_there_is_named(numbers, split):
  with pytest.raises(DataError, match=re.escape(f'{split!r}') + '.*splits there: train') as caught:
    tfds_data.source(numbers, split)
  assert '\n' not in str(caught.value)


def test_a_data_set_without_pictures_is_refused(tmp_path):
  folder = tfds_sets.numbers(tmp_path, range(3), shards=1, features=('number',))
  with pytest.raises(DataError, match="numbers.*no feature 'image'.*features there: number"):
    loader.batches(folder, 'train', 2, **SETTINGS)


def test_of_several_versions_one_must_be_named(numbers, tmp_path):
  for name in ('1.0.0', 'incomplete.ABC_1.0.0'):
    shutil.copytree(numbers, tmp_path / name)
  assert tfds_data.find(str(tmp_path)).folder == str(tmp_path / '1.0.0')
  shutil.copytree(numbers, tmp_path / '2.0.0')
  with pytest.raises(DataError, match='several data sets: name one of .*1.0.0, .*2.0.0'):
    tfds_data.find(str(tmp_path))
  assert tfds_data.find(str(tmp_path / 'nowhere')) is None


def test_a_store_gives_tfrecord_only(open_images, as_tfrecord):
  assert len(tfds_data.source(f'file://{as_tfrecord}', 'validation')) == 4
  with pytest.raises(DataError, match='array_record, which is read from a disk only'):
    tfds_data.source(f'file://{open_images}', 'train')


def test_latents_are_encoded_from_tfrecord_shards_only(open_images):
  config = dict(system='paint_by_example', data=dict(root=open_images))
  with pytest.raises(UserError, match='prepared as array_record.*TFRecord shards only'):
    encode_latents.check(config, 1, 'float16', 4)
