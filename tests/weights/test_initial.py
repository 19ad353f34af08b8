"""The weights that a training can start from, and those that it must refuse."""

import json

import numpy as np
import pytest

from exedit import paint_by_example as pbe
from exedit.runtime.errors import UserError
from exedit.weights import find, translate
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.tables import clip as clip_table
from tests import released

SETTINGS = {**released.SMALL, 'dtype': 'bfloat16', 'p_drop': 0.5}  # these two change no weight
NAME = 'unet.conv_in.kernel'


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
  return str(released.write_clip(tmp_path_factory.mktemp('released') / 'clip'))


def read(given):
  return {name: tensor.read() for name, tensor in given.items()}


def test_from_paint_by_example(tmp_path):
  given = read(pbe.start(str(released.write_pipeline(tmp_path / 'a')), None, SETTINGS))
  for name, array in released.params().items():
    np.testing.assert_array_equal(given[name], array)


def text_source(layout, tmp_path):
  if layout == 'diffusers':
    return str(released.to_text_pipeline(released.write_pipeline(tmp_path / 'sd')))
  arrays = released.text_checkpoint()
  note = tmp_path / 'sd.yaml'  # the numbers of heads and groups are not the published ones
  note.write_text(
    json.dumps(
      dict(
        model=dict(
          params=dict(
            linear_start=0.00085,
            linear_end=0.012,
            scale_factor=0.18215,
            unet_config=dict(params=dict(num_heads=2)),
            first_stage_config=dict(params=dict(ddconfig={})),
          )
        )
      )
    )
  )
  return str(released.write_checkpoint(tmp_path / 'sd.safetensors', arrays))


@pytest.mark.parametrize('layout', ['diffusers', 'original'])
def test_from_stable_diffusion_and_clip(layout, clip, tmp_path, monkeypatch):
  """Five channels of zeros follow the four, as in PbE scripts/modify_checkpoints.py."""
  settings = SETTINGS
  if layout == 'original':  # the given number of groups holds for all networks
    monkeypatch.setattr('exedit.weights.layouts.original_config.GROUPS', 4)
    settings = {**SETTINGS, 'unet': {**released.UNET, 'groups': 4}}
  given = read(pbe.start(text_source(layout, tmp_path), clip, settings))
  plain, tower = released.params(), released.params(seed=3)
  assert given.keys() == {name for name in plain if not name.startswith('conditioner.')}
  for name, array in given.items():
    expected = tower[name] if name.startswith('clip.') else plain[name]
    if name == NAME:
      assert array.shape == expected.shape == (3, 3, 9, 16)
      np.testing.assert_array_equal(array[:, :, :4], expected[:, :, :4])
      assert not array[:, :, 4:].any()
    else:
      np.testing.assert_array_equal(array, expected, err_msg=name)


def test_from_what_the_original_training_started_from(clip, tmp_path, monkeypatch):
  """sd-v1-4-modified-9channel.ckpt: the last five of its nine channels are zeros."""
  monkeypatch.setattr('exedit.weights.layouts.original_config.GROUPS', 4)
  settings = {**SETTINGS, 'unet': {**released.UNET, 'groups': 4}}
  src = text_source('original', tmp_path)
  arrays = released.text_checkpoint(channels=9)
  kernel = arrays['model.diffusion_model.input_blocks.0.0.weight']
  with pytest.raises(UserError, match='is an inpainting model'):
    released.write_checkpoint(src, arrays)
    pbe.start(src, clip, settings)
  kernel[:, 4:] = 0
  released.write_checkpoint(src, arrays)
  given = read(pbe.start(src, clip, settings))
  np.testing.assert_array_equal(given[NAME], kernel.transpose(2, 3, 1, 0))


@pytest.mark.parametrize('form', ['tower', 'file', 'bare file'])
def test_clip_in_every_form(form, tmp_path):
  src = released.write_clip(tmp_path / 'clip', text=form == 'tower')
  if form != 'tower':
    file = tmp_path / 'clip.safetensors'
    arrays = {n: tensor.read() for n, tensor in open_tensors(src / 'model.safetensors').items()}
    strip = 'vision_model.' if form == 'bare file' else ''
    save_tensors(file, {n.removeprefix(strip): a for n, a in arrays.items()})
    src = file
  given = read(pbe.start(None, str(src), SETTINGS))
  expected = {n: a for n, a in released.params(seed=3).items() if n.startswith('clip.')}
  assert given.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(given[name], array)


def test_a_file_of_a_tower_whose_heads_no_shape_tells(tmp_path):
  sizes = {**released.CLIP, 'width': 48, 'heads': 3}
  settings = {**SETTINGS, 'clip': sizes}
  arrays = {n: a for n, a in released.params(settings).items() if n.startswith('clip.')}
  table = translate.under('', 'clip.', clip_table.TABLE)
  save_tensors(tmp_path / 'clip.safetensors', translate.to_theirs(table, arrays))
  given = read(pbe.start(None, str(tmp_path / 'clip.safetensors'), settings))
  assert given.keys() == arrays.keys()  # the model's own number is taken
  with pytest.raises(UserError, match='of width 48, whose number of heads is not known'):
    find.clip_tower(tmp_path / 'clip.safetensors')


def test_the_image_tower_must_come_from_somewhere_and_from_one_place(clip, tmp_path):
  pipeline = released.write_pipeline(tmp_path / 'pbe')
  with pytest.raises(UserError, match='has its own image tower: leave out --config.init_clip'):
    pbe.start(str(pipeline), clip, SETTINGS)
  text = released.to_text_pipeline(pipeline)
  with pytest.raises(UserError, match='has no image tower: give one as --config.init_clip='):
    pbe.start(str(text), None, SETTINGS)


@pytest.mark.parametrize(
  ('part', 'change', 'words'),
  [
    ('unet', dict(heads=4), 'unet.heads is 2 there and 4 in config.model'),
    ('unet', dict(groups=4), 'unet.groups is 8 there and 4'),
    ('unet', dict(channels=32), 'unet.channels is 16 there and 32'),
    ('autoencoder', dict(scale=0.2), 'autoencoder.scale is 0.18215 there and 0.2'),
    ('clip', dict(heads=2), 'clip.heads is 1 there and 2'),
    ('schedule', dict(prediction='v'), 'schedule.prediction is eps there and v'),
  ],
)
def test_another_architecture_is_named_even_where_the_shapes_agree(tmp_path, part, change, words):
  src = released.export(tmp_path / 'a')
  settings = {**SETTINGS, part: {**SETTINGS.get(part, {}), **change}}
  with pytest.raises(UserError, match=words) as error:
    pbe.start(str(src), None, settings)
  assert '\n' not in str(error.value)


def test_defaults_are_compared_too(tmp_path):
  src = released.export(tmp_path / 'a')
  own = {name: value for name, value in released.UNET.items() if name != 'heads'}
  with pytest.raises(UserError, match='unet.heads is 2 there and 8'):
    pbe.start(str(src), None, {**SETTINGS, 'unet': own})


def test_a_tower_of_another_size_or_kind(clip, tmp_path):
  settings = {**SETTINGS, 'clip': {**released.CLIP, 'layers': 5}}
  with pytest.raises(UserError, match='clip.layers is 4 there and 5'):
    pbe.start(None, clip, settings)
  other = released.write_clip(tmp_path / 'clip', text=False)
  released.change_json(other / 'config.json', hidden_act='gelu')
  with pytest.raises(UserError, match="hidden_act is 'gelu'"):
    pbe.start(None, str(other), SETTINGS)
