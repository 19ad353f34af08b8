"""Prompt-to-Prompt's tables: the published alignments, words by place, and what goes wrong."""

import numpy as np
import pytest

from exedit.diffusion import prompt_edits
from exedit.runtime.errors import UserError

WORDS: dict[str, int] = {}


def spell(text, length=16):
  """One token for each word, as a tokenizer gives them; 0 starts, 1 ends."""
  own = [WORDS.setdefault(word, len(WORDS) + 2) for word in text.split()]
  return np.array([0, *own, *[1] * (length - 1 - len(own))], np.int32)


@pytest.mark.parametrize(
  'source, target, expected',
  [
    (
      'a black cat riding a scooter',
      'a V* cat figurine riding a scooter',
      [0, 1, -1, 3, -1, 4, 5, 6, 7],
    ),
    (
      'a strawberry cup filled with beans',
      'a V* patterned teapot filled with beans',
      [0, 1, -1, -1, -1, 4, 5, 6, 7],
    ),
    ('a cat on a mat', 'a V* cat on a mat', [0, 1, -1, 2, 3, 4, 5, 6]),
    ('photo of a giraffe', 'V* pencil drawing of a giraffe', [0, -1, -1, -1, 2, 3, 4, 5]),
    (
      'a bottle of wine and a glass on a table',
      'a V* wooden pot of wine and a glass on a table',
      [0, 1, -1, -1, -1, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    ),
  ],
)
def test_the_published_alignments(source, target, expected):
  found = prompt_edits.align(spell(source), spell(target))
  np.testing.assert_array_equal(found[: len(expected)], expected)
  np.testing.assert_array_equal(found[len(expected) :], np.arange(len(expected), 16))
  mix, _, new = prompt_edits.refine(spell(source), spell(target))
  made = prompt_edits.table(mix, np.ones((3, 16), np.float32), np.zeros(3, bool))
  np.testing.assert_array_equal(made.own, new)
  np.testing.assert_array_equal(mix.sum(0), ~new)


@pytest.mark.parametrize(
  'source, target, expected',
  [
    ('a photo of a cat wearing a hat', 'a photo of a cat', 'wearing a hat'),
    ('a cat with a hat', 'a cat', 'with a hat'),
    ('a big red old cat on mat', 'a dog', 'big red old cat on mat'),
    ('a cat', 'a big cat', ''),
  ],
)
def test_words_that_the_target_has_not_are_lost(source, target, expected):
  _, lost, _ = prompt_edits.refine(spell(source), spell(target))
  assert ' '.join(w for w, gone in zip(source.split(), lost[1:]) if gone) == expected
  assert lost.sum() == len(expected.split())


def test_replace_takes_words_one_by_one():
  words = lambda text: [spell(word) for word in text.split()]
  two = np.array([0, 50, 51, *[1] * 13], np.int32)  # one word of two tokens
  mix, lost, new = prompt_edits.replace(words('a cat sits'), [spell('a'), two, spell('sits')])
  np.testing.assert_array_equal(mix[1:4, 1:5], [[1, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 1]])
  assert [*np.flatnonzero(lost)] == [2] and [*np.flatnonzero(new)] == [2, 3]
  assert mix[4, 5] == 1  # the end tokens
  np.testing.assert_array_equal(prompt_edits.replace(words('a b'), words('c d'))[0], np.eye(16))
  with pytest.raises(UserError, match='prompt has 2 words and target 1: alignment=replace needs'):
    prompt_edits.replace(words('a b'), words('c'))


def test_windows_and_weights():
  gate = prompt_edits.windows(16, 50, (0, 0.8), {2: (0.1, 0.5), 3: (0, 0)})
  np.testing.assert_array_equal(gate[:, :5].sum(0), [40, 40, 20, 0, 40])
  assert gate[:5, 2].sum() == 0 and gate[40:].sum() == 0
  assert prompt_edits.windows(2, 5, (0, 1)).sum() == 10
  np.testing.assert_array_equal(np.flatnonzero(prompt_edits.held(10, (0.2, 0.5))), [2, 3, 4])
  mix, *_ = prompt_edits.refine(spell('a cat'), spell('a red cat'))
  made = prompt_edits.table(mix, gate, prompt_edits.held(50, (0, 0)), {2: 3.0, 3: -1.0})
  assert made.own[2] == 3 and made.mix[2, 3] == -1 and not made.hold.any()


@pytest.mark.parametrize('tenths', range(1, 10))
def test_shares_count_whole_steps(tenths):
  for steps in (20, 50, 100):
    for share in (tenths / 10, 1 - (1 - tenths / 10)):
      assert prompt_edits.held(steps, (0, share)).sum() == steps * tenths // 10
      assert prompt_edits.held(steps, (share, 1)).sum() == steps - steps * tenths // 10
      gate = prompt_edits.windows(1, steps - 1, (0, share))  # these count one step more
      assert gate.sum() == steps * tenths // 10


@pytest.mark.parametrize(
  'words, expected', [('cat', [2, 5]), ('a cat', [1, 2]), ('dog', []), ('mat a', [])]
)
def test_words_have_places(words, expected):
  text = spell('a cat on the cat mat')
  assert prompt_edits.places(text, spell(words)) == expected
