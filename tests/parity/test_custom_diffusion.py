"""A customising step agrees with diffusers' Custom Diffusion: its loss, and the gradients of it.

PyTorch's side is the published step around `CustomDiffusionAttnProcessor`, with the normalisation
of each of the two codes. Random weights, float32, the same noises and timesteps: the loss within
1e-4 of its value, the gradients of keys, values and the new row within 1e-4 of their largest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import custom_edit as recipe
from exedit import custom_edit, latent_diffusion
from exedit.concepts import foreign
from exedit.models import parameters
from exedit.weights import find
from tests.networks import keys
from tests.parity import references

torch = pytest.importorskip('torch')
diffusers = pytest.importorskip('diffusers')
pytest.importorskip('transformers')

SHAPE = dict(
  unet=dict(channels=16, mult=(1,), layers=1, attention_levels=(0,), heads=2, groups=8),
  autoencoder=dict(channels=16, mult=(1, 2), layers=1, groups=8),
  context_dim=16,
)
TEXTS = dict(length=8, layers=1, mlp=32)
WEIGHT = 0.7  # of the prior
KEY = jax.random.key(5)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('sd')
  references.text_pipeline(diffusers.StableDiffusionPipeline, SHAPE, TEXTS, folder)
  return str(folder / 'pipeline')


@pytest.fixture(scope='module')
def given(folder):
  """(settings of the model, its tensors, a batch of two with masks and pictures of the prior)."""
  found = find.weights(folder).config['model']
  settings = dict(found, prior='pictures', prior_weight=WEIGHT)
  settings['text'] = dict(found['text'], new=1)
  rng = np.random.default_rng(0)
  size = settings['text']['vocabulary']
  row = rng.standard_normal((1, SHAPE['context_dim']), np.float32)
  tensors = custom_edit.start(folder, None, settings)
  params = {name: tensor.read() for name, tensor in tensors.items()} | {custom_edit.ROWS: row}
  pixels = lambda: rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
  prior = rng.integers(0, size, (2, TEXTS['length']))
  prior[:, 0] = size - 2  # the start of a text
  tokens = prior.copy()
  tokens[:, 3] = size  # the new word
  mask = np.zeros((2, 8, 8), np.uint8)
  mask[0, 2:7, 1:5], mask[1, :, 3:] = 255, 255
  batch = dict(image=pixels(), prior_image=pixels(), mask=mask, tokens=tokens, prior_tokens=prior)
  return settings, params, batch | dict(id=np.array([3, 8]), corrupt=np.zeros(2, int))


@pytest.fixture(scope='module')
def ours(given):
  """A function of the normalisation: the loss, and its gradients by our names of the parameters."""
  settings, params, batch = given
  graph, _ = latent_diffusion.abstract(custom_edit.build, settings)
  trained, frozen = parameters.split_trainable(params, recipe.full().trainable)
  as_ours = lambda a: jnp.asarray(a) if a.dtype == np.uint8 else jnp.asarray(a, jnp.int32)
  batch = {name: as_ours(a) for name, a in batch.items()}

  @jax.jit
  def run(trained, frozen, batch, relation):
    def loss(trained):
      model = parameters.merge(graph, {**trained, **frozen})
      model.relation = relation  # one program for both normalisations
      return custom_edit.loss(model, batch, KEY)[0]

    return jax.value_and_grad(loss)(trained)

  def of(normalisation):
    build = lambda: custom_edit.build(**settings | {'normalisation': normalisation}, rngs=keys())
    return run(trained, frozen, batch, jnp.float32(nnx.eval_shape(build).relation))

  return of


def noises(shape):
  """The random numbers of `custom_edit.loss`: noise of the posterior, timesteps, noise; twice."""
  k_z, k_t, k_noise, p_t, p_noise, p_z = latent_diffusion.example_keys(KEY, jnp.array([3, 8]), 6)
  draw = lambda own: references.channels_first(np.array(latent_diffusion.normal(own, shape)))
  steps = lambda own: torch.tensor([int(jax.random.randint(k, (), 0, 1000)) for k in own])
  for posterior, t, noise in ((k_z, k_t, k_noise), (p_z, p_t, p_noise)):
    yield draw(posterior), steps(t), draw(noise)


def processors(unet):
  """diffusers' processors of Custom Diffusion with the UNet's own keys and values."""
  from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

  modules, made = dict(unet.named_modules()), {}
  for name in unet.attn_processors:
    layer, cross = modules[name.removesuffix('.processor')], 'attn2' in name
    sizes = dict(hidden_size=layer.to_k.out_features, cross_attention_dim=layer.to_k.in_features)
    made[name] = CustomDiffusionAttnProcessor(
      train_kv=cross, train_q_out=False, **(sizes if cross else {})
    )
    if cross:
      for part in ('to_k', 'to_v'):
        own = getattr(made[name], f'{part}_custom_diffusion')
        own.load_state_dict(getattr(layer, part).state_dict())
  unet.set_attn_processor(made)


def theirs(folder, params, batch, normalisation):
  """The loss, and its gradients by diffusers' names of the weights; the row's is last."""
  pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
  unet, vae, text = pipe.unet, pipe.vae, pipe.text_encoder
  for part in (unet, vae, text):
    part.requires_grad_(False)
  processors(unet)
  text.resize_token_embeddings(text.config.vocab_size + 1, mean_resizing=False)
  table = text.get_input_embeddings().weight
  table.data[-1] = torch.from_numpy(params[custom_edit.ROWS][0])
  table.requires_grad_(True)
  scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
  parts = []
  drawn = noises((8, 8, 4))
  for pixels, tokens in (('image', 'tokens'), ('prior_image', 'prior_tokens')):
    posterior, t, noise = next(drawn)
    image = references.channels_first(batch[pixels].astype(np.float32) / 127.5 - 1)
    found = vae.encode(image).latent_dist
    z = (found.mean + found.std * posterior) * vae.config.scaling_factor
    context = text(torch.from_numpy(batch[tokens]))[0]
    made = unet(scheduler.add_noise(z, noise, t), t, context).sample
    parts.append((made - noise) ** 2)
  mask = torch.from_numpy(batch['mask'] / 255).float()[:, None]
  masked = lambda error, mask: (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
  if normalisation == 'diffusers':
    total = masked(parts[0], mask).mean() + WEIGHT * parts[1].mean()
  else:  # the other code masks both and takes the mean of all pictures, 4 channels / 2 of our sum
    both = torch.cat([masked(parts[0], mask), WEIGHT * masked(parts[1], torch.ones_like(mask))])
    total = both.mean() / 2
  total.backward()
  short = lambda name: name.replace('processor.', '').replace('_custom_diffusion', '')
  chosen = {n: p for n, p in unet.named_parameters() if p.requires_grad}
  return total.item(), {short(n): p.grad.numpy() for n, p in chosen.items()}, table.grad[-1].numpy()


@pytest.mark.parametrize('normalisation', custom_edit.NORMALISATIONS)
def test_the_same_loss_and_gradients(folder, given, ours, normalisation):
  _, params, batch = given
  loss, grads = ours(normalisation)
  expected, kernels, row = theirs(folder, params, batch, normalisation)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)
  same = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())
  same(grads.pop(custom_edit.ROWS)[0], row)
  named = foreign.to_theirs(foreign.DIFFUSERS, {n: np.asarray(g) for n, g in grads.items()})
  assert named.keys() == kernels.keys() and len(named) == 8
  for name, grad in named.items():
    assert np.abs(kernels[name]).max() > 1e-5, name
    same(grad, kernels[name])
