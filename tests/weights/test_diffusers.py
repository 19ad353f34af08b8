"""Pipeline folders of all diffusers versions are read; settings of other networks are refused."""

import json
import os

import numpy as np
import pytest

from exedit import paint_by_example as pbe
from exedit.runtime.errors import UserError
from exedit.weights import find
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from tests import released

FILE = 'diffusion_pytorch_model.safetensors'


def refused(folder, words):
  with pytest.raises(UserError, match=words) as error:
    find.weights(folder)
  assert '\n' not in str(error.value) and str(folder) in str(error.value)


OLD = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}


def aged(arrays):
  """The released VAE's names, and its attention as 1x1 convolutions."""
  result = {}
  for name, array in arrays.items():
    for new, old in OLD.items():
      name = name.replace(f'attentions.0.{new}.', f'attentions.0.{old}.')
    is_matrix = 'attentions' in name and array.ndim == 2
    result[name] = array[:, :, None, None] if is_matrix else array
  return result


def test_pipelines_of_every_age_are_read(folder):
  released.rewrite(folder / 'vae' / 'diffusion_pytorch_model.safetensors', aged)
  positions = {'model.vision_model.embeddings.position_ids': np.arange(17)[None]}
  released.rewrite(
    folder / 'image_encoder' / 'model.safetensors', lambda arrays: arrays | positions
  )
  released.change_json(folder / 'vae' / 'config.json', scaling_factor=None)  # as in old files
  released.assert_same(find.weights(folder))
  released.rewrite(
    folder / 'image_encoder' / 'model.safetensors',
    lambda arrays: {n.replace('vision_model.', ''): a for n, a in arrays.items()},
  )
  released.assert_same(find.weights(folder))
  config = folder / 'image_encoder' / 'config.json'
  config.write_text(json.dumps(dict(vision_config=json.loads(config.read_text()))))
  released.assert_same(find.weights(folder))


def test_shards_and_variants_are_read_and_whole_files_go_first(folder):
  unet = folder / 'unet'
  whole = unet / 'diffusion_pytorch_model.safetensors'
  (unet / 'diffusion_pytorch_model.bin').write_bytes(b'not looked at')
  released.assert_same(find.weights(folder))
  arrays = {name: tensor.read() for name, tensor in open_tensors(whole).items()}
  whole.rename(unet / 'diffusion_pytorch_model.fp16.safetensors')
  (unet / 'diffusion_pytorch_model.bin').unlink()
  released.assert_same(find.weights(folder))
  half = {n: 0 * a for n, a in arrays.items()}
  save_tensors(unet / 'diffusion_pytorch_model.fp16.safetensors', half)
  names, index = sorted(arrays), {}
  for i, own in enumerate((names[::2], names[1::2])):
    shard = f'diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors'
    save_tensors(unet / shard, {name: arrays[name] for name in own})
    index |= dict.fromkeys(own, shard)
  file = unet / 'diffusion_pytorch_model.safetensors.index.json'
  file.write_text(json.dumps(dict(metadata={}, weight_map=index)))
  weights = find.weights(folder)
  released.assert_same(weights)
  assert len(weights.files) == 4 and len(weights.digest()) == 64
  file.rename(unet / 'diffusion_pytorch_model.safetensors.index.fp16.json')
  (unet / 'diffusion_pytorch_model.fp16.safetensors').unlink()
  released.assert_same(find.weights(folder))


