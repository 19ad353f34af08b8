"""The side of diffusers in benchmarks/sampling.py: a process without JAX; prints one line of JSON.

python -m benchmarks.sampling_diffusers '{"system": "diffusers", "folder": ..., ...}'
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import harness


def measure(spec: Mapping[str, Any]) -> dict[str, float]:
  """Times and memory of diffusers' own pipeline, eager or with compiled networks."""
  import torch
  from diffusers.utils import logging

  logging.set_verbosity_error()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  dtype = getattr(torch, spec['precision'])
  start = time.perf_counter()
  pipe = load(spec['folder'], dtype).to(device)
  loaded = time.perf_counter() - start
  pipe.set_progress_bar_config(disable=True)
  if spec['system'] == 'diffusers compiled':
    pipe.unet = torch.compile(pipe.unet)
    pipe.vae.decode = torch.compile(pipe.vae.decode)
  given = {
    name: torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2))).to(device)
    for name, a in np.load(spec['inputs']).items()
  }

  def edit():
    return pipe(
      given['exemplar'].to(dtype),
      given['source'],
      given['mask'],
      num_inference_steps=spec['steps'],
      guidance_scale=spec['scale'],
      latents=given['noise'].to(dtype),
      generator=torch.Generator(device).manual_seed(0),
      output_type='np',
    ).images

  x = torch.cat([given['noise'], given['posterior_noise'], given['noise'][:, :1]], 1)
  x = torch.cat([x, x]).to(dtype)
  context = torch.zeros(len(x), 1, pipe.unet.config.cross_attention_dim).to(device, dtype)

  @torch.inference_mode()
  def evaluation():
    null, conditional = pipe.unet(x, 501, context).sample.chunk(2)
    return null + spec['scale'] * (conditional - null)

  if device == 'cpu':
    return dict(load=loaded, **timed(edit, evaluation), peak_bytes=harness.peak_bytes())
  found = timed(edit, evaluation, lambda _: torch.cuda.synchronize())
  return dict(load=loaded, **found, peak_bytes=torch.cuda.max_memory_allocated())


def load(folder: str, dtype):
  """The pipeline, loaded part by part because `from_pretrained` no longer finds its encoder."""
  import diffusers

  try:
    from diffusers.pipelines.deprecated.paint_by_example import image_encoder
  except ImportError:
    from diffusers.pipelines.paint_by_example import image_encoder
  own = dict(torch_dtype=dtype)
  return diffusers.PaintByExamplePipeline(
    vae=diffusers.AutoencoderKL.from_pretrained(folder, subfolder='vae', **own),
    image_encoder=image_encoder.PaintByExampleImageEncoder.from_pretrained(
      folder, subfolder='image_encoder', low_cpu_mem_usage=False, **own
    ),
    unet=diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder='unet', **own),
    scheduler=diffusers.PNDMScheduler.from_pretrained(folder, subfolder='scheduler'),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )


def timed(
  edit: Callable, evaluation: Callable, wait: Callable = lambda result: result
) -> dict[str, float]:
  """Seconds of the first and the second edit, and of the fastest of three evaluations."""
  first, second = harness.seconds(edit, wait), harness.seconds(edit, wait)
  evaluations = harness.best_in_turns(dict(evaluation=evaluation), 3, wait)
  return dict(first_edit=first, edit=second, compile=max(0.0, first - second), **evaluations)


if __name__ == '__main__':
  print(json.dumps(measure(json.loads(sys.argv[1]))))
