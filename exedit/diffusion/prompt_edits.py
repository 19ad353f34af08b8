"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626) as tables: what a target's tokens take.

Every edit of cross-attention maps is `A = A_source mix + A_target diag(own)`, where row j, column w
of `mix` says how much of the source's token j the target's token w takes. Everything here is numpy
on the host; tokens are the int array [m] that a `Tokenizer` makes of a text.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from exedit.runtime.errors import UserError

NEW = -1  # the place of a token that the source does not have

Tokens = Int[np.ndarray, ' m']
Window = tuple[float | int, float | int]  # shares of the steps, first and end


@dataclasses.dataclass(frozen=True)
class Table:
  """One edit, for all its steps; see `models.attention_edits.Edit`.

  At step i the target's token w takes `gate[i, w] (A_source mix + A_target own) + (1 - gate[i, w])
  A_target`, and the source's self-attention if `hold[i]`.
  """

  mix: Float[np.ndarray, 'm m']
  own: Float[np.ndarray, ' m']
  gate: Float[np.ndarray, 'steps m']
  hold: Bool[np.ndarray, ' steps']


def spelt(tokens: Tokens) -> Int[np.ndarray, ' n']:
  """The tokens of a text without those of start and end."""
  return tokens[1 : 1 + count(tokens)]


def count(tokens: Tokens) -> int:
  """The number of a text's tokens without those of start and end."""
  return int(np.argmax(tokens[1:] == tokens[-1]))


def places(tokens: Tokens, words: Tokens) -> list[int]:
  """The places in a text of all occurrences of these words, which stand there one after another."""
  phrase, size = spelt(words), count(words)
  starts = (i for i in range(1, count(tokens) + 2 - size) if (tokens[i : i + size] == phrase).all())
  return sorted({i + k for i in starts for k in range(size)})


def align(source: Tokens, target: Tokens) -> Int[np.ndarray, ' m']:
  """For each token of the target its place in the source, or NEW (Needleman & Wunsch 1970).

  A match counts 1, a mismatch -1, a gap 0, so a changed word is a deleted one and a new one. Of
  equal alignments the last new token is taken first, then the last deleted one (upstream
  seq_aligner.py). Places behind the target's end token stand for themselves.
  """
  rows, columns = count(source) + 2, count(target) + 2
  score = np.zeros((rows + 1, columns + 1), int)
  for i in range(1, rows + 1):
    for j in range(1, columns + 1):
      same = 1 if source[i - 1] == target[j - 1] else -1
      score[i, j] = max(score[i, j - 1], score[i - 1, j], score[i - 1, j - 1] + same)
  found = np.arange(len(target))
  i, j = rows, columns
  while j > 0:
    if i == 0 or score[i, j] == score[i, j - 1]:
      j -= 1
      found[j] = NEW
    elif score[i, j] == score[i - 1, j]:
      i -= 1
    else:
      i, j = i - 1, j - 1
      found[j] = i
  return found


def refine(
  source: Tokens, target: Tokens
) -> tuple[Float[np.ndarray, 'm m'], Bool[np.ndarray, ' m'], Bool[np.ndarray, ' m']]:
  """The source's token for each token of the target that it has; the lost and the new tokens.

  Lost are the source's tokens that the target has not, new are the target's that the source has
  not.
  """
  aligned, size = align(source, target), len(target)
  mix = np.zeros((size, size), np.float32)
  mix[aligned[aligned != NEW], np.flatnonzero(aligned != NEW)] = 1
  lost = np.logical_not(
    mix[:, : count(target) + 2].any(1)
  )  # what is behind the target's end stands for itself
  lost[count(source) + 1 :] = False
  return mix, lost, aligned == NEW


def replace(
  source: Sequence[Tokens], target: Sequence[Tokens]
) -> tuple[Float[np.ndarray, 'm m'], Bool[np.ndarray, ' m'], Bool[np.ndarray, ' m']]:
  """The source's tokens for each token of the target, word by word; the lost and the new tokens.

  The texts are given as the tokens of each of their words. A word of k tokens takes the map of a
  word of another number of tokens 1/k each. Behind the last word the n-th token takes the source's
  n-th one, counted from there (upstream counts from the start, also if the numbers differ).

  Raises:
    UserError: for texts with different numbers of words.
  """
  if len(source) != len(target):
    raise UserError(
      f'prompt has {len(source)} words and target {len(target)}: alignment=replace needs as many '
      'in both; use alignment=refine'
    )
  length = len(source[0])
  mix = np.zeros((length, length), np.float32)
  lost, new = np.zeros((2, length), bool)
  mix[0, 0] = 1
  i = j = 1
  for one, other in zip(source, target):
    rows, columns = count(one), count(other)
    block = mix[i : i + rows, j : j + columns]
    block[...] = (np.eye(columns) if rows == columns else np.full((rows, columns), 1 / columns))[
      : block.shape[0], : block.shape[1]
    ]
    lost[i : i + rows] = new[j : j + columns] = not np.array_equal(spelt(one), spelt(other))
    i, j = i + rows, j + columns
  for column in range(j, length):
    mix[min(column - j + i, length - 1), column] = 1
  return mix, lost, new


def windows(
  length: int, steps: int, usual: Window, own: Mapping[int, Window] = {}
) -> Float[np.ndarray, 'steps m']:
  """1 at the steps and tokens at which a target takes what the table says.

  usual: the shares of the steps between which it does. own: other shares, by place. Shares count
  steps as in upstream's get_time_words_attention_alpha: 0.8 of 50 are the first 40.
  """
  gate = np.zeros((steps + 1, length), np.float32)
  for place in range(length):
    first, end = own.get(place, usual)
    gate[_step(steps + 1, first) : _step(steps + 1, end), place] = 1
  return gate[:steps]


def held(steps: int, window: Window) -> Bool[np.ndarray, ' steps']:
  """The steps at which a target takes the source's self-attention."""
  step = np.arange(steps)
  return (step >= _step(steps, window[0])) & (step < _step(steps, window[1]))


def _step(steps, share):
  """The step at which a share ends; rounded, because 50 * (1 - 0.8) is just below 10."""
  return int(round(steps * share, 6))


def table(
  mix: Float[np.ndarray, 'm m'],
  gate: Float[np.ndarray, 'steps m'],
  hold: Bool[np.ndarray, ' steps'],
  weights: Mapping[int, float] = {},
) -> Table:
  """One edit; a token for which `mix` has nothing keeps the target's own map.

  weights: factors of the maps of the target's tokens, by place (re-weighting, not normalised).
  """
  factor = np.ones(len(mix), np.float32)
  for place, weight in weights.items():
    factor[place] = weight
  return Table(mix * factor, np.float32(~mix.any(0)) * factor, gate, hold)
