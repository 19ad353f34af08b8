"""Stable Diffusion in all layouts: bit-exact round trips, its tokenizer, other models by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from exedit import convert, stable_diffusion
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.layouts import foreign, own
from tests import released, vocabulary

EDIT = dict(steps=3, scale=2.0, sampler='ddim')


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """Small random weights with the autoencoder of Stable Diffusion, in exedit's layout."""
  folder = tmp_path_factory.mktemp('sd')
  size = vocabulary.write(folder / 'words')
  model = {name: released.SMALL[name] for name in ('unet', 'autoencoder')}
  text = dict(vocabulary=size, length=9, width=64, layers=2, heads=1, mlp=24)
  model = json.loads(json.dumps(model | dict(text=text, context_dim=64)))
  _, shapes = stable_diffusion.latent_diffusion.abstract(stable_diffusion.build, model)
  rng = np.random.default_rng(0)
  arrays = {n: np.float16(rng.standard_normal(a.shape)) for n, a in shapes.items()}
  config = dict(system='stable_diffusion', model=model, data=dict(size=32), edit=EDIT)
  own.write(folder / 'own', config, arrays, step=5, tokenizer=folder / 'words')
  return folder / 'own'


def same(found, expected):
  a, b = find.weights(found), find.weights(expected)
  assert a.kind == b.kind == 'stable_diffusion' and a.tensors.keys() == b.tensors.keys()
  for name, tensor in a.tensors.items():
    other = b.tensors[name]
    assert tensor.dtype == other.dtype
    np.testing.assert_array_equal(tensor.read(), other.read())
  text = 'a blue star'
  np.testing.assert_array_equal(
    stable_diffusion.tokenizer(a)(text), stable_diffusion.tokenizer(b)(text)
  )
  complete = stable_diffusion.complete
  assert complete(a.config['model']) == complete(b.config['model'])


def quiet(src, to, **how):
  convert.convert(str(src), str(to), say=lambda line: None, **how)


def test_round_trips_are_exact(weights, tmp_path):
  quiet(weights, tmp_path / 'pipeline', layout='diffusers')
  same(tmp_path / 'pipeline', weights)
  quiet(tmp_path / 'pipeline', tmp_path / 'a.safetensors', layout='original')
  assert (tmp_path / 'tokenizer' / 'vocab.json').exists()
  same(tmp_path / 'a.safetensors', weights)
  quiet(tmp_path / 'a.safetensors', tmp_path / 'b.ckpt', layout='original')
  quiet(tmp_path / 'b.ckpt', tmp_path / 'back', layout='exedit')
  same(tmp_path / 'back', weights)
  assert own.read_config(tmp_path / 'back')['system'] == 'stable_diffusion'


def test_names_are_those_of_the_published_files(weights, tmp_path):
  quiet(weights, tmp_path / 'a.safetensors', layout='original')
  names = {*open_tensors(tmp_path / 'a.safetensors')}
  tower = 'cond_stage_model.transformer.text_model.'
  assert f'{tower}embeddings.token_embedding.weight' in names
  assert f'{tower}encoder.layers.1.self_attn.q_proj.bias' in names
  starts = ('model.diffusion_model.', 'first_stage_model.', tower)
  assert all(name.startswith(starts) for name in names)
  # As published, a file has no note. Its shapes and exedit's flags tell the same sizes.
  bare = {n: t.read() for n, t in open_tensors(tmp_path / 'a.safetensors').items()}
  save_tensors(tmp_path / 'bare.safetensors', bare)
  found = find.weights(tmp_path / 'bare.safetensors', heads=2, groups=4)
  assert found.config['edit'] == dict(steps=50, scale=7.5, sampler='plms')
  assert found.config['model']['text'] == find.config(weights)['model']['text']


def test_what_a_layout_cannot_hold_is_refused_before_anything_is_written(weights, tmp_path):
  bare = tmp_path / 'bare'
  shutil.copytree(weights, bare)
  shutil.rmtree(bare / 'tokenizer')
  with pytest.raises(UserError, match='bare has no tokenizer: put vocab.json'):
    quiet(bare, tmp_path / 'new', layout='diffusers')
  vocabulary.write(tmp_path / 'tokenizer', words=('red',))
  with pytest.raises(UserError, match='is another tokenizer than that of'):
    quiet(weights, tmp_path / 'a.ckpt', layout='original')
  shutil.copytree(tmp_path / 'tokenizer', bare / 'tokenizer')
  with pytest.raises(UserError, match='the text tower has 70 rows'):
    quiet(bare, tmp_path / 'new', layout='diffusers')
  assert {path.name for path in tmp_path.iterdir()} == {'bare', 'tokenizer'}


@pytest.mark.parametrize(
  'place, changes, says',
  [
    (
      'unet',
      dict(cross_attention_dim=1024, use_linear_projection=True),
      'is Stable Diffusion 2 .*reads Paint by Example',
    ),
    (
      'unet',
      dict(addition_embed_type='text_time'),
      'is Stable Diffusion XL .*Diffusion 1.x',
    ),
    ('', dict(controlnet=['diffusers', 'C']), r'is a pipeline with a ControlNet \(controlnet/\)'),
  ],
)
def test_pipelines_of_other_models_are_called_by_their_names(
  weights, tmp_path, place, changes, says
):
  quiet(weights, tmp_path / 'pipeline', layout='diffusers')
  file = 'config.json' if place else 'model_index.json'
  released.change_json(tmp_path / 'pipeline' / place / file, **changes)
  with pytest.raises(UserError, match=says):
    find.weights(tmp_path / 'pipeline')


def test_a_wide_context_alone_is_no_sign_of_another_model(weights, tmp_path):
  quiet(weights, tmp_path / 'pipeline', layout='diffusers')
  released.change_json(tmp_path / 'pipeline' / 'unet' / 'config.json', cross_attention_dim=1024)
  assert find.weights(tmp_path / 'pipeline').config['model']['context_dim'] == 1024


@pytest.mark.parametrize('layout', ['diffusers', 'original'])
def test_inpainting_weights_are_not_written_in_other_layouts_yet(weights, tmp_path, layout):
  found = dataclasses.replace(find.weights(weights), kind='stable_diffusion_inpainting')
  with pytest.raises(UserError, match=f'does not write in the {layout} layout yet'):
    foreign.check(found, layout, tmp_path / 'new')


@pytest.mark.parametrize(
  'name, says',
  [
    ('conditioner.embedders.0.x', 'is Stable Diffusion XL'),
    ('cond_stage_model.model.x', 'is Stable Diffusion 2'),
    ('control_model.x', 'is a ControlNet'),
    ('model.diffusion_model.input_blocks.1.1.to_q.lora_A.weight', 'is a LoRA'),
  ],
)
def test_files_of_other_models_are_called_by_their_names(weights, tmp_path, name, says):
  """They also have the names of Stable Diffusion 1.x."""
  quiet(weights, tmp_path / 'a.safetensors', layout='original')
  arrays = {n: t.read() for n, t in open_tensors(tmp_path / 'a.safetensors').items()}
  save_tensors(tmp_path / 'b.safetensors', arrays | {name: np.zeros(1, np.float32)})
  with pytest.raises(UserError, match=f'b.safetensors {says}.*Stable Diffusion 1.x'):
    find.weights(tmp_path / 'b.safetensors')


def test_a_controlnet_alone_is_called_by_its_name(tmp_path):
  (tmp_path / 'config.json').write_text('{"_class_name": "ControlNetModel"}')
  with pytest.raises(UserError, match='is a ControlNet, .*Stable Diffusion 1.x'):
    find.weights(tmp_path)
