"""The variants of benchmarks.sampling compute the same function, and its plan adds up."""

import json

import jax
import numpy as np

from benchmarks import harness, networks
from benchmarks import sampling as benchmark
from exedit import paint_by_example as pbe
from exedit.planning import topology


def test_every_variant_predicts_the_same(tmp_path):
  networks.write_weights('tiny', tmp_path)
  model = benchmark.load(dict(folder=str(tmp_path), precision='float32'))
  inputs = networks.edit_inputs('tiny', 16, 2)
  given = {name: jax.numpy.asarray(a) for name, a in inputs.items()}
  expected = benchmark.evaluation(model, given)[0]()
  assert float(abs(expected).max()) > 0.1
  for name in benchmark.SHORTCUTS:
    eps = benchmark.evaluation(model, given, name)[0]()
    np.testing.assert_allclose(eps, expected, atol=1e-5 * float(abs(expected).max()), err_msg=name)


def test_the_plan_is_the_sum_of_its_parts(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(topology, 'compiler', lambda: None)  # tests/planning runs the TPU's compiler
  path = tmp_path / 'plan.json'
  flags = '--width=tiny --size=16 --steps=2 --batch=2 --precision=bfloat16 --plan'.split()
  argv = ['benchmark', *flags, f'--output={path}']
  harness.door(benchmark.main, benchmark.FLAGS, benchmark.__doc__, argv=argv)
  report = json.loads(path.read_text())
  found = report['plan']['batch 2']['cpu']
  assert found.pop('together') == sum(found.values()) and found['temporaries'] > 0
  _, shapes = pbe.abstract(networks.WIDTHS['tiny'])
  size = lambda kernel: sum(a.size for n, a in shapes.items() if n.endswith('.kernel') == kernel)
  assert found['weights'] == 2 * size(True) + 4 * size(False)
  assert 'batch 2, cpu, GB: weights' in capsys.readouterr().out
  assert report['machine']['jax'] == jax.__version__ and report['settings']['steps'] == 2
