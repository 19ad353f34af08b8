"""Small data sets that tensorflow-datasets itself prepares as ArrayRecord, without TensorFlow.

The builders are the published ones where there is one; only what they download is replaced.
"""

import io
import itertools
import json
from types import SimpleNamespace
from unittest import mock

import numpy as np

from tests.fixtures import make_tfds_fixture

CAPTIONS = [['a cat', 'a striped cat on a wall'], ['ein Bär'], []]


def open_images(folder) -> str:
  """Prepares open_images_v4, splits train and validation; returns the folder of its version."""
  return str(make_tfds_fixture.prepare(str(folder), 'array_record').data_dir)


def coco_captions(folder) -> str:
  """Prepares coco_captions: the captions above in `train` and `val`; returns the version's folder.

  Of TensorFlow the published builder takes tf.int64 only.
  """
  import tensorflow_datasets as tfds
  from tensorflow_datasets.object_detection import coco, coco_captions

  sources = folder / 'downloaded'
  sentences = []
  for part, splits in (('train', ['train'] * 3), ('val', ['val'] * 3 + ['test', 'restval'])):
    (sources / f'{part}2014').mkdir(parents=True)
    pictures = []
    for i, (split, captions) in enumerate(zip(splits, itertools.cycle(CAPTIONS))):
      pictures.append(dict(id=i, file_name=f'{part}_{i}.jpg', height=64, width=96))
      data = make_tfds_fixture.photo('000a1249af2bc5f0')
      (sources / f'{part}2014' / f'{part}_{i}.jpg').write_bytes(data)
      raw = [dict(sentid=k, raw=text) for k, text in enumerate(captions)]
      sentences.append(dict(filename=f'{part}_{i}.jpg', split=split, sentences=raw))
    box = dict(bbox=[24, 16, 48, 32], image_id=0, category_id=0, area=1536, id=7, iscrowd=0)
    labels = [dict(id=i, name=f'label {i}') for i in range(80)]
    (sources / 'annotations').mkdir(exist_ok=True)
    path = sources / 'annotations' / f'instances_{part}2014.json'
    path.write_text(json.dumps(dict(images=pictures, annotations=[box], categories=labels)))
  (sources / 'dataset_coco.json').write_text(json.dumps(dict(images=sentences)))

  manager = mock.patch.object(
    tfds.download.DownloadManager,
    'download_and_extract',
    lambda self, urls: dict.fromkeys(urls, str(sources)),
  )
  with manager, mock.patch.object(coco, 'tf', SimpleNamespace(int64=np.int64)):
    builder = coco_captions.CocoCaptions(data_dir=str(folder), file_format='array_record')
    builder.download_and_prepare()
  return str(builder.data_dir)


def noise(number: int) -> bytes:
  """The bytes that stand for the picture of a record; they cannot be compressed."""
  return np.random.default_rng(number).bytes(200)


def numbers(folder, order, shards=3, features=('number', 'image')) -> str:
  """Prepares records that hold a number each, in this order; returns the version's folder."""
  import tensorflow_datasets as tfds

  class Numbers(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      every = dict(number=np.int64, image=tfds.features.Image())
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict({name: every[name] for name in features}),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      return dict(train=self._generate_examples())

    def _generate_examples(self):
      for place, number in enumerate(order):
        record = dict(number=number, image=io.BytesIO(noise(number)))
        yield place, {name: record[name] for name in features}

  tfds.core.registered._DATASET_REGISTRY.pop('numbers', None)
  builder = Numbers(data_dir=str(folder), file_format='array_record')
  config = tfds.download.DownloadConfig(num_shards=shards)
  builder.download_and_prepare(download_config=config)
  return str(builder.data_dir)