@pytest.mark.parametrize(
  ('file', 'change', 'words'),
  [
    (
      'unet',
      dict(use_linear_projection=True),
      'use_linear_projection is True, and exedit implements False',
    ),
    (
      'unet',
      dict(transformer_layers_per_block=[1, 2]),
      r'transformer_layers_per_block is \[1, 2\]',
    ),
    ('unet', dict(resnet_time_scale_shift='scale_shift'), "is 'scale_shift', .* 'default'"),
    ('unet', dict(act_fn='gelu'), "act_fn is 'gelu', and exedit implements 'silu' or 'swish'"),
    ('unet', dict(class_embed_type='timestep'), "class_embed_type is 'timestep', a setting that"),
    ('unet', dict(addition_embed_type='text_time'), 'addition_embed_type'),
    ('unet', dict(a_new_one=3), 'a_new_one is 3, a setting that exedit does not know'),
    ('unet', dict(attention_head_dim=[2, 4]), r'attention_head_dim is \[2, 4\]; .* same number'),
    ('unet', dict(attention_head_dim=3), 'a width of 16 cannot be divided among 3 heads'),
    ('unet', dict(norm_num_groups=5), 'a width of 16 cannot be divided among 5 groups'),
    ('unet', dict(block_out_channels=[16, 24]), 'use multiples of the first'),
    ('unet', dict(block_out_channels='16'), 'is damaged'),
    ('unet', dict(block_out_channels=[16, -32]), 'must be a positive whole number'),
    ('unet', dict(layers_per_block=10**9), 'layers_per_block is 1000000000'),
    ('unet', dict(down_block_types=['DownBlock2D']), '2 widths and 1 kinds of level'),
    ('unet', dict(down_block_types=['DownBlock2D', 'AttnDownBlock2D']), 'mirrored on the way up'),
    ('unet', dict(in_channels=4), 'takes 4 channels and gives 4, .* Paint by Example takes 9'),
    ('unet', dict(in_channels=8), 'takes 8 channels'),
    ('vae', dict(latents_mean=[0.1]), 'latents_mean'),
    ('vae', dict(mid_block_add_attention=False), 'mid_block_add_attention is False'),
    ('vae', dict(scaling_factor='big'), "scaling_factor is 'big'"),
    ('vae', dict(down_block_types=['AttnDownEncoderBlock2D'] * 2), 'down_block_types'),
    ('image_encoder', dict(hidden_act='gelu'), "hidden_act is 'gelu', and exedit implements 'qui"),
    ('image_encoder', dict(vision_config=3), 'vision_config is no object'),
    ('scheduler', dict(beta_schedule='linear'), "'linear', and exedit implements 'scaled_linear'"),
    ('scheduler', dict(beta_schedule=None), "'linear', and exedit implements 'scaled_linear'"),
    ('scheduler', dict(prediction_type='flow'), "prediction_type is 'flow'"),
    ('scheduler', dict(trained_betas=[0.1]), 'trained_betas'),
    ('scheduler', dict(rescale_betas_zero_snr=True), 'rescale_betas_zero_snr is True'),
    ('scheduler', dict(beta_end=7.0), 'beta_start and beta_end'),
    ('unet', dict(sample_size=4096), 'sample_size is 4096, 8192 pixels .* up to 4096'),
    ('image_encoder', dict(image_size=2**20), 'image_size is 1048576; .* at most 1024'),
    ('image_encoder', dict(hidden_size='64'), "hidden_size is '64'; it must be a positive whole"),
    ('unet', dict(sample_size=[8, 16]), r'sample_size is \[8, 16\]; .* the same number'),
    ('unet', dict(sample_size='8'), "sample_size is '8'; it must be a positive whole number"),
    ('unet', dict(norm_num_groups=8.5), 'norm_num_groups is 8.5; it must be a positive whole'),
    ('unet', dict(num_attention_heads='4'), "num_attention_heads is '4'; it must be"),
    ('unet', dict(norm_eps=1e-6), 'norm_eps is 1e-06, and exedit implements 1e-05'),
    ('vae', dict(scaling_factor='0.18'), "scaling_factor is '0.18', it must be a positive number"),
    ('vae', dict(scaling_factor=True), 'scaling_factor is True'),
    ('scheduler', dict(beta_start='0.001'), "beta_start and beta_end are .'0.001'"),
  ],
)
def test_settings_that_mean_another_network_are_named(folder, file, change, words):
  name = 'scheduler_config.json' if file == 'scheduler' else 'config.json'
  released.change_json(folder / file / name, **change)
  refused(folder, words)


def test_a_number_may_be_written_in_any_way(folder):
  """Whole where it is real, real where it is whole, null for the default, once for each level."""
  vae = folder / 'vae' / 'config.json'
  released.change_json(vae, scaling_factor=1, layers_per_block=[1.0, 1.0])
  file = folder / 'unet' / 'config.json'
  config = json.loads(file.read_text()) | dict(
    attention_head_dim=2.0,
    block_out_channels=[16.0, 32],
    norm_eps=9.999999747378752e-06,
    sample_size=[16.0, 16],
    **dict.fromkeys(('num_attention_heads', 'use_linear_projection', 'dual_cross_attention')),
  )
  file.write_text(json.dumps(config))
  found = find.weights(folder)
  released.assert_same(found)
  model, kinds = pbe.complete(found.config['model']), {}
  assert model == pbe.complete(released.SMALL | dict(autoencoder=dict(released.VAE, scale=1.0)))
  for part in ('unet', 'autoencoder'):
    kinds |= {name: type(value) for name, value in found.config['model'][part].items()}
  assert kinds['heads'] is kinds['channels'] is kinds['layers'] is int and kinds['scale'] is float
  assert found.config['data']['size'] == 32


def test_settings_are_what_they_say(folder):
  released.change_json(
    folder / 'unet' / 'config.json', num_attention_heads=4, upcast_attention=True
  )
  released.change_json(folder / 'scheduler' / 'scheduler_config.json', prediction_type='sample')
  released.change_json(folder / 'scheduler' / 'scheduler_config.json', _class_name='DDIMScheduler')
  config = find.weights(folder).config
  assert config['model']['unet']['heads'] == 4
  assert config['model']['schedule']['prediction'] == 'x0'
  assert config['edit']['sampler'] == 'ddim'


@pytest.mark.parametrize(
  ('place', 'content', 'words'),  # no content: it is missing; a number: it is cut there
  [
    ('unet', None, 'is half a pipeline: it has vae/, image_encoder/, scheduler/ and lacks unet/'),
    (f'vae/{FILE}', None, f'it needs {FILE} or .* and has config.json'),
    ('vae/config.json', None, 'vae/config.json is missing'),
    ('unet/config.json', '{"act_fn": ', 'unet/config.json is damaged'),
    ('unet/config.json', '[]', 'unet/config.json is damaged .*no object'),
    ('unet/config.json', '[' * 100_000, 'unet/config.json is damaged'),
    (f'unet/{FILE}', 1000, f'{FILE} is damaged'),
    ('text_encoder_2/config.json', '{}', r'is Stable Diffusion XL \(text_encoder_2/\)'),
  ],
)
def test_what_is_there_and_what_is_needed(folder, place, content, words):
  path = folder / place
  if content is None:
    path.rename(folder.with_name('elsewhere'))
  elif isinstance(content, int):
    os.truncate(path, content)
  else:
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
  refused(folder, words)


def test_folders_without_a_pipeline(tmp_path):
  refused(tmp_path, 'holds no weights: it has nothing, and exedit looks for config.json')
  (tmp_path / 'holiday.jpg').touch()
  refused(tmp_path, 'holds no weights: it has holiday.jpg')
  clip = released.write_clip(tmp_path / 'clip')
  refused(clip, "is a model of transformers .'clip'.: .* --config.init_clip")
