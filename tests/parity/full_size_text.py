"""Stable Diffusion at the published size, ours and diffusers': errors and times.

  python -m tests.parity.full_size_text [--steps=N] [--size=512] [--folder=...]

Random weights are written once (4.3 GB), then each side runs in a process of its own: the text
tower on two texts, the guided prediction at t = 981, with --steps also PLMS from there, and the
decode. What each part is given is random and the same for both, so errors do not add up, except
over the steps of PLMS.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import networks, sampling
from tests.parity.full_size import alone, clocked, report, split

SCALE = 7.5


def given(size: int) -> dict[str, np.ndarray]:
  """Tokens of a text and of an empty one [2 77], their contexts, noise, and latents to decode."""
  random = np.random.default_rng(2)
  tokens = np.full((2, 77), 49407, np.int32)
  tokens[:, 0] = 49406
  tokens[0, 1:20] = random.integers(0, 49406, 19)
  latent = (1, size // 8, size // 8, 4)
  drawn = dict(context=(1, 77, 768), null=(1, 77, 768), noise=latent, z=latent)
  made = {name: random.normal(size=shape).astype(np.float32) for name, shape in drawn.items()}
  return dict(made, tokens=tokens)


def ours(folder: str, size: int, steps: int) -> tuple[dict, dict]:
  """(outputs, seconds) of exedit."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from exedit import latent_diffusion, stable_diffusion
  from exedit.weights import find

  model = latent_diffusion.load(stable_diffusion.build, find.weights(folder))
  graphdef, params = nnx.split(model)
  a = {name: jnp.asarray(value) for name, value in given(size).items()}
  options = sampling.compiler_options()

  def run(function, *arguments):
    call = lambda params, *arguments: function(nnx.merge(graphdef, params), *arguments)
    program = jax.jit(call).lower(params, *arguments).compile(compiler_options=options)
    return clocked(lambda: np.asarray(program(params, *arguments)))

  def denoiser(m, context, null):
    return latent_diffusion.denoiser(m.unet, m.schedule, None, context, null, SCALE)

  def plms(m, context, null, x):
    how = dict(steps=steps, sampler='plms')
    return latent_diffusion.sample(denoiser(m, context, null), x, m.schedule, **how)

  condition = (a['context'], a['null'], a['noise'])
  parts = dict(
    text=run(lambda m, ids: m.text(ids), a['tokens']),
    guided=run(lambda m, c, n, x: denoiser(m, c, n)(x, jnp.array([981])), *condition),
    decode=run(lambda m, z: m.autoencoder.decode(z), a['z']),
  )
  if steps:
    parts[f'plms{steps}'] = run(plms, *condition)
  return split(parts)


def theirs(folder: str, size: int, steps: int) -> tuple[dict, dict]:
  """(outputs, seconds) of transformers' and diffusers' modules and scheduler."""
  import diffusers
  import torch
  import transformers

  from tests.parity.references import channels_first, channels_last

  part = lambda kind, name: kind.from_pretrained(Path(folder, name))
  text = part(transformers.CLIPTextModel, 'text_encoder').eval()
  unet = part(diffusers.UNet2DConditionModel, 'unet').eval()
  vae = part(diffusers.AutoencoderKL, 'vae').eval()
  scheduler = part(diffusers.PNDMScheduler, 'scheduler')
  a = given(size)
  x, both = channels_first(a['noise']), torch.from_numpy(np.concatenate([a['null'], a['context']]))

  def guided(x, t):
    null, eps = unet(torch.cat([x, x]), t, both).sample.chunk(2)
    return null + SCALE * (eps - null)

  def plms():
    scheduler.set_timesteps(steps)
    z = x
    for t in scheduler.timesteps:
      z = scheduler.step(guided(z, t), t, z).prev_sample
    return z

  latents = channels_first(a['z']) / vae.config.scaling_factor
  with torch.inference_mode():
    parts = dict(
      text=clocked(lambda: text(torch.from_numpy(a['tokens']).long()).last_hidden_state.numpy()),
      guided=clocked(lambda: channels_last(guided(x, 981))),
      decode=clocked(lambda: channels_last(vae.decode(latents).sample)),
    )
    if steps:
      parts[f'plms{steps}'] = clocked(lambda: channels_last(plms()), once=True)
  return split(parts)


def main() -> None:
  from exedit import stable_diffusion

  parser = argparse.ArgumentParser(description='Stable Diffusion at the published size')
  parser.add_argument('--steps', type=int, default=0, help='of PLMS after the one; 0: none')
  parser.add_argument('--size', type=int, default=512)
  parser.add_argument('--folder', help='where the weights are, or shall be kept')
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    folder = flags.folder or scratch
    networks.write_weights('full', folder, stable_diffusion)
    found = [alone(side, folder, flags.size, flags.steps) for side in (ours, theirs)]
  (a, seconds_a), (b, seconds_b) = found
  print(report(a, b, seconds_a, seconds_b))


if __name__ == '__main__':
  main()
