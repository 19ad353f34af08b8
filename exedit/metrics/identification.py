"""Whose subject is it? A repainted region against several drawn truths, one of them right."""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8


def distances(
  result: UInt8[np.ndarray, 'b h w 3'],
  truths: UInt8[np.ndarray, 'b k h w 3'],
  mask: Bool[np.ndarray, 'b h w'],
) -> Float[np.ndarray, 'b k']:
  """Mean squared error inside the mask, in units of the full range 0..255, to every truth."""
  if not mask.any((1, 2)).all():
    raise ValueError('a mask is empty: there is no region to compare')
  rows = []
  for image, candidates, hole in zip(result, truths, mask, strict=True):
    error = candidates[:, hole].astype(np.float64) - image[hole].astype(np.float64)  # [k pixels 3]
    rows.append((error**2).mean((1, 2)) / 255**2)
  return np.stack(rows)


def identified(
  distances: Float[np.ndarray, 'b k'], answer: Int[np.ndarray, ' b']
) -> Bool[np.ndarray, ' b']:
  """Where the right truth is nearer than every other; a tie identifies nobody."""
  rows = np.arange(len(answer))
  others = distances.copy()
  others[rows, answer] = np.inf
  return distances[rows, answer] < others.min(1)
