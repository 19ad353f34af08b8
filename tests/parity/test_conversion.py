"""diffusers' pipelines load in exedit and exedit's load in diffusers, bit by bit.

The numbers that they compute are compared elsewhere; here every tensor is compared by its name.
"""

import json
import sys
import types

import numpy as np
import pytest

from exedit import paint_by_example as pbe
from exedit.convert import convert
from exedit.models import parameters
from exedit.weights import find
from exedit.weights.formats.files import open_tensors
from exedit.weights.layouts import original
from tests import released
from tests.parity import references

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
transformers = pytest.importorskip('transformers')

SHAPES = {
  'two-levels': dict(mult=(1, 2), attention_levels=(0,), layers=1, clip_layers=4, dim=24),
  'three-levels': dict(mult=(1, 2, 2), attention_levels=(1, 2), layers=2, clip_layers=9, dim=16),
}


def build(mult, attention_levels, layers, clip_layers, dim):
  """A small pipeline of diffusers with random weights."""
  blocks = dict(mult=mult, layers=layers)
  unet = references.unet(
    16,
    **blocks,
    attention_levels=attention_levels,
    heads=2,
    groups=8,
    context_dim=dim,
    sample_size=8,
  )
  size = 8 * 2 ** (len(mult) - 1)
  vae = references.vae(8, **blocks, groups=4, sample_size=size, scaling_factor=0.2)
  tower = dict(width=64, layers=clip_layers, heads=2, mlp=32, patch=8, image_size=32)
  encoder = references.encoder(dim, **tower, projection_dim=dim)
  processor = transformers.CLIPImageProcessor(size=dict(shortest_edge=32), crop_size=32)
  return references.pipeline(unet, vae, encoder, processor)


@pytest.fixture(scope='module', params=SHAPES)
def theirs(request):
  return build(**SHAPES[request.param])


def open_pipeline(path):
  """Calls `from_pretrained`, which does not find the encoder since diffusers moved the pipeline."""
  if not hasattr(diffusers.pipelines, 'paint_by_example'):
    diffusers.pipelines.paint_by_example = references.encoder_module()
  return diffusers.PaintByExamplePipeline.from_pretrained(path, low_cpu_mem_usage=False)


def assert_same_modules(a, b):
  for part in ('unet', 'vae', 'image_encoder'):
    one, other = getattr(a, part).state_dict(), getattr(b, part).state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
      assert torch.equal(value, other[name]), f'{part} {name}'


def sharded(folder, state_dict, stem):
  """Writes torch's .bin in two shards with an index."""
  names, index = sorted(state_dict), {}
  for i, own in enumerate((names[::2], names[1::2])):
    shard = f'{stem}-0000{i + 1}-of-00002.bin'
    torch.save({name: state_dict[name] for name in own}, folder / shard)
    index |= dict.fromkeys(own, shard)
  (folder / f'{stem}.bin.index.json').write_text(json.dumps(dict(weight_map=index)))


def save(pipeline, path, how):
  """Writes the pipeline's folder as diffusers does now, or as earlier versions did."""
  pipeline.save_pretrained(path, **dict(max_shard_size='100KB') if how == 'shards' else {})
  if how in ('bin', 'bin shards'):
    for part, stem in (
      ('unet', 'diffusion_pytorch_model'),
      ('vae', 'diffusion_pytorch_model'),
      ('image_encoder', 'pytorch_model'),
    ):
      for file in (path / part).glob('*.safetensors'):
        file.unlink()
      arrays = getattr(pipeline, part).state_dict()
      if part == 'image_encoder':  # the names that transformers wrote before version 5
        old = lambda n: n.replace('model.', 'model.vision_model.', 1) if n[:6] == 'model.' else n
        arrays = {old(n): a for n, a in arrays.items()}
        positions = torch.arange(17)[None]
        arrays['model.vision_model.embeddings.position_ids'] = positions
      if how == 'bin':
        torch.save(arrays, path / part / f'{stem}.bin')
      else:
        sharded(path / part, arrays, stem)


@pytest.mark.parametrize('how', ['safetensors', 'shards', 'bin', 'bin shards'])
def test_their_folder_loads_here_and_comes_back_the_same(theirs, how, tmp_path):
  save(theirs, tmp_path / 'theirs', how)
  if how == 'shards':
    assert len(list((tmp_path / 'theirs' / 'unet').glob('*-of-*.safetensors'))) > 1
  weights = find.weights(tmp_path / 'theirs')
  assert weights.layout == 'diffusers' and weights.config['model']['autoencoder']['scale'] == 0.2
  assert weights.config['data'] == dict(size=8 * theirs.vae_scale_factor, exemplar_size=32)
  pbe.load(weights)  # all names and shapes are those of the network
  convert(str(tmp_path / 'theirs'), str(tmp_path / 'ours'), layout='diffusers', say=str)
  back = open_pipeline(tmp_path / 'ours')
  assert_same_modules(theirs, back)
  for part in ('unet', 'vae'):
    one, other = getattr(theirs, part).config, getattr(back, part).config
    same = lambda c: {
      n: list(v) if isinstance(v, tuple) else v for n, v in c.items() if n[0] != '_'
    }
    assert same(one) == same(other)
  for name, value in theirs.scheduler.config.items():
    assert name[0] == '_' or back.scheduler.config[name] == value, name
  tower, again = theirs.image_encoder.config.to_dict(), back.image_encoder.config.to_dict()
  for name in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'image_size'):
    assert tower[name] == again[name]
  assert back.image_encoder.proj_size == theirs.image_encoder.proj_size


