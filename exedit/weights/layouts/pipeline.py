"""The folder of a diffusers pipeline written: what PaintByExamplePipeline.from_pretrained reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exedit.models.clip import MEAN, STD
from exedit.runtime.errors import UserError
from exedit.weights import settings as configs
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts import diffusers
from exedit.weights.translate import to_theirs

VERSION = '0.33.1'  # the last that supported the pipeline


def write(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
  """Write model_index.json, unet/, vae/, image_encoder/, scheduler/ and feature_extractor/.

  path: an empty folder. config: its `model` with every setting said. tensors: ours.
  Raises:
    UserError: where diffusers has no such network.
  """
  model = config['model']
  check(model, str(path))
  size = config.get('data', {}).get('size', 512) // 2 ** (len(model['autoencoder']['mult']) - 1)
  files = {
    'model_index.json': index(model['schedule']['prediction']),
    'unet/config.json': unet(model, size),
    'vae/config.json': autoencoder(model['autoencoder'], size),
    'image_encoder/config.json': image_encoder(model['clip'], model['context_dim']),
    'scheduler/scheduler_config.json': scheduler(model['schedule']),
    'feature_extractor/preprocessor_config.json': preprocessor(model['clip']['image_size']),
  }
  for name, value in files.items():
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
  theirs = to_theirs(diffusers.TABLE, tensors)
  for part in ('unet', 'vae', 'image_encoder'):
    stem = diffusers.STEM.get(part, 'diffusion_pytorch_model')
    own = {n.removeprefix(f'{part}/'): t for n, t in theirs.items() if n.startswith(f'{part}/')}
    save_tensors(path / part / f'{stem}.safetensors', own, {'format': 'pt'})


def check(model: Mapping[str, Any], where: str) -> None:
  """UserError where the layout cannot say what this model is."""
  if model['unet']['mult'][0] != 1:
    raise UserError(
      f'{where}: the first level of the UNet is {model["unet"]["mult"][0]} times as wide as its '
      'first convolution, which diffusers cannot say: write the original layout instead'
    )
  expected = (model['clip']['layers'] + 1) // 5
  if model['conditioner']['layers'] != expected:
    raise UserError(
      f'{where}: the conditioner has {model["conditioner"]["layers"]} layers, and diffusers builds '
      f'{expected} for a CLIP of {model["clip"]["layers"]}: write the original layout instead'
    )


def index(prediction: str) -> dict[str, Any]:
  """model_index.json: which class each folder is."""
  return dict(
    _class_name='PaintByExamplePipeline',
    _diffusers_version=VERSION,
    feature_extractor=['transformers', 'CLIPImageProcessor'],
    image_encoder=['paint_by_example', 'PaintByExampleImageEncoder'],
    requires_safety_checker=False,
    safety_checker=[None, None],
    scheduler=['diffusers', 'PNDMScheduler' if prediction == 'eps' else 'DDIMScheduler'],
    unet=['diffusers', 'UNet2DConditionModel'],
    vae=['diffusers', 'AutoencoderKL'],
  )


def unet(model: Mapping[str, Any], size: int) -> dict[str, Any]:
  """unet/config.json."""
  net, z = model['unet'], model['autoencoder']['z_channels']
  attend = [i in net['attention_levels'] for i in range(len(net['mult']))]
  names = [configs.ATTEND if a else configs.PLAIN for a in attend]
  return dict(
    _class_name='UNet2DConditionModel',
    _diffusers_version=VERSION,
    act_fn='silu',
    attention_head_dim=net['heads'],  # means the number of heads (facts 1.1)
    block_out_channels=[net['channels'] * m for m in net['mult']],
    center_input_sample=False,
    cross_attention_dim=model['context_dim'],
    down_block_types=[name.format('Down') for name in names],
    downsample_padding=1,
    flip_sin_to_cos=True,
    freq_shift=0,
    in_channels=2 * z + 1,
    layers_per_block=net['layers'],
    mid_block_scale_factor=1,
    norm_eps=1e-5,
    norm_num_groups=net['groups'],
    out_channels=z,
    sample_size=size,
    up_block_types=[name.format('Up') for name in names[::-1]],
    use_linear_projection=False,
  )


def autoencoder(vae: Mapping[str, Any], size: int) -> dict[str, Any]:
  """vae/config.json."""
  levels = len(vae['mult'])
  return dict(
    _class_name='AutoencoderKL',
    _diffusers_version=VERSION,
    act_fn='silu',
    block_out_channels=[vae['channels'] * m for m in vae['mult']],
    down_block_types=['DownEncoderBlock2D'] * levels,
    in_channels=3,
    latent_channels=vae['z_channels'],
    layers_per_block=vae['layers'],
    norm_num_groups=vae['groups'],
    out_channels=3,
    sample_size=size * 2 ** (levels - 1),
    scaling_factor=vae['scale'],
    up_block_types=['UpDecoderBlock2D'] * levels,
  )


def image_encoder(clip: Mapping[str, Any], context_dim: int) -> dict[str, Any]:
  """image_encoder/config.json: the CLIP tower's, whose layers also say how deep the mapper is."""
  return dict(
    architectures=['PaintByExampleImageEncoder'],
    attention_dropout=0.0,
    hidden_act='quick_gelu',
    hidden_size=clip['width'],
    image_size=clip['image_size'],
    initializer_factor=1.0,  # transformers asks for both, though nothing is initialised
    initializer_range=0.02,
    intermediate_size=clip['mlp'],
    layer_norm_eps=1e-5,
    model_type='clip_vision_model',
    num_attention_heads=clip['heads'],
    num_channels=3,
    num_hidden_layers=clip['layers'],
    patch_size=clip['patch'],
    projection_dim=context_dim,
  )


def scheduler(schedule: Mapping[str, Any]) -> dict[str, Any]:
  """scheduler/scheduler_config.json as published; DDIM where PNDM has no such prediction."""
  names = {ours: theirs for theirs, ours in configs.PREDICTIONS.items()}
  common = dict(
    _diffusers_version=VERSION,
    beta_end=schedule['beta_end'],
    beta_schedule='scaled_linear',
    beta_start=schedule['beta_start'],
    clip_sample=False,
    num_train_timesteps=schedule['num_steps'],
    prediction_type=names[schedule['prediction']],
    set_alpha_to_one=False,
    steps_offset=1,
    trained_betas=None,
  )
  if schedule['prediction'] == 'eps':
    return dict(_class_name='PNDMScheduler', skip_prk_steps=True, **common)
  return dict(_class_name='DDIMScheduler', **common)


def preprocessor(size: int) -> dict[str, Any]:
  """feature_extractor/preprocessor_config.json as published: shortest edge, then the centre."""
  return dict(
    crop_size=dict(height=size, width=size),
    do_center_crop=True,
    do_convert_rgb=True,
    do_normalize=True,
    do_rescale=True,
    do_resize=True,
    image_mean=[float(x) for x in MEAN.astype(str)],
    image_processor_type='CLIPImageProcessor',
    image_std=[float(x) for x in STD.astype(str)],
    resample=3,
    rescale_factor=1 / 255,
    size=dict(shortest_edge=size),
  )
