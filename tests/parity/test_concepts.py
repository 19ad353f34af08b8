"""Concepts agree with diffusers' Custom Diffusion and textual inversion, from files either wrote.

Random weights, float32: predicted noise within 1e-4 of its largest. Arrays of torch's files are
equal to the last bit.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exedit import latent_diffusion, stable_diffusion
from exedit.concepts import concept as concepts
from exedit.concepts import files, foreign
from exedit.weights import find
from tests import concepts_made
from tests.parity import references
from tests.parity.test_pipeline import SHAPES

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
pytest.importorskip('transformers')

TEXTS = dict(length=16, layers=2, mlp=64)
WORDS = 'a photo of <new1> ball'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sd')
  kind = diffusers.StableDiffusionPipeline
  references.text_pipeline(kind, SHAPES['three-levels'], TEXTS, folder)
  return folder / 'pipeline'


@pytest.fixture(scope='module')
def base(folder):
  return find.weights(folder)


@pytest.fixture
def theirs(folder):
  return diffusers.StableDiffusionPipeline.from_pretrained(folder)


@jax.jit
def predicted(model, x, t, tokens):
  return model.unet(x, t, model.text(tokens))


def assert_same_noise(weights, theirs):
  """Both predict the same noise for a text with the new word."""
  model = latent_diffusion.load(stable_diffusion.build, weights)
  tokens = stable_diffusion.tokenizer(weights)(WORDS)
  x = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
  found = predicted(model, x, jnp.array([500]), tokens[None])
  ids = theirs.tokenizer(
    [WORDS], padding='max_length', max_length=TEXTS['length'], return_tensors='pt'
  ).input_ids
  np.testing.assert_array_equal(ids[0], tokens)
  with torch.no_grad():
    context = theirs.text_encoder(ids)[0]
    expected = theirs.unet(references.channels_first(x), 500, context).sample
  expected = references.channels_last(expected)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def customise(unet, also_queries):
  """Gives the UNet the processors of diffusers' example, with weights that training has moved."""
  from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

  made, modules = {}, dict(unet.named_modules())
  for name in unet.attn_processors:
    cross, key = 'attn2' in name, modules[name.removesuffix('.processor')].to_k
    made[name] = CustomDiffusionAttnProcessor(
      train_kv=cross,
      train_q_out=cross and also_queries,
      hidden_size=key.out_features,
      cross_attention_dim=key.in_features if cross else None,
    )
  unet.set_attn_processor(made)
  for processor in made.values():
    references.randomised(processor, seed=1)


@pytest.mark.parametrize('safe, also_queries', [(False, False), (True, True)])
def test_what_diffusers_saves_is_read(tmp_path, base, theirs, safe, also_queries):
  customise(theirs.unet, also_queries)
  theirs.unet.save_attn_procs(tmp_path, safe_serialization=safe)
  row = torch.randn(base.tensors['text.token_embedding'].shape[1])
  torch.save({'<new1>': row}, tmp_path / '<new1>.bin')
  theirs.load_textual_inversion(tmp_path, weight_name='<new1>.bin')
  found = files.read(tmp_path, base)
  blocks = len(theirs.unet.attn_processors) // 2
  assert len(found.kernels) == blocks * (5 if also_queries else 2)
  assert_same_noise(concepts.applied(base, [found]), theirs)


def test_diffusers_loads_what_is_written(tmp_path, base, theirs):
  concept = concepts_made.made(base)
  foreign.write(tmp_path / 'c', concept, 'diffusers', base)
  theirs.unet.load_attn_procs(tmp_path / 'c', weight_name=foreign.WHOLE, _pipeline=theirs)
  theirs.load_textual_inversion(tmp_path / 'c', weight_name='<new1>.bin')
  assert_same_noise(concepts.applied(base, [concept]), theirs)


def test_textual_inversion_of_several_rows(tmp_path, base, theirs):
  width = base.tensors['text.token_embedding'].shape[1]
  rows = torch.randn(3, width).requires_grad_()
  torch.save(
    {'string_to_token': {'*': 265}, 'string_to_param': {'*': rows}, 'name': 'x', 'step': 3},
    tmp_path / '<new1>.pt',
  )
  found = files.read(tmp_path / '<new1>.pt', base)
  foreign.write(tmp_path / 'e.safetensors', found, 'embedding', base)
  for file in ('<new1>.pt', 'e.safetensors'):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base.where)
    pipe.load_textual_inversion(tmp_path, weight_name=file, token='<new1>')
    said = pipe.maybe_convert_prompt(WORDS, pipe.tokenizer)
    ids = pipe.tokenizer([said], padding='max_length', max_length=TEXTS['length']).input_ids[0]
    weights = concepts.applied(base, [found])
    np.testing.assert_array_equal(stable_diffusion.tokenizer(weights)(WORDS), ids)
    table = pipe.text_encoder.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(table[-3:], weights.tensors[concepts.ROWS].read())


def test_files_of_adobe_and_compvis(tmp_path, base, theirs):
  concept, state = concepts_made.made(base), theirs.unet.state_dict()
  names = [name for name in state if 'attn2.to_k.' in name or 'attn2.to_v.' in name]
  moved = {name: state[name] + 0.1 * torch.randn_like(state[name]) for name in names}
  row = concept.tokens['<new1>']
  words = {'<new1>': torch.from_numpy(row)}

  def compressed(name):  # as adobe's compress.py
    u, s, v = torch.linalg.svd(moved[name] - state[name])
    return dict(u=u[:, :4] @ torch.diag(s)[:4, :4], v=v[:4])

  small = {name: compressed(name) for name in names}
  torch.save(dict(unet=moved, modifier_token=words), tmp_path / 'delta.bin')
  torch.save(dict(unet=small, modifier_token=words), tmp_path / 'small.bin')
  whole = {name: state[name] + p['u'] @ p['v'] for name, p in small.items()}
  for file, expected, off in (('delta.bin', moved, 0), ('small.bin', whole, 1e-6)):
    found = files.read(tmp_path / file, base)
    named = foreign.to_theirs(foreign.DIFFUSERS, found.kernels)
    assert named.keys() == expected.keys() and (found.tokens['<new1>'] == row).all()
    for name, array in named.items():
      np.testing.assert_allclose(array, expected[name], rtol=0, atol=off)
    concepts.applied(base, [found])
  foreign.write(tmp_path / 'ours.bin', concept, 'adobe', base)
  ours = torch.load(tmp_path / 'ours.bin', weights_only=True)
  assert not theirs.unet.load_state_dict(ours['unet'], strict=False).unexpected_keys
  theirs.load_textual_inversion(ours['modifier_token'])
  assert_same_noise(concepts.applied(base, [concept]), theirs)
  foreign.write(tmp_path / 'ours.ckpt', concept, 'original', base)
  ours = torch.load(tmp_path / 'ours.ckpt', weights_only=True)['state_dict']
  assert (ours.pop('embed')[0].numpy() == row).all()
  block = 'model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight'
  assert (ours[block].numpy() == concept.kernels[concepts_made.MIDDLE].T).all()
  assert len(ours) == len(names)
