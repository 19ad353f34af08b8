"""PyTorch's networks with random weights, and ours with the same weights through the tables."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from exedit.weights import translate

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PNDM = dict(  # scheduler_config.json of the published weights
  beta_start=0.00085,
  beta_end=0.012,
  beta_schedule='scaled_linear',
  num_train_timesteps=1000,
  set_alpha_to_one=False,
  skip_prk_steps=True,
  steps_offset=1,
)


def randomised(module, seed: int = 0):
  """Every parameter random, norms and biases too, so that nothing hides behind a 0 or a 1."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in module.parameters():
      noise = torch.randn(p.shape, generator=generator)
      if p.ndim > 1:
        p.copy_(noise * p[0].numel() ** -0.5)
      else:
        p.add_(0.2 * noise)
  return module.eval()


def parts(settings: Mapping[str, Any]) -> dict[str, Any]:
  """The three networks of a diffusers PaintByExamplePipeline for these settings of `pbe.build`.

  All sizes must be given, and `conditioner.layers` be diffusers' (clip.layers + 1) // 5. The
  weights are whatever PyTorch initialises.
  """
  import diffusers
  import transformers

  try:  # diffusers moved it when it deprecated the pipeline
    from diffusers.pipelines.deprecated.paint_by_example import image_encoder
  except ImportError:
    from diffusers.pipelines.paint_by_example import image_encoder
  unet, vae, clip = (settings[part] for part in ('unet', 'autoencoder', 'clip'))
  if (layers := settings['conditioner']['layers']) != (clip['layers'] + 1) // 5:
    raise ValueError(f'diffusers has no mapper of {layers} layers behind {clip["layers"]} of CLIP')
  attends = [i in unet['attention_levels'] for i in range(len(unet['mult']))]
  config = transformers.CLIPVisionConfig(
    hidden_size=clip['width'],
    num_hidden_layers=clip['layers'],
    num_attention_heads=clip['heads'],
    intermediate_size=clip['mlp'],
    patch_size=clip['patch'],
    image_size=clip['image_size'],
  )
  return dict(
    unet=diffusers.UNet2DConditionModel(
      in_channels=9,
      out_channels=4,
      block_out_channels=[unet['channels'] * m for m in unet['mult']],
      layers_per_block=unet['layers'],
      down_block_types=['CrossAttnDownBlock2D' if a else 'DownBlock2D' for a in attends],
      up_block_types=['CrossAttnUpBlock2D' if a else 'UpBlock2D' for a in attends[::-1]],
      cross_attention_dim=settings['context_dim'],
      attention_head_dim=unet['heads'],  # means the number of heads (docs/facts.md)
      norm_num_groups=unet['groups'],
    ),
    vae=diffusers.AutoencoderKL(
      block_out_channels=[vae['channels'] * m for m in vae['mult']],
      layers_per_block=vae['layers'],
      norm_num_groups=vae['groups'],
      down_block_types=['DownEncoderBlock2D'] * len(vae['mult']),
      up_block_types=['UpDecoderBlock2D'] * len(vae['mult']),
      latent_channels=4,
    ),
    image_encoder=image_encoder.PaintByExampleImageEncoder(
      config, proj_size=settings['context_dim']
    ),
  )


def pipeline(networks: Mapping[str, Any]):
  """diffusers' PaintByExamplePipeline around its networks, with the published scheduler."""
  import diffusers

  return diffusers.PaintByExamplePipeline(
    **networks,
    scheduler=diffusers.PNDMScheduler(**PNDM),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )


def pixels(exemplar: np.ndarray):
  """An exemplar [b s s 3] in [-1, 1] as CLIP's processor leaves it in PyTorch."""
  return channels_first((((exemplar + 1) / 2 - np.array(MEAN)) / np.array(STD)).astype(np.float32))


def weights(module) -> dict[str, np.ndarray]:
  """A module's state dict as numpy arrays."""
  return {name: value.numpy() for name, value in module.state_dict().items()}


def ours(build, table, theirs: dict[str, np.ndarray]) -> nnx.Module:
  """Our network, built by `build()`, holding their weights; strict in names and shapes."""
  graphdef, params = nnx.split(nnx.eval_shape(build))
  paths = {'.'.join(map(str, path)): path for path, _ in nnx.to_flat_state(params)}
  arrays = translate.to_ours(table, theirs, like=flat(params))
  leaves = [(paths[name], nnx.Param(jnp.asarray(value))) for name, value in arrays.items()]
  return nnx.merge(graphdef, nnx.from_flat_state(leaves))


def flat(model: nnx.Module | nnx.State) -> dict:
  """Our parameters by dotted path, abstract ones too."""
  leaves = nnx.to_flat_state(nnx.state(model) if isinstance(model, nnx.Module) else model)
  return {'.'.join(map(str, path)): leaf.get_value() for path, leaf in leaves}


def assert_round_trip(table, module: nnx.Module, theirs: dict[str, np.ndarray]):
  """Written back, our weights are theirs: the same names and the same bits."""
  values = {name: np.asarray(value) for name, value in flat(module).items()}
  written = translate.to_theirs(table, values, like=theirs)
  for name, value in theirs.items():
    np.testing.assert_array_equal(written[name], value, err_msg=name)


def assert_same_weights(a: nnx.Module, b: nnx.Module):
  a, b = flat(a), flat(b)
  assert a.keys() == b.keys()
  for name, value in a.items():
    np.testing.assert_array_equal(value, b[name], err_msg=name)


def channels_last(x) -> np.ndarray:
  return x.detach().numpy().transpose(0, 2, 3, 1)


def channels_first(x: np.ndarray):
  import torch

  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
