"""The edits of a benchmark: each depends only on its id and the seed, and is made once."""

import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import coco_ee as coco_ee_config
from exedit import images, paint_by_example, stable_diffusion, systems
from exedit.concepts import files as concept_files
from exedit.editing.engine import Engine
from exedit.editing.settings import PhotoSettings
from exedit.evaluation import benchmark, coco_ee, make_edits
from exedit.input_pipeline.coco_ee.bench import Bench
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.layouts import own
from tests import bench, concepts_made, evaluations, small, small_text, vocabulary
from tests.evaluations import CHEAP, SIZE, refuse, score


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with evaluations.quickly():
    yield


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  return evaluations.world(tmp_path_factory.mktemp('world'))


@pytest.fixture(scope='module')
def given(world):
  """The arguments of an evaluation of the small weights without networks."""
  return dict(evaluations.plain(world), weights=str(world / 'weights'), **CHEAP)


@pytest.fixture(scope='module')
def scored(given, tmp_path_factory):
  """The folder of that evaluation."""
  place = tmp_path_factory.mktemp('scored') / 'out'
  score(place, **given)
  return place


@pytest.fixture
def edited(scored, tmp_path):
  """A copy of it for one test."""
  return shutil.copytree(scored, tmp_path / 'edited')


def picture(output, edit_id):
  return np.asarray(Image.open(f'{make_edits.folder(output)}/{edit_id:012d}.png'))


def pictures(output):
  return {edit_id: picture(output, edit_id) for edit_id in bench.IDS}


def assert_alike(found, expected):
  for edit_id, result in found.items():
    np.testing.assert_allclose(np.int16(result), expected[edit_id], atol=1)


def test_a_killed_run_continues_without_repeating_a_finished_edit(
  scored, given, tmp_path, monkeypatch
):
  output, made, rows = tmp_path / 'killed', [], []
  save, edit = images.save, Engine.edit

  def killed(pixels, path, **options):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(os.path.basename(path))
    return save(pixels, path, **options)

  given = dict(given, batch_size=1)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(images, 'save', killed)
    score(output, **given)
  place = make_edits.folder(output)
  assert sorted(os.listdir(place)) == sorted(made) and len(made) == 2
  half = os.path.join(place, f'{17:012d}.png.123.4.tmp')
  with open(half, 'w') as file:
    file.write('half')
  times = {name: os.stat(os.path.join(place, name)).st_mtime_ns for name in made}

  def counting(self, arrays, keys, *others):
    rows.append(len(keys))
    return edit(self, arrays, keys, *others)

  monkeypatch.setattr(Engine, 'edit', counting)
  score(output, **given)
  assert rows == [1, 1] and not os.path.exists(half)
  assert times == {name: os.stat(os.path.join(place, name)).st_mtime_ns for name in made}
  assert_alike(pictures(output), pictures(scored))


def test_an_edit_depends_on_its_id_and_the_seed_alone(world, tmp_path, scored, given):
  whole = pictures(scored)
  sub = bench.write(tmp_path / 'sub', ids=bench.IDS[2:], size=SIZE)
  for kind, name in (('GT', 'GT'), ('Mask_bbox', 'mask'), ('Ref', 'ref')):
    for edit_id in bench.IDS[2:]:
      file = f'{edit_id:012d}_{name}.png'
      shutil.copy(world / 'bench' / f'{kind}_4' / file, sub / f'{kind}_2' / file)
  given = dict(given, data=dict(root=str(sub)))
  score(tmp_path / 'a', **given)
  assert_alike({i: picture(tmp_path / 'a', i) for i in bench.IDS[2:]}, whole)
  score(tmp_path / 'b', **given, seed=7)
  assert (picture(tmp_path / 'b', 17) != whole[17]).any()


def test_keys_depend_on_all_bits_of_the_id():
  ids = [1, 1 + 2**32, 900100065455, 900100065455 % 2**32, 2**62]
  assert len({tuple(jax.random.key_data(make_edits.edit_key(3, i)).tolist()) for i in ids}) == 5


