"""The folder of a diffusers pipeline, read and written.

It holds unet/, vae/ and scheduler/; for Paint by Example image_encoder/; for Stable Diffusion
text_encoder/ and tokenizer/.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from exedit.input_pipeline import tokenizer as texts
from exedit.runtime import files
from exedit.runtime.errors import UserError
from exedit.weights import fetch, settings
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor, read_json
from exedit.weights.found import Weights, system_of
from exedit.weights.tables import autoencoder, clip_text, conditioner, unet
from exedit.weights.translate import Row, to_theirs, under

STEMS = dict(image_encoder='model', text_encoder='model')  # transformers' names of a .safetensors
OTHERS = {  # folders that only other pipelines have
  'text_encoder_2': 'Stable Diffusion XL',
  'text_encoder_3': 'Stable Diffusion 3',
  'transformer': 'a diffusion transformer',
  'prior': 'a cascade',
  'controlnet': 'a pipeline with a ControlNet',
}
FAMILIES = (  # settings that together only the UNets of other models have
  (dict(addition_embed_type='text_time'), 'Stable Diffusion XL'),
  (dict(cross_attention_dim=1024, use_linear_projection=True), 'Stable Diffusion 2'),
)
TABLE: list[Row] = [
  *under('unet/', 'unet.', unet.TABLE),
  *under('vae/', 'autoencoder.', autoencoder.TABLE),
  *under('image_encoder/', '', conditioner.IMAGE_ENCODER),
  *under('text_encoder/', 'text.', clip_text.TABLE),
]
READS = 'exedit reads Paint by Example and Stable Diffusion 1.x'
VERSION = '0.33.1'  # of diffusers: the last one that supported the pipeline


def read(path: Path, to_start: bool = False) -> Weights:
  """Returns the weights in the folder of a pipeline: Paint by Example, or Stable Diffusion 1.x.

  to_start: leave out the text tower of Stable Diffusion; its folder may be missing.
  Raises:
    UserError: for another pipeline, an incomplete folder, or a setting that is not implemented.
  """
  components = _components(path)
  for other, what in OTHERS.items():
    if other in components:
      raise UserError(f'{path} is {what} ({other}/): {READS}')
  by_text = 'text_encoder' in components and 'image_encoder' not in components
  encoder = 'text_encoder' if by_text else 'image_encoder'
  without = by_text and to_start
  parts = ['unet', 'vae', *([] if without else [encoder]), 'scheduler']
  missing = [f'{part}/' for part in parts if not (path / part).is_dir()]
  if missing:
    there = [f'{part}/' for part in parts if (path / part).is_dir()]
    raise UserError(
      f'{path} is half a pipeline: it has {", ".join(there)} and lacks {", ".join(missing)}; '
      'fetch the rest, or restore the folder from a copy'
    )
  _require_family(path)
  config, kind = _config(path, None if without else encoder)
  opened, theirs = [], {}
  for part in parts:
    if part != 'scheduler':
      file = weights_file(path / part, STEMS.get(part, 'diffusion_pytorch_model'))
      tensors = open_tensors(file)
      theirs |= {f'{part}/{name}': tensor for name, tensor in tensors.items()}
      opened += shards(file)
  return Weights(config, theirs, TABLE, tuple(opened), kind=kind)


def _require_family(path: Path) -> None:
  """Raises UserError for the UNet of another model, before a setting of it is refused."""
  net = read_json(path / 'unet' / 'config.json')
  for signs, what in FAMILIES:
    if all(net.get(name) == value for name, value in signs.items()):
      found = ', '.join(f'{name} is {value}' for name, value in signs.items())
      raise UserError(f'{path} is {what} (unet/config.json: {found}): {READS}')


def _components(path: Path) -> set[str]:
  """The parts of the pipeline: its folders, and those in its index, which may not be fetched."""
  index = path / 'model_index.json'
  named = read_json(index) if index.exists() else {}
  parts = {name for name, value in named.items() if isinstance(value, list) and any(value)}
  return parts | {name for name in files.listing(path) if (path / name).is_dir()}


def _config(path: Path, encoder: str | None) -> tuple[dict[str, Any], str]:
  """(config in exedit's words, name of the system).

  encoder: the folder of the condition's network; None: without it.
  """
  by_text = encoder != 'image_encoder'
  file = lambda part, name='config.json': path / part / name
  translated = lambda part, convert: convert(read_json(file(part)), str(file(part)))
  net, vae = translated('unet', settings.unet), translated('vae', settings.autoencoder)
  scheduler = read_json(file('scheduler', 'scheduler_config.json'))
  schedule = settings.schedule(scheduler, str(file('scheduler', 'scheduler_config.json')))
  kind = system_of(net, vae['z_channels'], by_text, str(path))
  net = {name: value for name, value in net.items() if name not in ('in_channels', 'out_channels')}
  model = dict(unet=net, autoencoder=vae, schedule=schedule, context_dim=net.pop('context_dim'))
  given = read_json(file('unet')).get('sample_size')
  size = dict(sample_size=64 if given is None else given)  # the class's default is None
  size = settings.integer(size, 'sample_size', str(file('unet')))
  factor = 2 ** (len(vae['mult']) - 1)
  if size * factor > (most := settings.MOST['size']):
    raise UserError(
      f'{file("unet")}: sample_size is {settings.shown(size)}, '
      f'{settings.shown(size * factor)} pixels with this autoencoder: exedit edits up to {most}'
    )
  data = dict(size=size * factor)
  if encoder == 'image_encoder':
    tower = translated('image_encoder', settings.clip)
    model |= dict(clip=tower, conditioner=dict(layers=_mapper_layers(tower)))
    data['exemplar_size'] = tower['image_size']
  elif encoder:
    model['text'] = translated('text_encoder', settings.clip_text)
  sampler = settings.SAMPLERS.get(str(scheduler.get('_class_name')), 'plms')
  scale = 7.5 if by_text else 5.0  # the defaults of both pipelines
  config = dict(model=model, data=data, edit=dict(steps=50, scale=scale, sampler=sampler))
  return config, kind


def _mapper_layers(clip: Mapping[str, Any]) -> int:
  """The layers of the conditioner's mapper (diffusers paint_by_example/image_encoder.py)."""
  return (clip['layers'] + 1) // 5


def weights_file(folder: Path, stem: str) -> Path:
  """Returns the weight file of one network, or the index of its shards, by the rule of the hub.

  Whole files go before shards, and of several variants fp16 goes first.
  """
  torch_stem = 'pytorch_model' if stem == 'model' else stem
  names = files.listing(folder)
  for name in (stem, torch_stem):
    own = [PurePosixPath(n) for n in names if n.startswith((f'{name}.', f'{name}-'))]
    found = [p for p in fetch.of_network(own) if '-of-' not in p.name]
    if found:
      order = lambda p: (p.suffix == '.json', p.name.count('.'), '.fp16' not in p.name)
      return folder / min(found, key=order)
  there = ', '.join(names[:5]) or 'nothing'
  raise UserError(
    f'{folder} has no weights: it needs {stem}.safetensors or {torch_stem}.bin and has {there}'
  )


def shards(file: Path) -> list[Path]:
  """Returns the file itself, or the files that it names if it is an index."""
  if file.suffix != '.json':
    return [file]
  return sorted(file.parent / name for name in set(read_json(file)['weight_map'].values()))


# Writing


def write(
  path: Path,
  config: Mapping[str, Any],
  tensors: Mapping[str, Tensor],
  tokenizer: Path | None = None,
) -> None:
  """Writes the folder that the pipeline's from_pretrained reads.

  path: an empty folder.
  config: its `model` has every default value written out; a model with `text` is Stable Diffusion,
    others are Paint by Example.
  tensors: by exedit's paths. tokenizer: of Stable Diffusion.
  Raises:
    UserError: if diffusers has no such network.
  """
  model = config['model']
  _check(model, str(path))
  size = config.get('data', {}).get('size', 512) // 2 ** (len(model['autoencoder']['mult']) - 1)
  theirs = to_theirs(TABLE, tensors)
  for name, value in _configs(model, size).items():
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
  if tokenizer is not None:
    _write_tokenizer(path / texts.FOLDER, tokenizer, model['text']['length'])
  for part in ('unet', 'vae', 'text_encoder' if 'text' in model else 'image_encoder'):
    stem = STEMS.get(part, 'diffusion_pytorch_model')
    own = {n.removeprefix(f'{part}/'): t for n, t in theirs.items() if n.startswith(f'{part}/')}
    save_tensors(path / part / f'{stem}.safetensors', own, {'format': 'pt'})


def _write_tokenizer(folder: Path, source: Path, length: int) -> None:
  """Copies a tokenizer; its config says the length, without which the pipeline cannot fill up."""
  contents = texts.contents(source)
  told = json.loads(contents.get(texts.CONFIG, b'{}'))
  if told.get('model_max_length') != length:
    told = {'tokenizer_class': 'CLIPTokenizer', **told, 'model_max_length': length}
    contents[texts.CONFIG] = (json.dumps(told, indent=2) + '\n').encode()
  folder.mkdir()
  files.write_all({folder / name: data for name, data in contents.items()})


def _check(model: Mapping[str, Any], where: str) -> None:
  """Raises UserError if the configs of diffusers cannot describe this model."""
  if model['unet']['mult'][0] != 1:
    raise UserError(
      f'{where}: the first level of the UNet is {model["unet"]["mult"][0]} times as wide as its '
      'first convolution, which diffusers cannot say: write the original layout instead'
    )
  if 'text' in model:
    return
  expected = _mapper_layers(model['clip'])
  if model['conditioner']['layers'] != expected:
    raise UserError(
      f'{where}: the conditioner has {model["conditioner"]["layers"]} layers, and diffusers builds '
      f'{expected} for a CLIP of {model["clip"]["layers"]}: write the original layout instead'
    )


def _configs(model: Mapping[str, Any], size: int) -> dict[str, dict[str, Any]]:
  """All config files by their names; `size` is that of the latents."""
  prediction = model['schedule']['prediction']
  index = dict(
    _diffusers_version=VERSION,
    requires_safety_checker=False,
    safety_checker=[None, None],
    scheduler=['diffusers', 'PNDMScheduler' if prediction == 'eps' else 'DDIMScheduler'],
    unet=['diffusers', 'UNet2DConditionModel'],
    vae=['diffusers', 'AutoencoderKL'],
  )
  configs = {
    'unet/config.json': _unet(model, size),
    'vae/config.json': _autoencoder(model['autoencoder'], size),
    'scheduler/scheduler_config.json': _scheduler(model['schedule']),
  }
  if 'text' in model:
    index |= dict(
      _class_name='StableDiffusionPipeline',
      feature_extractor=[None, None],
      image_encoder=[None, None],
      text_encoder=['transformers', 'CLIPTextModel'],
      tokenizer=['transformers', 'CLIPTokenizer'],
    )
    configs['text_encoder/config.json'] = _text_encoder(model['text'])
  else:
    index |= dict(
      _class_name='PaintByExamplePipeline',
      feature_extractor=['transformers', 'CLIPImageProcessor'],
      image_encoder=['paint_by_example', 'PaintByExampleImageEncoder'],
    )
    configs['image_encoder/config.json'] = image_encoder(model['clip'], model['context_dim'])
    preprocessor = _preprocessor(model['clip']['image_size'])
    configs['feature_extractor/preprocessor_config.json'] = preprocessor
  return {'model_index.json': dict(sorted(index.items())), **configs}


def _unet(model: Mapping[str, Any], size: int) -> dict[str, Any]:
  net, z = model['unet'], model['autoencoder']['z_channels']
  attend = [i in net['attention_levels'] for i in range(len(net['mult']))]
  names = [settings.ATTEND if a else settings.PLAIN for a in attend]
  return dict(
    _class_name='UNet2DConditionModel',
    _diffusers_version=VERSION,
    act_fn='silu',
    attention_head_dim=net['heads'],  # the number of heads: docs/facts.md, Weight layouts
    block_out_channels=[net['channels'] * m for m in net['mult']],
    center_input_sample=False,
    cross_attention_dim=model['context_dim'],
    down_block_types=[name.format('Down') for name in names],
    downsample_padding=1,
    flip_sin_to_cos=True,
    freq_shift=0,
    in_channels=z if 'text' in model else 2 * z + 1,
    layers_per_block=net['layers'],
    mid_block_scale_factor=1,
    norm_eps=1e-5,
    norm_num_groups=net['groups'],
    out_channels=z,
    sample_size=size,
    up_block_types=[name.format('Up') for name in names[::-1]],
    use_linear_projection=False,
  )


def _autoencoder(vae: Mapping[str, Any], size: int) -> dict[str, Any]:
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


def _text_encoder(text: Mapping[str, Any]) -> dict[str, Any]:
  """text_encoder/config.json: that of transformers' CLIPTextModel."""
  return dict(
    architectures=['CLIPTextModel'],
    attention_dropout=0.0,
    bos_token_id=text['vocabulary'] - 2,
    eos_token_id=text['vocabulary'] - 1,
    hidden_act='quick_gelu',
    hidden_size=text['width'],
    initializer_factor=1.0,
    initializer_range=0.02,
    intermediate_size=text['mlp'],
    layer_norm_eps=1e-5,
    max_position_embeddings=text['length'],
    model_type='clip_text_model',
    num_attention_heads=text['heads'],
    num_hidden_layers=text['layers'],
    pad_token_id=text['vocabulary'] - 1,
    projection_dim=text['width'],
    vocab_size=text['vocabulary'],
  )


def image_encoder(clip: Mapping[str, Any], context_dim: int) -> dict[str, Any]:
  """Returns image_encoder/config.json: the CLIP tower's config."""
  return dict(
    architectures=['PaintByExampleImageEncoder'],
    attention_dropout=0.0,
    hidden_act='quick_gelu',
    hidden_size=clip['width'],
    image_size=clip['image_size'],
    initializer_factor=1.0,  # transformers requires both, although nothing is initialised
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


def _scheduler(schedule: Mapping[str, Any]) -> dict[str, Any]:
  """PNDM as published, or DDIM because PNDM has no such prediction."""
  names = {ours: theirs for theirs, ours in settings.PREDICTIONS.items()}
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


def _preprocessor(size: int) -> dict[str, Any]:
  """As published: the shortest edge becomes `size`, then the centre is cut out."""
  from exedit.models.clip import MEAN, STD

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
