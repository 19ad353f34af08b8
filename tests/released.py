"""Tiny models of the published architecture in every layout, for tests of weights."""

import functools
import json
import math

import numpy as np

from exedit import latent_diffusion
from exedit import paint_by_example as pbe
from exedit.weights import translate
from exedit.weights.formats.files import open_tensors
from exedit.weights.formats.safetensors import save_tensors
from exedit.weights.formats.tensor import Tensor
from exedit.weights.layouts import diffusers, original, own

abstract = latent_diffusion.abstract  # tests replace the module's by one that remembers
UNET = dict(channels=16, mult=(1, 2), layers=1, attention_levels=(0,), heads=2, groups=8)
VAE = dict(kind='kl', channels=8, mult=(1, 2), layers=1, groups=4)
CLIP = dict(width=64, layers=4, heads=1, mlp=96, patch=8, image_size=32)
MODELS = {
  'two-levels': dict(
    unet=UNET, autoencoder=VAE, clip=CLIP, conditioner=dict(layers=1), context_dim=12
  ),
  'attention-at-the-bottom': dict(
    unet=dict(channels=8, mult=(1, 1, 3), layers=2, attention_levels=(1, 2), heads=4, groups=4),
    autoencoder=dict(kind='kl', channels=8, mult=(1, 3, 2), layers=3, z_channels=3, groups=8),
    clip=dict(width=64, layers=9, heads=2, mlp=32, patch=7, image_size=28),
    conditioner=dict(layers=2),
    context_dim=20,
    schedule=dict(num_steps=500, beta_start=0.001, beta_end=0.02, prediction='v'),
  ),
  'as-published': dict(
    unet=dict(channels=32, mult=(1, 2, 4, 4), layers=2, attention_levels=(0, 1, 2)),
    autoencoder=dict(kind='kl', channels=32),
    clip=dict(width=64, layers=4, heads=1, mlp=64, patch=14, image_size=28),
    conditioner=dict(layers=1),
    context_dim=24,
  ),
}
SMALL = MODELS['two-levels']


def config(model=SMALL) -> dict:
  factor = 2 ** (len(model['autoencoder'].get('mult', (1, 2, 4, 4))) - 1)
  return dict(
    model=json.loads(json.dumps(model)),
    data=dict(size=16 * factor, exemplar_size=model['clip']['image_size']),
    edit=dict(steps=3, scale=2.0, sampler='ddim'),
  )


@functools.cache
def abstracted(model: str) -> tuple:
  """The graph and the shapes of a model, from its settings as JSON."""
  return abstract(pbe.build, json.loads(model))


def params(model=SMALL, seed=0) -> dict[str, np.ndarray]:
  """Random parameters, also for those that have no effect with one token."""
  rng = np.random.default_rng(seed)
  shapes = abstracted(json.dumps(model))[1]
  return {
    name: np.float32(0.2 * rng.standard_normal(a.shape) + name.endswith('.scale'))
    for name, a in shapes.items()
  }


def tensors(arrays) -> dict[str, Tensor]:
  return {n: Tensor(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}


def export(path, model=SMALL, seed=0):
  """Writes exedit's own layout."""
  own.write(path, config(model), params(model, seed), step=7)
  return path


def write_pipeline(path, model=SMALL, seed=0):
  """Writes the diffusers layout."""
  path.mkdir()
  complete = dict(config(model), model=pbe.complete(model))
  diffusers.write(path, complete, tensors(params(model, seed)))
  return path


def checkpoint(model=SMALL, seed=0) -> dict[str, np.ndarray]:
  """The state dict of the original layout, without exedit's note."""
  complete = pbe.complete(model)
  table = [*original.networks(complete['unet'], complete['autoencoder'])]
  table += original.conditioner.ORIGINAL
  return translate.to_theirs(table, params(model, seed))


def write_checkpoint(path, arrays=None):
  save_tensors(path, checkpoint() if arrays is None else arrays)
  return path


def change_json(file, **changes):
  """Changes entries of a JSON file; None removes one."""
  value = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({n: v for n, v in value.items() if v is not None}))


def to_text_pipeline(path, channels=4):
  """Turns a pipeline's folder into one of Stable Diffusion for text."""
  for file in (path / 'image_encoder').iterdir():
    file.unlink()
  (path / 'image_encoder').rmdir()
  (path / 'text_encoder').mkdir()
  change_json(path / 'model_index.json', image_encoder=None, text_encoder=['transformers', 'C'])
  change_json(path / 'unet' / 'config.json', in_channels=channels)
  file = path / 'unet' / 'diffusion_pytorch_model.safetensors'
  arrays = {name: tensor.read() for name, tensor in open_tensors(file).items()}
  arrays['conv_in.weight'] = np.ascontiguousarray(arrays['conv_in.weight'][:, :channels])
  save_tensors(file, arrays)
  return path


def text_checkpoint(channels=4) -> dict[str, np.ndarray]:
  """Stable Diffusion in the original layout: a text tower and buffers, no image tower."""
  arrays = {n: a for n, a in checkpoint().items() if n.startswith(('model.', 'first_stage_model.'))}
  kernel = 'model.diffusion_model.input_blocks.0.0.weight'
  arrays[kernel] = np.ascontiguousarray(arrays[kernel][:, :channels])
  text = 'cond_stage_model.transformer.text_model.'
  arrays[text + 'embeddings.token_embedding.weight'] = np.ones((9, 12), np.float32)
  arrays[text + 'embeddings.position_ids'] = np.arange(77)[None]
  arrays['betas'] = np.float32(np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2)
  arrays['model_ema.decay'] = np.array(0.9999, np.float32)
  arrays['model_ema.num_updates'] = np.array(7)
  return arrays


def write_clip(path, seed=3, text=True):
  """Writes the folder of transformers' CLIPModel, or of its image tower alone."""
  path.mkdir()
  arrays = {n: a for n, a in params(seed=seed).items() if n.startswith('clip.')}
  table = translate.under('', 'clip.', diffusers.conditioner.clip.TABLE)
  theirs = translate.to_theirs(table, arrays)
  tower = diffusers.image_encoder(pbe.complete(SMALL)['clip'], 12)
  if text:
    theirs['text_model.embeddings.position_ids'] = np.arange(77)[None]
    theirs['text_model.final_layer_norm.weight'] = np.ones(12, np.float32)
    theirs['visual_projection.weight'] = np.ones((12, 64), np.float32)
    theirs['text_projection.weight'] = np.ones((12, 12), np.float32)
    theirs['logit_scale'] = np.array(4.6, np.float32)
    tower = dict(model_type='clip', projection_dim=12, vision_config=tower)
  save_tensors(path / 'model.safetensors', theirs)
  (path / 'config.json').write_text(json.dumps(tower))
  return path


def assert_same(weights, expected=None, where=''):
  """Checks that `weights` are these parameters bit by bit, by default the small model's."""
  expected = params() if expected is None else expected
  assert weights.tensors.keys() == expected.keys()
  for name, array in expected.items():
    tensor = weights.tensors[name]
    assert tensor.shape == array.shape and tensor.dtype == array.dtype
    np.testing.assert_array_equal(tensor.read(), array, err_msg=f'{where} {name}')


def rewrite(file, change):
  """Replaces a file's tensors by `change(arrays)`."""
  arrays = {name: tensor.read() for name, tensor in open_tensors(file).items()}
  save_tensors(file, change(arrays))
