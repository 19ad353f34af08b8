"""One guided 512x512 step at the published size, ours and diffusers': errors and times.

  python -m tests.parity.full_size [--steps=N] [--size=512] [--folder=...]

Random weights are written once (5.2 GB), then each side runs in a process of its own, one after the
other: CLIP and the bottleneck, the autoencoder's mean of the masked image, the guided prediction at
t = 981 (with --steps also PLMS from there), the decode. What each part is given is random and the
same for both, so errors do not add up. Ours includes no compilation in its times.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from benchmarks import networks, sampling

SCALE = 5.0


def given(size: int) -> dict[str, np.ndarray]:
  """The inputs of every part, channels last."""
  arrays = networks.edit_inputs('full', size, 1)
  random = np.random.default_rng(1)
  latent = (1, size // 8, size // 8)
  keep = 1 - arrays['mask'][:, ::8, ::8]
  still = np.concatenate([random.normal(size=(*latent, 4)), keep], -1)
  context = random.normal(size=(1, 1, 768))
  z = random.normal(size=(*latent, 4))
  more = dict(still=still, context=context, z=z)
  return arrays | {name: a.astype(np.float32) for name, a in more.items()}


def ours(folder: str, size: int, steps: int) -> tuple[dict, dict]:
  """(outputs, seconds) of exedit."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from exedit import paint_by_example as pbe
  from exedit.diffusion import sampling as samplers

  model = pbe.load(folder)
  graphdef, params = nnx.split(model)
  a = {name: jnp.asarray(value) for name, value in given(size).items()}
  t = jnp.array([981])
  options = sampling.compiler_options()

  def run(function: Callable, *arguments) -> tuple[np.ndarray, float]:
    call = lambda params, *arguments: function(nnx.merge(graphdef, params), *arguments)
    program = jax.jit(call).lower(params, *arguments).compile(compiler_options=options)
    return clocked(lambda: np.asarray(program(params, *arguments)))

  def plms(model, still, context, x):
    denoise = pbe.denoiser(model, still, context, SCALE)
    return samplers.plms(denoise, x, model.schedule.timesteps(steps), model.schedule)

  masked = a['source'] * (1 - a['mask'])
  evaluate = lambda m, still, c, x: pbe.denoiser(m, still, c, SCALE)(x, t)
  parts = dict(
    conditioner=run(lambda m, e: m.context(e), a['exemplar']),
    encode=run(lambda m, i: m.autoencoder.encode(i), masked),
    guided=run(evaluate, a['still'], a['context'], a['noise']),
    decode=run(lambda m, z: m.autoencoder.decode(z), a['z']),
  )
  if steps:
    parts[f'plms{steps}'] = run(plms, a['still'], a['context'], a['noise'])
  return split(parts)


def theirs(folder: str, size: int, steps: int) -> tuple[dict, dict]:
  """(outputs, seconds) of diffusers' modules and scheduler."""
  import torch

  from benchmarks import sampling_diffusers
  from tests.parity.references import channels_first, channels_last, pixels

  pipe = sampling_diffusers.load(folder, torch.float32)
  a = given(size)
  still, x = channels_first(a['still']), channels_first(a['noise'])
  null, context = pipe.image_encoder.uncond_vector, torch.from_numpy(a['context'])
  scale = pipe.vae.config.scaling_factor

  def guided(x, t):
    joined = torch.cat([torch.cat([x, still], 1)] * 2)
    eps_null, eps = pipe.unet(joined, t, torch.cat([null, context])).sample.chunk(2)
    return eps_null + SCALE * (eps - eps_null)

  def plms():
    pipe.scheduler.set_timesteps(steps)
    z = x
    for t in pipe.scheduler.timesteps:
      z = pipe.scheduler.step(guided(z, t), t, z).prev_sample
    return z

  masked = channels_first(a['source'] * (1 - a['mask']))
  with torch.inference_mode():
    parts = dict(
      conditioner=clocked(lambda: pipe.image_encoder(pixels(a['exemplar'])).numpy()),
      encode=clocked(lambda: channels_last(scale * pipe.vae.encode(masked).latent_dist.mean)),
      guided=clocked(lambda: channels_last(guided(x, 981))),
      decode=clocked(lambda: channels_last(pipe.vae.decode(channels_first(a['z']) / scale).sample)),
    )
    if steps:
      parts[f'plms{steps}'] = clocked(lambda: channels_last(plms()), once=True)
  return split(parts)


def clocked(call: Callable[[], np.ndarray], once: bool = False) -> tuple[np.ndarray, float]:
  """(what it gives, seconds of its faster of two calls)."""
  seconds = []
  for _ in range(1 if once else 2):
    start = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - start)
  return result, min(seconds)


def split(parts: dict) -> tuple[dict, dict]:
  return {n: p[0] for n, p in parts.items()}, {n: p[1] for n, p in parts.items()}


def report(a: dict, b: dict, seconds_a: dict, seconds_b: dict) -> str:
  """A table: the largest difference, the same relative to the largest value, both times."""
  lines = [f'{"part":14}{"max abs":>10}{"of":>10}{"relative":>10}{"exedit s":>10}{"torch s":>10}']
  for name, theirs in b.items():
    error, size = np.abs(a[name] - theirs).max(), np.abs(theirs).max()
    numbers = f'{error:10.2e}{size:10.3f}{error / size:10.2e}'
    lines.append(f'{name:14}{numbers}{seconds_a[name]:10.2f}{seconds_b[name]:10.2f}')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description='One guided step at the published size')
  parser.add_argument('--steps', type=int, default=0, help='of PLMS after the one; 0: none')
  parser.add_argument('--size', type=int, default=512)
  parser.add_argument('--folder', help='where the weights are, or shall be kept')
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    folder = flags.folder or scratch
    networks.write_weights('full', folder)
    found = [alone(side, folder, flags.size, flags.steps) for side in (ours, theirs)]
  (a, seconds_a), (b, seconds_b) = found
  print(report(a, b, seconds_a, seconds_b))


def alone(function: Callable, *arguments) -> tuple[dict, dict]:
  """The result of a function in a process of its own, which returns all its memory."""
  with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
    return pool.submit(function, *arguments).result()


if __name__ == '__main__':
  main()
