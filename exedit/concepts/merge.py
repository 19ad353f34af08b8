"""Several concepts as one, in closed form (Custom Diffusion, arXiv 2212.04488, section 3.2).

Each key and value kernel K of the base becomes the nearest one, over the features R of captions,
that gives the concepts' own outputs Y for the features X of their texts:

  minimise |R (K' - K)|  with  X K' = Y:   K' = K + A X^T (X A X^T)^-1 (Y - X K),  A = (R^T R)^-1
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from exedit import latent_diffusion
from exedit.concepts.concept import Concept, applied, base_digest, is_key_or_value
from exedit.input_pipeline.tokenizer import Tokenizer
from exedit.models.clip_text import CLIPText
from exedit.runtime.errors import UserError
from exedit.weights.found import Weights

BATCH = 16  # texts at once
TEMPLATES = ('{}', 'photo of a {}')
LEAST = 1e-12  # the smallest eigenvalue of R^T R, as a share of its largest


def merged(
  base: Weights, concepts: Sequence[Concept], captions: Sequence[str]
) -> tuple[Concept, float]:
  """One concept for several, and how far its outputs are from theirs, as a share.

  captions: texts on which the base's behaviour is kept, about 200 of any kind.
  Raises:
    UserError: for concepts that set other arrays than keys and values, and too few captions.
  """
  words = {word: row for concept in concepts for word, row in concept.tokens.items()}
  bare = [dataclasses.replace(concept, kernels={}) for concept in concepts]
  told = applied(base, bare, force=True)
  about = dict(merged=[dict(concept.about) for concept in concepts])
  able = [concept for concept in concepts if concept.kernels]
  if odd := [n for c in able for n in c.kernels if not is_key_or_value(n)]:
    raise UserError(f'concepts that change {odd[0]} cannot be merged: only keys and values can')
  if len(able) < 2:
    kernels = able[0].kernels if able else {}
    return Concept(kernels, words, base_digest(base), about), 0.0
  if not captions:
    raise UserError(
      'a merge of concepts needs texts on which nothing changes: name a file with about 200 '
      'captions, one a line, as --captions'
    )
  read = _Features(told)
  regular = np.concatenate([rows[1:] for rows, _ in read(captions)])
  targets, owners = _targets(read, able)
  inverse = _inverse(regular, len(captions))
  kernels, off, size = {}, 0.0, 0.0
  for name in able[0].kernels:
    plain = base.tensors[name].read().astype(np.float64)
    own = [targets[owners == i] @ np.float64(c.kernels[name]) for i, c in enumerate(able)]
    wanted = np.concatenate(own)
    new = nearest(plain, inverse, targets, wanted)
    off += float(np.square(targets @ new - wanted).sum())
    size += float(np.square(wanted).sum())
    kernels[name] = new.astype(np.float32)
  return Concept(kernels, words, base_digest(base), about), (off / size) ** 0.5


def nearest(
  kernel: Float[np.ndarray, 'i o'],
  inverse: Float[np.ndarray, 'i i'],
  inputs: Float[np.ndarray, 's i'],
  outputs: Float[np.ndarray, 's o'],
) -> Float[np.ndarray, 'i o']:
  """The kernel nearest to `kernel`, in the norm whose inverse is given, with these outputs."""
  spread = inverse @ inputs.T
  return kernel + spread @ np.linalg.pinv(inputs @ spread, hermitian=True) @ (
    outputs - inputs @ kernel
  )


def _inverse(regular: np.ndarray, count: int) -> np.ndarray:
  """(R^T R)^-1; UserError if the captions do not reach every direction."""
  values, vectors = np.linalg.eigh(regular.T @ regular)
  if reached := int((values <= LEAST * values[-1]).sum()):
    raise UserError(
      f'{count} captions are too few or too alike to merge concepts: {reached} of '
      f'{len(values)} directions of the texts are not in them; give more'
    )
  return (vectors / values) @ vectors.T


def _targets(read: '_Features', concepts: Sequence[Concept]) -> tuple[np.ndarray, np.ndarray]:
  """The features of the concepts' own texts, and the number of the concept that each belongs to.

  A feature that two texts share counts once, for the first.
  """
  rows, owners = [], []
  for i, concept in enumerate(concepts):
    nouns = concept.about.get('classes', {})
    first = [word for word in concept.tokens if word.rpartition('_')[0] not in concept.tokens]
    names = [f'{word} {nouns.get(word, "")}'.strip() for word in first]
    for found, count in read(template.format(name) for name in names for template in TEMPLATES):
      for row in found[1 : 1 + count]:
        if not any(np.allclose(row, other, rtol=0, atol=1e-5) for other in rows):
          rows.append(row)
          owners.append(i)
  return np.stack(rows), np.array(owners)


class _Tower(nnx.Module):
  """The text tower alone, under the path that it has in a model."""

  def __init__(self, *, text: Mapping = {}, rngs: nnx.Rngs, **_):
    self.text = CLIPText(**text, rngs=rngs)


class _Features:
  """Texts to their features [length width] in float64 and their own number of tokens."""

  def __init__(self, weights: Weights):
    others = set(weights.config['model']) - {'text'} | {'unet', 'autoencoder'}
    alone = weights.without(*others)
    self._model = cast(_Tower, latent_diffusion.load(_Tower, alone))
    self._call = nnx.jit(lambda model, ids: model.text(ids))
    text = self._model.text
    assert weights.tokenizer is not None
    self._tokens = Tokenizer(weights.tokenizer, text.vocabulary, text.length, weights.words)
    self._end = text.vocabulary - 1

  def __call__(self, texts: Iterable[str]) -> list[tuple[np.ndarray, int]]:
    ids = np.stack([self._tokens(text) for text in texts])
    padded = np.pad(ids, ((0, -len(ids) % BATCH), (0, 0)), mode='edge')
    parts = [padded[i : i + BATCH] for i in range(0, len(padded), BATCH)]
    found = np.concatenate([np.float64(jax.device_get(self._call(self._model, p))) for p in parts])
    return [(row, int((own != self._end).sum()) - 1) for row, own in zip(found, ids)]
