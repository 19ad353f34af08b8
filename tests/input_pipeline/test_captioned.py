"""Examples of pictures with captions: squares, tokens, boxes with phrases, missing captions."""

import itertools
import logging

import numpy as np
import pytest

from exedit.input_pipeline import captioned, loader, tfrecord
from exedit.input_pipeline.errors import DataError, Uncaptioned, UserError
from tests import captions, vocabulary


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  """The settings that belong to a small tokenizer."""
  folder = tmp_path_factory.mktemp('words') / 'tokenizer'
  size = vocabulary.write(folder)
  return dict(tokenizer=str(folder), vocabulary=size, length=12)


def ramp(height, width):
  """A picture whose red is the column and whose green is the row."""
  rows, columns = np.mgrid[:height, :width]
  return np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)


def make(picture, said, seed=0, **settings):
  features = captions.features(picture, said)
  return captioned.make_example(features, np.random.default_rng(seed), **settings)


@pytest.mark.parametrize('height, width', [(20, 50), (50, 20)])
def test_squares_are_cut_at_random_or_in_the_middle_and_never_squashed(text, height, width):
  how = dict(size=20, **text)
  cuts = {make(ramp(height, width), ['a'], seed, **how)['image'][0, 0].max() for seed in range(99)}
  assert (min(cuts), max(cuts)) == (0, 30) and len(cuts) > 25
  middle = make(ramp(height, width), ['a'], augment=False, **how)['image']
  at = (0, 15) if width > height else (15, 0)
  np.testing.assert_array_equal(middle, ramp(height, width)[at[0] :, at[1] :][:20, :20])


def test_other_shapes_when_told_and_flips(text):
  how = dict(size=20, augment=False, **text)
  squashed = make(ramp(20, 40), ['a'], non_square='squash', **how)['image']
  assert squashed[0, 0, 0] == 0 or squashed[0, 0, 0] == 1
  assert squashed[0, -1, 0] >= 38
  padded = make(ramp(20, 40), ['a'], non_square='pad', **dict(how, size=40))['image']
  np.testing.assert_array_equal(padded[10:30], ramp(20, 40))
  how['augment'] = True
  np.testing.assert_array_equal(
    make(ramp(20, 20), ['a'], flip=1.0, **how)['image'], ramp(20, 20)[:, ::-1]
  )
  np.testing.assert_array_equal(make(ramp(20, 20), ['a'], **how)['image'], ramp(20, 20))


def test_a_smaller_picture_is_averaged(text):
  checks = np.indices((64, 64)).sum(0)[..., None].repeat(3, -1) % 2 * 255
  made = make(checks.astype(np.uint8), ['a'], size=16, **text)['image']
  assert 126 <= made.min() <= made.max() <= 129


def test_one_of_several_captions_at_random_as_tokens(text):
  said = ['a red ball', 'a blue star']
  found = [make(ramp(8, 8), said, seed, size=8, **text) for seed in range(30)]
  assert {one['caption'].item().decode() for one in found} == {*said}
  spell = captioned._tokenizer(text['tokenizer'], text['vocabulary'], text['length'])
  for one in found:
    np.testing.assert_array_equal(one['tokens'], spell(one['caption'].item().decode()))
  first = make(ramp(8, 8), said, 7, size=8, augment=False, **text)
  assert first['caption'].item().decode() == said[0]
  odd = make(ramp(8, 8), ['a\x07 red\n\tball\u200b'], size=8, **text)  # web captions hold anything
  assert odd['caption'].item().decode() == 'a red ball'


def test_boxes_are_cut_with_their_phrases(text):
  boxes = np.array([[0.1, 0.2, 0.6, 0.7], [0, 0, 0.01, 0.01], [0.5, 0.5, 1, 1]], np.float32)
  more = {'bobjects/bbox': boxes.ravel(), 'bobjects/caption': [b'red ball', b'star', b'']}
  features = captions.features(ramp(100, 100), ['a blue photo'], **more)
  how = dict(size=50, exemplar_pad=0, **text)
  draw = lambda share, seed=0, **other: captioned.make_example(
    features, np.random.default_rng(seed), boxes=share, **how, **other
  )
  one = draw(1.0)  # the second box is too small, and the third has no phrase
  assert one['caption'].item() == b'red ball'
  np.testing.assert_array_equal(one['image'], ramp(100, 100)[10:60, 20:70])
  assert draw(1.0, augment=False)['caption'].item() == b'a blue photo'
  shares = np.mean([draw(0.3, seed)['caption'].item() == b'red ball' for seed in range(200)])
  assert 0.2 < shares < 0.4


