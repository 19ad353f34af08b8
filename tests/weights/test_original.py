"""Original checkpoints have no config: sizes come from shapes, a .yaml and the published values."""

import os

import numpy as np
import pytest
import yaml

from exedit import paint_by_example as pbe
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.tensor import to_dtype
from exedit.weights.layouts import original
from tests import released

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
NULL = 'conditioner.null'


def look(file, arrays=None, **given):
  released.write_checkpoint(file, arrays)
  return find.weights(file, **{'heads': 2, 'groups': 4, **given})


def test_buffers_and_the_discriminator_are_passed_over(tmp_path):
  betas = dict(betas=np.float32(BETAS))
  more = betas | {name: np.ones(1000, np.float32) for name in original.BUFFERS if name != 'betas'}
  more['first_stage_model.loss.logvar'] = np.zeros((), np.float32)
  weights = look(tmp_path / 'a.safetensors', released.checkpoint() | more)
  released.assert_same(weights)
  weights = look(
    tmp_path / 'a.safetensors', released.checkpoint() | {'stray': more['alphas_cumprod']}
  )
  with pytest.raises(UserError, match=r'\n  \+ stray$'):
    pbe.load(weights)


def with_average(arrays):
  """Adds the buffers of LDM's LitEma: the UNet's names without dots."""
  names = [name for name in arrays if name.startswith('model.')]
  strip = lambda name: 'model_ema.' + name.removeprefix('model.').replace('.', '')
  counts = {'model_ema.decay': np.array(0.9), 'model_ema.num_updates': np.array(3)}
  return arrays | {strip(name): 3 * arrays[name] for name in names} | counts


def test_the_moving_average_is_used_where_it_is_wanted(tmp_path):
  file, plain = tmp_path / 'a.safetensors', released.params()
  arrays = with_average(released.checkpoint())
  assert 'model_ema.diffusion_modelinput_blocks00weight' in arrays
  average = {n: np.float32(3) * a if n.startswith('unet.') else a for n, a in plain.items()}
  released.assert_same(look(file, arrays), average)
  released.assert_same(look(file, arrays, which='params'), plain)
  assert look(file, arrays).digest() != look(file, arrays, which='params').digest()
  del arrays['model_ema.diffusion_modelout2bias']
  with pytest.raises(UserError, match='part of the moving average .1 missing, first model_ema.d'):
    look(file, arrays)
  released.assert_same(look(file, arrays, which='params'), plain)


LDM = dict(
  linear_start=0.00085,
  linear_end=0.012,
  timesteps=1000,
  scale_factor=0.2,
  unet_config=dict(params=dict(num_heads=2, use_spatial_transformer=True, image_size=32)),
  first_stage_config=dict(params=dict(ddconfig=dict(double_z=True, ch_mult=[1, 2]))),
)


def write_yaml(file, unet={}, **changes):
  params = LDM | changes
  params['unet_config'] = dict(params=LDM['unet_config']['params'] | unet)
  file.write_text(yaml.safe_dump(dict(model=dict(params=params))))


def test_what_a_file_does_not_say_comes_from_the_yaml_beside_it(tmp_path):
  write_yaml(tmp_path / 'a.yaml', parameterization='v')
  weights = look(tmp_path / 'a.safetensors', heads=None)
  model = weights.config['model']
  assert model['unet']['heads'] == 2 and model['autoencoder']['scale'] == 0.2
  assert model['schedule']['prediction'] == 'v'
  assert 'heads 2: a.yaml' in weights.notes and 'schedule: a.yaml' in weights.notes
  assert look(tmp_path / 'a.safetensors', heads=4).config['model']['unet']['heads'] == 4


@pytest.mark.parametrize(
  ('unet', 'changes', 'words'),
  [
    (dict(use_scale_shift_norm=True), {}, 'use_scale_shift_norm is True, a setting that'),
    (dict(transformer_depth=2), {}, 'transformer_depth is 2, and exedit implements 1'),
    (dict(num_head_channels=64), {}, 'num_head_channels is 64'),
    ({}, dict(parameterization='flow'), "no config of latent diffusion .KeyError: 'flow'"),
    ({}, dict(beta_schedule='cosine'), "beta_schedule is 'other'"),
    ({}, dict(first_stage_config=3), 'is no config of latent diffusion'),
  ],
)
def test_a_yaml_that_means_another_network(tmp_path, unet, changes, words):
  write_yaml(tmp_path / 'a.yaml', unet, **changes)
  with pytest.raises(UserError, match=words) as error:
    look(tmp_path / 'a.safetensors')
  assert '\n' not in str(error.value)


