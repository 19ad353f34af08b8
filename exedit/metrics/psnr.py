"""Peak signal-to-noise ratio, where a truth is known."""

import numpy as np
from jaxtyping import Float


def psnr(mse: Float[np.ndarray, '...']) -> Float[np.ndarray, '...']:
  """Decibels of a mean squared error in units of the full range; an exact match counts as 100."""
  return -10 * np.log10(np.maximum(mse, 1e-10))
