"""`Concept`: words that a network has learned from a few pictures, and what it takes to say them.

A concept holds arrays that stand in place of the base's own (with the published method the keys and
values of all cross-attentions), a row of the text tower for each new word, and which base it
belongs to. It does not hold the base.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit.runtime.errors import UserError
from exedit.weights import translate
from exedit.weights.formats.tensor import Tensor, bytes_of, to_dtype
from exedit.weights.found import Weights

ROWS = 'text.new_tokens'  # the text tower's parameter: the rows of all new words, in order
KEYS_AND_VALUES = 'unet[.].*attn2[.]to_[kv]'  # what Custom Diffusion trains
SHOWN = 12  # characters of a digest in a message


@dataclasses.dataclass(frozen=True)
class Concept:
  """What was learned.

  kernels: by the paths of exedit's parameters, in exedit's layouts; the values themselves and not
    their differences from the base. Empty if only words were learned.
  tokens: by the new word, such as '<new1>', its row.
  base: `base_digest` of the weights that it belongs to; '' if the file does not say.
  about: how it was made, as JSON values; `classes` has the noun of each word (see `merge`).
  """

  kernels: Mapping[str, np.ndarray]
  tokens: Mapping[str, Float[np.ndarray, ' width']]
  base: str = ''
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def digest(self) -> str:
    """A SHA-256 in hexadecimal of everything that a picture depends on; not of `about`."""
    sha = hashlib.sha256()
    named = [*sorted(self.kernels.items()), *self.tokens.items()]
    for name, array in named:
      sha.update(f'{name} {array.dtype} {array.shape} '.encode())
      sha.update(bytes_of(name, array))
    return sha.hexdigest()


def is_key_or_value(path: str) -> bool:
  """Whether this is the path of a kernel of KEYS_AND_VALUES."""
  return re.fullmatch(f'{KEYS_AND_VALUES}[.]kernel', path) is not None


def base_digest(weights: Weights) -> str:
  """The name of a base: a SHA-256 of its text tower and its keys and values of cross-attention.

  The numbers count as rounded to half precision, so that it is the same for all layouts of the
  same weights and for their copy in half precision.
  """
  return _digest_of(weights.tensors)


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
  sha = hashlib.sha256()
  for name in sorted(tensors):
    if is_key_or_value(name) or (name.startswith('text.') and name != ROWS):
      with np.errstate(over='ignore'):
        array = tensors[name].read().astype(np.float16)
      sha.update(f'{name} {array.shape} '.encode())
      sha.update(bytes_of(name, array))
  return sha.hexdigest()


def applied(weights: Weights, concepts: Sequence[Concept], force: bool = False) -> Weights:
  """The weights with these concepts: arrays replaced, rows of new words added, words known.

  force: apply concepts of another base too, if all shapes fit; a note says so.
  Raises:
    UserError: for a concept of another base or of other sizes, for one with only a part of the keys
      and values, for two concepts that set the same array, and for weights that take no texts or
      have new words already.
  """
  if not concepts:
    return weights
  ours = weights.tensors
  if 'text.token_embedding' not in ours:
    raise UserError(
      f'{weights.where} holds weights of {weights.kind}, which takes no texts: concepts are for '
      'Stable Diffusion'
    )
  if weights.words or ROWS in ours:
    raise UserError(f'{weights.where} has new words already: name all concepts at once')
  base, notes, replaced = '', [], {}
  for concept in concepts:
    if not concept.base:
      notes.append(f'the concept of {_words([concept])} does not say which weights it belongs to')
    else:
      base = base or _digest_of(ours)
      if concept.base != base:
        notes.append(_of_another_base(concept, base, weights.where, force))
    _check_fit(concept, ours, weights.where)
    if twice := sorted(replaced.keys() & concept.kernels.keys()):
      raise UserError(
        f'the concepts of {_words(concepts)} both set {twice[0]}: merge them into one first'
      )
    replaced |= concept.kernels
  words = [word for concept in concepts for word in concept.tokens]
  if len({word.lower() for word in words}) < len(words):
    raise UserError(f'two concepts teach the same word ({_words(concepts)}): rename one of them')
  model = dict(weights.config['model'])
  tensors = {**ours, **to_dtype(replaced, None)}
  if words:
    rows = np.stack([row for concept in concepts for row in concept.tokens.values()])
    tensors |= to_dtype({ROWS: rows}, None)
    model['text'] = {**model.get('text', {}), 'new': len(words)}
  return dataclasses.replace(
    weights,
    config={**weights.config, 'model': model},
    theirs=tensors,
    table=translate.identity(tensors),
    notes=(*weights.notes, *notes),
    words=tuple(words),
    concepts=tuple(concept.digest() for concept in concepts),
  )


def _words(concepts: Iterable[Concept]) -> str:
  """The words of concepts for a message."""
  return ', '.join(word for concept in concepts for word in concept.tokens) or 'no word'


def _of_another_base(concept: Concept, base: str, where: str, force: bool) -> str:
  """What to say of a concept of another base; UserError if it is not forced."""
  said = (
    f'the concept of {_words([concept])} was learned on other weights (base '
    f'{concept.base[:SHOWN]}...) than {where} (base {base[:SHOWN]}...)'
  )
  if not force:
    raise UserError(f'{said}: name its own, or force it')
  return f'{said} and is used all the same'


def _check_fit(concept: Concept, ours: Mapping[str, Tensor], where: str) -> None:
  """Raises UserError for arrays that these weights do not have, or of other shapes."""
  name, width = _words([concept]), ours['text.token_embedding'].shape[-1]
  for word, row in concept.tokens.items():
    if row.shape != (width,):
      raise UserError(
        f'the row of {word} has {row.shape[-1]} numbers and the text tower of {where} has {width}: '
        'the concept belongs to another kind of weights'
      )
  for path, array in concept.kernels.items():
    shape = ours[path].shape if path in ours else None
    if shape != array.shape:
      there = f'it as {shape}' if shape else 'no such array'
      raise UserError(
        f'the concept of {name} has {path} {array.shape} and {where} has {there}: the concept '
        'belongs to another kind of weights'
      )
  pairs = [path for path in ours if is_key_or_value(path)]
  missing = [path for path in pairs if path not in concept.kernels]
  if 0 < len(missing) < len(pairs):
    raise UserError(
      f'the concept of {name} lacks {len(missing)} of {len(pairs)} keys and values, such as '
      f'{missing[0]}: the file is not whole'
    )
