"""benchmarks.custom_edit measures diffusers on the weights that exedit has written."""

import numpy as np
import pytest

from benchmarks import custom_edit, networks
from exedit import stable_diffusion
from tests.benchmarks.test_custom_edit import SPEC

pytest.importorskip('torch')
pytest.importorskip('diffusers')
pytest.importorskip('transformers')


def test_diffusers_is_measured(tmp_path):
  from benchmarks import custom_edit_diffusers

  assert custom_edit.systems() == ['exedit', 'diffusers']
  networks.write_weights('tiny', tmp_path / 'w', stable_diffusion)
  np.savez(tmp_path / 'inputs.npz', allow_pickle=False, **custom_edit.batch_of(SPEC))
  spec = dict(SPEC, folder=str(tmp_path / 'w'), inputs=str(tmp_path / 'inputs.npz'))
  step, edit = (custom_edit_diffusers.measure(dict(spec, part=p)) for p in custom_edit.PARTS)
  state = custom_edit.program_of(SPEC).state
  assert step['trained'] == sum(a.size for a in state.params.values())
  assert step['step'] > 0 and edit['inversion'] > 0 and edit['peak_bytes'] > 1e8
