import collections
import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from exedit.training import sharding
from tests import on_devices

# Arguments of on_devices.run for eight simulated devices: system, mesh, parts of the batch, steps.
TOY = dict(
  data=['toy', dict(sharding='data')],
  zero1=['toy', dict(sharding='zero1')],
  fsdp=['toy', dict(sharding='fsdp')],
  mixed=['toy', dict(sharding='fsdp', data=2), 2],
  mixed_zero1=['toy', dict(sharding='zero1', fsdp=2), 2],
)
HALF = dict(
  half_data=['toy16', dict(sharding='data'), 1, 1],
  half_fsdp=['toy16', dict(sharding='fsdp'), 1, 1],
)
REAL = dict(
  fsdp=['pbe', dict(sharding='fsdp')],
  mixed=['pbe', dict(sharding='fsdp', data=4, fsdp=2), 2],
  autoencoder=['autoencoder', dict(sharding='data')],
  clip=['clip', dict(sharding='fsdp', data=2)],
)


def on_eight(cases):
  return dict(zip(cases, on_devices.with_devices(8, on_devices.run, list(cases.values()))))


@pytest.fixture(scope='module')
def toy_runs_on_one():
  """Two steps, and five."""
  return on_devices.with_devices(1, on_devices.run, [['toy', {}], ['toy', {}, 1, 5]])


@pytest.fixture(scope='module')
def toy_on_one(toy_runs_on_one):
  return toy_runs_on_one[0]


@pytest.fixture(scope='module')
def toy_on_eight():
  return on_eight(TOY | HALF)


@pytest.fixture(scope='module')
def real_on_eight():
  return on_eight(REAL)


@pytest.mark.parametrize('mesh', TOY)
def test_any_mesh_gives_the_losses_of_one_device(toy_on_one, toy_on_eight, mesh):
  result = toy_on_eight[mesh]
  np.testing.assert_allclose(result['losses'], toy_on_one['losses'], rtol=1e-4)
  np.testing.assert_allclose(result['buckets'], toy_on_one['buckets'], rtol=1e-4)
  np.testing.assert_allclose(result['grad_norm'], toy_on_one['grad_norm'], rtol=1e-3)


def test_the_word_says_what_is_split_over_the_devices(toy_on_one, toy_on_eight):
  whole, kernel = toy_on_one['state_bytes'], 4 * 7 * 4096  # all else of the toy is small
  data, zero1, fsdp = (toy_on_eight[word] for word in ('data', 'zero1', 'fsdp'))
  assert data['state_bytes'] == whole and data['sharded'] == zero1['sharded'] == []
  assert fsdp['sharded'] == ['unet.0.kernel']
  assert zero1['params_bytes'] == toy_on_one['params_bytes']
  assert zero1['state_bytes'] == whole - 3 * kernel * 7 // 8  # two moments and the average
  assert fsdp['state_bytes'] == whole - 4 * kernel * 7 // 8


@pytest.mark.parametrize('mesh', TOY)
def test_the_state_is_donated(toy_on_eight, mesh):
  assert toy_on_eight[mesh]['freed']
  assert toy_on_eight[mesh]['donated_bytes'] >= 0.99 * toy_on_eight[mesh]['state_bytes']


@pytest.fixture(scope='module')
def real_on_one():
  names = [*dict.fromkeys(system for system, *_ in REAL.values())]
  return dict(
    zip(names, on_devices.with_devices(1, on_devices.run, [[name, {}] for name in names]))
  )


@pytest.mark.parametrize('mesh', REAL)
def test_eight_devices_give_the_real_systems_losses_of_one(real_on_one, real_on_eight, mesh):
  result, one = real_on_eight[mesh], real_on_one[REAL[mesh][0]]
  np.testing.assert_allclose(result['losses'][0], one['losses'][0], rtol=1e-4)
  np.testing.assert_allclose(result['losses'], one['losses'], rtol=1e-3)
  np.testing.assert_allclose(result['grad_norm'], one['grad_norm'], rtol=1e-2)


@pytest.mark.parametrize('mesh', REAL)
def test_the_compiler_adds_no_collectives(real_on_eight, mesh):
  """Inside shard_map every one is asked for; XLA's combiner may make fewer of them."""
  asked, compiled = real_on_eight[mesh]['asked'], real_on_eight[mesh]['compiled'].values()
  number, size = (sum(column) for column in zip(*compiled))
  assert number <= len(asked) <= 60
  assert size == sum(one['bytes'] for one in asked)


@pytest.mark.parametrize('mesh', TOY)
def test_the_compiler_adds_no_collectives_to_the_toy(toy_on_eight, mesh):
  asked, compiled = toy_on_eight[mesh]['asked'], toy_on_eight[mesh]['compiled'].values()
  assert sum(size for _, size in compiled) == sum(one['bytes'] for one in asked)


