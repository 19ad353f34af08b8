import pytest

from exedit.planning import roofline, topology


def test_each_resource_alone():
  where = topology.parse('v5e:4x4')
  sends = {'all-gather': (2, 16 * 10**9), 'all-reduce': (1, 16 * 10**9)}
  found = roofline.estimate(where, flops=1.97e14, traffic=8.19e10, collectives=sends)
  assert found.compute == pytest.approx(1.0)
  assert found.memory == pytest.approx(0.1)
  # 15/16 of the bytes, once gathered and twice reduced, over the two links of a corner
  assert found.interconnect == pytest.approx((15 + 2 * 15) * 1e9 / (2 * 5e10))
  assert found.bound == 'compute' and found.best == found.compute
  assert found.serial == pytest.approx(1.0 + 0.1 + 0.45)


def test_the_slowest_resource_is_the_bound():
  where = topology.parse('v5p:2x2x2')
  found = roofline.estimate(where, 4.59e14, 2 * 2.765e12, {'reduce-scatter': (1, 8 * 10**11)})
  assert found.interconnect == pytest.approx(7e11 / (3 * 1e11))
  assert found.bound == 'interconnect'


def test_one_chip_sends_nothing():
  found = roofline.estimate(topology.parse('v6e:1x1'), 9.18e14, 0.0, {})
  assert (found.interconnect, found.memory, found.bound) == (0.0, 0.0, 'compute')
  assert found.best == pytest.approx(1.0)
