"""PyTorch's networks with random weights, and ours with the same weights through the tables."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from exedit.weights import translate
from tests import vocabulary

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


def unet(
  channels, mult, layers, attention_levels, heads, groups, context_dim, in_channels=9, **more
):
  """diffusers' UNet for the settings of ours, randomised."""
  import diffusers

  attends = [i in attention_levels for i in range(len(mult))]
  model = diffusers.UNet2DConditionModel(
    in_channels=in_channels,
    out_channels=4,
    block_out_channels=[channels * m for m in mult],
    layers_per_block=layers,
    down_block_types=['CrossAttnDownBlock2D' if a else 'DownBlock2D' for a in attends],
    up_block_types=['CrossAttnUpBlock2D' if a else 'UpBlock2D' for a in attends[::-1]],
    cross_attention_dim=context_dim,
    attention_head_dim=heads,  # means the number of heads (docs/facts.md)
    norm_num_groups=groups,
    **more,
  )
  return randomised(model)


def vae(channels, mult, layers, groups, **more):
  """diffusers' autoencoder for the settings of ours, randomised."""
  import diffusers

  model = diffusers.AutoencoderKL(
    block_out_channels=[channels * m for m in mult],
    layers_per_block=layers,
    norm_num_groups=groups,
    down_block_types=['DownEncoderBlock2D'] * len(mult),
    up_block_types=['UpDecoderBlock2D'] * len(mult),
    latent_channels=4,
    **more,
  )
  return randomised(model)


def tower_config(width, layers, heads, mlp, patch, image_size, **more):
  """transformers' config of the CLIP image tower for the settings of ours."""
  import transformers

  return transformers.CLIPVisionConfig(
    hidden_size=width,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    intermediate_size=mlp,
    patch_size=patch,
    image_size=image_size,
    **more,
  )


def text_config(vocabulary, length, width, layers, heads, mlp, **more):
  """transformers' config of the CLIP text tower for the settings of ours."""
  import transformers

  return transformers.CLIPTextConfig(
    vocab_size=vocabulary,
    max_position_embeddings=length,
    hidden_size=width,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    intermediate_size=mlp,
    **more,
  )


def encoder_module():
  """diffusers' module of the image encoder, which moved when diffusers deprecated the pipeline."""
  try:
    from diffusers.pipelines.deprecated.paint_by_example import image_encoder
  except ImportError:
    from diffusers.pipelines.paint_by_example import image_encoder
  return image_encoder


def encoder(context_dim, **tower):
  """diffusers' image encoder, randomised. Its mapper has (layers of the tower + 1) // 5 layers."""
  config = tower_config(**tower)
  return randomised(encoder_module().PaintByExampleImageEncoder(config, proj_size=context_dim))


def pipeline(unet, vae, image_encoder, feature_extractor=None):
  """diffusers' PaintByExamplePipeline around these networks, with the published scheduler."""
  import diffusers

  scheduler = diffusers.PNDMScheduler(**PNDM)
  return diffusers.PaintByExamplePipeline(
    vae, image_encoder, unet, scheduler, None, feature_extractor, requires_safety_checker=False
  )


def text_pipeline(kind, shape, texts, folder, in_channels=4):
  """diffusers' pipeline of this class for texts, randomised; written to the folder `pipeline`.

  shape: settings of our `unet` and `autoencoder`, and `context_dim`. texts: of our `text`.
  """
  import diffusers
  import transformers

  size, width = vocabulary.write(folder / 'words'), shape['context_dim']
  config = text_config(vocabulary=size, width=width, heads=4, **texts)
  made = kind(
    vae(**shape['autoencoder']),
    randomised(transformers.CLIPTextModel(config)),
    transformers.CLIPTokenizer.from_pretrained(folder / 'words', model_max_length=texts['length']),
    unet(**shape['unet'], context_dim=width, in_channels=in_channels, sample_size=64),
    diffusers.PNDMScheduler(**PNDM),
    None,
    None,
    requires_safety_checker=False,
  )
  made.set_progress_bar_config(disable=True)
  made.save_pretrained(folder / 'pipeline', safe_serialization=True)
  return made


def give_posterior(monkeypatch, noise):
  """Lets diffusers' autoencoder draw from its posterior with this noise, channels last."""
  from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

  drawn = lambda self, generator=None: self.mean + self.std * channels_first(noise)
  monkeypatch.setattr(DiagonalGaussianDistribution, 'sample', drawn)


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