def test_our_folder_loads_there(tmp_path):
  released.export(tmp_path / 'ours')
  convert(str(tmp_path / 'ours'), str(tmp_path / 'theirs'), layout='diffusers', say=str)
  back = open_pipeline(tmp_path / 'theirs')
  kernel = released.params()['unet.down.0.attentions.0.attn2.to_k.kernel']  # one without effect
  there = back.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_k.weight
  np.testing.assert_array_equal(there.detach().numpy().T, kernel)
  back.save_pretrained(tmp_path / 'again')
  weights = find.weights(tmp_path / 'again')
  for name, array in released.params().items():
    np.testing.assert_array_equal(weights.tensors[name].read(), array, err_msg=name)


def test_the_original_layout_is_what_their_converter_reads(theirs, tmp_path, monkeypatch):
  """Compares with diffusers' own converter of LDM checkpoints (convert_from_ckpt.py)."""
  reference = pytest.importorskip('diffusers.pipelines.stable_diffusion.convert_from_ckpt')
  save(theirs, tmp_path / 'theirs', 'safetensors')
  convert(str(tmp_path / 'theirs'), str(tmp_path / 'ours.safetensors'), layout='original', say=str)
  tensors = open_tensors(tmp_path / 'ours.safetensors')
  checkpoint = {name: torch.from_numpy(tensor.read()) for name, tensor in tensors.items()}
  unet = reference.convert_ldm_unet_checkpoint(dict(checkpoint), theirs.unet.config)
  vae = reference.convert_ldm_vae_checkpoint(dict(checkpoint), theirs.vae.config)
  config = theirs.image_encoder.config
  strip = lambda name: name.replace('transformer.vision_model.', 'transformer.')
  if not any('vision_model' in name for name in theirs.image_encoder.state_dict()):
    checkpoint = {strip(name): value for name, value in checkpoint.items()}
  monkeypatch.setattr(reference.CLIPVisionConfig, 'from_pretrained', lambda *args, **kwargs: config)
  encoder = reference.convert_paint_by_example_checkpoint(checkpoint)
  for ours, module in (
    (unet, theirs.unet),
    (vae, theirs.vae),
    (encoder.state_dict(), theirs.image_encoder),
  ):
    expected = module.state_dict()
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
      assert torch.equal(ours[name], value), name


class Callback:
  """A class of the trainer's library whose object is in a checkpoint."""


def lightning_checkpoint(path, monkeypatch):
  """Writes what pytorch_lightning 1.4 saved: weights, counters, callbacks and optimizer states."""
  module = types.ModuleType('pytorch_lightning.callbacks.model_checkpoint')
  Callback.__module__, Callback.__qualname__ = module.__name__, 'ModelCheckpoint'
  module.ModelCheckpoint = Callback
  for name in ('pytorch_lightning', 'pytorch_lightning.callbacks', module.__name__):
    monkeypatch.setitem(sys.modules, name, module)
  weights = {name: torch.from_numpy(array) for name, array in released.checkpoint().items()}
  weights |= {name: torch.ones(1000) for name in original.BUFFERS if name != 'betas'}
  betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
  weights['betas'] = betas.float()
  tower = 'cond_stage_model.transformer.vision_model.'
  weights[tower + 'embeddings.position_ids'] = torch.arange(17)[None]
  moments = dict(step=7, exp_avg=torch.ones(3), exp_avg_sq=torch.ones(3))
  torch.save(
    dict(
      epoch=3,
      global_step=7,
      state_dict=weights,
      optimizer_states=[dict(state={0: moments}, param_groups=[dict(lr=1e-5, params=[0])])],
      lr_schedulers=[dict(last_epoch=7)],
      callbacks={Callback: dict(best_model_score=torch.tensor(0.5), best_model_path='x')},
    ),
    path,
  )


def test_a_lightning_checkpoint_is_read_without_torch(tmp_path, monkeypatch):
  lightning_checkpoint(tmp_path / 'model.ckpt', monkeypatch)
  weights = find.weights(tmp_path / 'model.ckpt', heads=2, groups=4)
  assert 'schedule: its betas' in weights.notes
  _, params = parameters.flatten(pbe.load(weights))
  expected = released.params()
  assert params.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(params[name], array, err_msg=name)
  convert(str(tmp_path / 'model.ckpt'), str(tmp_path / 'a'), heads=2, groups=4, say=str)
  convert(str(tmp_path / 'a'), str(tmp_path / 'b.safetensors'), layout='original', say=str)
  expected = released.checkpoint()
  tensors = open_tensors(tmp_path / 'b.safetensors')
  assert tensors.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(tensors[name].read(), array, err_msg=name)
