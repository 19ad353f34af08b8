"""Examples of concepts: prompts, the resize that the prompt tells, masks, the prior, one stream."""

import itertools

import numpy as np
import pytest
from PIL import Image

from exedit.input_pipeline import concept_examples
from exedit.input_pipeline.concept_examples import Examples, batches
from exedit.input_pipeline.errors import DataError
from tests import few_pictures, vocabulary

WORDS = ('red', 'ball', 'photo', 'of', 'a', 'far', 'away', 'very', 'small', 'zoomed', 'in', 'close')


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  folder = tmp_path_factory.mktemp('words')
  size = vocabulary.write(folder, (*WORDS, 'up', 'star', 'on'))
  return dict(tokenizer=str(folder), vocabulary=size, length=14, words=(('<new1>', 'red ball'),))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return few_pictures.write(tmp_path_factory.mktemp('pictures'))


def told(examples, text):
  return examples.tokens(text).tolist()


def taken(rows, count):
  return [next(rows) for _ in range(count)]


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def test_an_example_depends_on_its_number_alone(root, text):
  how = dict(seed=3, size=24, **text)
  whole = taken(batches(root, batch_size=4, **how), 3)
  same(next(batches(root, batch_size=4, start=8, **how)), whole[2])
  halves = [next(batches(root, batch_size=4, shard_index=i, shard_count=2, **how)) for i in (0, 1)]
  for i, half in enumerate(halves):
    same(half, {name: rows[i::2] for name, rows in whole[0].items()})
  assert (
    whole[0]['image'] != next(batches(root, batch_size=4, **how | dict(seed=4)))['image']
  ).any()
  shapes = concept_examples.shapes(size=24, **text)
  assert {n: (v.shape[1:], v.dtype) for n, v in whole[0].items()} == shapes


def test_the_prompt_says_how_the_picture_was_resized(text, tmp_path):
  """The published distribution: a third is larger, and of the others those below 0.6 are small."""
  Image.new('RGB', (90, 90), (255, 0, 0)).save(tmp_path / 'a.png')
  found = Examples(str(tmp_path), size=96, held_out=0, **text)
  begins = {b: told(found, f'{b}photo of a <new1> red ball') for b in ('', *itertools.chain(
    *found.begins))}  # fmt: skip
  seen = {b: [] for b in begins}
  for i in range(300):
    example = found.example(0, i)
    (begin,) = [b for b, tokens in begins.items() if tokens == example['tokens'].tolist()]
    assert example['prior_tokens'].tolist() == told(found, f'{begin}photo of a red ball')
    seen[begin].append(example)
  shares = {b: len(rows) / 300 for b, rows in seen.items()}
  near = shares['zoomed in '] + shares['close up ']
  far = shares['a far away '] + shares['very small ']
  assert min(shares.values()) > 0.05 and 0.26 < near < 0.41 and 0.19 < far < 0.34
  for begin, rows in seen.items():
    for row in rows:
      red = row['image'][..., 0] == 255
      area, counts = red.mean(), row['mask'].mean() / 255
      if begin in ('a far away ', 'very small '):
        assert 0.1 < area < 0.37 and 0 < counts < area
        cells = row['mask'].repeat(8, 0).repeat(8, 1) > 0
        assert red[cells].all() and (row['image'][~red] == concept_examples.GREY).all()
      else:
        assert area == 1 and counts == 1


def test_a_mask_follows_its_picture(text, tmp_path):
  pixels = np.zeros((64, 64, 3), np.uint8)
  pixels[:32, :32] = 255
  Image.fromarray(pixels).save(tmp_path / 'a.png')
  Image.fromarray(pixels[..., 0]).save(tmp_path / 'a.mask.png')
  found = Examples(str(tmp_path), size=64, held_out=0, **text)
  for i in range(40):
    example = found.example(1, i)
    white = (example['image'][..., 0] > GREY_LEVEL).reshape(8, 8, 8, 8).mean((1, 3))
    counted = example['mask'] / 255
    assert (counted <= white + 0.05).all()  # less at the border of a small picture
    if (example['image'] != concept_examples.GREY).all():
      np.testing.assert_allclose(counted, white, atol=0.2)


GREY_LEVEL = 200


def test_held_out_pictures_never_train_and_are_not_augmented(root, text):
  train, held = (Examples(root, split, size=20, **text) for split in ('train', 'validation'))
  names = lambda found: [picture.name[-5:] for picture in found.pictures[0]]
  assert (names(train), names(held)) == (['0.png', '1.png', '2.png', '3.png'], ['4.png'])
  one, other = held.example(0, 0), held.example(0, 7)
  np.testing.assert_array_equal(one['image'], other['image'])
  every = Examples(root, 'validation', size=20, **text, held_out=0)
  assert len(every.pictures[0]) == 5


