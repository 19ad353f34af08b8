"""benchmarks.sampling measures diffusers on the weights that exedit has written."""

import numpy as np
import pytest

from benchmarks import networks, sampling, sampling_diffusers

pytest.importorskip('torch')
pytest.importorskip('diffusers')
pytest.importorskip('transformers')


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_diffusers_is_measured(tmp_path, precision):
  assert 'diffusers' in sampling.systems(compiled=False)
  networks.write_weights('tiny', tmp_path / 'weights')
  np.savez(tmp_path / 'inputs.npz', allow_pickle=False, **networks.edit_inputs('tiny', 16, 2))
  spec = dict(system='diffusers', precision=precision, steps=2, scale=sampling.SCALE)
  spec |= dict(folder=str(tmp_path / 'weights'), inputs=str(tmp_path / 'inputs.npz'))
  found = sampling_diffusers.measure(spec)
  assert set(found) == {'load', 'first_edit', 'edit', 'compile', 'evaluation', 'peak_bytes'}
  assert 0 < found['evaluation'] < found['first_edit'] and found['edit'] > 0
  assert found['peak_bytes'] > 1e8
