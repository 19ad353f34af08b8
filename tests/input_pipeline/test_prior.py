"""The list of a class's pictures: what the sample door and the training read of it."""

import pytest

from exedit import stable_diffusion
from exedit.editing import jobs
from exedit.input_pipeline import few_pictures, prior
from exedit.input_pipeline.errors import DataError
from tests import few_pictures as folders
from tests.refusals import refusal


def test_the_list_makes_the_pictures_that_the_captions_name(tmp_path, capsys):
  folder = tmp_path / 'prior'
  flags = [f'--output={folder}', '--class=tea pot, dog', '--count=2', '--seed=7']
  prior.run(['prior', *flags])
  assert f'--edits={folder}/edits.csv' in capsys.readouterr().out
  system = stable_diffusion.SYSTEM
  found, faults = jobs.read(str(folder / prior.LIST), None, system, system.settings())
  assert not faults and [edit.settings.seed for edit in found] == [7, 8, 9, 10]
  prompts = [edit.inputs['prompt'] for edit in found]
  assert prompts == ['photo of a tea pot', 'photo of a dog'] * 2
  assert [edit.output for edit in found] == [str(folder / f'{i}.png') for i in range(4)]
  folders.write(folder, 3)
  with pytest.raises(DataError, match='a caption that belongs to no picture, 3.png'):
    few_pictures.read(str(folder))
  folders.write(folder, 4)
  assert [picture.caption for picture in few_pictures.read(str(folder))] == prompts


def test_what_makes_no_list_is_refused(tmp_path, capsys):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'a').touch()
  for flags, says in (
    (['--class=dog,', '--output=new'], 'name a noun'),
    (['--class=dog', '--output=new', '--template=photo'], 'write {} where it stands'),
    (['--class=dog', f'--output={tmp_path}/full'], 'is a folder with files in it'),
  ):
    assert says in refusal(capsys, prior.run, ['prior', *flags])
