"""The contact sheet's door: a sheet with as many examples as asked for, statistics, refusals."""

import os
import sys

import numpy as np
import PIL.Image
import pytest

from exedit.input_pipeline import show, synthetic
from exedit.runtime import doors
from tests.refusals import refusal

CONFIG = """
import ml_collections
def get_config(variant='tiny'):
  if variant != 'tiny':
    raise ValueError(f'no variant {variant}')
  data = dict(root='data', split='train', size=32, exemplar_size=24)
  return ml_collections.ConfigDict(dict(
    seed=1, data=data, synthetic=dict(scenes=12, val_scenes=3, shards=1)))
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('show')
  (folder / 'config.py').write_text(CONFIG)
  synthetic.write(str(folder / 'data'), scenes=12, val_scenes=3, shards=1)
  return folder


@pytest.fixture
def door(folder, monkeypatch):
  """Runs the door as the command line would, without another interpreter."""
  monkeypatch.chdir(folder)

  def run(*flags):
    monkeypatch.setattr(sys, 'argv', ['show', *flags])  # where ml_collections looks for overrides
    doors.call(show.main, show.FLAGS, show.__doc__, sys.argv)

  return run


def test_the_door_draws_the_sheet(door, folder, capsys):
  door('--config=config.py:tiny', '--count=3', '--output=out/sheet.png', '--split=validation')
  said = capsys.readouterr().out
  assert 'data validation: 3 records' in said and 'box area' in said
  sheet = np.asarray(PIL.Image.open(folder / 'out' / 'sheet.png'))
  assert sheet.shape[0] > 2 * show._CELL and sheet.shape[1] > 8 * show._CELL
  assert os.listdir(folder / 'out') == ['sheet.png'] and 'caption' not in said


def test_captions_are_shown(door, folder, capsys):
  synthetic.write(str(folder / 'world'), scenes=2, val_scenes=1, shards=1, version=2)
  flags = ('--config.data.root=world', '--config.synthetic=None', '--output=more/captions.png')
  door('--config=config.py', '--count=2', *flags)
  said = capsys.readouterr().out
  assert said.count('caption: a') == 2


@pytest.mark.parametrize(
  'flags, line',
  [
    ([], '--config is missing'),
    (['--config=none.py'], '--config=none.py: there is no such file; name one'),
    (['--config=config.py', '--config.data.rot=x'], "no key 'rot': did you mean 'root'?"),
    (['--config=config.py', '--config.data.size=x'], 'data.size=x: it must be a whole number'),
    (['--config=config.py', '--config.data.size=0'], 'data.size is 0: it must be at least 1'),
    (['--config=config.py', '--count=0'], '--count=0: must be at least 1'),
    (['--config=config.py', '--output=sheet.doc'], '--output=sheet.doc: name a .png or .jpg file'),
    (['--config=config.py', '--split=test'], "no shards of split 'test'"),
    (['--config=config.py', '--config.synthetic.scenes=13'], 'scenes=12, not scenes=13'),
  ],
)
def test_the_door_refuses_in_one_line(door, capsys, folder, flags, line):
  flags = flags if any('--output' in flag for flag in flags) else [*flags, '--output=no.png']
  assert line in refusal(capsys, door, *flags)
  assert not (folder / 'no.png').exists()


def test_the_hole_is_grey_and_the_rest_is_kept():
  image = np.full((16, 16, 3), 200, np.uint8)
  mask = np.zeros((16, 16), np.uint8)
  mask[:8] = 255
  picture, shown, masked, exemplar = show.cells(dict(image=image, mask=mask, exemplar=image))
  half = show._CELL // 2
  assert (masked[:half] == 127).all() and (masked[half:] == 200).all()
  assert (shown[:half] == 255).all() and (shown[half:] == 0).all()
  assert (picture == 200).all() and (exemplar == 200).all()
