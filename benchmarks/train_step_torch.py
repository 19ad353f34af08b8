"""The side of PyTorch in benchmarks/train_step.py: a process without JAX; prints one line of JSON.

python -m benchmarks.train_step_torch '{"system": "pytorch", "folder": ..., ...}'
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import harness, sampling_diffusers

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Lap = Callable[[str], None]


class Step:
  """One training step of Paint by Example, built from diffusers and transformers.

  It computes the same as exedit's step: both encodes in one call, CLIP and the autoencoder without
  gradients, one coin per example, AdamW for the UNet and the bottleneck, and a moving average of
  them. On a GPU it uses bfloat16 autocast over float32 parameters, and channels last.
  """

  def __init__(self, spec: Mapping[str, Any]):
    cuda = torch.cuda.is_available()
    self.device = 'cuda' if cuda else 'cpu'
    self.dtype = getattr(torch, spec['precision'])
    pipe = sampling_diffusers.load(spec['folder'], torch.float32)
    self.vae, self.encoder, self.unet = pipe.vae, pipe.image_encoder, pipe.unet
    self.clip = self.encoder.model
    for part in (self.vae, self.encoder, self.unet):
      layout = dict(memory_format=torch.channels_last) if spec['channels_last'] else {}
      part.to(self.device, **layout)
    for frozen in (self.vae, self.clip):
      frozen.requires_grad_(False).to(self.dtype)
    self.unet.train()
    if spec['remat'] != 'none':
      self.unet.enable_gradient_checkpointing()
    chosen = [*self.unet.parameters(), *self.encoder.parameters()]
    self.trained = [p for p in chosen if p.requires_grad]
    self.adam = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=1e-2, fused=True)
    self.average = [p.detach().clone() for p in self.trained]
    steps, first, last = 1000, 0.00085**0.5, 0.012**0.5
    betas = torch.linspace(first, last, steps, dtype=torch.float64) ** 2
    self.alphas = torch.cumprod(1 - betas, 0).float().to(self.device)
    if spec['system'] == 'pytorch compiled':
      self.unet, self.clip = torch.compile(self.unet), torch.compile(self.clip)
      self.vae.encoder = torch.compile(self.vae.encoder)

  def autocast(self):
    """bfloat16 if the spec says so; parameters stay float32."""
    on = self.dtype != torch.float32
    return torch.autocast(self.device, dtype=self.dtype, enabled=on)

  def latents(self, image, mask, noises):
    """Latents of image and masked image with these noises, by one call of the encoder."""
    with torch.no_grad():
      both = torch.cat([image, image * (1 - mask)])
      moments = self.vae.quant_conv(self.vae.encoder(both.to(self.dtype))).float()
      mean, logvar = moments.chunk(2, 1)
      z = mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noises
    return (z * self.vae.config.scaling_factor).chunk(2)

  def features(self, exemplar):
    """CLIP's pooled vector [b 1 width]."""
    with torch.no_grad():
      mean, std = (torch.tensor(v, device=self.device)[None, :, None, None] for v in (MEAN, STD))
      pixels = ((exemplar * 0.5 + 0.5 - mean) / std).to(self.dtype)
      return self.clip(pixel_values=pixels).pooler_output[:, None].float()

  def context(self, features, dropped):
    """The bottleneck's token, or the learned null for dropped examples."""
    mapped = self.encoder.final_layer_norm(self.encoder.mapper(features))
    token = self.encoder.proj_out(mapped).float()
    return torch.where(dropped[:, None, None], self.encoder.uncond_vector, token)

  def draw(self, batch: int, latent: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """The random numbers of a step: noises of both posteriors, noise, timesteps, coins."""
    own = dict(device=self.device)
    return dict(
      noises=torch.randn(2 * batch, *latent, **own),
      noise=torch.randn(batch, *latent, **own),
      t=torch.randint(0, len(self.alphas), (batch,), **own),
      dropped=torch.rand(batch, **own) < 0.2,
    )

  def loss(self, given: Mapping[str, torch.Tensor], drawn: Mapping, lap: Lap = lambda _: None):
    """Mean squared error of the predicted noise."""
    image = given['image'].permute(0, 3, 1, 2).float() / 127.5 - 1
    mask = given['mask'][:, None].float() / 255
    exemplar = given['exemplar'].permute(0, 3, 1, 2).float() / 127.5 - 1
    z, hole = self.latents(image, mask, drawn['noises'])
    lap('encode')
    features = self.features(exemplar)
    lap('clip')
    keep = 1 - nn.functional.interpolate(mask, z.shape[2:], mode='bilinear')
    a = self.alphas[drawn['t']][:, None, None, None]
    x_t = a.sqrt() * z + (1 - a).sqrt() * drawn['noise']
    with self.autocast():
      context = self.context(features, drawn['dropped'])
      eps = self.unet(torch.cat([x_t, hole, keep], 1), drawn['t'], context).sample
    value = ((eps.float() - drawn['noise']) ** 2).mean()
    lap('forward')
    return value

  def __call__(self, given: Mapping[str, torch.Tensor], lap: Lap = lambda _: None) -> float:
    side = given['image'].shape[1] // 2 ** (len(self.vae.config.block_out_channels) - 1)
    drawn = self.draw(len(given['image']), (self.vae.config.latent_channels, side, side))
    value = self.loss(given, drawn, lap)
    value.backward()
    lap('backward')
    self.adam.step()
    self.adam.zero_grad(set_to_none=True)
    torch._foreach_lerp_(self.average, [p.detach() for p in self.trained], 1e-4)
    lap('update')
    return value.item()


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Seconds of the first and of the later steps, seconds by part, and memory."""
  torch.manual_seed(0)
  step = Step(spec)
  arrays = np.load(spec['inputs'])
  given = {name: torch.from_numpy(arrays[name]).to(step.device) for name in arrays.files}
  wait = torch.cuda.synchronize if step.device == 'cuda' else lambda: None

  def timed(lap: Lap = lambda _: None) -> float:
    start = time.perf_counter()
    step(given, lap)
    wait()
    return time.perf_counter() - start

  parts: dict[str, float] = {}
  clock = [0.0]

  def lap(name):
    wait()
    now = time.perf_counter()
    parts[name], clock[0] = min(now - clock[0], parts.get(name, float('inf'))), now

  first = timed()
  seconds = [timed() for _ in range(spec['steps'])]
  processor = time.process_time()
  start = time.perf_counter()
  for _ in range(min(2, spec['steps'])):
    clock[0] = time.perf_counter()
    timed(lap)
  busy = (time.process_time() - processor) / (time.perf_counter() - start)
  cuda = step.device == 'cuda'
  return dict(
    first=first,
    step=min(seconds),
    compile=max(0.0, first - min(seconds)),
    parts=parts,
    busy_cores=busy,
    trained=sum(p.numel() for p in step.trained),
    peak_bytes=torch.cuda.max_memory_allocated() if cuda else harness.peak_bytes(),
  )


if __name__ == '__main__':
  print(json.dumps(measure(json.loads(sys.argv[1]))))