def test_numbers_of_a_yaml_may_be_written_in_any_way(tmp_path):
  write_yaml(tmp_path / 'a.yaml', dict(num_heads=4.0), scale_factor=1, timesteps=1000.0)
  text = (tmp_path / 'a.yaml').read_text()
  (tmp_path / 'a.yaml').write_text(text.replace('linear_start: 0.00085', 'linear_start: 85e-5'))
  model = look(tmp_path / 'a.safetensors', heads=None).config['model']
  assert model['schedule'] == dict(
    num_steps=1000, beta_start=0.00085, beta_end=0.012, prediction='eps'
  )
  assert model['unet']['heads'] == 4 and repr(model['autoencoder']['scale']) == '1.0'
  write_yaml(tmp_path / 'a.yaml', scale_factor='1')
  with pytest.raises(UserError, match="scale_factor is '1'"):
    look(tmp_path / 'a.safetensors')


def test_a_yaml_that_is_none(tmp_path):
  (tmp_path / 'a.yaml').write_text('model: [')
  with pytest.raises(UserError, match='a.yaml is no config of latent diffusion'):
    look(tmp_path / 'a.safetensors')


def test_published_heads_and_groups_are_checked_with_the_shapes(tmp_path):
  with pytest.raises(UserError, match='a width of 16 cannot be divided among 32 groups'):
    look(tmp_path / 'a.safetensors', groups=None)
  weights = look(tmp_path / 'a.safetensors', heads=None)
  assert weights.config['model']['unet']['heads'] == 8
  assert 'heads 8: as published, for the file does not say' in weights.notes


@pytest.mark.parametrize('name', ['betas', 'alphas_cumprod'])
def test_buffers_in_the_file_must_be_the_schedules(tmp_path, name):
  buffers = lambda betas: {name: np.float32(betas if name == 'betas' else np.cumprod(1 - betas))}
  file, arrays = tmp_path / 'a.safetensors', released.checkpoint()
  assert f'schedule: its {name}' in look(file, arrays | buffers(BETAS)).notes
  for bad in (np.linspace(1e-4, 0.02, 1000), BETAS[:500], BETAS[:0], np.full(1000, np.nan)):
    with pytest.raises(UserError, match=f'trained with other betas than 1000 .* its {name} are'):
      look(file, arrays | buffers(bad))


def test_what_helps_against_other_betas(tmp_path):
  file, arrays = tmp_path / 'a.safetensors', released.checkpoint()
  other = lambda betas: dict(betas=np.float32(betas))
  with pytest.raises(UserError, match='put its .yaml beside it, a.yaml'):
    look(file, arrays | other(BETAS[:500]))
  with pytest.raises(UserError, match="Stable Diffusion's schedule alone"):
    look(file, arrays | other(np.linspace(1e-4, 0.02, 1000)))
  write_yaml(tmp_path / 'a.yaml')
  with pytest.raises(UserError, match='correct linear_start, linear_end and timesteps in a.yaml'):
    look(file, arrays | other(BETAS[:500]))
  write_yaml(tmp_path / 'a.yaml', timesteps=500, linear_end=float(BETAS[499]))
  assert look(file, arrays | other(BETAS[:500])).config['model']['schedule']['num_steps'] == 500


