"""Quality score: how likely a Gaussian mixture of natural images' features finds an image.

GIQA's GMM score (Gu et al. 2020, arXiv:2003.08932) in the form of the paper's evaluation code.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from exedit.metrics import checks
from exedit.runtime.errors import UserError

FULL_MARKS = 300.0  # nats: a log-likelihood of this or more scores 100
COVARIANCE_TYPES = ('full', 'tied', 'diag', 'spherical')


@dataclasses.dataclass(frozen=True)
class GMM:
  """A Gaussian mixture in scikit-learn's terms: k components over features of width d.

  `precisions_cholesky` is [k d d] (covariance_type 'full'), [d d] ('tied': one for all), [k d]
  ('diag') or [k] ('spherical'). A matrix is the upper triangular C with precision C C^T, of
  positive diagonal; the others are inverse standard deviations. ValueError for anything else.
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
  def from_covariances(
    cls,
    weights: Float[np.ndarray, ' k'],
    means: Float[np.ndarray, 'm d'],
    covariances: Float[np.ndarray, '...'],
    covariance_type: str = 'full',
  ) -> 'GMM':
    """A mixture given by covariances (variances for 'diag' and 'spherical'), same shapes.

    Raises:
      ValueError: as GMM, and naming the component whose covariance is not positive definite.
    """
    _check_type(covariance_type)
    covariances = np.asarray(covariances, np.float64)
    _check_shape('covariances', covariances, means, covariance_type)
    if not np.isfinite(covariances).all():
      raise ValueError('the covariances of the mixture are not finite')
    if covariance_type in ('diag', 'spherical'):
      wrong = np.flatnonzero(~(covariances.reshape(len(covariances), -1) > 0).all(1))
      if len(wrong):
        raise ValueError(f'the variances of component {wrong[0]} are not all positive')
      return cls(weights, means, 1 / np.sqrt(covariances), covariance_type)
    if covariance_type == 'tied':
      return cls(weights, means, _precision_factor(covariances, 'the tied covariance'), 'tied')
    factors = [
      _precision_factor(c, f'the covariance of component {k}') for k, c in enumerate(covariances)
    ]
    return cls(weights, means, np.stack(factors), covariance_type)

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> 'GMM':
    """The mixture of `to_arrays`; ValueError naming what is absent or does not fit together."""
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
    """Plain arrays by name, as for `np.savez`."""
    return {f.name: np.asarray(getattr(self, f.name)) for f in dataclasses.fields(self)}


def log_likelihood(features: Float[np.ndarray, 'n d'], gmm: GMM) -> Float[np.ndarray, ' n']:
  """Natural logarithm of the mixture's density at each row: scikit-learn's `score_samples`.

  Raises:
    ValueError: for no images, NaN (naming the rows) or another width (naming both).
  """
  checks.rows('images', features)
  k, width = gmm.means.shape
  checks.widths('the images', features.shape[1], 'the mixture', width)
  features, factors = features.astype(np.float64), gmm.precisions_cholesky.astype(np.float64)
  log_joint = np.empty((len(features), k))
  for i, mean in enumerate(gmm.means.astype(np.float64)):
    factor = factors if gmm.covariance_type == 'tied' else factors[i]
    whitened = (features - mean) @ factor if factor.ndim == 2 else (features - mean) * factor
    diagonal = np.diagonal(factor) if factor.ndim == 2 else np.broadcast_to(factor, (width,))
    log_joint[:, i] = np.log(diagonal).sum() - (whitened**2).sum(1) / 2
  with np.errstate(divide='ignore'):  # a component of weight 0 has log weight -inf
    log_joint += np.log(gmm.weights.astype(np.float64))
  highest = log_joint.max(1, keepdims=True)
  total = np.log(np.exp(log_joint - highest).sum(1)) + highest[:, 0]
  return total - width / 2 * np.log(2 * np.pi)


def quality_scores(features: Float[np.ndarray, 'n d'], gmm: GMM) -> Float[np.ndarray, ' n']:
  """Score of each image, 0 to 100: its log-likelihood over 300, clipped (facts 6.3)."""
  return np.clip(log_likelihood(features, gmm) / FULL_MARKS, 0, 1) * 100


def quality_score(features: Float[np.ndarray, 'n d'], gmm: GMM) -> float:
  """The paper's QS: the mean of `quality_scores`."""
  return float(quality_scores(features, gmm).mean())


def fit(
  features: Float[np.ndarray, 'n d'],
  components: int = 20,
  *,
  covariance_type: str = 'full',
  seed: int = 0,
  regularisation: float = 1e-6,
  max_steps: int = 100,
) -> GMM:
  """A mixture of one's own by scikit-learn's expectation maximisation from a k-means start.

  Args:
    features: of natural images; more than width + 1 per component for a sound 'full' covariance.
    components: 20 as in the released mixture's name.
    covariance_type: one of `COVARIANCE_TYPES`.
    seed: of the start; the same seed gives the same mixture.
    regularisation: added to every variance.
    max_steps: of expectation maximisation; scikit-learn warns where they did not suffice.
  Raises:
    UserError: without scikit-learn, which only this function needs.
    ValueError: for fewer images than components, NaN, or a component that collapsed.
  """
  try:
    from sklearn.mixture import GaussianMixture  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise UserError(
      'fitting a quality score needs scikit-learn, which is not installed: pip install scikit-learn'
    ) from None
  checks.rows('images', features)
  _check_type(covariance_type)
  if len(features) < max(2, components):
    raise ValueError(f'{len(features)} images cannot hold a mixture of {components} components')
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
  """Positive diagonals, and nothing below them."""
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


def _precision_factor(covariance, name):
  """Upper triangular C with C C^T the inverse of a covariance."""
  if not np.allclose(covariance, covariance.T, rtol=1e-5, atol=1e-12):
    raise ValueError(f'{name} is not symmetric')
  try:
    lower = np.linalg.cholesky(covariance)
  except np.linalg.LinAlgError:
    smallest = np.linalg.eigvalsh(covariance)[0]
    raise ValueError(
      f'{name} is not positive definite: its smallest eigenvalue is {smallest:g}'
    ) from None
  return np.triu(np.linalg.solve(lower, np.eye(len(lower))).T)
