"""Weights of a very small model of pictures from texts, in a folder with a tokenizer."""

from typing import Any

import numpy as np

from exedit.models import parameters
from exedit.weights.layouts import own
from tests import vocabulary
from tests.networks import keys, with_random_weights

MODEL: dict[str, Any] = dict(
  autoencoder=dict(kind='space_to_depth', patch=4),
  unet=dict(
    channels=8, mult=(1, 2), layers=1, attention_levels=(0, 1), heads=2, groups=4, remat='none'
  ),
  text=dict(length=12, width=16, layers=1, heads=2, mlp=32),
  context_dim=16,
)
EDIT: dict[str, Any] = dict(steps=3, scale=2.0, sampler='ddim')


def export(folder, system, words=vocabulary.WORDS, **unet):
  """A folder with small random weights and their tokenizer, made; unet: other settings of it."""
  size = vocabulary.write(folder / 'words', words)
  model = dict(MODEL, unet=MODEL['unet'] | unet, text=dict(MODEL['text'], vocabulary=size))
  built = with_random_weights(lambda: system.build(**model, rngs=keys()))
  config = dict(system=system.name, model=model, data=dict(size=16), edit=EDIT)
  arrays = {n: np.asarray(a) for n, a in parameters.flatten(built)[1].items()}
  own.write(folder / 'weights', config, arrays, step=5, tokenizer=folder / 'words')
  return str(folder / 'weights')