def test_each_picture_is_seen_once_before_one_is_seen_twice(root, text):
  found = Examples(root, size=20, augment=False, flip=0, held_out=0, **text)
  for epoch in range(4):
    seen = {found.example(0, i)['image'].tobytes() for i in range(5 * epoch, 5 * epoch + 5)}
    assert len(seen) == 5


def test_captions_name_the_concept_or_are_refused(text, tmp_path):
  few_pictures.write(tmp_path, 2)
  (tmp_path / '0.txt').write_text('a {} on a star')
  (tmp_path / '1.txt').write_text('a <NEW1> star')
  how = dict(size=20, augment=False, held_out=0, **text)
  found = Examples(str(tmp_path), **how)
  seen = {tuple(map(tuple, (e['tokens'].tolist(), e['prior_tokens'].tolist()))) for e in (
    found.example(0, i) for i in range(2))}  # fmt: skip
  pairs = (('a <new1> red ball on a star', 'a red ball on a star'), ('a <new1> star', 'a star'))
  assert seen == {tuple(tuple(told(found, text)) for text in pair) for pair in pairs}
  (tmp_path / '1.txt').write_text('a star')
  with pytest.raises(DataError, match="'a star', does not name the concept: write {} or <new1>"):
    Examples(str(tmp_path), **how)


def test_several_concepts_take_turns(text, tmp_path):
  for name in ('new1', 'new2'):
    few_pictures.write(tmp_path / name, 2, seed=len(name))
  words = (('<new1>', 'red ball'), ('<new2>', 'star'))
  found = Examples(str(tmp_path), size=20, augment=False, **text | dict(words=words))
  for i, said in enumerate(('<new1> red ball', '<new2> star')):
    example = found.example(0, i)
    assert example['tokens'].tolist() == told(found, f'photo of a {said}')
  assert found.shown(3)['caption'].tolist() == [
    b'photo of a <new1> red ball', b'photo of a <new2> star', b'photo of a <new1> red ball',
  ]  # fmt: skip


def test_pictures_of_the_class_come_with_their_captions(root, text, tmp_path):
  few_pictures.write(tmp_path, 1, seed=9)
  how = dict(size=20, prior='pictures', prior_root=str(tmp_path), flip=0.0, **text)
  found = Examples(root, augment=False, **how)
  assert found.example(0, 0)['prior_tokens'].tolist() == told(found, 'photo of a red ball')
  (tmp_path / '0.txt').write_text('a star')
  example = Examples(root, augment=False, **how).example(0, 5)
  assert example['prior_tokens'].tolist() == told(found, 'a star')
  assert example['prior_image'].shape == (20, 20, 3)
  assert 'prior_tokens' not in Examples(root, **how | dict(prior='none')).example(0, 0)


@pytest.mark.parametrize(
  'settings, says',
  [
    (dict(size=20, factor=8), 'data.size is 20: it must be a multiple of 8'),
    (dict(templates=('a photo',)), "data.templates has 'a photo': write {} where"),
    (dict(templates=()), 'give one template at least'),
    (dict(phrase='{class}'), 'and {name} in the phrase'),
    (dict(prior='pictures'), 'name their folder as --config.data.prior_root=DIR'),
    (dict(held_out=1.0), 'data.held_out is 1.0'),
    (dict(colour=1), 'data.colour is not a setting'),
  ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
  with pytest.raises(DataError if 'colour' not in settings else Exception, match=says):
    concept_examples.shapes(**settings)


@pytest.mark.parametrize(
  'group, says',
  [
    ({'name': '<a>,<b>', 'class_': 'dog'}, r'2 names \(<a>,<b>\) and concept.class 1 \(dog\)'),
    ({'name': '<a>'}, "concept.class '': give each concept another name and a noun"),
    ({'name': '<a>,<a>', 'class_': 'dog,cat'}, 'another name'),
    ({'class_': 'dog', 'keep': 'first'}, "keep is 'first': use best or last"),
  ],
)
def test_concepts_that_cannot_be_are_refused(group, says):
  with pytest.raises(DataError, match=says):
    concept_examples.words_of(group)


def test_the_start_of_a_word_may_be_its_class():
  words = concept_examples.words_of({'name': '<a>, <b>', 'class_': 'dog,cat', 'init': '{class}'})
  assert [(w.name, w.noun, w.init) for w in words] == [('<a>', 'dog', 'dog'), ('<b>', 'cat', 'cat')]