def test_two_processes_make_every_edit_once(scored, given, tmp_path, monkeypatch):
  output = tmp_path / 'shared'
  monkeypatch.setattr(jax, 'process_count', lambda *_: 2)

  def waiting(name):
    if name == 'made':
      raise TimeoutError

  monkeypatch.setattr(coco_ee.processes, 'wait_for_others', waiting)
  (output / 'results').mkdir(parents=True)
  monkeypatch.setattr(jax, 'process_index', lambda *_: 1)
  with pytest.raises(TimeoutError):  # its share is made; the other process has not started
    score(output, **given)
  second = set(os.listdir(make_edits.folder(output)))
  assert second == {f'{edit_id:012d}.png' for edit_id in bench.IDS[1::2]}
  shutil.move(make_edits.folder(output), tmp_path / 'kept')
  monkeypatch.setattr(jax, 'process_index', lambda *_: 0)
  made = []

  def come(name):
    if name == 'made':
      made.extend(os.listdir(make_edits.folder(output)))
      shutil.copytree(tmp_path / 'kept', make_edits.folder(output), dirs_exist_ok=True)
      monkeypatch.setattr(jax, 'process_count', lambda *_: 1)  # another test scores together

  monkeypatch.setattr(coco_ee.processes, 'wait_for_others', come)
  score(output, **given)
  assert sorted(made) == sorted(f'{edit_id:012d}.png' for edit_id in bench.IDS[::2])
  assert_alike(pictures(output), pictures(scored))


def test_without_paste_the_picture_is_the_raw_decode(given, tmp_path):
  results = score(tmp_path / 'raw', **given, paste=False)
  assert results['metrics']['background_exactness']['value'] < 0.5
  assert not results['sampling']['paste']


@pytest.mark.parametrize('paste', [True, False])
def test_the_network_sees_sources_at_the_size_that_it_was_trained_on(
  given, world, tmp_path, monkeypatch, paste
):
  """As `sample --zoom=off` shows a photo, and it is said before the weights are loaded."""
  weights, said, sizes = small.export(tmp_path / 'weights', 16), [], []
  edit = Engine.edit

  def noting(self, arrays, keys, size, settings):
    sizes.append((size, arrays['image'].shape[1:3], arrays['mask'].shape[1:3]))
    return edit(self, arrays, keys, size, settings)

  monkeypatch.setattr(Engine, 'edit', noting)
  asked = given | dict(weights=weights, say=said.append, paste=paste)
  results = score(tmp_path / 'out', **asked)
  assert sizes == [((16, 16),) * 3]
  assert 'their shorter side at 16 pixels' in said[0]
  assert results['sampling']['size'] == 16
  for position, edit_id in enumerate(bench.IDS):
    own_edit, result = Bench(given['data']['root'])[position], picture(tmp_path / 'out', edit_id)
    hole = own_edit['mask'] >= 128
    assert result.shape == (SIZE, SIZE, 3) and (result[hole] != own_edit['source'][hole]).any()
    assert (result[~hole] == own_edit['source'][~hole]).all() == paste
  asked['weights'] = small.export(tmp_path / 'twenty', 20)
  assert 'made with size 16, now it is 20' in refuse(str(tmp_path / 'out'), **asked)


def test_a_source_of_the_trained_size_is_shown_and_kept_unchanged(world):
  """The protocol of the published numbers: grey masks reach the network, results their pixels."""
  found, own_edit = find.weights(world / 'weights'), Bench(str(world / 'bench'), 8)[0]
  edit = benchmark.Edit(own_edit['id'], 0, own_edit['source'].shape[:2], {})
  frame = make_edits.frames(found, [edit])[edit.id]
  assert make_edits.scaled(found, [edit]) == {}
  grey = np.minimum(own_edit['mask'], 200)
  shown = make_edits.network_inputs(
    paint_by_example.SYSTEM, own_edit['source'], grey, own_edit['exemplar'], frame
  )
  np.testing.assert_array_equal(shown['image'], images.from_uint8(own_edit['source']))
  np.testing.assert_array_equal(shown['mask'][..., 0], grey / np.float32(255))
  raw = shown['image'][::-1]
  whole = make_edits.finished(raw, own_edit, frame, paste=False)
  np.testing.assert_array_equal(whole, own_edit['source'][::-1])


