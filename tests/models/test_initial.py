"""Fresh networks start as the original's: PyTorch's defaults, and zeros where LDM has them."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from exedit.models.autoencoder import AutoencoderKL
from exedit.models.conditioner import ExemplarConditioner
from exedit.models.unet import UNet
from tests.networks import fresh

UNET = dict(channels=32, mult=(1, 2), layers=1, attention_levels=(0,), heads=2, context_dim=24)
ZERO = r'(conv2|attentions\.\d+\.proj_out|mid_attention\.proj_out|conv_out)$'


@pytest.mark.parametrize(
  'build, zero',
  [
    (lambda rngs: UNet(in_channels=9, **UNET, rngs=rngs), ZERO),
    (lambda rngs: ExemplarConditioner(width=32, layers=2, context_dim=24, rngs=rngs), None),
    (lambda rngs: AutoencoderKL(channels=8, mult=(1, 2), layers=1, groups=4, rngs=rngs), None),
  ],
  ids=['unet', 'conditioner', 'autoencoder'],
)
def test_every_layer_starts_as_the_originals(build, zero):
  """Kernels and biases are uniform in +-1/sqrt(fan_in), norms are the identity."""
  zeros = 0
  for path, layer in nnx.iter_modules(fresh(lambda: build(nnx.Rngs(0)))):
    name = '.'.join(map(str, path))
    if isinstance(layer, nnx.GroupNorm | nnx.LayerNorm):
      assert np.all(layer.scale[...] == 1) and not np.any(layer.bias[...]), name
    elif isinstance(layer, nnx.Conv | nnx.Linear):
      kernel = np.asarray(layer.kernel[...])
      starts = [kernel] if layer.bias is None else [kernel, np.asarray(layer.bias[...])]
      if zero and re.search(zero, name):
        assert not any(map(np.any, starts)), name
        zeros += 1
        continue
      for values in starts:
        share = np.sort(values.ravel()) * kernel[..., 0].size ** 0.5 / 2 + 0.5  # in [0, 1]
        ranks = (np.arange(share.size) + 0.5) / share.size
        assert 0 <= share[0] and share[-1] <= 1, name
        assert np.abs(share - ranks).max() < 2.2 * share.size**-0.5, name  # Kolmogorov-Smirnov
  assert zeros == (13 if zero else 0)  # 8 ResBlocks, 4 transformers, the output


def test_a_fresh_context_is_as_wide_as_the_originals():
  """A norm, then PyTorch's Linear: the deviation is sqrt((1 + 1 / width) / 3), 0.58 at 1024."""
  model = fresh(lambda: ExemplarConditioner(width=64, rngs=nnx.Rngs(0)))
  context = model(jax.random.normal(jax.random.key(1), (64, 1, 64)))
  np.testing.assert_allclose(context.std(), ((1 + 1 / 64) / 3) ** 0.5, rtol=0.05)
  np.testing.assert_allclose(model.null[...].std(), 1, rtol=0.1)
