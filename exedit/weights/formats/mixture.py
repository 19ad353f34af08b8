"""Reads the arrays of a pickled scikit-learn GaussianMixture, such as the paper's coco2017_gmm_k20.

Nothing in the file is imported or called, and scikit-learn is not needed.
"""

import os
from typing import Any

import numpy as np

from exedit.runtime.errors import UserError
from exedit.weights.formats import pickles
from exedit.weights.formats.pickles import Names, Object, Pairs, kind
from exedit.weights.formats.tensor import damaged

LARGEST = 2**31  # bytes; 20 components of width 512 have 130 million
FIELDS = ('weights_', 'means_', 'precisions_cholesky_')
CLASSES = tuple(
  f'sklearn.mixture.{module}.GaussianMixture'
  for module in ('_gaussian_mixture', 'gaussian_mixture')  # since scikit-learn 0.22; before
)


class _Mixture(Object):
  """The mixture; its attributes are in `state`."""


class _Type(Object):
  """numpy's dtype; its byte order is in `state`."""

  __slots__ = ('code',)

  def __init__(self, code: Any, *_: Any):
    super().__init__()
    self.code = code


class _Array(Object):
  """numpy's array; (version, shape, dtype, Fortran order, bytes) are in `state`."""

  @classmethod
  def of_buffer(cls, data: Any, dtype: Any, shape: Any, order: Any) -> '_Array':
    found = cls()
    found.state = (1, shape, dtype, order == 'F', data)
    return found


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Returns weights, means, precisions_cholesky (float64) and covariance_type: GMM's arguments.

  Raises:
    UserError: for a file that is damaged, is no mixture or contains other names.
  """
  where = os.fspath(path)
  size = os.path.getsize(where)
  if size > LARGEST:
    raise UserError(f'{where} has {size} bytes: a mixture has at most {LARGEST}')
  with open(where, 'rb') as file:
    found = pickles.unpickle(file.read(), where, _names(where))
  if not isinstance(found, _Mixture) or not isinstance(found.state, Pairs):
    raise UserError(f'{where} holds {kind(found)}: it must be a fitted GaussianMixture')
  state = {name: value for name, value in found.state.items if isinstance(name, str)}
  absent = [name for name in (*FIELDS, 'covariance_type') if name not in state]
  if absent:
    raise UserError(f'{where} is a GaussianMixture without {", ".join(absent)}: it was not fitted')
  arrays = {name.rstrip('_'): _array(where, name, state[name]) for name in FIELDS}
  return dict(arrays, covariance_type=state['covariance_type'])


def _names(where):
  def joblib(*_):
    raise UserError(
      f'{where} was written by joblib: load it there, where you trust it, and write it again with'
      ' pickle.dump'
    )

  cores = ('numpy.core', 'numpy._core')
  builders = {
    **dict.fromkeys(CLASSES, lambda *_: _Mixture()),
    **{f'{core}.multiarray._reconstruct': lambda *_: _Array() for core in cores},
    **{f'{core}.numeric._frombuffer': _Array.of_buffer for core in cores},
    'numpy.dtype': _Type,
    '_codecs.encode': _encoded,
    'joblib.numpy_pickle.NumpyArrayWrapper': joblib,
  }
  inert = {f'{core}.multiarray.scalar' for core in cores}
  inert |= {'numpy.ndarray', 'builtins.object'}
  builders |= {f'{b}.bytes': lambda *_: b'' for b in ('builtins', '__builtin__')}

  def persistent(_):
    raise ValueError('a persistent id')

  return Names(builders, inert, ('numpy.random',), persistent)


def _encoded(text, encoding='latin1'):
  """Bytes in protocol 2, which writes them as text of the first 256 characters."""
  if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
    raise ValueError(f'bytes of {kind(text)}')
  return text.encode('latin-1')


def _array(where, name, value) -> np.ndarray:
  """Returns a float64 array after a check of every part of its state."""
  if not isinstance(value, _Array) or type(value.state) is not tuple or len(value.state) != 5:
    raise damaged(where, f'{name} is {kind(value)}, no array')
  _, shape, dtype, fortran, data = value.state
  order = dtype.state[1] if isinstance(dtype, _Type) and type(dtype.state) is tuple else None
  if not isinstance(dtype, _Type) or dtype.code not in ('f8', 'f4') or order not in ('<', '>'):
    raise damaged(where, f'{name} does not hold float64 or float32 numbers')
  if isinstance(data, str):  # bytes of Python 2
    data = _encoded(data)
  if type(shape) is not tuple or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
    raise damaged(where, f'the shape of {name} is {kind(shape)}')
  size = int(np.prod([int(n) for n in shape], dtype=object)) * int(dtype.code[1])
  if type(data) is not bytes or len(shape) > 3 or size != len(data):
    raise damaged(where, f'{name} of shape {shape} needs {size} bytes, and has another number')
  flat = np.frombuffer(data, f'{order}{dtype.code}').astype(np.float64)
  return flat.reshape(shape, order='F' if fortran else 'C')
