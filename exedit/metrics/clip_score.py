"""CLIP score of the repainted region, and the region's box as the published evaluation cuts it.

`cosines` over other features are the identity scores: CLIP-I and DINO-I are their means.
"""

import numpy as np
from jaxtyping import Bool, Float

from exedit.metrics import checks


def cosines(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm e']) -> Float[np.ndarray, ' n']:
  """Cosine of row i of the one and row i of the other, in float32 as the published code.

  Raises:
    ValueError: for no rows, NaN or zero features (naming the rows), other numbers or widths.
  """
  for name, features in (('the first set', a), ('the second set', b)):
    checks.rows(name, features)
    zero = np.flatnonzero(~features.any(1))
    if len(zero):
      raise ValueError(
        f'{name}: the features of row {zero[0]} are all zero: they have no direction'
      )
  checks.widths('the first set', a.shape[1], 'the second', b.shape[1])
  if len(a) != len(b):
    raise ValueError(f'{len(a)} rows in the first set but {len(b)} in the second: they are pairs')
  return (_unit(a) * _unit(b)).sum(1)


def clip_scores(
  result: Float[np.ndarray, 'n d'], exemplar: Float[np.ndarray, 'm e']
) -> Float[np.ndarray, ' n']:
  """100 x cosine of each region's CLIP embedding and its exemplar's (facts 6.4)."""
  return 100 * cosines(result, exemplar)


def clip_score(result: Float[np.ndarray, 'n d'], exemplar: Float[np.ndarray, 'm e']) -> float:
  """The paper's CLIP score: the mean of `clip_scores`."""
  return float(clip_scores(result, exemplar).mean(dtype=np.float64))


def box(mask: Bool[np.ndarray, 'h w'], *, published: bool) -> tuple[slice, slice]:
  """Rows and columns of the mask's bounding box: `image[box(mask, published=True)]`.

  Args:
    mask: True = repaint; the published code counts pixels of exactly 255.
    published: cut as the published code: from the first to the last masked pixel in reading
      order, without the last one's row and column. For rectangles only. Otherwise whole.
  Raises:
    ValueError: for an empty mask, and if published for one that is no rectangle or too thin.
  """
  high, wide = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not len(high):
    raise ValueError('the mask is empty: there is no region to score')
  y0, y1, x0, x1 = int(high[0]), int(high[-1]) + 1, int(wide[0]), int(wide[-1]) + 1
  if not published:
    return slice(y0, y1), slice(x0, x1)
  area, masked = (y1 - y0) * (x1 - x0), int(mask.sum())
  if masked != area:
    raise ValueError(
      f'the mask is not a rectangle ({masked} of the {area} pixels of its box): the published crop'
      ' is defined for rectangles only'
    )
  if min(y1 - y0, x1 - x0) < 2:
    raise ValueError(
      f'the mask is {x1 - x0} x {y1 - y0} pixels: nothing is left of it without the last row and'
      ' column, which the published crop drops'
    )
  return slice(y0, y1 - 1), slice(x0, x1 - 1)


def _unit(features):
  features = features.astype(np.float32)
  return features / np.linalg.norm(features, axis=1, keepdims=True)