def test_the_published_settings_are_the_released_codes():
  config = coco_ee_config.get_config('published').to_dict()
  asked = dict(steps=50, scale=5.0, sampler='plms', spacing='ldm', mask_resize='bilinear')
  asked |= dict(paste=False, truncate=True, precision='float32', seed=42)
  assert asked.items() <= config.items()
  assert coco_ee_config.get_config().to_dict().keys() == config.keys()
  with pytest.raises(ValueError, match="no variant 'paper'; use own or published"):
    coco_ee_config.get_config('paper')


def test_truncated_bytes_are_rounded_down(given, tmp_path):
  rounded, lower = (
    score(tmp_path / name, **given, paste=False, **how)
    for name, how in (('rounded', {}), ('lower', dict(truncate=True)))
  )
  apart = [
    np.int16(picture(tmp_path / 'rounded', i)) - picture(tmp_path / 'lower', i) for i in bench.IDS
  ]
  assert set(np.unique(apart)) == {0, 1}
  assert lower['sampling'] == rounded['sampling'] | dict(truncate=True)
  line = refuse(str(tmp_path / 'lower'), **given, paste=False)
  assert 'made with truncate True, now it is None' in line


def test_spacing_is_a_setting_of_the_edits(scored, given, tmp_path):
  """7 of 1000 timesteps are 142 apart, so the original takes 8, from 995."""
  given = dict(given, steps=7)
  results = score(tmp_path / 'ldm', **given, spacing='ldm')
  assert results['sampling']['spacing'] == 'ldm'
  line = refuse(str(tmp_path / 'ldm'), **given)
  assert "made with spacing 'ldm', now it is None" in line
  score(tmp_path / 'leading', **given)
  assert (picture(tmp_path / 'ldm', 17) != picture(tmp_path / 'leading', 17)).any()
  line = refuse(str(tmp_path / 'b'), **dict(given, steps=9), spacing='ldm')
  assert "steps=9 with spacing 'ldm' would start at t=1000" in line


def test_edits_of_other_weights_are_never_mixed(edited, given, tmp_path):
  before = pictures(edited)
  line = refuse(str(edited), **(given | dict(steps=3)))
  assert 'made with steps 2, now it is 3: name another --output' in line
  changed = {name: 1.01 * array for name, array in small.params().items()}
  own.write(tmp_path / 'other', small.config(SIZE), changed, step=13)
  line = refuse(str(edited), **(given | dict(weights=str(tmp_path / 'other'))))
  assert 'made with weights' in line
  os.remove(edited / make_edits.CLAIM)
  assert f'no {make_edits.CLAIM}' in refuse(str(edited), **given)
  for edit_id, result in pictures(edited).items():
    np.testing.assert_array_equal(result, before[edit_id])


def test_a_result_that_is_not_finite_is_not_written(given, tmp_path, monkeypatch):
  monkeypatch.setattr(
    Engine, 'edit', lambda _, arrays, *others: jnp.full_like(arrays['image'], np.nan)
  )
  line = refuse(str(tmp_path / 'out'), **given)
  assert 'not finite' in line and os.listdir(tmp_path / 'out' / 'results') == []


def test_a_system_that_edits_from_a_text_is_refused(given, monkeypatch):
  entry = systems.Input('prompt', 'text', 'words')
  system = dataclasses.replace(paint_by_example.SYSTEM, inputs=(entry,))
  monkeypatch.setattr(systems, 'of', lambda weights: system)
  with pytest.raises(UserError, match='edits from prompt, but a benchmark has only sources'):
    make_edits.edit_settings(find.weights(given['weights']))


def test_a_setting_that_the_system_does_not_have_is_refused(given, monkeypatch):
  system = dataclasses.replace(paint_by_example.SYSTEM, name='other', settings=PhotoSettings)
  monkeypatch.setattr(systems, 'of', lambda weights: system)
  with pytest.raises(UserError, match='spacing is ldm, but other has no such setting'):
    make_edits.edit_settings(find.weights(given['weights']), spacing='ldm')


# Prompts


@pytest.fixture
def prompts(tmp_path):
  lines = ['id,category,prompt', *(f'{number},ball,' for number in bench.IDS[1:])]
  path = tmp_path / 'prompts.csv'
  path.write_text('\n'.join([*lines, f'{bench.IDS[0]},ball,a blue star']))
  return path


