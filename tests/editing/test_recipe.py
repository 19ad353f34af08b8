import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exedit import images
from exedit.editing import edit_files, framing, recipe, replay
from exedit.paint_by_example import SYSTEM
from exedit.runtime import files
from exedit.runtime.errors import UserError
from tests import ROOT, pictures, small


@pytest.fixture(scope='module', autouse=True)
def quickly():
  with small.loaded_once():
    yield


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A folder with weights, inputs and an edit of them, out.png and out.json."""
  folder = tmp_path_factory.mktemp('made')
  small.export(folder / 'small')
  pictures.write(folder, 24, 30, 6, 7, 18, 21)
  Image.new('L', (20, 9), 255).save(folder / 'subject.png')
  make(folder, 'out.png')
  return folder


def make(folder, output, **settings):
  paths = dict(image='photo.png', mask='mask.png', exemplar='ex.png', weights='small')
  paths = {name: str(folder / path) for name, path in paths.items()}
  return edit_files.edit_once(**paths, output=str(folder / output), say=print, seed=3, **settings)


@pytest.fixture
def folder(made, tmp_path):
  """The same, moved elsewhere: the recipe's paths are seen from its own folder."""
  shutil.copytree(made, tmp_path / 'moved')
  return tmp_path / 'moved'


def again(path, output=None, **changes):
  said = []
  return replay.replay(str(path), output, say=said.append, **changes), said


def pixels(path):
  return np.asarray(Image.open(path))


def change(path, **values):
  """Set dotted keys of a JSON file; None removes them."""
  found = json.loads(path.read_text())
  for dotted, value in values.items():
    *parents, name = dotted.split('__')
    inner = found
    for parent in parents:
      inner = inner[parent]
    if value is None:
      del inner[name]
    else:
      inner[name] = value
  path.write_text(json.dumps(found))


# what is in it


def test_the_recipe_says_what_the_pixels_depend_on(made):
  found = json.loads((made / 'out.json').read_text())
  assert found['inputs']['mask'] == dict(path='mask.png', sha256=files.sha256(made / 'mask.png'))
  assert found['weights']['source'] == 'small' and found['weights']['step'] == 12
  assert len(found['weights']['digest']) == 64
  own = dict(steps=3, scale=2.0, sampler='ddim', seed=3)
  assert own.items() <= found['settings'].items()
  assert set(found['settings']) == {field.name for field in dataclasses.fields(SYSTEM.settings)}
  assert found['frame'] == dict(top=0, left=0, height=24, width=30, size=[16, 20])
  assert found['precision'] == 'float32' and found['batch'] == 1
  versions = ('exedit', 'jax', 'flax', 'numpy', 'pillow', 'python', 'device')
  assert all(found['versions'][name] for name in versions)
  assert found['output']['sha256'] == recipe.pixel_digest(pixels(made / 'out.png'))
  with Image.open(made / 'out.png') as file:
    assert file.info['exedit'] == (made / 'out.json').read_text()


def test_it_reads_back_as_it_was(made):
  from_json = recipe.read(str(made / 'out.json'))
  assert from_json == recipe.read(str(made / 'out.png'))
  assert from_json.frame == framing.Frame(0, 0, 24, 30, (16, 20))
  assert from_json.text() == (made / 'out.json').read_text()


def test_norecipe_leaves_neither(folder):
  make(folder, 'plain.png', keep_recipe=False)
  assert not (folder / 'plain.json').exists()
  assert 'exedit' not in Image.open(folder / 'plain.png').info


def test_norecipe_takes_the_stale_recipe_of_what_it_replaces_away(folder):
  make(folder, 'out.png', keep_recipe=False)
  assert not (folder / 'out.json').exists()


# replay


@pytest.mark.parametrize('name', ['out.json', 'out.png'])
def test_replay_gives_the_same_file_byte_by_byte(folder, name):
  path, said = again(folder / name)
  assert path == str(folder / 'out-replay.png') and said[-1].endswith(
    'identical to the recorded pixels'
  )
  assert Path(path).read_bytes() == (folder / 'out.png').read_bytes()
  assert (folder / 'out-replay.json').read_text() == (folder / 'out.json').read_text()


