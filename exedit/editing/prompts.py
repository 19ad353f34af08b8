"""The texts of an edit from one text to another, as the arrays that the network takes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from exedit import images
from exedit.diffusion import prompt_edits
from exedit.editing import prompt_settings
from exedit.runtime.errors import UserError

Spell = Callable[[str], np.ndarray]
Arrays = dict[str, np.ndarray]

PREFIX = 'edit_'  # of the names of the arrays
KEPT = 'kept_'  # of those that a next edit takes


def together(
  inputs: Mapping[str, str], settings: Any, spell: Spell | None
) -> tuple[Arrays, list[str]]:
  """`System.together` of Stable Diffusion: one `text_editing.Tables` as arrays by field, and notes.

  Raises:
    UserError: for texts that could do nothing, words that are not there, and inputs or settings
      that do not go together.
  """
  target = inputs.get('target')
  if target is None:
    for field in dataclasses.fields(prompt_settings.PromptSettings):
      if getattr(settings, field.name) != field.default:
        raise UserError(
          f'{field.name} goes with a target only: name the text of the result in target'
        )
    return {}, []
  _check(inputs, settings)
  if spell is None:
    return {}, []
  return _tables(inputs, settings, spell)


def kept(inputs: Mapping[str, str], settings: Any) -> dict[str, Any] | None:
  """`System.kept` of Stable Diffusion: what the inversion of a photo depends on."""
  if 'target' not in inputs:
    return None
  found = {name: getattr(settings, name) for name in ('inversion', 'steps')}
  if settings.inversion == 'null_text':
    found |= dict(scale=settings.scale, negative_prompt=inputs.get('negative_prompt', ''))
  if settings.inversion == 'edit_friendly':
    found |= dict(seed=settings.seed, negative_prompt=inputs.get('negative_prompt', ''))
  return found | dict(prompt=inputs['prompt'])


def sheet(
  prompt: str,
  spell: Spell,
  seen: Float[np.ndarray, 'mh mw m'],
  grown: Sequence[int],
  shown: UInt8[np.ndarray, 'h w 3'],
) -> UInt8[np.ndarray, 'H W 3']:
  """The photo, and for each word of its text the photo as bright as the word's map is there.

  Each map is scaled to its largest value; that of a word of several tokens is their sum.

  seen: the maps of the tokens, for a picture of the size `grown`. shown: what the network saw of
  the photo, the upper left part of that picture.
  """
  row: list[Any] = [shown]
  place = 1
  for word in prompt.split():
    size = prompt_edits.count(spell(word))
    score = seen[..., place : place + size].sum(-1)
    place += size
    score = np.float32(score / max(float(score.max()), 1e-9))
    bright = images.resize(np.stack([score] * 3, -1), *grown)[: shown.shape[0], : shown.shape[1]]
    row.append(np.uint8(np.clip(shown * (0.1 + 0.9 * bright), 0, 255)))
  return images.grid([row], ('photo', *prompt.split()))


def _check(inputs, settings) -> None:
  """What can be checked without a vocabulary."""
  faults = (
    ('image' not in inputs, 'target is given without image: name the photo that prompt describes'),
    (
      settings.inversion == 'negative_prompt' and 'negative_prompt' in inputs,
      'inversion=negative_prompt leads away from the prompt: leave negative_prompt out',
    ),
    (
      settings.guidance_interval != '0,1',
      'guidance_interval does not go with a target: leave it out',
    ),
    (
      settings.sampler not in ('plms', 'ddim'),  # plms is the usual one, given or not
      f'sampler {settings.sampler} does not go with a target, which takes ddim: leave it out',
    ),
    (settings.spacing != 'leading', 'spacing does not go with a target: leave it out'),
    (
      settings.words and settings.blend == 'none',
      'words have no use with blend=none: leave one of them out',
    ),
    (
      settings.words and 'mask' in inputs,
      'words have no use with a mask, which says where the photo changes: leave one of them out',
    ),
  )
  for wrong, why in faults:
    if wrong:
      raise UserError(why)
  if inputs['prompt'].split() == inputs['target'].split() and not settings.reweight:
    raise UserError(
      'target is the same text as prompt, so nothing would change: say in target what the result '
      'shows'
    )


def _tables(inputs, settings, spell) -> tuple[Arrays, list[str]]:
  prompt, target = inputs['prompt'], inputs['target']
  source, goal = spell(prompt), spell(target)
  if np.array_equal(source, goal) and not settings.reweight:
    raise UserError('target has the same tokens as prompt, so nothing would change')
  if settings.alignment == 'replace':
    spelt = ([spell(word) for word in text.split()] for text in (prompt, target))
    mix, lost, new = prompt_edits.replace(*spelt)
  else:
    mix, lost, new = prompt_edits.refine(source, goal)
  usual, own = prompt_settings.windows(settings.cross)
  at = lambda word, name: _places(goal, word, spell, name, 'target')
  windows = {place: window for word, window in own.items() for place in at(word, 'cross')}
  factors = prompt_settings.weights(settings.reweight)
  weights = {place: factor for word, factor in factors.items() for place in at(word, 'reweight')}
  strength = prompt_settings.STRENGTH if settings.strength is None else settings.strength
  steps = prompt_settings.sampled(settings.steps, settings.inversion)
  gate = prompt_edits.windows(len(source), steps, usual, windows)
  hold = prompt_edits.held(steps, (0, 1 - strength))
  made = prompt_edits.table(mix, gate, hold, weights)
  words = new_words = np.zeros(len(source), np.float32)
  notes: list[str] = []
  if settings.blend != 'none' and 'mask' not in inputs:
    words, new_words, notes = _blended(inputs, source, goal, lost, new, settings, spell)
  arrays: dict[str, Any] = dict(mix=made.mix, own=made.own, gate=made.gate, hold=made.hold)
  arrays |= dict(words=words, new_words=new_words)
  return {PREFIX + name: array for name, array in arrays.items()}, notes


def _blended(inputs, source, goal, lost, new, settings, spell):
  """The tokens of the words where a photo may change, in both texts, and what to tell."""
  words, new_words = np.zeros(len(source), np.float32), np.zeros(len(source), np.float32)
  if settings.words:
    for word in settings.words.split(','):
      words[_places(source, word, spell, 'words', 'prompt')] = 1
      new_words[prompt_edits.places(goal, spell(word))] = 1
    new_words = new_words if new_words.any() else np.float32(new)
    return words, new_words, []
  if not lost.any():
    return words, new_words, [
      'the target has every word of the prompt, so the photo may change everywhere: name words of '
      'the prompt with --words to change it only there'
    ]  # fmt: skip
  where = f'where {_said(inputs["prompt"], lost, spell)!r} is'
  if settings.blend == 'both' and new.any():
    where += f' and where {_said(inputs["target"], new, spell)!r} comes'
  note = (
    f'without a mask the photo changes only {where}: --words names other words, --blend=none '
    'changes it everywhere'
  )
  return lost.astype(np.float32), np.float32(new), [note]


def _said(text, marked, spell):
  """The words of a text that have marked tokens."""
  place, said = 1, []
  for word in text.split():
    size = prompt_edits.count(spell(word))
    if marked[place : place + size].any():
      said.append(word)
    place += size
  return ' '.join(said)


def _places(tokens, word, spell, name, where) -> list[int]:
  found = prompt_edits.places(tokens, spell(word))
  if not found:
    raise UserError(
      f'{name} names {word.strip()!r:.60}, which is not in {where}: use words of it, spelt as there'
    )
  return found