def test_a_prompt_is_the_column_or_the_template_of_the_category(prompts):
  found = make_edits.read_prompts(str(prompts), 'a photo of {category}', bench.IDS)
  assert list(found) == list(bench.IDS)
  assert [*found.values()] == ['a blue star', *['a photo of ball'] * 3]


@pytest.mark.parametrize(
  'ids, text, template, says',
  [
    ([5], 'id,prompt\n6,a', '{category}', 'has no prompt for 1 of 1 edits, the first is 5'),
    ([5], 'id,prompt\n5,', '{category}', 'line 2: edit 5 has neither prompt nor category'),
    ([5], 'id,prompt\nx,a', '{category}', "line 2: id is 'x': it must be a whole number"),
    ([5], 'id,prompt\n5.0,a', '{category}', "line 2: id is '5.0': it must be a whole number"),
    ([5], 'id,prompt\n5,a\n5,b', '{category}', 'line 3: edit 5 has a row already'),
    ([5], 'id,prompt\n5,a', 'a photo', "config.prompt is 'a photo': write it as"),
  ],
)
def test_prompts_that_do_not_fit_are_refused(tmp_path, ids, text, template, says):
  (tmp_path / 'a.csv').write_text(text)
  with pytest.raises(UserError, match=says):
    make_edits.read_prompts(str(tmp_path / 'a.csv'), template, ids)


def test_a_system_of_texts_makes_the_edits(world, given, prompts, tmp_path):
  weights = small_text.export(tmp_path / 'sd', stable_diffusion.SYSTEM)
  base, learned = find.weights(weights), tmp_path / 'concept.safetensors'
  concept_files.write(learned, concepts_made.made(base))
  how = dict(given, weights=weights, scale=1.0, strength=0.9, concept=str(learned))
  assert 'give config.prompts' in refuse(str(tmp_path / 'a'), **how)
  good, first = prompts.read_text(), f'the prompt of edit {bench.IDS[0]}'
  prompts.write_text(good.replace('a blue star', 'a ☃'))
  assert f'{first}: the vocabulary' in refuse(str(tmp_path / 'a'), **how, prompts=str(prompts))
  prompts.write_text(good.replace('a blue star', '<new1> ' * 12 + 'star'))
  said = []
  results = score(tmp_path / 'a', **how | dict(say=said.append), prompts=str(prompts))
  words = f"their ends: of edit {bench.IDS[0]} '<new1> <new1> star'"
  [line] = [line for line in said if 'too long' in line]
  assert line.startswith('1 of 4 prompts are too long') and line.endswith(words)
  assert len(results['weights']['tokenizer']) == len(results['weights']['concepts'][0]) == 64
  assert len(results['sampling']['prompts']) == 12 and results['sampling']['strength'] == 0.9
  mine = Bench(str(world / 'bench'), exemplar_size=None)
  for position, number in enumerate(mine.ids):
    edit = mine[position]
    kept = edit['mask'] < 128
    result = picture(tmp_path / 'a', int(number))
    np.testing.assert_array_equal(result[kept], edit['source'][kept])
    assert (result[~kept] != edit['source'][~kept]).any()
  line = refuse(str(tmp_path / 'a'), **how, prompts=str(prompts), prompt='a red {category}')
  assert 'made with prompts' in line
  concept_files.write(learned, concepts_made.made(base, seed=1))
  assert 'made with weights' in refuse(str(tmp_path / 'a'), **how, prompts=str(prompts))
  concept_files.write(learned, concepts_made.made(base))
  vocabulary.write(tmp_path / 'sd' / 'weights' / 'tokenizer', vocabulary.WORDS[::-1])
  line = refuse(str(tmp_path / 'a'), **how, prompts=str(prompts))
  assert 'made with tokenizer' in line


def test_prompts_without_a_use_are_refused(given, prompts, tmp_path):
  line = refuse(str(tmp_path / 'a'), **given, prompts=str(prompts))
  assert 'prompts are given, but paint_by_example takes no text' in line
  line = refuse(str(tmp_path / 'a'), **given, prompt='a photo of {category}')
  assert "prompt is 'a photo of {category}', but config.prompts names no list" in line
  done = dict(given, weights=None, pictures=str(tmp_path))
  assert 'but --images has the edits' in refuse(str(tmp_path / 'a'), **done, prompts=str(prompts))