def test_replay_needs_only_the_png_and_takes_moved_paths(folder, tmp_path):
  (folder / 'out.json').unlink()
  (tmp_path / 'far').mkdir()
  names = dict(image='photo.png', mask='mask.png', exemplar='ex.png')
  for name, path in names.items():
    names[name] = str(shutil.move(folder / path, tmp_path / 'far' / f'new-{path}'))
  with pytest.raises(UserError, match='photo.png does not exist: name the image of .* --image'):
    again(folder / 'out.png')
  weights = str(shutil.move(folder / 'small', tmp_path / 'far' / 'weights'))
  path, said = again(folder / 'out.png', str(tmp_path / 'far' / 'b.png'), weights=weights, **names)
  assert 'identical' in said[-1] and 'not' not in said[-1]
  assert json.loads((tmp_path / 'far' / 'b.json').read_text())['inputs']['mask']['path'] == (
    'new-mask.png'
  )


@pytest.mark.parametrize(
  'output, settings',
  [
    ('b.jpg', dict(guidance_interval='0.20,0.8')),
    ('c.webp', dict(zoom='context', feather=1.0, match='none', exemplar_fit='pad')),
    ('d.png', dict(paste=False, precision='bfloat16', steps=6, spacing='ldm')),
    ('e.png', dict(num_samples=3, batch_size=3)),
  ],
)
def test_replay_of_every_kind(folder, output, settings):
  make(folder, output, exemplar_mask=str(folder / 'subject.png'), **settings)
  several = 'num_samples' in settings
  path, said = again(folder / (output[0] + ('-2' if several else '') + '.json'))
  assert path.endswith('-replay' + output[1:]) and 'identical to the recorded' in said[-1]
  recorded = recipe.read(images.recipe_path(path))
  assert recorded.batch == settings.get('batch_size', 1)
  assert set(recorded.inputs) == {entry.name for entry in SYSTEM.inputs}


