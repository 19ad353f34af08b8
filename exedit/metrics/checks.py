"""What every metric over features refuses: no images, NaN, two networks' features together."""

import numpy as np
from jaxtyping import Float

SHOWN = 5  # rows that a message names


def rows(name: str, features: Float[np.ndarray, 'n d']) -> None:
  """ValueError where there are no features, or naming the rows of those that are not finite."""
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


def widths(name: str, width: int, other_name: str, other_width: int) -> None:
  """ValueError naming both widths where they differ: features of two different networks."""
  if width != other_width:
    raise ValueError(
      f'{name} has features of width {width} but {other_name} of width {other_width}:'
      ' both must come from the same network'
    )
