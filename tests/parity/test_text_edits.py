"""Edits of photos by texts agree with diffusers' pipelines, from files that diffusers wrote.

SDEdit with StableDiffusionImg2ImgPipeline, Blended Diffusion with StableDiffusionInpaintPipeline
around a UNet of 4 channels, and the inpainting model with the same around one of 9. Random weights,
float32, the same noises: final latents within 1e-3 of their largest, images within 2/255. PLMS is
not compared with a strength below 1, where diffusers' steps go to wrong timesteps.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit import latent_diffusion, stable_diffusion, stable_diffusion_inpainting
from exedit.weights import find
from tests.parity import references
from tests.parity.test_pipeline import SCHEDULERS, SHAPES, Seen
from tests.parity.test_stable_diffusion import PROMPTS, TEXTS, tokens

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
pytest.importorskip('transformers')

CLASSES = dict(
  sdedit=(stable_diffusion, diffusers.StableDiffusionImg2ImgPipeline),
  blended=(stable_diffusion, diffusers.StableDiffusionInpaintPipeline),
  inpainting=(stable_diffusion_inpainting, diffusers.StableDiffusionInpaintPipeline),
)
CASES = [
  ('sdedit', 'ddim', 7.5, 0.6),
  ('sdedit', 'dpm_solver_pp', 1.0, 0.9),
  ('blended', 'ddim', 7.5, 0.7),
  ('blended', 'dpm_solver_pp', 3.0, 0.7),
  ('inpainting', 'ddim', 1.0, 1.0),
  ('inpainting', 'plms', 7.5, 1.0),
  ('inpainting', 'dpm_solver_pp', 3.0, 1.0),
]


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  """A function of a name in CLASSES: (our weights, our model, their pipeline), each made once."""
  made = {}

  def get(name):
    if name not in made:
      system, kind = CLASSES[name]
      folder, channels = tmp_path_factory.mktemp('sd'), 9 if name == 'inpainting' else 4
      theirs = references.text_pipeline(kind, SHAPES['two-levels'], TEXTS, folder, channels)
      weights = find.weights(folder / 'pipeline')
      assert weights.kind == system.SYSTEM.name
      made[name] = weights, latent_diffusion.load(system.build, weights), theirs
    return made[name]

  return get


@pytest.mark.parametrize('name, sampler, scale, strength', CASES)
def test_same_latents_and_pictures(load, monkeypatch, name, sampler, scale, strength):
  weights, model, theirs = load(name)
  negative, random = ['a blue photo', 'red'], np.random.default_rng(3)
  source = random.uniform(-1, 1, (2, 24, 32, 3)).astype(np.float32)
  mask = np.ones((2, 24, 32, 1), np.float32)
  if name != 'sdedit':
    mask[0, :, 13:], mask[1, :7] = 0, 0  # an edge inside the latents' pixels
  noise, posterior = random.normal(size=(2, 2, 12, 16, 4)).astype(np.float32)
  config = dict(diffusers.PNDMScheduler(**references.PNDM).config, clip_sample=False)
  theirs.scheduler = SCHEDULERS[sampler].from_config(config)
  references.give_posterior(monkeypatch, posterior)
  given = lambda *args, **kwargs: references.channels_first(noise)
  monkeypatch.setattr(sys.modules[type(theirs).__module__], 'randn_tensor', given)
  how = dict(mask_image=references.channels_first(mask), height=24, width=32)
  z = theirs(
    prompt=PROMPTS,
    negative_prompt=negative,
    image=references.channels_first(source),
    **({} if name == 'sdedit' else how),
    strength=strength,
    num_inference_steps=6,
    guidance_scale=scale,
    output_type='latent',
  ).images
  with torch.no_grad():
    image = theirs.vae.decode(z / theirs.vae.config.scaling_factor).sample
  z, image = references.channels_last(z), references.channels_last(image)
  seen = []
  graphdef, params = nnx.split(model)
  watched = nnx.merge(graphdef, params)
  watched.autoencoder = Seen(watched.autoencoder, lambda z: seen.append(np.asarray(z)))
  more = {} if name == 'inpainting' else dict(strength=strength)
  made = CLASSES[name][0].edit(
    watched,
    jnp.asarray(source),
    jnp.asarray(mask),
    tokens(weights, PROMPTS),
    tokens(weights, negative),
    key=jax.random.key(0),
    steps=6,
    scale=scale,
    sampler=sampler,
    noise=jnp.asarray(noise),
    posterior_noise=jnp.asarray(posterior),
    paste=False,
    **more,
  )
  jax.effects_barrier()
  np.testing.assert_allclose(seen[0], z, atol=1e-3 * np.abs(z).max(), rtol=0)
  ours, expected = (np.clip(np.asarray(a) * 127.5 + 127.5, 0, 255) for a in (made, image))
  np.testing.assert_allclose(ours, expected, atol=2, rtol=0)
  assert expected.std() > 10 and np.abs(z).max() > 0.5  # the comparison is not of zeros
