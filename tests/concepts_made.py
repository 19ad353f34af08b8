"""Concepts of the small weights of `small_text`, drawn at random."""

import numpy as np

from exedit.concepts import concept as concepts
from exedit.concepts.concept import Concept
from exedit.weights.found import Weights

MIDDLE = 'unet.mid_attention.attn2.to_k.kernel'


def made(weights: Weights, words=('<new1>',), seed: int = 0, kernels: bool = True) -> Concept:
  """Keys and values a little off the base's, and a row for each word."""
  random = np.random.default_rng(seed)
  tensors = weights.tensors
  moved = lambda x: np.float32(x + 0.3 * random.standard_normal(x.shape))
  pairs = [path for path in sorted(tensors) if concepts.is_key_or_value(path)]
  width = tensors['text.token_embedding'].shape[1]
  return Concept(
    {path: moved(tensors[path].read()) for path in pairs if kernels},
    {word: moved(np.zeros(width)) for word in words},
    concepts.base_digest(weights),
    dict(classes={'<new1>': 'ball'}, step=3),
  )
