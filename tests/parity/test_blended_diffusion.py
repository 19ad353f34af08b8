"""Blended Diffusion by an exemplar agrees with a restatement in PyTorch, from files of both.

The networks are diffusers' and transformers', with random weights, float32. PyTorch cuts the box by
indices, resizes by `interpolate`, turns and tilts by `grid_sample`, and differentiates by autograd.
The same noises and the same draws of the copies: the guided noise within 1e-3 of the guidance's
largest value, edits within 1e-3 of theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exedit import blended_diffusion, convert, latent_diffusion, stable_diffusion
from exedit.models import hole_views
from exedit.weights import find
from tests.parity import references
from tests.parity.test_stable_diffusion import PROMPTS, TEXTS, tokens

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
transformers = pytest.importorskip('transformers')

SHAPE = dict(
  unet=dict(channels=16, mult=(1,), layers=1, attention_levels=(0,), heads=2, groups=8),
  autoencoder=dict(channels=8, mult=(1, 1), layers=1, groups=8),
  context_dim=12,
)
TOWER, DIM = dict(width=32, layers=1, heads=4, mlp=64, patch=8, image_size=32), 20
VIEWS, CLIP_SCALE, SCALE = 4, 300.0, 3.0
NEGATIVE = ['a blue photo', 'red']
DRAW = jax.jit(hole_views.draw_copies, static_argnums=1)


class Reference:
  """What the edits have in common, in PyTorch: networks, texts, holes and exemplars."""

  def __init__(self, pipeline, clip, mask, exemplar):
    self.pipeline, self.clip, self.mask = pipeline, clip, references.channels_first(mask)
    ids = dict(padding='max_length', max_length=TEXTS['length'], return_tensors='pt')
    said = pipeline.tokenizer([*NEGATIVE, *PROMPTS], **ids).input_ids
    with torch.no_grad():
      self.context = pipeline.text_encoder(said)[0]
      self.target = self.vectors(references.channels_first(exemplar))

  def vectors(self, image):
    """CLIP's vectors, of length 1, of pictures in [-1, 1]."""
    mean, std = (torch.tensor(a)[:, None, None] for a in (references.MEAN, references.STD))
    found = self.clip(((image + 1) / 2 - mean) / std).image_embeds
    return torch.nn.functional.normalize(found, dim=-1)

  def eps(self, x, t):
    null, own = self.pipeline.unet(torch.cat([x, x]), t, self.context).sample.chunk(2)
    return null + SCALE * (own - null)

  def views(self, image, key, t):
    """The box of each hole, and its copies as `hole_views` draws them with this key."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(key, t)
    drawn = [torch.tensor(np.asarray(a)) for a in DRAW(keys, VIEWS - 1)]
    side, found = TOWER['image_size'], []
    line = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(line, line, indexing='ij')
    for picture, hole, *copies in zip(image * self.mask, self.mask[:, 0] > 0, *drawn):
      rows, columns = (torch.where(hole.any(axis))[0] for axis in (1, 0))
      part = picture[None, :, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
      part = torch.nn.functional.interpolate(
        part, (side, side), mode='bilinear', antialias=True, align_corners=False
      )
      found.append(part)
      for back, turn, shift in zip(*copies):
        place = torch.stack([x, y, torch.ones_like(x)], -1) @ back.T
        place = place[..., :2] / place[..., 2:]
        grid = ((place - shift) @ turn.T)[None]
        copy = torch.nn.functional.grid_sample(
          part, grid, padding_mode='border', align_corners=False
        )
        found.append(copy * (place.abs() <= 1).all(-1))
    return torch.cat(found)

  def guided(self, x, t, key):
    """(eps with the guidance, the guidance alone)."""
    x = x.detach().requires_grad_()
    noise = (1 - self.pipeline.scheduler.alphas_cumprod[t]) ** 0.5
    eps = self.eps(x, t)
    estimate = (x - noise * eps) / (1 - noise**2) ** 0.5
    seen = (noise * estimate + (1 - noise) * x) / self.pipeline.vae.config.scaling_factor
    vectors = self.vectors(self.views(self.pipeline.vae.decode(seen).sample, key, t))
    chord = (vectors - self.target.repeat_interleave(VIEWS, 0)).norm(dim=-1)
    loss = CLIP_SCALE * (chord / 2).arcsin().square().mul(2).reshape(-1, VIEWS).mean(1).sum()
    more = noise * torch.autograd.grad(loss, x)[0]
    return (eps + more).detach(), more.detach()


@pytest.fixture(scope='module')
def case(tmp_path_factory):
  """(our weights, our model, source, mask, exemplar, the reference, keys)."""
  folder = tmp_path_factory.mktemp('sd')
  kind = diffusers.StableDiffusionPipeline
  pipeline = references.text_pipeline(kind, SHAPE, TEXTS, folder)
  config = references.tower_config(**TOWER, projection_dim=DIM)
  clip = references.randomised(transformers.CLIPVisionModelWithProjection(config))
  clip.save_pretrained(folder / 'clip')
  to, given = str(folder / 'joined'), dict(clip=str(folder / 'clip'), say=lambda line: None)
  convert.convert(str(folder / 'pipeline'), to, **given)
  weights = find.weights(to)
  weights.config['model']['unet']['remat'] = 'none'  # compiles in half the time
  model = latent_diffusion.load(blended_diffusion.build, weights)
  random = np.random.default_rng(3)
  source = random.uniform(-1, 1, (2, 24, 32, 3)).astype(np.float32)
  mask = np.zeros((2, 24, 32, 1), np.float32)
  mask[0, 3:21, :13], mask[1, 7:, 9:28] = 1, 1
  mask[1, 15:, 20:] = 0  # a hole that does not fill its box
  size = TOWER['image_size']
  exemplar = random.uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
  keys = jax.random.split(jax.random.key(5), 2)
  return weights, model, source, mask, exemplar, Reference(pipeline, clip, mask, exemplar), keys


def test_the_same_guidance(case):
  weights, model, _, mask, exemplar, theirs, keys = case
  graphdef, params = nnx.split(model)
  texts = tokens(weights, PROMPTS), tokens(weights, NEGATIVE)

  @jax.jit
  def call(params, x, t):
    own = nnx.merge(graphdef, params)
    denoise = stable_diffusion.denoiser(own, None, *texts, SCALE, (0.0, 1.0))
    target = own.vectors(jnp.asarray(exemplar))
    given = own, target, jnp.asarray(mask), keys, CLIP_SCALE, VIEWS
    return blended_diffusion.guided(denoise, *given)(x, jnp.full(2, t))

  for t in (21, 741):
    x = np.random.default_rng(t).normal(size=(2, 12, 16, 4)).astype(np.float32)
    with jax.default_matmul_precision('highest'):
      found = np.asarray(call(params, x, t))
    told = theirs.guided(references.channels_first(x), t, keys)
    expected, more = map(references.channels_last, told)
    assert np.abs(more).max() > 0.01  # the guidance counts
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(more).max(), rtol=0)


def test_the_same_edit(case, monkeypatch):
  weights, model, source, mask, exemplar, theirs, keys = case
  noise, posterior = np.random.default_rng(4).normal(size=(2, 2, 12, 16, 4)).astype(np.float32)
  own = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)
  references.give_posterior(monkeypatch, posterior)
  config = dict(diffusers.PNDMScheduler(**references.PNDM).config, clip_sample=False)
  scheduler = diffusers.DDIMScheduler.from_config(config)
  scheduler.set_timesteps(4)
  vae, drawn = theirs.pipeline.vae, references.channels_first(noise)
  hole = theirs.mask[:, :, ::2, ::2] > 0
  with torch.no_grad():
    z = vae.encode(references.channels_first(source)).latent_dist.sample()
  z = z * vae.config.scaling_factor
  x = scheduler.add_noise(z, drawn, scheduler.timesteps[1:2])
  largest = 0.0
  for t in scheduler.timesteps[1:]:
    seen = torch.where(hole, x, scheduler.add_noise(z, drawn, t[None]))
    eps, more = theirs.guided(seen, int(t), own)
    x = scheduler.step(eps, t, x).prev_sample
    largest = max(largest, float((more * hole).abs().max()))
  assert largest > 0.01  # the guidance counts
  with torch.no_grad():
    image = vae.decode(torch.where(hole, x, z) / vae.config.scaling_factor).sample
  expected = references.channels_last(image)
  made = blended_diffusion.edit(
    model,
    *map(jnp.asarray, (source, mask, exemplar)),
    tokens(weights, PROMPTS),
    tokens(weights, NEGATIVE),
    key=keys,
    noise=jnp.asarray(noise),
    posterior_noise=jnp.asarray(posterior),
    steps=4,
    strength=0.75,
    scale=SCALE,
    clip_scale=CLIP_SCALE,
    views=VIEWS,
    paste=False,
  )
  np.testing.assert_allclose(made, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)
