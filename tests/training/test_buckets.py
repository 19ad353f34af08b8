"""Buckets by themselves; test_mesh.py and test_collectives.py have them in the step."""

import collections
import re

import pytest

from tests import on_devices

# Sizes of a mesh of four devices, and {width: buckets} that are gathered, scattered, summed there.
# conv fills a bucket of its own; others that are 64 wide, of four heights, share one. `kept` is
# whole everywhere and large: a matrix too. What is small and whole makes one long row.
MESHES = [
  (
    dict(fsdp=4),
    {64: 2, 48: 1, 32: 1, 16: 1},
    {64: 2, 48: 1, 32: 1, 16: 1},
    {80: 1, 1841: 1},
  ),
  (
    dict(data=2, fsdp=2),
    {64: 2, 48: 1, 32: 1},
    {64: 2, 48: 1, 32: 1},
    {64: 2, 48: 1, 32: 1, 80: 1, 1841: 1},  # the scattered parts once more, over data
  ),
  (
    dict(fsdp=2, tensor=2),
    {64: 2, 48: 2, 32: 2},
    {64: 2, 48: 1, 32: 2},
    {48: 1, 80: 1, 305: 1},  # what is split over tensor alone is summed over fsdp
  ),
  (dict(data=4, fsdp=1), {}, {}, {64: 1, 80: 1, 1536: 1, 8945: 1}),
]


@pytest.fixture(scope='module')
def exchanged():
  return on_devices.with_devices(4, on_devices.exchange, [[case[0]] for case in MESHES])


def sent(text, kind):
  """How many operations there are of each width."""
  operations = text.split(f'"stablehlo.{kind}"')[1:]
  shapes = [re.search(r' : \(tensor<([\dx]+)xf32>\) ->', each)[1] for each in operations]
  return dict(collections.Counter(int(shape.split('x')[-1]) for shape in shapes))


@pytest.mark.parametrize('case', range(len(MESHES)))
def test_every_array_comes_whole_and_its_mean_in_parts(exchanged, case):
  assert exchanged[case]['whole'] == list(on_devices.ARRAYS)
  assert exchanged[case]['mean'] == list(on_devices.ARRAYS)


@pytest.mark.parametrize('case', range(len(MESHES)))
def test_buckets_are_matrices_of_one_width(exchanged, case):
  """One row of everything would be laid out anew, element by element, where memory has tiles."""
  text, (_, *expected) = exchanged[case]['text'], MESHES[case]
  kinds = ('all_gather', 'reduce_scatter', 'all_reduce')
  assert [sent(text, kind) for kind in kinds] == expected
