"""Merging concepts: the closed form against least squares, what it keeps, and what is refused."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from exedit import convert, stable_diffusion, systems
from exedit.concepts import concept as concepts
from exedit.concepts import files, merge
from exedit.runtime.errors import UserError
from exedit.weights import find
from tests import concepts_made, small_text
from tests.concepts_made import MIDDLE
from tests.refusals import refusal

CAPTIONS = ('a red ball', 'photo of blue star', 'star of ball', 'red red photo', 'of blue')


def test_the_closed_form_is_the_constrained_least_squares():
  random = np.random.default_rng(0)
  kernel, regular, inputs, outputs = (
    random.normal(size=shape) for shape in ((12, 5), (40, 12), (4, 12), (4, 5))
  )
  found = merge.nearest(kernel, np.linalg.inv(regular.T @ regular), inputs, outputs)
  # all solutions of the constraint are `one + free @ z`; z is found by least squares
  one = np.linalg.lstsq(inputs, outputs, rcond=None)[0]
  free = np.linalg.svd(inputs)[2][4:].T
  z = np.linalg.lstsq(regular @ free, regular @ (kernel - one), rcond=None)[0]
  np.testing.assert_allclose(found, one + free @ z, atol=1e-10)
  np.testing.assert_allclose(inputs @ found, outputs, atol=1e-12)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with weights, the concepts a and b, and captions."""
  folder = tmp_path_factory.mktemp('merge')
  base = find.weights(small_text.export(folder, stable_diffusion.SYSTEM))
  for seed, name in enumerate('ab'):
    made = concepts_made.made(base, (f'<{name}>',), seed=seed)
    about = dict(classes={f'<{name}>': ('ball', 'star')[seed]})
    files.write(folder / f'{name}.safetensors', dataclasses.replace(made, about=about))
  (folder / 'captions.txt').write_text('\n'.join(CAPTIONS))
  return folder


def door(folder, **flags):
  named = {'from': folder / 'weights', 'concept': f'{folder}/a.safetensors,{folder}/b.safetensors'}
  convert.run(['convert', *(f'--{name}={value}' for name, value in {**named, **flags}.items())])


def test_merged_each_concept_keeps_its_outputs(folder, tmp_path, capsys):
  door(folder, to=tmp_path / 'c.safetensors', captions=folder / 'captions.txt')
  said = capsys.readouterr().out
  assert 'exedit layout, <a>, <b>, 14 kernels' in said
  assert float(re.search(r'are ([\d.]+)% off theirs', said).group(1)) < 0.1
  base, merged = find.weights(folder / 'weights'), files.read(tmp_path / 'c.safetensors')
  weights = concepts.applied(base, [merged])
  model, spell = systems.load(weights), stable_diffusion.tokenizer(weights)
  read = lambda *texts: np.asarray(jax.jit(model.text)(np.stack([spell(t) for t in texts])))
  for name, context in zip('ab', read('photo of a <a> ball', 'photo of a <b> star')):
    alone = files.read(folder / f'{name}.safetensors').kernels[MIDDLE]
    new = context[4 : 4 + 2]  # the word and its class
    np.testing.assert_allclose(new @ merged.kernels[MIDDLE], new @ alone, rtol=0, atol=1e-3)
  assert merged.about == dict(merged=[dict(classes={'<a>': 'ball'}), dict(classes={'<b>': 'star'})])


def test_words_without_kernels_need_no_captions(folder, tmp_path):
  base = find.weights(folder / 'weights')
  style = concepts_made.made(base, ('<style>',), seed=3, kernels=False)
  a = files.read(folder / 'a.safetensors')
  made, off = merge.merged(base, [a, style], [])
  assert [*made.tokens] == ['<a>', '<style>'] and off == 0 and made.base == a.base
  assert all((made.kernels[n] == array).all() for n, array in a.kernels.items())


@pytest.mark.parametrize(
  'flags, says',
  [
    ({}, 'name a file with about 200 captions, one a line, as --captions'),
    (dict(captions='{}/one.txt'), '1 captions are too few or too alike .* of 16 directions'),
    (dict(captions='{}/none.txt'), 'none.txt cannot be read as text'),
    (dict(concept='{}/a.safetensors,{}/a.safetensors'), 'two concepts teach the same word'),
    (dict(dtype='float16'), '--dtype does not go with --concept'),
    (dict(concept='{}/a.safetensors', to='{}/a.safetensors'), 'a.safetensors exists'),
    (dict(concept='{}/a.safetensors', to='{}/x.ckpt'), 'end its name in .safetensors'),
    (dict(concept='{}/a.safetensors', layout='adobe'), 'the layout adobe is one .bin'),
  ],
)
def test_what_is_refused(folder, tmp_path, capsys, flags, says):
  (folder / 'one.txt').write_text('red')
  given = {name: value.replace('{}', str(folder)) for name, value in flags.items()}
  line = refusal(capsys, door, folder, **dict(to=tmp_path / 'c.safetensors') | given)
  assert re.search(says, line), line
  assert not [*tmp_path.iterdir()]


def test_flags_and_arrays_that_do_not_go_together_are_refused(folder, tmp_path, capsys):
  argv = ['convert', f'--from={folder}/weights', f'--to={tmp_path}/c']
  assert '--rank does not go without' in refusal(capsys, convert.run, [*argv, '--rank=3'])
  assert 'holds a concept: name one' in refusal(capsys, convert.run, [*argv, '--layout=kohya'])
  base = find.weights(folder / 'weights')
  odd = dataclasses.replace(concepts_made.made(base), kernels={'unet.conv_in.bias': np.zeros(8)})
  with pytest.raises(UserError, match='change unet.conv_in.bias cannot be merged'):
    merge.merged(base, [odd, files.read(folder / 'a.safetensors')], CAPTIONS)
