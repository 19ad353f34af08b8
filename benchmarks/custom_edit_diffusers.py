"""The side of diffusers in benchmarks/custom_edit.py: no JAX here; prints one line of JSON.

python -m benchmarks.custom_edit_diffusers '{"system": "diffusers", "part": "step", ...}'
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import harness


class Rows(nn.Module):
  """The table of a text tower with one more row, which trains while the table does not."""

  def __init__(self, table: nn.Embedding):
    super().__init__()
    self.table = table
    self.row = nn.Parameter(torch.zeros(table.embedding_dim))

  def forward(self, ids):
    known = self.table(ids.clamp(max=self.table.num_embeddings - 1))
    return torch.where((ids >= self.table.num_embeddings)[..., None], self.row, known)


class Step:
  """A step of train_custom_diffusion with pictures of the prior, as exedit's.

  On a GPU it uses bfloat16 autocast over float32 parameters.
  """

  def __init__(self, spec: Mapping[str, Any]):
    import diffusers

    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    self.dtype = getattr(torch, spec['precision'])
    self.text, self.unet, self.vae = (part.to(self.device) for part in parts(spec['folder']))
    for part in (self.text, self.unet, self.vae):
      part.requires_grad_(False)
    self.scheduler = diffusers.DDPMScheduler.from_pretrained(spec['folder'], subfolder='scheduler')
    rows = Rows(self.text.get_input_embeddings()).to(self.device)
    self.text.set_input_embeddings(rows)
    trained = [*custom_processors(self.unet), rows.row]
    self.trained = sum(p.numel() for p in trained)
    self.adam = torch.optim.AdamW(trained, lr=8e-5, weight_decay=1e-2, fused=True)

  def loss(self, given: Mapping[str, torch.Tensor]):
    """Masked error of the concept's pictures and that of the prior's."""
    pixels = torch.cat([given['image'], given['prior_image']])
    tokens = torch.cat([given['tokens'], given['prior_tokens']])
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype != torch.float32):
      with torch.no_grad():
        z = self.vae.encode(images).latent_dist.sample() * self.vae.config.scaling_factor
      t = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(z),), device=z.device)
      noise = torch.randn_like(z)
      made = self.unet(self.scheduler.add_noise(z, noise, t), t, self.text(tokens)[0]).sample
    own, prior = ((made.float() - noise.float()) ** 2).chunk(2)
    mask = given['mask'][:, None].float() / 255
    masked = (own * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    return masked.mean() + prior.mean()

  def __call__(self, given: Mapping[str, torch.Tensor]) -> float:
    value = self.loss(given)
    value.backward()
    self.adam.step()
    self.adam.zero_grad(set_to_none=True)
    return value.item()


def parts(folder: str):
  """The text tower, the UNet and the autoencoder of a pipeline."""
  import diffusers
  import transformers

  kinds = dict(
    text_encoder=transformers.CLIPTextModel,
    unet=diffusers.UNet2DConditionModel,
    vae=diffusers.AutoencoderKL,
  )
  return [kind.from_pretrained(Path(folder, name)) for name, kind in kinds.items()]


def custom_processors(unet) -> list[nn.Parameter]:
  """Gives a UNet the processors of Custom Diffusion; returns the keys and values that train."""
  from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

  layers, made, trained = dict(unet.named_modules()), {}, []
  for name in unet.attn_processors:
    layer, cross = layers[name.removesuffix('.processor')], 'attn2' in name
    sizes = dict(hidden_size=layer.to_k.out_features, cross_attention_dim=layer.to_k.in_features)
    sizes = sizes if cross else {}
    made[name] = CustomDiffusionAttnProcessor(train_kv=cross, train_q_out=False, **sizes)
    for part in ('to_k', 'to_v') if cross else ():
      own = getattr(made[name], f'{part}_custom_diffusion')
      own.load_state_dict(getattr(layer, part).state_dict())
      trained += own.to(layer.to_k.weight.device).parameters()
  unet.set_attn_processor(made)
  return trained


def step(spec: Mapping[str, Any], wait) -> dict[str, float]:
  """The fastest step after the first."""
  run = Step(spec)
  arrays = np.load(spec['inputs'])
  given = {name: torch.from_numpy(arrays[name]).to(run.device) for name in arrays.files}
  seconds = [harness.seconds(lambda: run(given), wait) for _ in range(spec['steps'] + 1)]
  return dict(step=min(seconds[1:]), trained=run.trained)


def edit(spec: Mapping[str, Any], wait) -> dict[str, float]:
  """The second inversion: the photo's latent, then DDIM backwards without guidance."""
  import diffusers

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  dtype = getattr(torch, spec['precision'])
  text, unet, vae = (part.to(device, dtype) for part in parts(spec['folder']))
  known = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
  folder = Path(spec['folder'], 'scheduler')
  scheduler = diffusers.DDIMInverseScheduler.from_pretrained(folder, **known)
  scheduler.set_timesteps(spec['inversion'], device=device)
  random = torch.Generator().manual_seed(1)
  image = torch.rand(1, 3, spec['size'], spec['size'], generator=random) * 2 - 1
  ids = torch.full((1, text.config.max_position_embeddings), text.config.vocab_size - 1)

  @torch.inference_mode()
  def invert():
    context = text(ids.to(device))[0]
    z = vae.encode(image.to(device, dtype)).latent_dist.mean * vae.config.scaling_factor
    for t in scheduler.timesteps:
      z = scheduler.step(unet(z, t, context).sample, t, z).prev_sample
    return z

  invert()
  return dict(inversion=harness.seconds(invert, wait))


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
  """The seconds of one part, and the memory."""
  from diffusers.utils import logging

  logging.set_verbosity_error()
  torch.manual_seed(0)
  cuda = torch.cuda.is_available()
  wait = (lambda _: torch.cuda.synchronize()) if cuda else (lambda result: result)
  found = dict(step=step, edit=edit)[spec['part']](spec, wait)
  return dict(found, peak_bytes=torch.cuda.max_memory_allocated() if cuda else harness.peak_bytes())


if __name__ == '__main__':
  print(json.dumps(measure(json.loads(sys.argv[1]))))
