"""Every door opens, and says no in one line: exit status 2, no traceback, nothing half-written."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exedit import evaluate, images, sample, systems
from exedit import paint_by_example as pbe
from exedit.diffusion import sampling
from exedit.diffusion.schedule import Schedule
from exedit.editing import edit_files
from exedit.runtime import doors
from exedit.runtime.errors import UserError
from tests import ROOT, pictures, small


def run(*command, cwd=ROOT):
  """A door in a process of its own, as a person opens it."""
  env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_ENABLE_COMPILATION_CACHE='false')
  return subprocess.run(
    [sys.executable, '-m', *map(str, command)], capture_output=True, text=True, env=env, cwd=cwd
  )


def knock(module, arguments, monkeypatch, capsys):
  """The line with which a door of this process says no, having checked that it is one."""
  argv = ['door', *(f'--{name}={value}' for name, value in arguments.items())]
  capsys.readouterr()
  with pytest.raises(SystemExit) as exit:
    module.run(argv)
  stderr = capsys.readouterr().err
  assert exit.value.code == 2
  return one_line(stderr)


def grey_paint(monkeypatch):
  """An edit that costs nothing, where the door around it is tested."""

  def edit(model, source, *_, **__):
    return source * 0

  monkeypatch.setattr(pbe, 'edit', functools.wraps(pbe.edit)(edit))


def one_line(stderr):
  assert re.fullmatch(r'error: [^\n]{10,400}\n(  [^\n]+\n)*', stderr), stderr
  return stderr


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return small.export(tmp_path_factory.mktemp('weights') / 'small')


@pytest.fixture
def arguments(tmp_path, weights):
  """Good arguments for the sample door, the output in a folder of its own."""
  (tmp_path / 'out').mkdir()
  paths = pictures.write(tmp_path, 16, 24, 4, 4, 10, 12)
  return dict(weights=weights, output=str(tmp_path / 'out' / 'out.png'), **paths)


# doors, as a person opens them


@pytest.mark.parametrize(
  'command, says',
  [
    (('exedit.train', '--config=configs/pbe.py:tiny', '--config.batch_sze=3'), 'batch_size'),
    (('exedit.train', '--config=configs/pbe.py:tinny', '--workdir=w'), "'tinny'"),
    (('exedit.sample', '--wieghts=w'), 'weights'),
    (
      ('exedit.evaluate', '--config=configs/synthetic_bench.py', '--weights=w'),
      'w does not exist',
    ),
    (('exedit.convert', '--from=nowhere', '--to=new'), 'nowhere does not exist'),
    (('input_pipeline.synthetic', '--scenes=10'), '--output'),
    (('input_pipeline.show', '--config=configs/none.py', '--output=sheet.png'), 'configs/none.py'),
    (
      ('exedit.train', '--config=configs/coco_ee.py', '--workdir=w'),
      'this config is of a benchmark',
    ),
    (
      ('exedit.encode', '--config=configs/coco_ee.py', '--output=w'),
      'this config is of a benchmark',
    ),
    (('input_pipeline.show', '--config=configs/coco_ee.py', '--output=s.png'), 'is of a benchmark'),
    (
      ('exedit.evaluate', '--config=configs/pbe.py:tiny', '--weights=w'),
      'is the config of a training',
    ),
    (('exedit.train', '--config=configs/__init__.py', '--workdir=w'), 'it has no get_config'),
    (('exedit.train', '--config=configs', '--workdir=w'), 'there is no such file; name one'),
  ],
)
def test_a_wrong_command_is_one_line(command, says, tmp_path):
  os.symlink(ROOT / 'configs', tmp_path / 'configs')
  done = run(*command, cwd=tmp_path)
  assert done.returncode == 2
  assert says in one_line(done.stderr)
  assert os.listdir(tmp_path) == ['configs']


def test_sample_from_the_shell_falls_back_to_the_last_good_checkpoint(arguments, tmp_path):
  run_folder = Path(small.workdir(tmp_path / 'run', steps=(2, 4)))
  cut(run_folder / 'checkpoints' / '4' / 'digest' / 'metadata')
  arguments['weights'] = run_folder
  done = run('exedit.sample', *(f'--{name}={value}' for name, value in arguments.items()))
  assert (done.returncode, done.stderr) == (0, '')
  assert re.search('checkpoint 4 is damaged .* using checkpoint 2', done.stdout)
  source, hole, out = (
    np.asarray(Image.open(arguments[name])) for name in ('image', 'mask', 'output')
  )
  np.testing.assert_array_equal(out[hole == 0], source[hole == 0])


# bad input for the sample door


def cut(path):
  """A file that ends in the middle."""
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])


def bad_inputs(folder):
  """(argument, value or file, what the line must say) of each kind; makes the files."""
  Image.new('L', (24, 17), 255).save(folder / 'other_size.png')
  Image.new('RGB', (1, 1)).save(folder / 'dot.png')
  Image.fromarray(np.ones((16, 24), np.float32)).save(folder / 'float.tif')
  return (
    ('exemplar', 'nowhere.png', 'does not exist'),
    ('mask', 'other_size.png', '24 x 17 .* 24 x 16'),
    ('image', 'dot.png', '1 x 1'),
    ('image', 'float.tif', 'floating-point pixels'),
    ('weights', '.', 'config.json'),
    ('output', 'dot.png/a.png', 'is not a folder'),
    ('num_samples', '0', 'num_samples'),
    ('scale', 'much', 'scale'),
  )


def test_bad_input_is_one_line_and_writes_nothing(arguments, tmp_path, monkeypatch, capsys):
  for name, value, says in bad_inputs(tmp_path):
    path = str(tmp_path / value) if name in arguments else value
    line = knock(sample, arguments | {name: path}, monkeypatch, capsys)
    assert re.search(says, line), f'{name}={value}: {line}'
  assert os.listdir(tmp_path / 'out') == []


def test_a_missing_argument_is_named(arguments, monkeypatch, capsys):
  for name in arguments:
    rest = {other: value for other, value in arguments.items() if other != name}
    assert f'--{name} is missing' in knock(sample, rest, monkeypatch, capsys)


@pytest.mark.parametrize(
  'changes, says',
  [
    (dict(image=None, edits='list.csv'), '--mask does not go with --edits'),
    (dict(skip_bad='true'), '--skip_bad does not go with a single edit'),
    (dict(weights=None, image=None, replay='out.json', seed='3'), 'does not go with --replay'),
  ],
)
def test_flags_that_do_not_go_together(changes, says, arguments, monkeypatch, capsys):
  given = {name: value for name, value in (arguments | changes).items() if value is not None}
  assert says in knock(sample, given, monkeypatch, capsys)


def test_a_list_or_a_recipe_that_cannot_be_read(arguments, tmp_path, monkeypatch, capsys):
  (tmp_path / 'bad.jsonl').write_text('{"image": "no.png", "mask": "m.png", "exemplar": "e.png"}')
  (tmp_path / 'bad.json').write_text('{"exedit": 1}')
  given = dict(weights=arguments['weights'], output=tmp_path / 'out')
  line = knock(sample, given | dict(edits=tmp_path / 'bad.jsonl'), monkeypatch, capsys)
  assert '1 of 1 edits cannot be made: line 1: ' in line and 'no.png does not exist' in line
  assert 'none.csv does not exist' in knock(
    sample, given | dict(edits=tmp_path / 'none.csv'), monkeypatch, capsys
  )
  assert '--weights is missing' in knock(
    sample, dict(edits=tmp_path / 'bad.jsonl'), monkeypatch, capsys
  )
  assert 'bad.json is no recipe' in knock(
    sample, dict(replay=tmp_path / 'bad.json'), monkeypatch, capsys
  )
  assert os.listdir(tmp_path / 'out') == []


@pytest.mark.parametrize('spoil', ['cut config', 'other model'])
def test_weights_that_cannot_be_used(spoil, arguments, tmp_path, monkeypatch, capsys):
  folder = tmp_path / 'spoiled'
  config = Path(small.export(folder)) / 'config.json'
  text = config.read_text()
  other = text.replace('"context_dim": 16', '"context_dim": 32')
  config.write_text(text[: len(text) // 2] if spoil == 'cut config' else other)
  for door, given in (sample, arguments), (evaluate, dict(config='configs/synthetic_bench.py')):
    assert 'spoiled' in knock(door, given | dict(weights=str(folder)), monkeypatch, capsys)
  assert os.listdir(tmp_path / 'out') == [] and not (folder / 'evaluation').exists()


def test_a_full_disk_is_one_line(arguments, tmp_path, monkeypatch, capsys):
  def full(*_):
    raise OSError(28, 'No space left on device')

  grey_paint(monkeypatch)
  monkeypatch.setattr(os, 'replace', full)
  line = knock(sample, arguments, monkeypatch, capsys)
  assert 'no space left' in line and 'out.png' in line
  assert os.listdir(tmp_path / 'out') == []


# good input


def test_the_mask_fits_the_upright_picture_and_transparency_is_kept(
  arguments, tmp_path, monkeypatch
):
  grey_paint(monkeypatch)
  colour, exif = Image.open(arguments['image']), Image.Exif()
  exif[0x0112] = 8
  colour.convert('RGBA').save(tmp_path / 'rgba.png')
  colour.transpose(Image.Transpose.ROTATE_270).save(tmp_path / 'rotated.jpg', exif=exif)
  hole = np.asarray(Image.open(arguments['mask'])) > 0
  for name, channels in (('rgba.png', 4), ('rotated.jpg', 3)):
    photo = dict(arguments, image=str(tmp_path / name), exemplar=str(tmp_path / name))
    (path,) = edit_files.edit_once(**photo, say=lambda line: None)
    out, kept = np.asarray(Image.open(path)), images.read(tmp_path / name)
    np.testing.assert_array_equal(out[~hole][:, :3], kept[~hole], err_msg=name)
    assert out.shape[-1] == channels


# flags and configs


def test_a_config_key_that_is_no_argument_is_named_with_the_nearest(tmp_path, monkeypatch, capsys):
  path = tmp_path / 'bench.py'
  text = (ROOT / 'configs' / 'synthetic_bench.py').read_text()
  path.write_text(text.replace('edits=256', 'edit=256'))
  line = knock(evaluate, dict(config=path, weights='w'), monkeypatch, capsys)
  assert 'edit ' in line and "'edits'" in line


@pytest.mark.parametrize(
  'change, says',
  [
    ({'config.edit': 3}, "'edits'"),
    ({'config.edits': 'many'}, 'many'),
    ({'config.steps': 0}, 'steps is 0'),
    ({'seed': 3}, 'seed'),
  ],
)
def test_wrong_overrides_are_named(change, says, weights, monkeypatch, capsys):
  good = dict(config='configs/synthetic_bench.py', weights=weights)
  assert says in knock(evaluate, good | change, monkeypatch, capsys)


@pytest.mark.parametrize('variant', ['full', 'tiny'])
@pytest.mark.parametrize(
  'word, found', [('None', None), ('off', None), ("{'scenes': 3}", dict(scenes=3))]
)
def test_a_group_of_a_config_is_switched_off_or_replaced(variant, word, found):
  argv = ['door', f'--config=configs/pbe.py:{variant}', f'--config.synthetic={word}']
  given = []
  doors.call(
    lambda config: given.append(config), [doors.Flag('config', None, '', 'config')], '', argv
  )
  assert given[0].to_dict()['synthetic'] == found


def test_a_config_file_that_is_missing_or_no_python(tmp_path, monkeypatch, capsys):
  (tmp_path / 'bad.py').write_text('get_config = (')
  for name in ('bad.py', 'none.py'):
    line = knock(evaluate, dict(config=tmp_path / name), monkeypatch, capsys)
    assert name in line
  assert '--config is missing' in knock(evaluate, {}, monkeypatch, capsys)
  config = dict(config='configs/synthetic_bench.py')
  assert '--weights is missing' in knock(evaluate, config, monkeypatch, capsys)


def test_the_most_steps_are_those_that_every_sampler_takes():
  config = dict(model=dict(schedule=dict(num_steps=20)))
  settings = functools.partial(systems.edit_settings, systems.get('paint_by_example'), config)
  for given, says in (
    (dict(steps=20), "steps is 20: .* between 1 and 19, because the weights' schedule has 20"),
    (dict(steps=None), 'steps is 50: .* between 1 and 19'),  # edit's default
  ):
    with pytest.raises(UserError, match=says):
      settings(**given)
  steps, schedule = settings(steps=19)['steps'], Schedule(num_steps=20)
  assert len(schedule.timesteps(steps)) == len(sampling.dpm_timesteps(steps, schedule)) == 19
  for timesteps in (schedule.timesteps, lambda n: sampling.dpm_timesteps(n, schedule)):
    with pytest.raises(ValueError):
      timesteps(20)
  assert systems.most_steps({}) == 999
