import math
import sys

import jax
import pytest

from exedit.planning import topology
from exedit.training import flops


@pytest.mark.parametrize(
  'name, size, links',
  [
    ('v5e:1x1', 1, 0),
    ('v5e:2x2', 4, 2),
    ('v5e:2x4', 8, 2),
    ('v5e:4x4', 16, 2),  # a mesh: a corner has one link along each axis
    ('v5e:8x16', 128, 3),  # only an axis of 16 closes
    ('v5e:16x16', 256, 4),
    ('v6e:4x4', 16, 2),
    ('v4:2x2x1', 4, 2),
    ('v4:2x2x2', 8, 3),
    ('v5p:2x4x4', 32, 3),  # less than a cube: no axis closes
    ('v5p:4x4x4', 64, 6),
  ],
)
def test_a_slice_has_chips_and_links(name, size, links):
  found = topology.parse(name)
  assert (found.size, found.links, str(found)) == (size, links, name)
  assert found.interconnect == links * found.chip.link


@pytest.mark.parametrize(
  'name, says',
  [
    ('v5e', 'such as v5e:2x2'),
    ('v9:2x2', 'v4, v5e, v5p, v6e'),
    ('v5e:3x3', '1x1, 2x2, 2x4, 4x4'),
    ('v5e:2x2x2', '1x1, 2x2, 2x4, 4x4'),
    ('v4:2x2', '2x2x1, 2x2x2'),
    ('v4:0x4x4', 'multiples of 4'),
    ('v4:16x16x20', '4,096 chips'),
    ('v5p:4x4x6', 'multiples of 4'),
  ],
)
def test_an_unknown_slice_is_refused_with_the_known_ones(name, says):
  with pytest.raises(ValueError, match=says) as error:
    topology.parse(name)
  assert f"'{name}'" in str(error.value)


def test_every_chip_has_its_own_peak_and_usable_memory():
  for chip in topology.CHIPS.values():
    assert chip.peak == flops.peak(chip.kind)
    assert 0.95 < chip.usable / chip.hbm < 1.01
  assert len({chip.peak for chip in topology.CHIPS.values()}) == len(topology.CHIPS)


GIB = 2**30


@pytest.mark.parametrize(
  'text, expected',
  [
    (  # libtpu 0.0.52, if the temporaries alone are too large
      'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
      'required for HLO temporaries (25.50G) exceeds available HBM (15.75G). HLO module: jit_step.',
      (25.5 * GIB, 15.75 * GIB),
    ),
    (  # after buffers were assigned
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. '
      'Used 20.14G of 15.75G hbm. Exceeded hbm capacity by 4.39G.',
      (20.14 * GIB, 15.75 * GIB),
    ),
    ('RESOURCE_EXHAUSTED: no room in hbm', (None, None)),
    ('RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 17M of 16M vmem.', None),
    ('INTERNAL: Mosaic failed, hbm', None),
  ],
)
def test_both_messages_about_memory_are_parsed(text, expected):
  found = topology.out_of_memory(jax.errors.JaxRuntimeError(text))
  if expected is None or None in expected:
    assert found == expected
  else:
    assert found is not None and all(map(math.isclose, found, expected))


def test_the_compiler_is_its_version_or_the_path_in_its_place(tmp_path, monkeypatch):
  package, another = tmp_path / 'libtpu', tmp_path / 'mine.so'
  package.mkdir()
  for file in (package / '__init__.py', package / 'libtpu.so', another):
    file.touch()
  (tmp_path / 'libtpu-1.2.3.dist-info').mkdir()
  (tmp_path / 'libtpu-1.2.3.dist-info' / 'METADATA').write_text('Name: libtpu\nVersion: 1.2.3\n')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.delitem(sys.modules, 'libtpu', raising=False)
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  assert topology.compiler() == '1.2.3'
  monkeypatch.setenv('TPU_LIBRARY_PATH', str(package / 'libtpu.so'))  # as JAX sets it
  assert topology.compiler() == '1.2.3'
  monkeypatch.setenv('TPU_LIBRARY_PATH', str(another))
  assert str(topology.compiler()).startswith(str(another))