def test_replay_of_an_edit_of_a_list_of_several(folder):
  row = dict(image='photo.png', mask='mask.png', exemplar='ex.png')
  rows = [row | dict(output=f'l{i}.png', seed=i) for i in range(3)]
  (folder / 'list.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  edit_files.edit_list(str(folder / 'small'), str(folder / 'list.jsonl'), batch_size=2, say=print)
  for i in range(3):
    path, said = again(folder / f'l{i}.json')
    assert 'identical' in said[-1] and 'not' not in said[-1]
    assert Path(path).read_bytes() == (folder / f'l{i}.png').read_bytes()


def test_replay_says_how_far_off_it_is(folder):
  change(folder / 'out.json', output__sha256='0' * 64)
  off = pixels(folder / 'out.png').copy()
  off[0, 0] ^= 8
  Image.fromarray(off).save(folder / 'out.png')
  _, said = again(folder / 'out.json')
  assert 'not identical: 0.14% of the pixels differ, by at most 8 of 255 (PSNR 58' in said[-1]
  (folder / 'out.png').unlink()
  assert 'not here to be compared' in again(folder / 'out.json')[1][-1]


def test_other_versions_are_noted(folder):
  change(folder / 'out.json', versions__jax='0.1', versions__device='TPU v9')
  _, said = again(folder / 'out.json')
  notes = [line for line in said if line.startswith('note')]
  assert len(notes) == 2 and 'jax was 0.1 and is ' in notes[0] and 'TPU v9' in notes[1]
  assert 'identical' in said[-1]


def test_another_window_than_today_is_used_as_recorded(folder):
  change(folder / 'out.json', frame__size=[24, 30])
  _, said = again(folder / 'out.json')
  assert any('another window' in line for line in said) and 'not identical' in said[-1]
  assert recipe.read(str(folder / 'out-replay.json')).frame.size == (24, 30)


def test_a_replay_says_that_it_replaces_and_keeps_when_it_is_asked_to(folder):
  path, said = again(folder / 'out.json', str(folder / 'new' / 'again.png'))
  assert 'replaced' not in said[-1] and 'identical to the recorded' in said[-1]
  assert f'{path} (replaced)' in again(folder / 'out.json', path)[1][-1]
  assert 'kept as' in again(folder / 'out.json', path, keep=True)[1][-1]
  assert (folder / 'new' / 'again-old.json').exists()


def test_a_scaled_mask_is_scaled_again(folder):
  Image.fromarray(pictures.box(48, 60, 12, 14, 36, 42)).save(folder / 'mask.png')
  make(folder, 'scaled.png', scale_mask=True)
  path, said = again(folder / 'scaled.json')
  assert 'identical to the recorded pixels' in said[-1]
  assert recipe.read(path).settings['scale_mask'] is True


def test_an_output_that_cannot_be_written_is_refused_before_the_weights_are_read(
  folder, monkeypatch
):
  monkeypatch.setattr(replay, 'Session', lambda *_, **__: pytest.fail('the weights were read'))
  for output in ('/proc/x.png', '/dev/null'):
    with pytest.raises(UserError, match='takes no new files|pipe or device'):
      again(folder / 'out.json', output)


def test_a_recipe_of_an_older_exedit_gives_the_same_picture(tmp_path):
  """Commit 1404a88 made the file, with weights/tiny and docs/example."""
  old = str(shutil.copy(ROOT / 'tests/fixtures/recipe_of_1404a88.png', tmp_path / 'old.png'))
  names = ('image', 'mask', 'exemplar')
  inputs = {name: str(ROOT / 'docs/example' / f'{name}.png') for name in names}
  path, _ = again(old, weights=str(ROOT / 'weights/tiny'), **inputs)
  assert np.abs(np.int16(pixels(path)) - pixels(old)).max() <= 2  # other machines round otherwise
  assert recipe.read(old).asked() == recipe.read(path).asked()
  assert 'spacing' not in recipe.read(old).settings
  settings = recipe.read(path).settings
  assert (settings['spacing'], settings['guidance_interval']) == ('leading', '0,1')


# what is refused


@pytest.mark.parametrize('name, path', [('image', 'photo'), ('mask', 'mask'), ('exemplar', 'ex')])
def test_inputs_with_other_bytes_are_refused(folder, name, path):
  Image.open(folder / f'{path}.png').save(folder / f'{path}.png', compress_level=1)
  with pytest.raises(UserError, match=f'{path}.png is not the {name} of .*--{name}'):
    again(folder / 'out.json')


def test_other_weights_are_refused(folder):
  config = folder / 'small' / 'config.json'
  config.write_text(config.read_text().replace('"seed": 0', '"seed": 1') + '\n')
  from safetensors.numpy import load_file, save_file

  tensors = load_file(folder / 'small' / 'model.safetensors')
  save_file({k: v + 1 for k, v in tensors.items()}, folder / 'small' / 'model.safetensors')
  with pytest.raises(UserError, match='small .*--weights|small .*damaged'):
    again(folder / 'out.json')
  assert not (folder / 'out-replay.png').exists()


def test_weights_whose_settings_mean_something_else_are_other_weights(folder):
  config = folder / 'small' / 'config.json'
  found = json.loads(config.read_text())
  found['model']['schedule'] = dict(prediction='x0')
  config.write_text(json.dumps(found))
  with pytest.raises(UserError, match='holds other weights'):
    again(folder / 'out.json')


def test_a_strangers_recipe_fetches_no_weights(folder):
  change(folder / 'out.json', weights__source='somebody/something')
  with pytest.raises(UserError, match='somebody/something, are not here: name them with --weights'):
    again(folder / 'out.json')


def test_nothing_that_went_in_is_overwritten(folder):
  before = {path: path.read_bytes() for path in folder.glob('*.*')}
  for output, says in (
    ('out.png', 'also an input'),
    ('photo.png', 'also an input'),
    ('photo.png/b.png', 'is not a folder'),
    ('b.jpg', 'another kind than the recorded .png'),
  ):
    with pytest.raises(UserError, match=says):
      again(folder / 'out.json', str(folder / output))
  with pytest.raises(UserError, match='had no exemplar_mask'):
    again(folder / 'out.json', exemplar_mask=str(folder / 'mask.png'))
  assert {path: path.read_bytes() for path in folder.glob('*.*')} == before


@pytest.mark.parametrize(
  'values, says',
  [
    (dict(settings=None), 'settings is missing'),
    (dict(settings__steps=None), 'settings.steps is missing'),
    (dict(settings__steps='3'), "settings.steps is '3'"),
    (dict(settings__steps=10**9), 'settings.steps is 1000000000'),
    (dict(settings__sampler='euler'), 'settings.sampler'),
    (dict(settings__spacing='even'), 'settings.spacing'),
    (dict(settings__colour='red'), 'settings.colour is not a setting'),
    (dict(exedit=9), 'format 9'),
    (dict(exedit=True), 'exedit is True'),
    (dict(batch=0), 'batch is 0'),
    (dict(batch=10**9), 'batch is 1000000000'),
    (dict(weights=[]), 'weights is no object'),
    (dict(weights__digest=3), 'weights.digest is 3'),
    (dict(inputs__mask='m.png'), 'inputs.mask is no object'),
    (dict(inputs__mask__sha256=None), 'inputs.mask.sha256 is missing'),
    (dict(inputs__mask=None), 'its inputs are image, exemplar'),
    (dict(inputs__face=dict(path='a', sha256='b')), 'its inputs are'),
    (dict(frame__top=-1), 'frame.top is -1'),
    (dict(frame__height=25), 'frame.height is 25'),
    (dict(frame__left=1), 'frame.left is 1'),
    (dict(frame__size=[16]), 'frame.size'),
    (dict(frame__size=[16, 10**6]), 'frame.size'),
    (dict(frame__size=[16, 0.5]), 'frame.size'),
    (dict(frame__size=[4000, 4000]), 'frame.size is .* trained at 16'),
    (dict(frame__top=20, frame__height=4), 'leaves the frame'),
    (dict(output__height=23, frame__height=23), 'not of the size'),
    (dict(precision='int4'), 'int4'),
    (dict(output__ending='/../../photo.png'), 'output.ending is'),
    (dict(output__ending='.tiff'), 'output.ending is'),
  ],
)
def test_a_damaged_recipe_is_one_line(folder, values, says):
  change(folder / 'out.json', **values)
  with pytest.raises(UserError, match=says.replace('[', r'\[').replace(']', r'\]')) as caught:
    again(folder / 'out.json')
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500
  assert not (folder / 'out-replay.png').exists()


def test_what_is_no_recipe(folder):
  text = (folder / 'out.json').read_text()
  bad = {
    'cut.json': text[:200].encode(),
    'empty.json': b'',
    'list.json': b'[1, 2]',
    'deep.json': b'[' * 100000,
    'binary.json': b'\xff\xfe\x00',
    'large.json': b' ' * (recipe.LARGEST_FILE + 1),
    'cut.png': (folder / 'out.png').read_bytes()[:100],
  }
  for name, data in bad.items():
    (folder / name).write_bytes(data)
  for name in [*bad, 'none.json', 'photo.png', 'small', 'mask.txt']:
    with pytest.raises(UserError) as caught:
      again(folder / name)
    assert name in str(caught.value) and '\n' not in str(caught.value)


# is an output finished?


def test_finished_outputs_are_known_by_what_was_asked(folder):
  out, asked = str(folder / 'out.png'), recipe.read(str(folder / 'out.json')).asked()
  assert recipe.finished(out, asked) == 'yes'
  for key, value in (('weights', 'x'), ('precision', 'bfloat16'), ('inputs', {})):
    assert recipe.finished(out, asked | {key: value}) == 'no'
  other = asked | dict(settings=asked['settings'] | dict(seed=4))
  assert recipe.finished(out, other) == 'no'
  retouched = pixels(out).copy()
  retouched[0, 0] ^= 1
  Image.fromarray(retouched).save(out)
  assert recipe.finished(out, asked) == 'changed'
  Path(out).write_bytes(Path(out).read_bytes()[:300])
  assert recipe.finished(out, asked) == 'no'
  os.remove(out)
  assert recipe.finished(out, asked) == 'no'


def test_a_strength_that_is_not_given_is_the_usual_one():
  asked = lambda strength, **inputs: recipe.asked('x', inputs, dict(strength=strength), 'float32')
  said = dict(sha256='y')
  assert asked(None, prompt=said) == asked(0.8, prompt=said) != asked(0.5, prompt=said)
  both = dict(prompt=said, target=said)
  assert asked(None, **both) == asked(0.5, **both) != asked(0.8, **both)


def test_a_jpeg_is_finished_where_it_decodes(folder):
  make(folder, 'b.jpg')
  asked = recipe.read(str(folder / 'b.json')).asked()
  assert recipe.finished(str(folder / 'b.jpg'), asked) == 'yes'
  (folder / 'b.jpg').write_bytes((folder / 'b.jpg').read_bytes()[:200])
  assert recipe.finished(str(folder / 'b.jpg'), asked) == 'no'


def test_a_file_that_is_no_recipe_is_not_replaced(folder):
  assert recipe.stranger(str(folder / 'out.png')) is None
  assert recipe.stranger(str(folder / 'new.png')) is None
  (folder / 'new.json').write_text('{"settings": 1}')
  assert 'new.json is there' in (recipe.stranger(str(folder / 'new.png')) or '')
