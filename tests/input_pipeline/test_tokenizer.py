"""Texts to tokens: CLIP's rules, what is cut, and texts and folders that are refused."""

import numpy as np
import pytest

from exedit.input_pipeline import tokenizer as tokenizers
from exedit.input_pipeline.tokenizer import Tokenizer
from exedit.runtime.errors import UserError
from tests import vocabulary


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('texts') / 'tokenizer'


@pytest.fixture(scope='module')
def size(folder):
  return vocabulary.write(folder)


@pytest.fixture(scope='module')
def tokenizer(folder, size):
  return Tokenizer(folder, size, length=8)


def test_start_words_and_end_to_the_length(tokenizer, size):
  start, end = size - 2, size - 1
  ids = tokenizer('a Red  BALL')
  assert ids.dtype == np.int32 and ids.shape == (8,)
  assert ids[0] == start and (ids[4:] == end).all()
  assert (ids == tokenizer('a red ball')).all() and (ids != tokenizer('a blue ball')).any()
  assert (tokenizer('') == [start, *[end] * 7]).all()


def test_a_long_text_is_cut_and_the_rest_is_named(tokenizer, size):
  text = 'red ball of red ball of blue star'
  ids = tokenizer(text)
  assert ids[-1] == size - 1 and (ids[1:7] == tokenizer('red ball of red ball of')[1:7]).all()
  assert tokenizer.cut(text) == 'blue star' and tokenizer.cut('red ball') == ''


@pytest.mark.parametrize(
  'text, says',
  [('red \x00 ball', r'U\+0000'), ('a red ☃', "cannot spell '☃'"), ('шар', "cannot spell 'шар'")],
)
def test_texts_that_the_tokens_would_not_say_are_refused(tokenizer, text, says):
  with pytest.raises(UserError, match=says):
    tokenizer(text)


def test_new_words_are_one_token_each_behind_the_vocabulary(folder, size, tokenizer):
  more = Tokenizer(folder, size, length=8, words=('<new1>', '<new2>', 'newstyle'))
  ids = lambda text: [*more(text)[1:7]]
  red, ball, end = tokenizer('red')[1], tokenizer('ball')[1], size - 1
  assert ids('red <new1> ball') == [red, size, ball, *[end] * 3]
  assert ids('<new2>ball <NEW1>') == [size + 1, ball, size, *[end] * 3]
  assert ids('newstyle')[0] == size + 2 and size + 2 not in ids('xnewstyleball')
  assert more.cut('red <new1> ball <new1> ball <new2> <new1> ball') == '<new1> ball'
  with pytest.raises(UserError, match='cannot spell'):  # the same folder without the words
    tokenizer('<new1>')
  several = Tokenizer(folder, size, length=8, words=('<b>', '<a>', '<a>_1', '<a>_2', '<c>'))
  assert [*several('red <a> <c>')[1:6]] == [red, size + 1, size + 2, size + 3, size + 4]
  assert several.cut('red red <a> ball <b> <a> ball') == '<b> <a> ball'
  strict = Tokenizer(folder, size, words=('<new1>',), strict=True)
  with pytest.raises(UserError, match='weights <new2>: name it with --concept; known are <new1>'):
    strict('<NEW1> <new2>')


@pytest.mark.parametrize(
  'words, says',
  [
    (('red',), "'red' is one token already"),
    (('<a>', '<A>'), "'<A>' is one token already, of the vocabulary or of another concept"),
    (('a b',), "'a b' cannot be a word of its own"),
    (('',), 'cannot be a word'),
  ],
)
def test_words_that_are_none_or_stand_there_already_are_refused(folder, size, words, says):
  with pytest.raises(UserError, match=says):
    Tokenizer(folder, size, words=words)


def test_the_digest_is_of_the_tokenizers_files_alone(tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  vocabulary.write(first)
  vocabulary.write(second)
  for name in ('config.json', 'model.safetensors.index.json'):
    (second / name).write_text('{}')
  assert tokenizers.digest(first) == tokenizers.digest(second)
  (second / 'tokenizer_config.json').write_text('{"do_lower_case": false}')
  assert tokenizers.digest(first) != tokenizers.digest(second)


def test_other_folders_are_refused(tmp_path, folder, size):
  with pytest.raises(UserError, match=f'has {size} tokens.*the text tower has 49408 rows'):
    Tokenizer(folder)
  with pytest.raises(UserError, match='lacks vocab.json and merges.txt'):
    Tokenizer(tmp_path)
  vocabulary.write(tmp_path / 'damaged')
  (tmp_path / 'damaged' / 'vocab.json').write_text('{')
  with pytest.raises(UserError, match='is damaged'):
    Tokenizer(tmp_path / 'damaged')
