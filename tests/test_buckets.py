"""Buckets by themselves; test_mesh.py and test_collectives.py have them in the step."""

import re

import pytest

from exedit.training import buckets
from tests import on_devices

# Sizes of a mesh of four devices, and the widths that the arrays' parts have there.
MESHES = [
  (dict(fsdp=4), {64, 48, 16}),
  (dict(data=2, fsdp=2), {64, 48, 32}),
  (dict(fsdp=2, tensor=2), {64, 48, 32}),
  (dict(data=4, fsdp=1), set()),
]


@pytest.fixture(scope='module')
def exchanged():
  return on_devices.with_devices(4, on_devices.exchange, [[sizes] for sizes, _ in MESHES])


@pytest.mark.parametrize('case', range(len(MESHES)))
def test_every_array_comes_whole_and_its_mean_in_parts(exchanged, case):
  assert exchanged[case]['whole'] == list(on_devices.ARRAYS)
  assert exchanged[case]['mean'] == list(on_devices.ARRAYS)


@pytest.mark.parametrize('kind', ['all_gather', 'reduce_scatter'])
@pytest.mark.parametrize('case', range(len(MESHES)))
def test_what_is_split_is_sent_as_matrices_of_its_own_width(exchanged, case, kind):
  """One row of everything would be laid out anew, element by element, where memory has tiles."""
  operations = exchanged[case]['text'].split(f'"stablehlo.{kind}"')[1:]
  shapes = [re.search(r' : \(tensor<([\dx]+)xf32>\) ->', each)[1] for each in operations]
  widths = {int(shape.split('x')[-1]) for shape in shapes}
  assert widths == MESHES[case][1]
  assert len(shapes) <= buckets.COUNT + len(widths)
