"""The settings of an edit from one text to another. It imports no JAX: see `systems.forms`."""

import dataclasses
from typing import Any

from exedit.runtime.errors import UserError
from exedit.systems import setting

INVERSIONS = ('direct', 'ddim', 'negative_prompt', 'null_text', 'edit_friendly')
BLENDS = ('source', 'both', 'none')
ALIGNMENTS = ('refine', 'replace')
STRENGTH = 0.5  # of an edit from one text to another
SKIP = 0.36  # the share of the noisiest steps that edit-friendly sampling leaves out

Window = tuple[float, float]


def sampled(steps: int, inversion: str) -> int:
  """The number of steps that an edit samples; shares of the steps are shares of these."""
  return steps - int(SKIP * steps) if inversion == 'edit_friendly' else steps


def windows(given: Any) -> tuple[Window, dict[str, Window]]:
  """The usual window and those of words, from '0.4' or '0.4,teapot=0.2,wine glass=0.1-0.8'.

  Raises:
    UserError: unless all are shares with 0 <= first <= end <= 1.
  """
  usual, own = (0.0, 0.4), {}
  for part in str(given).split(','):
    word, told, share = part.rpartition('=')
    first, dash, end = share.strip().rpartition('-')
    try:
      window = (float(first) if dash else 0.0, float(end))
      good = 0 <= window[0] <= window[1] <= 1 and bool(word.strip()) == bool(told)
    except ValueError:
      good = False
    if not good:
      raise UserError(
        f'cross is {given!r:.60}: it must be a share of the steps from 0 to 1, such as 0.4, and '
        'may have other shares of words behind it, such as 0.4,teapot=0.2,table=0.1-0.8'
      )
    if told:
      own[' '.join(word.split())] = window
    else:
      usual = window
  return usual, own


def weights(given: Any) -> dict[str, float]:
  """The factors of words, from 'teapot=2,wine glass=-1'; '' has none.

  Raises:
    UserError: for another text.
  """
  found = {}
  for part in filter(None, str(given).split(',')):
    word, _, factor = part.rpartition('=')
    try:
      found[' '.join(word.split())] = float(factor)
    except ValueError:
      word = ''
    if not word.strip() or not abs(found[' '.join(word.split())]) <= 100:
      raise UserError(
        f'reweight is {given!r:.60}: it must be words with factors from -100 to 100, such as '
        'teapot=2,table=0.5'
      )
  return found


def _text(check):
  """A reader that returns a text which `check` can read."""

  def read(given):
    check(given)
    return str(given)

  return read


@dataclasses.dataclass(frozen=True)
class PromptSettings:
  """How an edit goes from one text to another; they count only with a target."""

  inversion: str = setting(
    'direct', 'with --target: how the noise that leads to the photo is found', choices=INVERSIONS,
    network=True,
  )  # fmt: skip
  cross: str = setting(
    '0.4', 'with --target: the first share of the steps in which words that both texts have keep '
    'their places; shares of words of the target behind it: 0.4,teapot=0.2,table=0.1-0.8',
    read=_text(windows),
  )  # fmt: skip
  alignment: str = setting(
    'refine', 'with --target: only words that both texts have keep their places (refine), or the '
    'n-th word of the target takes the place of the n-th word of the prompt (replace)',
    choices=ALIGNMENTS,
  )  # fmt: skip
  words: str = setting(
    '',
    'with --target: words of the prompt; only where they are the photo changes. Default: those '
    'that the target has not',
  )
  blend: str = setting(
    'source', 'with --target: the photo changes where its words are (source), or those of the '
    'result too (both), or everywhere (none)', choices=BLENDS, network=True,
  )  # fmt: skip
  reweight: str = setting(
    '', 'with --target: factors of words of the target, such as teapot=2,table=0.5',
    read=_text(weights),
  )  # fmt: skip
  show_words: bool = setting(
    False, 'with --target: write where each word of the prompt is in the photo, as out-words.png'
  )