def test_kernels_gathered_in_half_precision_are_those_that_layers_would_cast_to(toy_on_eight):
  """One step: the same loss to the bit, and half the bytes of float32."""
  data, fsdp = (toy_on_eight[name] for name in HALF)
  assert data['losses'] == fsdp['losses']
  np.testing.assert_allclose(data['grad_norm'], fsdp['grad_norm'], rtol=1e-6)
  gathered = [one for one in fsdp['asked'] if one['kind'] == 'all-gather']
  summed = [one for one in fsdp['asked'] if one['kind'] == 'reduce-scatter']
  assert [(one['dtype'], one['bytes']) for one in gathered] == [('bf16', 2 * 7 * 4096)]
  assert [(one['dtype'], one['bytes']) for one in summed] == [('f32', 4 * 7 * 4096)]


def test_a_run_goes_on_on_any_other_mesh(toy_runs_on_one):
  """Every word, fewer devices and more: the state to the bit, and the losses of one device."""
  (moved,) = on_devices.with_devices(
    8,
    on_devices.move,
    [
      [
        [dict(sharding='fsdp'), 8],
        [dict(sharding='data'), 4],
        [dict(sharding='zero1'), 2],
        [dict(sharding='fsdp', data=2), 8],
        [dict(sharding='data'), 1],
      ]
    ],
  )
  assert moved['same'] == [True] * 4
  np.testing.assert_allclose(moved['losses'], toy_runs_on_one[1]['losses'], rtol=1e-4)


# Layouts


def fake_mesh(data=1, fsdp=1):
  return jax.sharding.AbstractMesh((data, fsdp), sharding.AXES)


@pytest.mark.parametrize(
  'shape, expected',
  [
    ((), P()),
    ((1280,), P()),  # small: replicated
    ((320, 1280), P('fsdp', None)),  # the last axis but one: rows keep their length
    ((1280, 320), P('fsdp', None)),
    ((257, 1280), P(None, 'fsdp')),  # the last where that one is indivisible
    ((64, 257, 1281), P('fsdp', None, None)),  # any other where both are
    ((3, 3, 320, 640), P(None, None, 'fsdp', None)),
    ((8, 8, 9, 318), P()),  # kernels only on divisible channel axes
    ((3, 3, 9, 320), P(None, None, None, 'fsdp')),
    ((257, 1023), P()),  # indivisible
  ],
)
def test_spec_by_shape(shape, expected):
  assert sharding.spec(shape, fake_mesh(fsdp=8)) == expected


def test_make_names_its_axes_auto():
  mesh = sharding.make_mesh()
  assert mesh.axis_names == ('data', 'fsdp')
  assert mesh.size == jax.device_count()
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  'sizes, words',
  [
    (dict(data=3 * jax.device_count()), 'the product must be'),
    (dict(data=-1, fsdp=-1), 'one may be -1'),
    (dict(fsdp=0), 'sizes are positive'),
    (dict(tensor=2), 'mesh.tensor is 2; this axis no longer exists, leave it out'),
    (dict(sharding='zero3'), "mesh.sharding is 'zero3'; use one of data, zero1, fsdp"),
  ],
)
def test_make_refuses_what_does_not_fit(sizes, words):
  with pytest.raises(ValueError, match=words):
    sharding.make_mesh(**sizes)


@pytest.mark.parametrize(
  'settings, sizes',
  [
    (dict(), (8, 1)),
    (dict(sharding='zero1'), (1, 8)),
    (dict(sharding='fsdp'), (1, 8)),
    (dict(sharding='fsdp', data=2), (2, 4)),
    (dict(sharding='fsdp', fsdp=2), (4, 2)),
    (dict(sharding='fsdp', data=-1), (8, 1)),
    (dict(tensor=1), (8, 1)),  # a key of older configs
  ],
)
def test_one_word_says_where_the_devices_go(settings, sizes):
  devices = [FakeDevice(i) for i in range(8)]
  assert tuple(sharding.make_mesh(**settings, devices=devices).shape.values()) == sizes


def test_a_mesh_that_its_word_does_not_use_is_refused():
  devices = [FakeDevice(i) for i in range(8)]
  with pytest.raises(ValueError, match="fsdp is 4, but mesh.sharding 'data' shares nothing along"):
    sharding.make_mesh(fsdp=4, devices=devices)


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  id: int
  process_index: int = 0
  platform: str = 'cpu'
  device_kind: str = 'cpu'


def test_a_batch_that_cannot_be_divided_names_both_numbers_and_the_remedy():
  mesh = fake_mesh(data=4, fsdp=2)
  sharding.check_batch(mesh, 32, 2)
  with pytest.raises(ValueError, match='batch_size 12 .* 8 devices .* use batch_size 8 or 16'):
    sharding.check_batch(mesh, 12)
  with pytest.raises(ValueError, match='batch_size 8 .* accumulate 2: use batch_size 16'):
    sharding.check_batch(mesh, 8, 2)
  with pytest.raises(ValueError, match='batch_size 0'):
    sharding.check_batch(mesh, 0)


# Buckets by themselves

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
