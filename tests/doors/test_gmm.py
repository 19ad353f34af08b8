"""The door of the quality score's mixture: it reads a pickle without executing it, or a folder."""

import os

import numpy as np
import pytest
from PIL import Image

from exedit import gmm
from exedit.metrics import quality_score
from exedit.runtime.errors import UserError
from exedit.weights.formats import mixture
from tests.doors.test_doors import knock
from tests.pickled import call, code, name, program


def array(values, order='<', core='numpy.core'):
  """A float64 array as numpy pickles it with protocol 2."""
  values = np.asarray(values, f'{order}f8')
  dtype = call(name('numpy', 'dtype'), 'f8', 0, 1)
  dtype = type(dtype)(dtype + code((3, order, None, None, None, -1, -1, 0)) + b'b')
  data = call(name('_codecs', 'encode'), values.tobytes().decode('latin-1'), 'latin1')
  empty = call(name(f'{core}.multiarray', '_reconstruct'), name('numpy', 'ndarray'), (0,), b'b')
  return type(empty)(empty + code((1, values.shape, dtype, False, data)) + b'b')


def pickled(state, module='sklearn.mixture.gaussian_mixture', cls='GaussianMixture'):
  made = type(code(1))(name(module, cls) + b')\x81' + code(state) + b'b')
  return program(made)


STATE = dict(
  covariance_type='diag',
  weights_=array([0.25, 0.75]),
  means_=array([[1, 2, 3], [4, 5, 6]], '>'),
  precisions_cholesky_=array([[1, 2, 1], [1, 0.5, 1]], core='numpy._core'),
  lower_bound_=1.5,
)


def write(path, state=STATE, **options):
  path.write_bytes(pickled(state, **options))
  return str(path)


def refusal(function, *args, **kwargs):
  with pytest.raises(UserError) as caught:
    function(*args, **kwargs)
  line = str(caught.value)
  assert '\n' not in line and len(line) < 500
  return line


def test_a_published_pickle_becomes_an_npz(tmp_path):
  for module in ('_gaussian_mixture', 'gaussian_mixture'):
    output = str(tmp_path / f'{module}.npz')
    gmm.make(write(tmp_path / 'k2', module=f'sklearn.mixture.{module}'), output)
    with np.load(output, allow_pickle=False) as arrays:
      found = quality_score.GMM.from_arrays(arrays)
    np.testing.assert_array_equal(found.weights, [0.25, 0.75])
    np.testing.assert_array_equal(found.means, [[1, 2, 3], [4, 5, 6]])
    factors = [np.diag([1, 2, 1]), np.diag([1, 0.5, 1])]
    np.testing.assert_array_equal(found.precisions_cholesky, factors)


def test_a_pickle_that_asks_for_more_is_refused_and_nothing_runs(tmp_path):
  out = str(tmp_path / 'gmm.npz')
  (tmp_path / 'evil').write_bytes(program(call(name('os', 'system'), f'touch {tmp_path}/ran')))
  assert "asks for 'os.system'" in refusal(gmm.make, str(tmp_path / 'evil'), out)
  state = STATE | dict(means_=call(name('builtins', 'eval'), '1'))
  assert "'builtins.eval'" in refusal(gmm.make, write(tmp_path / 'evil', state), out)
  wrapped = call(name('joblib.numpy_pickle', 'NumpyArrayWrapper'))
  assert 'pickle.dump' in refusal(
    gmm.make, write(tmp_path / 'joblib', STATE | dict(means_=wrapped)), out
  )
  assert sorted(os.listdir(tmp_path)) == ['evil', 'joblib']


@pytest.mark.parametrize(
  'change, says',
  [
    (dict(means_=None), 'means_ is None, no array'),
    (dict(means_=array([[1, 2], [4, 5]])), 'must have shape'),
    (dict(weights_=array([0.5, 0.9])), 'shares of 1'),
    (dict(precisions_cholesky_=array([[1, 2, -1], [1, 1, 1]])), 'not positive'),
    (dict(covariance_type='round'), 'covariance_type'),
    (dict(weights_=array([0.25, np.nan])), 'not finite'),
  ],
)
def test_a_mixture_that_cannot_be_is_one_line(tmp_path, change, says):
  line = refusal(gmm.make, write(tmp_path / 'k2', STATE | change), str(tmp_path / 'gmm.npz'))
  assert says in line and 'k2' in line
  assert os.listdir(tmp_path) == ['k2']


def test_a_file_that_is_cut_or_something_else(tmp_path):
  path = tmp_path / 'k2'
  whole = pickled(STATE)
  for length in range(0, len(whole), 37):
    path.write_bytes(whole[:length])
    assert 'k2' in refusal(mixture.read, path)
  path.write_bytes(program([1, 2]))
  assert 'must be a fitted GaussianMixture' in refusal(mixture.read, path)
  without = {key: value for key, value in STATE.items() if key != 'weights_'}
  assert 'without weights_' in refusal(mixture.read, write(path, without))


def test_the_door_says_no_in_one_line(tmp_path, monkeypatch, capsys):
  out = tmp_path / 'gmm.npz'
  (tmp_path / 'images').mkdir()
  for arguments, says in [
    (dict(to=out), '--from=... is missing'),
    ({'from': tmp_path / 'none', 'to': out}, 'does not exist'),
    ({'from': tmp_path / 'images', 'to': out}, '--clip is missing'),
    ({'from': tmp_path / 'images', 'to': out, 'clip': 'x'}, 'holds no image'),
    ({'from': tmp_path / 'images', 'to': tmp_path / 'no' / 'a.npz'}, 'does not exist'),
    ({'from': tmp_path / 'images', 'to': tmp_path / 'images'}, 'exists already'),
  ]:
    assert says in knock(gmm, arguments, monkeypatch, capsys), arguments
  Image.new('RGB', (40, 40)).save(tmp_path / 'images' / 'a.png')
  line = knock(
    gmm, {'from': tmp_path / 'images', 'to': out, 'clip': tmp_path / 'x'}, monkeypatch, capsys
  )
  assert 'does not exist' in line and not out.exists()
