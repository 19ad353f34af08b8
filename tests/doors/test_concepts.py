"""Concepts through the doors: pictures with them, their recipes, and what is refused."""

import json
import re
import shutil

import pytest

from exedit import evaluate, stable_diffusion
from exedit.concepts import files
from exedit.weights import find
from tests import concepts_made
from tests.refusals import refusal
from tests.small_text import export
from tests.systems.test_third_system import open_sample_door


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with weights, the concepts a and b, whose word is <new1>, and a style without keys."""
  folder = tmp_path_factory.mktemp('concepts')
  base = find.weights(export(folder, stable_diffusion.SYSTEM))
  for name, words, how in (
    ('a', ('<new1>',), {}),
    ('b', ('<new1>',), dict(seed=1)),
    ('style', ('<new1>',), dict(seed=2, kernels=False)),
    ('two', ('<one>', '<two>'), dict(kernels=False)),
  ):
    files.write(folder / f'{name}.safetensors', concepts_made.made(base, words, **how))
  return folder


def test_a_concept_counts_in_the_recipe_and_replays(folder, tmp_path, capsys):
  (tmp_path / 'lr=1').mkdir()
  own = shutil.copy(folder / 'a.safetensors', tmp_path / 'lr=1' / 'own.safetensors')
  given = dict(weights=folder / 'weights', prompt='photo of <new1> <style>', steps=2)
  named = f'{own},<style>={folder / "style.safetensors"}'
  open_sample_door(**given, concept=named, output=tmp_path / 'out.png')
  recipe = json.loads((tmp_path / 'out.json').read_text())
  listed = recipe['weights']['concepts']
  assert [entry['word'] for entry in listed] == ['', '<style>']
  assert listed[0]['path'] == 'lr=1/own.safetensors'
  open_sample_door(replay=tmp_path / 'out.json')
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')
  edits = tmp_path / 'list.jsonl'
  edits.write_text(json.dumps(dict(prompt=given.pop('prompt'), output='out.png')))
  open_sample_door(**given, concept=named, edits=edits, output=tmp_path)
  assert '1 of 1 edits are finished already' in capsys.readouterr().out
  shutil.copy(folder / 'b.safetensors', own)
  said = refusal(capsys, open_sample_door, replay=tmp_path / 'out.json')
  assert 'holds other concepts, weights or another tokenizer' in said
  own.rename(tmp_path / 'moved')
  said = refusal(capsys, open_sample_door, replay=tmp_path / 'out.json')
  assert 'own.safetensors, is not here: name it with --concept' in said
  moved = f'{tmp_path}/moved,{named.partition(",")[2]}'
  said = refusal(capsys, open_sample_door, replay=tmp_path / 'out.json', concept=moved)
  assert 'holds other concepts' in said  # it is b's
  shutil.copy(folder / 'a.safetensors', tmp_path / 'moved')
  open_sample_door(replay=tmp_path / 'out.json', concept=moved)
  assert capsys.readouterr().out.endswith('identical to the recorded pixels\n')


@pytest.mark.parametrize(
  'concept, says',
  [
    ('{}/a.safetensors,<b>={}/b.safetensors', 'both set unet.* merge them into one first'),
    ('{}/a.safetensors,{}/style.safetensors', 'two concepts teach the same word'),
    ('<b>={}/two.safetensors', "has 2 words .*'<b>' cannot stand for one"),
    ('red={}/style.safetensors', "'red' is one token already"),
    ('{}/none.safetensors', 'none.safetensors does not exist: name the file of a concept'),
    ('', '--concept is empty'),
    (None, 'no concept teaches these weights <new1>: name it with --concept'),
  ],
)
def test_what_is_refused(folder, tmp_path, capsys, concept, says):
  given = dict(weights=folder / 'weights', prompt='a <new1> ball', output=tmp_path / 'out.png')
  if concept is not None:
    given |= dict(concept=concept.replace('{}', str(folder)))
  assert re.search(says, refusal(capsys, open_sample_door, **given))
  assert not [*tmp_path.iterdir()]


def test_an_evaluation_takes_a_concept_with_weights_only(folder, tmp_path, capsys):
  how = ('--config=configs/coco_ee.py', '--config.data.root=x', f'--concept={folder}/a.safetensors')
  said = refusal(
    capsys, evaluate.run, ['evaluate', *how, f'--images={tmp_path}', f'--output={tmp_path}/out']
  )
  assert 'but --images has the edits already: leave it out' in said
