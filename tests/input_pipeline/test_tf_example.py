"""tf.train.Example: features survive, and TensorFlow's own records are read."""

import numpy as np
import pytest

from exedit.input_pipeline import tf_example, tfrecord
from exedit.input_pipeline.errors import DataError
from tests import FIXTURES


def test_features_survive():
  features = {
    'image': b'\x00\xff' * 1000,
    'names': [b'a', b'', b'ccc'],
    'box': np.float32([0.25, 1 / 3, -1e-30, 3e38]),
    'label': np.int64([0, -1, 127, 128, 2**63 - 1, -(2**63)]),
    'flag': np.array([True, False]),
    'no bytes': [],
    'no floats': np.zeros(0, np.float32),
    'no numbers': np.zeros(0, np.int8),
  }
  parsed = tf_example.parse_example(tf_example.serialize_example(features))
  assert sorted(parsed) == sorted(features)
  assert parsed['image'] == [features['image']]
  assert parsed['names'] == features['names'] and parsed['no bytes'] == []
  for name in ('box', 'label', 'flag', 'no floats', 'no numbers'):
    np.testing.assert_array_equal(parsed[name], features[name])
    assert parsed[name].dtype == (np.float32 if name in ('box', 'no floats') else np.int64)


def test_what_is_no_example_is_said():
  record = tf_example.serialize_example({'image': b'x' * 9, 'label': np.arange(3)})
  for length in range(1, len(record)):
    with pytest.raises(DataError, match='not a tf.train.Example'):
      tf_example.parse_example(record[:length])
  with pytest.raises(DataError, match="'when'.*datetime"):
    tf_example.serialize_example({'when': np.array(['2020-01-01'], 'datetime64[D]')})


def test_records_written_by_tensorflow_datasets_are_read():
  """tests/fixtures/make_tfds_fixture.py wrote them."""
  source = tfrecord.Source([str(FIXTURES / 'open_images_v4-train.tfrecord-00000-of-00001')])
  parsed = [tf_example.parse_example(source[i]) for i in range(len(source))]
  by_name = {features['image/filename'][0].decode(): features for features in parsed}
  assert len(by_name) == 4
  features = by_name['000a1249af2bc5f0.jpg']
  assert features['image'][0][:2] == b'\xff\xd8'
  np.testing.assert_array_equal(
    features['bobjects/bbox'].reshape(-1, 4),  # ymin, xmin, ymax, xmax
    np.float32([[0.2, 0.1, 0.7, 0.6], [0.05, 0.55, 0.3, 0.95], [0.4, 0.4, 0.45, 0.45]]),
  )
  np.testing.assert_array_equal(features['bobjects/label'], [0, 600, 2])
  np.testing.assert_array_equal(features['bobjects/source'], [4, 5, 4])
  np.testing.assert_array_equal(features['bobjects/is_occluded'], [0, 1, -1])
  assert by_name['00723dac8201a83e.jpg']['bobjects/bbox'].shape == (0,)
