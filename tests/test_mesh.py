import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from exedit.training import mesh as meshes
from tests import on_devices


@pytest.fixture(scope='module')
def toy_on_one():
  (result,) = on_devices.with_devices(1, 'toy', [[{}, 1]])
  return result


@pytest.fixture(scope='module')
def toy_on_eight():
  cases = [
    [dict(data=8), 1],
    [dict(data=1, fsdp=8), 1],
    [dict(data=2, fsdp=2, tensor=2), 1],
    [dict(data=2, fsdp=4), 2],
  ]
  return on_devices.with_devices(8, 'toy', cases)


def test_any_mesh_gives_the_losses_of_one_device(toy_on_one, toy_on_eight):
  for result in toy_on_eight:
    np.testing.assert_allclose(result['losses'], toy_on_one['losses'], rtol=1e-4)
    np.testing.assert_allclose(result['buckets'], toy_on_one['buckets'], rtol=1e-4)
    np.testing.assert_allclose(result['grad_norm'], toy_on_one['grad_norm'], rtol=1e-3)


def test_state_is_sharded_over_fsdp_and_donated(toy_on_one, toy_on_eight):
  whole = toy_on_one['state_bytes']
  copies, fsdp, three, _ = toy_on_eight
  assert copies['state_bytes'] == whole and copies['sharded'] == []
  assert fsdp['sharded'] == ['unet.0.kernel']  # 7 x 4096; the others are small
  assert fsdp['state_bytes'] < 0.65 * whole
  assert three['state_bytes'] < whole
  for result in [toy_on_one, *toy_on_eight]:
    assert result['freed']
    assert result['donated_bytes'] >= 0.99 * result['state_bytes']


def fake_mesh(data=1, fsdp=1, tensor=1):
  devices = jax.sharding.AbstractMesh((data, fsdp, tensor), meshes.AXES)
  return devices


@pytest.mark.parametrize(
  'shape, expected',
  [
    ((), P()),
    ((1280,), P()),  # small: replicated
    ((320, 1280), P(None, 'fsdp')),  # the largest axis
    ((1280, 320), P('fsdp', None)),
    ((1024, 1024), P(None, 'fsdp')),
    ((3, 3, 320, 640), P(None, None, None, 'fsdp')),
    ((8, 8, 9, 318), P()),  # kernels only on divisible channel axes
    ((3, 3, 9, 320), P(None, None, None, 'fsdp')),
    ((257, 1023), P()),  # indivisible
  ],
)
def test_spec_by_shape(shape, expected):
  assert meshes.spec(shape, fake_mesh(fsdp=8)) == expected


def test_spec_uses_the_tensor_axis_for_the_next_largest():
  assert meshes.spec((3, 3, 320, 640), fake_mesh(fsdp=4, tensor=2)) == P(
    None, None, 'tensor', 'fsdp'
  )
  assert meshes.spec((3, 3, 320, 640), fake_mesh()) == P()


def test_make_names_its_axes_auto():
  mesh = meshes.make()
  assert mesh.axis_names == ('data', 'fsdp', 'tensor')
  assert mesh.size == jax.device_count()
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize(
  'sizes, words',
  [
    (dict(data=3 * jax.device_count()), 'the product must be'),
    (dict(data=-1, fsdp=-1), 'one may be -1'),
    (dict(fsdp=0), 'sizes are positive'),
  ],
)
def test_make_refuses_what_does_not_fit(sizes, words):
  with pytest.raises(ValueError, match=words):
    meshes.make(**sizes)


def test_a_batch_that_cannot_be_divided_names_both_numbers_and_the_remedy():
  mesh = fake_mesh(data=4, fsdp=2)
  meshes.check_batch(mesh, 32, 2)
  with pytest.raises(ValueError, match='batch_size 12 .* 8 devices .* use batch_size 8 or 16'):
    meshes.check_batch(mesh, 12)
  with pytest.raises(ValueError, match='batch_size 8 .* accumulate 2: use batch_size 16'):
    meshes.check_batch(mesh, 8, 2)
  with pytest.raises(ValueError, match='batch_size 0'):
    meshes.check_batch(mesh, 0)
