"""Stable Diffusion agrees with diffusers' StableDiffusionPipeline, from files that diffusers wrote.

Random weights, float32, the same initial latents: final latents within 1e-3 of their largest,
images within 2/255.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit import convert, latent_diffusion, stable_diffusion
from exedit.weights import find
from tests.parity import references
from tests.parity.test_pipeline import SCHEDULERS, SHAPES, Seen

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
pytest.importorskip('transformers')

TEXTS = dict(length=16, layers=2, mlp=64)
PROMPTS = ['a photo of a red ball', 'a blue star']


CASES = [  # every sampler, shape and scale, and both scales with both shapes
  ('two-levels', 'plms', 7.5),
  ('two-levels', 'ddim', 1.0),
  ('two-levels', 'dpm_solver_pp', 7.5),
  ('three-levels', 'plms', 1.0),
  ('three-levels', 'ddim', 7.5),
]


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """A function of a name in SHAPES: (our weights, our model, their pipeline), each made once.

  Ours are read from the folder that theirs wrote.
  """
  made = {}

  def get(name):
    if name not in made:
      folder = tmp_path_factory.mktemp('sd')
      kind = diffusers.StableDiffusionPipeline
      theirs = references.text_pipeline(kind, SHAPES[name], TEXTS, folder)
      weights = find.weights(folder / 'pipeline')
      made[name] = weights, latent_diffusion.load(stable_diffusion.build, weights), theirs
    return made[name]

  return get


@pytest.fixture(params=['two-levels', 'three-levels'])
def pair(request, pairs):
  return pairs(request.param)


def tokens(weights, texts):
  spell = stable_diffusion.tokenizer(weights)
  return jnp.stack([spell(text) for text in texts])


def test_the_folder_is_recognised_and_its_texts_become_the_same_tokens(pair):
  weights, model, theirs = pair
  assert weights.kind == 'stable_diffusion'
  for texts in (PROMPTS, [''], ['red ball ' * 20]):
    expected = theirs.tokenizer(
      texts, padding='max_length', max_length=TEXTS['length'], truncation=True
    ).input_ids
    np.testing.assert_array_equal(tokens(weights, texts), expected)
  np.testing.assert_array_equal(model.empty(1), tokens(weights, ['']))


def test_diffusers_loads_what_convert_writes(pair, tmp_path):
  weights, _, theirs = pair
  convert.convert(weights.where, str(tmp_path / 'own'), say=lambda line: None)
  source, target = str(tmp_path / 'own'), tmp_path / 'written'
  convert.convert(source, str(target), layout='diffusers', say=lambda line: None)
  loaded = diffusers.StableDiffusionPipeline.from_pretrained(target)
  for part in ('unet', 'vae', 'text_encoder'):
    found, expected = (references.weights(getattr(p, part)) for p in (loaded, theirs))
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)
  for texts in (PROMPTS, [''], ['red ball ' * 20]):
    fill = dict(padding='max_length', truncation=True)
    length = loaded.tokenizer.model_max_length
    np.testing.assert_array_equal(
      loaded.tokenizer(texts, max_length=length, **fill).input_ids, tokens(weights, texts)
    )
  mine, known = (dict(p.scheduler.config) for p in (loaded, theirs))
  assert {n: mine[n] for n in references.PNDM} == {n: known[n] for n in references.PNDM}


@pytest.mark.parametrize('shape, sampler, scale', CASES)
def test_same_latents_and_pictures(pairs, shape, sampler, scale):
  weights, model, theirs = pairs(shape)
  negative = ['a blue photo', 'red']
  f = model.autoencoder.factor
  side = 4 * model.unet.multiple
  noise = np.random.default_rng(3).normal(size=(2, side, side, 4)).astype(np.float32)
  config = dict(diffusers.PNDMScheduler(**references.PNDM).config, clip_sample=False)
  theirs.scheduler = SCHEDULERS[sampler].from_config(config)
  z = theirs(
    PROMPTS,
    negative_prompt=negative,
    height=side * f,
    width=side * f,
    num_inference_steps=6,
    guidance_scale=scale,
    latents=references.channels_first(noise),
    output_type='latent',
  ).images
  with torch.no_grad():
    image = theirs.vae.decode(z / theirs.vae.config.scaling_factor).sample
  z, image = references.channels_last(z), references.channels_last(image)
  seen = []
  graphdef, params = nnx.split(model)
  watched = nnx.merge(graphdef, params)
  watched.autoencoder = Seen(watched.autoencoder, lambda z: seen.append(np.asarray(z)))
  made = stable_diffusion.generate(
    watched,
    tokens(weights, PROMPTS),
    tokens(weights, negative),
    key=jax.random.key(0),
    size=(side * f, side * f),
    steps=6,
    scale=scale,
    sampler=sampler,
    noise=jnp.asarray(noise),
  )
  jax.effects_barrier()
  np.testing.assert_allclose(seen[0], z, atol=1e-3 * np.abs(z).max(), rtol=0)
  ours, expected = (np.clip(np.asarray(a) * 127.5 + 127.5, 0, 255) for a in (made, image))
  np.testing.assert_allclose(ours, expected, atol=2, rtol=0)
  assert expected.std() > 10 and np.abs(z).max() > 0.5  # the comparison is not of zeros