@pytest.mark.parametrize('stored', ['same', 'float32'])
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float8_e4m3fn', 'float8_e5m2'])
def test_a_checkpoint_that_was_stored_whole_in_a_narrow_type(tmp_path, dtype, stored):
  """Its buffers are rounded too, some of them twice, and may have been widened again."""
  arrays = released.checkpoint() | dict(betas=BETAS)
  arrays['cond_stage_model.transformer.vision_model.embeddings.position_ids'] = np.arange(17)[None]
  round = lambda a: a.astype(np.float32).astype(dtype)
  narrow = {name: round(a) for name, a in arrays.items()}
  if stored == 'float32':
    narrow = {name: a.astype(stored) for name, a in narrow.items()}
  weights = look(tmp_path / 'a.safetensors', narrow)
  assert 'schedule: its betas' in weights.notes
  widened = to_dtype(weights.tensors, 'float32')[NULL].read()
  np.testing.assert_array_equal(widened, np.float32(round(released.params()[NULL])))
  other = round(np.linspace(1e-4, 0.02, 1000)).astype(narrow['betas'].dtype)
  with pytest.raises(UserError, match='was trained with other betas'):
    look(tmp_path / 'a.safetensors', narrow | dict(betas=other))


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('conditioner.embedders.0.transformer.x', 'is Stable Diffusion XL'),
    ('cond_stage_model.model.x', 'is Stable Diffusion 2'),
    ('control_model.x', 'is a ControlNet'),
    ('lora_unet_x', 'is a LoRA'),
    ('unet.down_blocks.0.attn.to_q.lora_A.weight', 'is a LoRA'),
    ('base_model.model.x.lora_A.weight', 'is a LoRA'),
    ('vision_model.x', 'is a CLIP tower alone: .* --config.init_clip'),
    ('down_blocks.0.x', 'name the folder that holds unet/'),
    ('encoder.x', 'name the folder that holds vae/'),
    ('uncond_vector', 'name the folder above it'),
    ('unet.conv_in.kernel', 'name its folder, and keep its config.json'),
    ('something', 'no checkpoint of Paint by Example or Stable Diffusion: its tensors are somethi'),
  ],
)
def test_other_files_are_called_by_their_names(tmp_path, name, words):
  with pytest.raises(UserError, match=words) as error:
    look(tmp_path / 'a.safetensors', {name: np.zeros(1, np.float32)})
  assert '\n' not in str(error.value)


def test_half_a_checkpoint_says_what_is_missing(tmp_path):
  unet = {n: a for n, a in released.checkpoint().items() if n.startswith('model.')}
  with pytest.raises(UserError, match='first_stage_model.* is missing; is it the whole file'):
    look(tmp_path / 'a.safetensors', unet)
  rest = {n: a for n, a in released.checkpoint().items() if not n.endswith('0.mlp.c_fc.bias')}
  with pytest.raises(UserError, match='does not fit') as error:
    pbe.load(look(tmp_path / 'a.safetensors', rest))
  assert error.value.listing[0] == '- cond_stage_model.mapper.resblocks.0.mlp.c_fc.bias'


def nested_aliases(depth=9, width=9):
  """A few hundred bytes that stand for width**depth strings."""
  anchors = [f'x0: &x0 [{", ".join(["lol"] * width)}]']
  for i in range(1, depth):
    anchors.append(f'x{i}: &x{i} [{", ".join([f"*x{i - 1}"] * width)}]')
  net = f'unet_config: {{params: {{num_head_channels: *x{depth - 1}}}}}'
  rest = 'first_stage_config: {params: {ddconfig: {}}}'
  return '\n'.join([*anchors, f'model: {{params: {{{net}, {rest}}}}}'])


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    (nested_aliases(), r'it has aliases \(\*name\)'),
    ('# ' + 'x' * 10**6, 'more than 65536 bytes'),
    ('model: {params: {unet_config: {params: {1: 2}}}}', 'first_stage_config'),
  ],
)
def test_a_yaml_of_any_size_is_refused_at_once(tmp_path, text, words):
  (tmp_path / 'a.yaml').write_text(text)
  with pytest.raises(UserError, match=words) as error:
    look(tmp_path / 'a.safetensors')
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize('scale', [0, float('nan'), float('inf'), 10**400])
def test_a_yaml_with_a_scale_that_is_none(tmp_path, scale):
  write_yaml(tmp_path / 'a.yaml', scale_factor=scale)
  with pytest.raises(UserError, match='a.yaml is no config of latent diffusion'):
    look(tmp_path / 'a.safetensors')


def test_foreign_values_are_shown_short(tmp_path):
  write_yaml(
    tmp_path / 'a.yaml', dict(num_head_channels=[['x' * 100 for _ in range(20)] for _ in range(20)])
  )
  with pytest.raises(UserError, match='num_head_channels is') as error:
    look(tmp_path / 'a.safetensors')
  assert len(str(error.value)) < 1000


def test_a_pipe_beside_a_checkpoint_is_refused_and_not_waited_for(tmp_path):
  released.write_checkpoint(tmp_path / 'o.safetensors')
  os.mkfifo(tmp_path / 'o.yaml')
  with pytest.raises(UserError, match='o.yaml is a pipe or device'):
    find.weights(tmp_path / 'o.safetensors')
