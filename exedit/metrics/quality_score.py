"""Quality score: the log-likelihood of an image's features under a mixture fitted to real images.

This is GIQA's GMM score (Gu et al. 2020, arXiv:2003.08932) as in PbE's evaluation code.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from exedit.metrics.features import check_rows, check_widths
from exedit.runtime.errors import UserError

FULL_MARKS = 300.0  # nats: a log-likelihood of this or more gives the score 100
COVARIANCE_TYPES = ('full', 'tied', 'diag', 'spherical')  # scikit-learn's


@dataclasses.dataclass(frozen=True)
class GMM:
  """A Gaussian mixture of k components over features of width d.

  Each of `precisions_cholesky` is the upper triangular C with a positive diagonal and precision
  C C^T.

  Raises:
    ValueError: for anything else.
  """

  weights: Float[np.ndarray, ' k']
  means: Float[np.ndarray, 'k d']
  precisions_cholesky: Float[np.ndarray, 'k d d']

  def __post_init__(self):
    for name, array in self.to_arrays().items():
      if array.dtype.kind == 'f' and not np.isfinite(array).all():
        raise ValueError(f'the {name} of the mixture are not finite')
    total = self.weights.sum(dtype=np.float64)
    if (self.weights < 0).any() or abs(total - 1) > 1e-3:
      raise ValueError(f'the weights of the mixture must be shares of 1: their sum is {total:g}')
    smallest = np.diagonal(self.precisions_cholesky, axis1=1, axis2=2).min(1)
    if smallest.min() <= 0:
      k = smallest.argmin()
      raise ValueError(
        f'precisions_cholesky of component {k} is not positive definite: its smallest diagonal'
        f' entry is {smallest[k]:g}'
      )
    if np.tril(self.precisions_cholesky, -1).any():
      raise ValueError('precisions_cholesky must be upper triangular: it has entries below')

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, Any]) -> 'GMM':
    """Make the mixture of `to_arrays`, or of a GaussianMixture of scikit-learn of any kind.

    Its kind, `covariance_type`, gives precisions_cholesky the shape [k d d] ('full'), [d d]
    ('tied': one for all components), [k d] ('diag') or [k] ('spherical').

    Raises:
      ValueError: if an array is missing, or the arrays do not fit together.
    """
    names = ('weights', 'means', 'precisions_cholesky')
    if absent := [name for name in (*names, 'covariance_type') if name not in arrays]:
      raise ValueError(
        f'these arrays hold {", ".join(sorted(arrays)) or "nothing"}, but a mixture also needs'
        f' {", ".join(absent)}'
      )
    weights, means, factors = (np.asarray(arrays[name], np.float64) for name in names)
    if means.ndim != 2 or weights.shape != means.shape[:1]:
      raise ValueError(
        f'the mixture has {weights.shape} weights but means of shape {means.shape}: there must be'
        ' one weight per component'
      )
    return cls(weights, means, _matrices(factors, str(arrays['covariance_type']), *means.shape))

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Return plain arrays by name, as `np.savez` takes them."""
    arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return dict(arrays, covariance_type=np.asarray('full'))


def _matrices(factors, covariance_type, k, d):
  """Expand the precisions_cholesky of a covariance_type to [k d d]."""
  if covariance_type not in COVARIANCE_TYPES:
    raise ValueError(
      f'covariance_type is {covariance_type!r}: it must be one of {", ".join(COVARIANCE_TYPES)}'
    )
  shape = dict(full=(k, d, d), tied=(d, d), diag=(k, d), spherical=(k,))[covariance_type]
  if factors.shape != shape:
    raise ValueError(
      f'precisions_cholesky of a {covariance_type} mixture of {k} components of width {d} must have'
      f' shape {shape}, not {factors.shape}'
    )
  if covariance_type == 'spherical':
    factors = factors[:, None]
  if covariance_type in ('diag', 'spherical'):
    return factors[:, :, None] * np.eye(d)
  return np.broadcast_to(factors, (k, d, d))


def log_likelihood(features: Float[np.ndarray, 'n d'], gmm: GMM) -> Float[np.ndarray, ' n']:
  """Compute the natural logarithm of the density at each row, as sklearn's `score_samples`.

  Raises:
    ValueError: for no images, for NaN (names the rows), for another width (names both).
  """
  check_rows('images', features)
  k, width = gmm.means.shape
  check_widths('the images', features.shape[1], 'the mixture', width)
  features = features.astype(np.float64)
  log_joint = np.empty((len(features), k))
  for i, (mean, factor) in enumerate(zip(gmm.means, gmm.precisions_cholesky)):
    factor = factor.astype(np.float64)
    whitened = (features - mean) @ factor
    log_joint[:, i] = np.log(np.diagonal(factor)).sum() - (whitened**2).sum(1) / 2
  with np.errstate(divide='ignore'):  # log 0 = -inf is right for a component of weight 0
    log_joint += np.log(gmm.weights.astype(np.float64))
  highest = log_joint.max(1, keepdims=True)
  total = np.log(np.exp(log_joint - highest).sum(1)) + highest[:, 0]
  return total - width / 2 * np.log(2 * np.pi)


def quality_scores(features: Float[np.ndarray, 'n d'], gmm: GMM) -> Float[np.ndarray, ' n']:
  """Score each image from 0 to 100: its log-likelihood over 300, clipped; their mean is the QS.

  See docs/facts.md, COCOEE and metrics.
  """
  return np.clip(log_likelihood(features, gmm) / FULL_MARKS, 0, 1) * 100


def fit(features: Float[np.ndarray, 'n d'], components: int = 20, *, seed: int = 0) -> GMM:
  """Fit a mixture with scikit-learn's expectation maximisation, which starts from k-means.

  Args:
    features: features of natural images, more than width + 1 of them per component.
    components: the number of components; the released mixture has 20, as its name says.
    seed: seed of the start; the same seed gives the same mixture.
  Raises:
    UserError: if scikit-learn is not installed; only this function needs it.
    ValueError: if there are fewer images than components, for NaN, or if a component collapsed.
  """
  try:
    from sklearn.mixture import GaussianMixture  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise UserError(
      'fitting a quality score needs scikit-learn, which is not installed: pip install scikit-learn'
    ) from None
  check_rows('images', features)
  if len(features) < max(2, components):
    raise ValueError(f'{len(features)} images are too few for a mixture of {components} components')
  model = GaussianMixture(components, random_state=seed).fit(features.astype(np.float64))
  found = (model.weights_, model.means_, model.precisions_cholesky_)
  return GMM(*(np.asarray(array, np.float64) for array in found))
