"""Metrics over feature vectors: cosines, and the checks that all such metrics share.

100 x the cosine is the CLIP score. The cosine of whole regions and exemplars is CLIP-I or DINO-I.
"""

import numpy as np
from jaxtyping import Float

SHOWN = 5  # rows that a message names


def cosines(a: Float[np.ndarray, 'n d'], b: Float[np.ndarray, 'm e']) -> Float[np.ndarray, ' n']:
  """Cosine of row i of `a` and row i of `b`, in float32 as in the published code.

  Raises:
    ValueError: if there are no rows, if features are NaN or zero (names the rows), or if the
      numbers of rows or the widths differ.
  """
  for name, features in (('the first set', a), ('the second set', b)):
    check_rows(name, features)
    zero = np.flatnonzero(~features.any(1))
    if len(zero):
      raise ValueError(
        f'{name}: the features of row {zero[0]} are all zero: they have no direction'
      )
  check_widths('the first set', a.shape[1], 'the second', b.shape[1])
  if len(a) != len(b):
    raise ValueError(f'{len(a)} rows in the first set but {len(b)} in the second: they are pairs')
  return (_unit(a) * _unit(b)).sum(1)


def clip_scores(
  images: Float[np.ndarray, 'n d'], texts: Float[np.ndarray, 'm e']
) -> Float[np.ndarray, ' n']:
  """100 x the cosine of each image's and its text's features, at least 0 (torchmetrics CLIPScore).

  Raises:
    ValueError: as `cosines`.
  """
  return np.maximum(100 * cosines(images, texts), 0)


def _unit(features):
  features = features.astype(np.float32)
  return features / np.linalg.norm(features, axis=1, keepdims=True)


def check_rows(name: str, features: Float[np.ndarray, 'n d']) -> None:
  """Raise ValueError if there are no features or if some are not finite (names the rows)."""
  if not features.size:
    raise ValueError(f'{name}: no features (their shape is {features.shape})')
  wrong = np.flatnonzero(~np.isfinite(features).all(1))
  if len(wrong):
    named = ', '.join(map(str, wrong[:SHOWN]))
    more = f' and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
    raise ValueError(
      f'{name}: the features of {len(wrong)} of {len(features)} images are not finite:'
      f' rows {named}{more}'
    )


def check_widths(name: str, width: int, other_name: str, other_width: int) -> None:
  """Raise ValueError with both widths if they differ, which means two different networks."""
  if width != other_width:
    raise ValueError(
      f'{name} has features of width {width} but {other_name} of width {other_width}:'
      ' both must come from the same network'
    )