def test_missing_captions_are_dropped_or_empty(text):
  for said in (None, [], [' ']):
    with pytest.raises(Uncaptioned, match='a.png has no caption .*missing_captions=empty'):
      make(ramp(8, 8), said, size=8, **text)
    empty = make(ramp(8, 8), said, size=8, missing_captions='empty', **text)
    assert empty['uncaptioned'] and len(np.unique(empty['tokens'])) == 2


@pytest.mark.parametrize('how', ['drop', 'empty'])
def test_missing_captions_are_counted_and_logged(tmp_path, caplog, text, how):
  records = [
    captions.record(ramp(8, 8), ['a red ball'] if i % 4 else None, f'{i}.png') for i in range(32)
  ]
  tfrecord.write_shard(f'{tmp_path}/x-train.tfrecord-00000-of-00001', records)
  made = loader.batches(
    str(tmp_path), 'train', 8, make_example=captioned.make_example, shuffle=False, texts=True,
    size=8, missing_captions=how, **text,
  )  # fmt: skip
  with caplog.at_level(logging.WARNING):
    batches = [*itertools.islice(made, 4)]
  assert 'uncaptioned' not in batches[0] and not sum(b['corrupt'].sum() for b in batches)
  said = [record.getMessage() for record in caplog.records]
  assert said == [
    f'{count} records without a caption among {seen} examples of this process so far'
    for seen, count in (('8', '2'), ('16', '4'), ('32', '8'))
  ]
  bare = sum(not bytes(text) for batch in batches for text in batch['caption'])
  assert bare == (8 if how == 'empty' else 0)


def test_shapes_are_those_of_the_batches_and_texts_stay_on_the_host(tmp_path):
  size = captions.write(tmp_path)
  data = dict(
    root=str(tmp_path), split='train', size=16, length=12, vocabulary=size,
    tokenizer=str(tmp_path / 'tokenizer'), make_example=captioned.make_example,
  )  # fmt: skip
  batch, shapes = next(loader.batches(batch_size=6, **data)), loader.shapes(**data)
  assert {name: ((6, *shape), np.dtype(kind)) for name, (shape, kind) in shapes.items()} == {
    name: (rows.shape, rows.dtype) for name, rows in batch.items()
  }
  assert bytes(loader.held_out(2, **data)['caption'][1]).decode() == captions.CAPTIONS[1]


def test_boxes_on_data_without_phrases_are_logged(tmp_path, caplog, text):
  how = dict(text, boxes=0.5, size=8, make_example=captioned.make_example)
  path = f'{tmp_path}/x-train.tfrecord-00000-of-00001'
  words = 'none of 3 records has phrases of boxes (bobjects/caption), so data.boxes=0.5'
  for phrases, told in (({}, True), ({'bobjects/caption': [b'red ball']}, False)):
    records = [captions.record(ramp(8, 8), ['a red ball'], **more) for more in ({}, {}, phrases)]
    tfrecord.write_shard(path, records)
    caplog.clear()
    loader.batches(str(tmp_path), 'train', 1, **how)
    assert any(words in entry.getMessage() for entry in caplog.records) == told


def test_shapes_of_somebodys_examples_need_a_function_beside_them():
  with pytest.raises(DataError, match=r'has no function shapes\(\*\*settings\)'):
    loader.shapes(make_example=lambda features, rng: {})


def test_what_cannot_be_spelt_is_a_damaged_record(text):
  with pytest.raises(DataError, match="a.png: the vocabulary .* cannot spell '☃'"):
    make(ramp(8, 8), ['a ☃'], size=8, **text)
  with pytest.raises(DataError, match='a.png: the record has no image'):
    captioned.make_example({'image/filename': [b'a.png']}, np.random.default_rng(0))


@pytest.mark.parametrize(
  'settings, says',
  [
    (dict(missing_captions='skip'), "missing_captions is 'skip': use one of drop, empty"),
    (dict(non_square='skip'), "non_square is 'skip': use one of crop, pad, squash"),
    (dict(boxes=2), r'data.boxes is 2: it must be from 0 to 1'),
    (dict(vocabulary=99), 'tokenizer has 70 tokens, .* the text tower has 99 rows'),
    (dict(tokenizer='/nowhere'), '/nowhere is no tokenizer: it lacks vocab.json and merges.txt'),
  ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, text, settings, says):
  captions.write(tmp_path, count=1)
  given = dict(text, make_example=captioned.make_example) | settings
  with pytest.raises(UserError, match=says):
    loader.batches(str(tmp_path), 'train', 1, **given)
