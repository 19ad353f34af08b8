"""A system that the package does not know goes through every door without a change to them."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from exedit import sample, systems
from exedit.evaluation import coco_ee, synthetic_bench
from exedit.planning import compile_step
from exedit.training.config import read_config
from tests import ROOT, bench, runs
from tests.refusals import refusal
from tests.systems import unconditional


def config(root):
  return dict(
    system='unconditional',
    steps=2,
    batch_size=4,
    log_every=1,
    save_every=1,
    edit_every=2,
    trainable='unet',
    compile_cache=False,
    data=dict(root=str(root), split='train', size=16, exemplar_size=16),
    synthetic=dict(scenes=16, val_scenes=8, seed=0, shards=1),
    model=dict(width=8),
    optimizer=dict(lr=1e-3, warmup=1),
    edit=dict(count=2, steps=2),
  )


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a training of two steps that continued to a third."""
  folder = tmp_path_factory.mktemp('third')
  given = config(folder / 'data')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(systems._registered, 'unconditional', unconditional.SYSTEM)
    for steps in (2, 3):
      assert runs.train(folder / 'run', **dict(given, steps=steps)).step == steps
    yield str(folder / 'run')


def open_sample_door(**arguments):
  sample.run(['sample', *(f'--{name}={value}' for name, value in arguments.items())])


def test_training_continues_and_shows_samples(run):
  with open(f'{run}/metrics.jsonl') as file:
    steps = [json.loads(line) for line in file]
  assert [entry['step'] for entry in steps if 'loss' in entry] == [1, 2, 3]
  assert Image.open(f'{run}/samples/2.png').size[0] > 16


def test_sampling_needs_no_picture_and_replays(run, tmp_path, monkeypatch, capsys):
  output = tmp_path / 'out.png'
  open_sample_door(weights=run, output=output, num_samples=2, sampler='plms')
  recipe = json.loads((tmp_path / 'out-1.json').read_text())
  assert recipe['settings'] == dict(seed=1, steps=2, sampler='plms') and recipe['inputs'] == {}
  first, second = (np.asarray(Image.open(tmp_path / f'out-{i}.png')) for i in (0, 1))
  assert first.shape == (16, 16, 3) and (first != second).any()
  open_sample_door(replay=tmp_path / 'out-1.json')
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')


def test_a_list_has_the_columns_of_the_system(run, tmp_path, monkeypatch, capsys):
  (tmp_path / 'list.csv').write_text('output,seed,steps\na.png,5,\nb.png,5,3\n')
  open_sample_door(weights=run, edits=tmp_path / 'list.csv', output=tmp_path)
  assert (tmp_path / 'a.png').read_bytes() != (tmp_path / 'b.png').read_bytes()
  open_sample_door(weights=run, edits=tmp_path / 'list.csv', output=tmp_path)
  assert '2 of 2 edits are finished already' in capsys.readouterr().out


def test_another_systems_flags_are_refused(run, tmp_path, capsys):
  for extra, says in ((dict(scale=3), 'scale'), (dict(image='a.png'), 'image')):
    given = dict(weights=run, output=tmp_path / 'a.png', **extra)
    assert f'{says} is not' in refusal(capsys, open_sample_door, **given)


def test_both_benchmarks_score_it(run, tmp_path):
  silent = dict(say=lambda line: None)
  found = synthetic_bench.evaluate(run, str(tmp_path / 'a'), edits=4, truths=2, **silent)
  assert found['own']['untouched'] == 4 and found['sampling'] == dict(steps=2, sampler='ddim')
  root = bench.write(tmp_path / 'bench', size=16, boxes=((4, 6, 12, 12),))
  given = dict(data=dict(root=str(root)), features={}, reference={}, cache=str(tmp_path / 'cache'))
  found = coco_ee.evaluate(str(tmp_path / 'b'), weights=run, **given, **silent)
  assert found['metrics']['background_exactness']['value'] == 1
  assert len(os.listdir(tmp_path / 'b' / 'results')) == len(bench.IDS)


def test_planning_lays_its_step_out(run, tmp_path):
  given = read_config(config(tmp_path)).as_dict()
  compile_step.check(given)
  program = compile_step.make_step(given, jax.devices()[:1])
  batch = compile_step.batch_shapes(given, program.mesh)
  assert program.flops(batch) > 0
  assert program.step.trace(program.state, program.frozen, batch).jaxpr


def test_a_system_outside_the_package_is_known_to_every_process():
  code = "from exedit import systems; print(systems.get('toy').name)"
  found = {}
  for module in ('tests.toy', 'tests.nowhere'):
    env = dict(os.environ, EXEDIT_SYSTEMS=module)
    command = [sys.executable, '-c', code]
    found[module] = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  assert found['tests.toy'].stdout == 'toy\n'
  assert 'EXEDIT_SYSTEMS names tests.nowhere' in found['tests.nowhere'].stderr
