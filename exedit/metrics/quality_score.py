"""Quality score: the log-likelihood of an image's features under a mixture fitted to real images.

This is GIQA's GMM score (Gu et al. 2020, arXiv:2003.08932) as in PbE's evaluation code.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from exedit.metrics.features import check_rows, check_widths
from exedit.runtime.errors import UserError

FULL_MARKS = 300.0  # nats: a log-likelihood of this or more gives the score 100
COVARIANCE_TYPES = ('full', 'tied', 'diag', 'spherical')


@dataclasses.dataclass(frozen=True)
class GMM:
  """A Gaussian mixture in scikit-learn's terms: k components over features of width d.

  The shape of `precisions_cholesky` is [k d d] (covariance_type 'full'), [d d] ('tied': one for all
  components), [k d] ('diag') or [k] ('spherical'). A matrix is the upper triangular C with a
  positive diagonal and precision C C^T. The others are inverse standard deviations.

  Raises:
    ValueError: for anything else.
  """

  weights: Float[np.ndarray, ' k']
  means: Float[np.ndarray, 'm d']
  precisions_cholesky: Float[np.ndarray, '...']
  covariance_type: str = 'full'

  def __post_init__(self):
    _check_type(self.covariance_type)
    if self.means.ndim != 2 or self.weights.shape != self.means.shape[:1]:
      raise ValueError(
        f'the mixture has {self.weights.shape} weights but means of shape {self.means.shape}:'
        ' there must be one weight per component'
      )
    _check_shape('precisions_cholesky', self.precisions_cholesky, self.means, self.covariance_type)
    for name in ('weights', 'means', 'precisions_cholesky'):
      if not np.isfinite(getattr(self, name)).all():
        raise ValueError(f'the {name} of the mixture are not finite')
    total = self.weights.sum(dtype=np.float64)
    if (self.weights < 0).any() or abs(total - 1) > 1e-3:
      raise ValueError(f'the weights of the mixture must be shares of 1: their sum is {total:g}')
    _check_factors(self.precisions_cholesky, self.covariance_type)

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> 'GMM':
    """Make the mixture of `to_arrays`; ValueError says which array is missing or does not fit."""
    absent = [field.name for field in dataclasses.fields(cls) if field.name not in arrays]
    if absent:
      raise ValueError(
        f'these arrays hold {", ".join(sorted(arrays)) or "nothing"}, but a mixture also needs'
        f' {", ".join(absent)}'
      )
    weights, means, factors = (
      np.asarray(arrays[name], np.float64) for name in ('weights', 'means', 'precisions_cholesky')
    )
    return cls(weights, means, factors, str(arrays['covariance_type']))

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Return plain arrays by name, as `np.savez` takes them."""
    return {f.name: np.asarray(getattr(self, f.name)) for f in dataclasses.fields(self)}


def log_likelihood(features: Float[np.ndarray, 'n d'], gmm: GMM) -> Float[np.ndarray, ' n']:
  """Compute the natural logarithm of the density at each row, as sklearn's `score_samples`.

  Raises:
    ValueError: for no images, for NaN (names the rows), for another width (names both).
  """
  check_rows('images', features)
  k, width = gmm.means.shape
  check_widths('the images', features.shape[1], 'the mixture', width)
  features, factors = features.astype(np.float64), gmm.precisions_cholesky.astype(np.float64)
  log_joint = np.empty((len(features), k))
  for i, mean in enumerate(gmm.means.astype(np.float64)):
    factor = factors if gmm.covariance_type == 'tied' else factors[i]
    whitened = (features - mean) @ factor if factor.ndim == 2 else (features - mean) * factor
    diagonal = np.diagonal(factor) if factor.ndim == 2 else np.broadcast_to(factor, (width,))
    log_joint[:, i] = np.log(diagonal).sum() - (whitened**2).sum(1) / 2
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


def fit(
  features: Float[np.ndarray, 'n d'],
  components: int = 20,
  *,
  covariance_type: str = 'full',
  seed: int = 0,
  regularisation: float = 1e-6,
  max_steps: int = 100,
) -> GMM:
  """Fit a mixture with scikit-learn's expectation maximisation, which starts from k-means.

  Args:
    features: features of natural images. A 'full' covariance needs more than width + 1 images per
      component.
    components: the number of components; the released mixture has 20, as its name says.
    covariance_type: one of `COVARIANCE_TYPES`.
    seed: seed of the start; the same seed gives the same mixture.
    regularisation: added to every variance.
    max_steps: limit of the expectation maximisation; scikit-learn warns if it does not converge.
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
  _check_type(covariance_type)
  if len(features) < max(2, components):
    raise ValueError(f'{len(features)} images are too few for a mixture of {components} components')
  model = GaussianMixture(
    components,
    covariance_type=covariance_type,
    random_state=seed,
    reg_covar=regularisation,
    max_iter=max_steps,
  ).fit(features.astype(np.float64))
  found = (model.weights_, model.means_, model.precisions_cholesky_)
  weights, means, factors = (np.asarray(array, np.float64) for array in found)
  return GMM(weights, means, factors, covariance_type)


def _check_type(covariance_type):
  if covariance_type not in COVARIANCE_TYPES:
    raise ValueError(
      f'covariance_type is {covariance_type!r}: it must be one of {", ".join(COVARIANCE_TYPES)}'
    )


def _check_shape(name, array, means, covariance_type):
  k, d = means.shape
  shape = dict(full=(k, d, d), tied=(d, d), diag=(k, d), spherical=(k,))[covariance_type]
  if array.shape != shape:
    raise ValueError(
      f'{name} of a {covariance_type} mixture of {k} components of width {d} must have shape'
      f' {shape}, not {array.shape}'
    )


def _check_factors(factors, covariance_type):
  """Raise ValueError unless the diagonals are positive and the entries below them are 0."""
  matrices = covariance_type in ('full', 'tied')
  diagonals = np.diagonal(factors, axis1=-2, axis2=-1) if matrices else factors
  smallest = diagonals.reshape(1 if covariance_type == 'tied' else len(factors), -1).min(1)
  if smallest.min() <= 0:
    k = smallest.argmin()
    raise ValueError(
      f'precisions_cholesky of component {k} is not positive definite: its smallest diagonal'
      f' entry is {smallest[k]:g}'
    )
  if matrices and np.tril(factors, -1).any():
    raise ValueError('precisions_cholesky must be upper triangular: it has entries below')
