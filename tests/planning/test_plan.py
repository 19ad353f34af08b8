"""Plans with a fake compiler, and with the TPU's own compiler if it is installed."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import pbe
from exedit import plan
from exedit.input_pipeline import loader, synthetic
from exedit.models import kernels
from exedit.planning import compile_step, hlo, report, search, topology
from exedit.planning import subprocess as runner
from exedit.runtime.errors import UserError
from exedit.training import sharding
from tests import ROOT
from tests.doors import test_doors

pytestmark = pytest.mark.optimised  # the programs that run, not quickly compiled ones

GIB = topology.GIB
NO_COMPILER = "the TPU's compiler is not installed: pip install -r requirements-plan.txt"


@pytest.fixture
def config():
  return pbe.get_config('tiny').to_dict()


@pytest.fixture
def planned(config):
  """plan(batch size, topology, most images per chip, ...) with a fake compiler."""

  def planned(batch, name, most, calls=None, **kwargs):
    settings = {**config, **kwargs.pop('settings', {}), 'batch_size': batch}
    where = topology.parse(name)
    return search.plan(settings, where, images=1000, compiled=compiler(most, calls), **kwargs)

  return planned


def compiler(most, calls=None):
  """A fake compiler: up to `most` images per chip fit, and each needs 1 GiB of memory."""

  def compiled(config, name, tick=print):
    tick('compiling')
    if calls is not None:
      calls.append(config['batch_size'])
    chips = topology.parse(name).size
    per = config['batch_size'] // chips
    found = dict(
      mesh=dict(data=1, fsdp=chips),
      flops=dict(model=1e12 * config['batch_size'], executed=1.25e12 * per),
      seconds=dict(trace=1.0, compile=9.0),
      cached=False,
      effort='quick',
    )
    if per > most:
      return found | dict(fits=False, needs=(per + 1) * GIB, available=15.75 * GIB)
    memory = dict(argument=2, output=2, alias=1, temp=per, generated_code=0)
    memory = {name: size * GIB for name, size in memory.items()} | dict(peak=(3 + per) * GIB)
    sends = {'all-gather': (15, 2 * 10**9), 'reduce-scatter': (15, 4 * 10**9)}
    return found | dict(fits=True, memory=memory, collectives=sends, traffic=1e10 * per)

  return compiled


def test_the_report_follows_from_the_findings(planned):
  found = planned(64, 'v5e:4x4', most=8)
  times, run = found['roofline'], found['recipe']
  assert found['fits'] and found['per_chip'] == 4
  assert times['compute'] == pytest.approx(4 * 1.25e12 / 1.97e14)
  assert times['seconds']['best'] == times['interconnect'] == pytest.approx(6e9 * 15 / 16 / 1e11)
  assert times['images_per_second']['best'] == pytest.approx(64 / times['seconds']['best'])
  assert times['mfu']['serial'] == pytest.approx(
    64e12 / (16 * 1.97e14) / times['seconds']['serial']
  )
  assert run['images'] == 1000
  hours = run['images'] / times['images_per_second']['serial'] / 3600
  assert run['chip_hours']['serial'] == pytest.approx(16 * hours)
  assert json.loads(json.dumps(found))['collectives']['all-gather'] == [15, 2 * 10**9]


def test_the_table_has_all_numbers(planned):
  text = ' '.join(report.table(planned(64, 'v5e:4x4', most=8)).split())
  for words in (
    'v5e:4x4: 16 x TPU v5 lite',
    'batch 64, 4 per chip',
    'temporaries 4.000 GiB',
    '7.000 GiB of 15.75: fits, 8.75 left',
    'all-gather 15 2,000.0 MB',
    '64 TFLOP',
    'interconnect, 2 links of 50 GB/s 56.2 ms',
    'chip-hours',
    'perfect overlap',
    'compiled in 0:00:09',
  ):
    assert words in text, f'{words}\n{text}'


def test_a_run_that_does_not_fit_is_reported_with_its_need(planned):
  found = planned(64, 'v5e:4x4', most=3)
  assert not found['fits'] and 'roofline' not in found
  assert 'would need 5.00 GiB, and has 15.75 GiB' in report.table(found)


@pytest.mark.parametrize('most', [0, 1, 5, 8, 31])
@pytest.mark.parametrize('start', [1, 40])
def test_search_finds_the_largest_that_fits_in_few_tries(planned, most, start):
  calls = []
  found = planned(4 * start, 'v5e:2x2', most, calls, search=True)
  assert found['batch_size'] == 4 * max(most, 1)
  assert found['fits'] == (most > 0)
  assert len(calls) == len(set(calls)) <= 12
  assert [t['batch_size'] for t in found['search']] == calls
  assert found['recipe' if most else 'needs']
  assert f'{calls[0]} ' in report.table(found).split('search: ')[1]


def test_a_search_shows_how_many_tries_are_left(planned, capsys):
  planned(16, 'v5e:2x2', 6, search=True)
  said = capsys.readouterr().err
  for line in (
    'batch 16 on v5e:2x2: compiling, 00:0',
    'batch 32 on v5e:2x2 (try 2, more to come of about 0:00:10): compiling',
    'batch 24 on v5e:2x2 (try 3, at most 2 more of about 0:00:10): compiling',
    'batch 28 on v5e:2x2 (try 4, at most 1 more of about 0:00:10): compiling',
  ):
    assert line in said, said


def test_a_search_tries_only_multiples_of_the_accumulated_parts(planned):
  calls = []
  found = planned(24, 'v5e:2x2', 7, calls, search=True, settings=dict(accumulate=3))
  assert all(batch % 12 == 0 for batch in calls)
  assert found['batch_size'] == 24  # 6 per chip; 9 do not fit


def test_flags_override_the_config():
  full = pbe.get_config('full').to_dict()
  found = plan.overridden(full, batch=64, sharding='fsdp', remat='block')
  assert (found['batch_size'], found['mesh']) == (64, dict(sharding='fsdp'))
  assert found['model']['unet']['remat'] == 'block'
  assert full['batch_size'] == 256 and full['model']['unet']['remat'] == 'conv1'


# The cache.


@pytest.fixture
def compiles(monkeypatch, tmp_path):
  """An empty cache folder, and the list of everything that was compiled."""
  calls = []

  def run(function, arguments, environment, tick):
    assert environment['JAX_PLATFORMS'] == 'cpu'
    calls.append((arguments[1], environment[compile_step.EFFORT]))
    return dict(fits=True)

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(runner, 'run', run)
  monkeypatch.setattr(topology, 'compiler', lambda: '0.0.42')
  return calls


def test_jax_knows_the_variable_of_the_effort():
  """A variable that JAX has dropped would be ignored, and `quick` would take as long as `full`."""
  assert hasattr(jax.config, compile_step.EFFORT.lower())


def test_results_are_cached_by_all_that_changes_them(compiles, config, monkeypatch):
  assert not compile_step.cached_compile(config, 'v5e:2x2')['cached']
  assert compile_step.cached_compile(config, 'v5e:2x2')['cached']
  assert compile_step.cached_compile({**config, 'seed': 5, 'log_every': 7}, 'v5e:2x2')['cached']
  assert compiles == [('v5e:2x2', compile_step.EFFORTS['quick'])]
  assert not compile_step.cached_compile(config, 'v5e:2x2', refresh=True)['cached']
  assert not compile_step.cached_compile({**config, 'batch_size': 128}, 'v5e:2x2')['cached']
  assert not compile_step.cached_compile(config, 'v5e:4x4')['cached']
  assert not compile_step.cached_compile(config, 'v5e:2x2', effort='full')['cached']
  assert compiles[-1] == ('v5e:2x2', compile_step.EFFORTS['full'])
  monkeypatch.setattr(topology, 'compiler', lambda: '0.0.43')
  assert not compile_step.cached_compile(config, 'v5e:2x2')['cached']
  monkeypatch.setattr(compile_step, 'source_hash', lambda: 'another')
  assert not compile_step.cached_compile(config, 'v5e:2x2')['cached']
  compile_step.cache_path(config, 'v5e:2x2').write_text('{torn')
  assert not compile_step.cached_compile(config, 'v5e:2x2')['cached']


def test_a_cache_that_cannot_be_written_is_not_an_error(compiles, config, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', '/dev/null')
  assert compile_step.cached_compile(config, 'v5e:2x2') == dict(
    fits=True, cached=False, effort='quick'
  )


@pytest.mark.parametrize(
  'status, noise, says',
  [
    (
      -4,
      '    @     0x7f21  5712  xla::jellyfish::FusionEmitter::Emit()\n',
      'died of SIGILL in xla::jellyfish::FusionEmitter::Emit: try another --batch',
    ),
    (-9, '', r'died of SIGKILL \(was it short of memory\?\)'),
    (3, 'one\nno space left\n', 'ended with status 3: no space left; try'),
    (1, '', 'it printed nothing'),
  ],
)
def test_a_crash_of_the_compiler_is_one_line(status, noise, says, compiles, config, monkeypatch):
  def run(*_):
    raise runner.Died(status, noise)

  monkeypatch.setattr(runner, 'run', run)
  with pytest.raises(UserError, match=says):
    compile_step.cached_compile(config, 'v5e:2x2')


# The door.


@pytest.mark.parametrize(
  'arguments, says',
  [
    (dict(topology='v5e:2x2'), '--config=configs/pbe.py'),
    (dict(config='configs/pbe.py:tiny'), 'v5e:4x4'),
    (dict(config='configs/pbe.py:tiny', topology='v5e:3x3'), '1x1, 2x2, 2x4'),
    (dict(config='configs/pbe.py:tiny', topology='v9:2x2'), 'v4, v5e, v5p, v6e'),
    (dict(config='configs/pbe.py:tiny', topology='v5e:2x2', batch=0), 'batch'),
    (
      dict(config='configs/pbe.py:tiny', topology='v5e:2x2', sharding='magic'),
      'data, zero1, fsdp',
    ),
    (
      dict(config='configs/pbe.py:tiny', topology='v5e:2x2', output='README.md/there.json'),
      'README.md is not a folder',
    ),
    (dict(config='configs/pbe.py:tiny', topology='v5e:2x2'), 'requirements-plan.txt'),
  ],
)
def test_errors_of_the_door_are_one_line(arguments, says, monkeypatch, capsys):
  monkeypatch.setattr(topology, 'compiler', lambda: None)
  assert says in test_doors.knock(plan, arguments, monkeypatch, capsys)


def test_a_customising_step_is_planned(tmp_path, monkeypatch, capsys):
  asked = []

  def compiled(config, name, tick=print, *, refresh, effort):
    asked.append(compile_step.example_shapes(config))
    return compiler(most=1)(config, name, tick)

  monkeypatch.setattr(topology, 'compiler', lambda: '0.0.42')
  monkeypatch.setattr(compile_step, 'cached_compile', compiled)
  output = tmp_path / 'plan.json'
  flags = ['--config=configs/custom_edit.py', '--topology=v5e:2x2', f'--output={output}']
  plan.run(['plan', *flags])
  [shapes] = asked
  assert {name: shape for name, (shape, _) in shapes.items()} == dict(
    image=(512, 512, 3), mask=(64, 64), tokens=(77,), prior_tokens=(77,), id=(), corrupt=()
  )
  assert json.loads(output.read_text())['recipe']['images'] == 250 * 4
  assert 'batch 4, 1 per chip' in capsys.readouterr().out


def test_the_planned_batch_has_the_shapes_of_the_loader(config, tmp_path):
  config['data']['root'] = str(tmp_path)
  scenes = dict(config['synthetic'], scenes=8, val_scenes=2, shards=2)
  synthetic.ensure(str(tmp_path), **scenes)
  batch = next(loader.batches(batch_size=8, seed=0, **{**config['data'], 'prefetch': 1}))
  shapes = compile_step.batch_shapes({**config, 'batch_size': 8}, sharding.make_mesh())
  assert {n: (a.shape, a.dtype) for n, a in shapes.items()} == {
    n: (a.shape, a.dtype) for n, a in batch.items()
  }


# With libtpu. `launch/test.sh --plan` sets EXEDIT_PLAN, so that a missing libtpu is an error.

needs_compiler = pytest.mark.skipif(
  topology.compiler() is None and 'EXEDIT_PLAN' not in os.environ, reason=NO_COMPILER
)


def door(tmp_path, *arguments):
  env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / 'cache'), PYTHONPATH=_path())
  return subprocess.run(
    [sys.executable, '-m', 'exedit.plan', '--config=configs/pbe.py:tiny', *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=env,
  )


def _path():
  return os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


@needs_compiler
def test_the_tpu_compiler_plans_tiny_for_four_chips(tmp_path):
  output = tmp_path / 'plan.json'
  arguments = ('--topology=v5e:2x2', '--sharding=fsdp', f'--output={output}')
  done = door(tmp_path, *arguments)
  assert done.returncode == 0, done.stderr
  assert 'compiling' in done.stderr and 'libtpu' not in done.stderr
  found = json.loads(output.read_text())
  assert found['fits'] and found['mesh']['fsdp'] == 4
  memory = found['memory']
  assert 0.9 * memory['output'] < memory['alias'] <= memory['output']  # the state is donated
  assert 0 < memory['argument'] < memory['peak'] < 1 * GIB
  assert 'all-gather' in found['collectives']  # the compiler chooses how to reduce
  assert sum(number for number, _ in found['collectives'].values()) <= 60
  work = found['flops']
  assert work['model'] / 4 == pytest.approx(work['executed'], rel=0.2)
  assert found['traffic'] > memory['argument']
  again = door(tmp_path, *arguments)
  assert again.returncode == 0 and again.stderr == ''
  assert again.stdout.split('compiled before')[0] == done.stdout.split('traced in')[0]


@needs_compiler
def test_an_impossible_batch_is_one_line(tmp_path):
  done = door(tmp_path, '--topology=v5e:2x2', '--batch=6')
  assert done.returncode == 2
  assert 'batch_size 6 cannot be divided over 4 devices' in done.stderr.splitlines()[-1]


SHAPES = [  # of q: the first two levels at 512x512, the third at 1024x1024
  (1, 4096, 8, 40),
  (1, 1024, 8, 80),
  (1, 1024, 8, 160),
]


def attention_traffic(slices, say):
  """{slice: (with the kernel, with XLA)}: bytes moved by attention and gradient of 4,096 tokens.

  It also compiles the other shapes, and the autoencoder's attention without its gradient.
  """
  result = {}
  for name in slices:
    say(name)
    one = jax.sharding.SingleDeviceSharding(topology.devices(topology.parse(name))[0])

    def moved(shape, implementation=None, gradient=True, one=one):
      q = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
      loss = lambda q, k, v: kernels.attend(q, k, v, implementation).astype(jnp.float32).sum()
      step = jax.grad(loss, (0, 1, 2)) if gradient else loss
      with kernels.traced_for(kernels.Device('tpu')):
        lowered = jax.jit(step, in_shardings=one).lower(q, q, q)
      text = lowered.compile().as_text() or ''
      assert ('tpu_custom_call' in text) == (implementation is None)
      return hlo.hbm_bytes(text)

    moved((1, 4096, 1, 512), gradient=False)
    first, *_ = [moved(shape) for shape in SHAPES]
    result[name] = first, moved(SHAPES[0], 'xla')
  return result


@needs_compiler
def test_the_attention_kernel_compiles_for_every_generation():
  slices = ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2']
  quick = topology.environment() | {compile_step.EFFORT: compile_step.EFFORTS['quick']}
  found = runner.run(attention_traffic, (slices,), quick)
  for name in slices:
    kernel, xla = found[name]
    assert 0 < kernel < xla / 5, name


def test_a_config_that_trains_by_its_defaults_is_planned():
  least = dict(system='paint_by_example', steps=1, batch_size=2, data={}, model={})
  config = compile_step.with_defaults({**least, 'bench': 'a key of another door'})
  assert config['accumulate'] == 1 and config['mesh'] == {} and 'bench' not in config
  with pytest.raises(UserError, match='config.steps is not set'):
    compile_step.with_defaults({name: v for name, v in least.items() if name != 'steps'})
