"""Examples of pictures alone: from records of any kind, cut as pictures with captions are."""

import numpy as np
import pytest

from exedit.input_pipeline import captioned, latent_shards, loader, pictures
from exedit.input_pipeline.errors import DataError, UserError
from tests import captions
from tests import pictures as drawn


def test_the_batches_are_the_pictures_and_nothing_else(tmp_path):
  captions.write(tmp_path)  # records without boxes
  data = dict(root=str(tmp_path), split='train', size=8, make_example=pictures.make_example)
  batch, shapes = next(loader.batches(batch_size=6, **data)), loader.shapes(**data)
  assert set(batch) == {'image', 'id', 'corrupt'} and not batch['corrupt'].any()
  assert {name: ((6, *shape), np.dtype(kind)) for name, (shape, kind) in shapes.items()} == {
    name: (rows.shape, rows.dtype) for name, rows in batch.items()
  }


@pytest.mark.parametrize('settings', [{}, dict(flip=1.0), dict(non_square='pad')])
def test_squares_are_those_of_captioned_examples(tmp_path, settings):
  size = captions.write(tmp_path, count=1)
  picture = drawn.noise(np.random.default_rng(1), 20, 31)
  how = dict(size=16, **settings)
  made = pictures.make_example(captions.features(picture, None), np.random.default_rng(3), **how)
  text = dict(tokenizer=str(tmp_path / 'tokenizer'), vocabulary=size, length=8)
  other = captioned.make_example(
    captions.features(picture, None), np.random.default_rng(3), missing_captions='empty', **how,
    **text,
  )  # fmt: skip
  assert set(made) == {'image'}
  np.testing.assert_array_equal(made['image'], other['image'])


def test_a_record_without_picture_is_a_damaged_one():
  record = {'image/filename': [b'a.png']}
  with pytest.raises(DataError, match='a.png: the record has no image'):
    pictures.make_example(record, np.random.default_rng(0))
  with pytest.raises(DataError, match='has latents, and this system trains on the photos'):
    pictures.make_example({**record, latent_shards.MOMENTS: [b'']}, np.random.default_rng(0))


@pytest.mark.parametrize(
  'settings, says',
  [
    (dict(non_square='skip'), "non_square is 'skip': use one of crop, pad, squash"),
    (dict(flip=2), r'data.flip is 2: it must be from 0 to 1'),
    (dict(exemplar_size=8), 'exemplar_size'),
  ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, says):
  captions.write(tmp_path, count=1)
  with pytest.raises(UserError, match=says):
    loader.batches(str(tmp_path), 'train', 1, make_example=pictures.make_example, **settings)
