"""Fresh networks against PyTorch's own initialisation of the same layers, for each parameter."""

import numpy as np
import pytest
from flax import nnx

from exedit.models.autoencoder import AutoencoderKL
from exedit.models.conditioner import ExemplarConditioner
from exedit.models.unet import UNet
from exedit.weights.tables import autoencoder, conditioner, unet
from tests.networks import fresh
from tests.parity import references

torch = pytest.importorskip('torch')
pytest.importorskip('diffusers')

UNET = dict(
  channels=32, mult=(1, 2, 2), layers=1, attention_levels=(0, 1), heads=4, context_dim=24, groups=8
)
VAE = dict(channels=16, mult=(1, 2), layers=1, groups=4)
TOWER = dict(width=32, layers=4, heads=2, mlp=8, patch=4, image_size=8)
# LDM's zero_module, which diffusers does not have.
ZERO = ('conv2.', 'proj_out.', 'conv_out.')


@pytest.mark.parametrize(
  'make, build, table, zero',
  [
    (
      lambda: references.unet(**UNET),
      lambda: UNet(in_channels=9, **UNET, rngs=nnx.Rngs(0)),
      unet.TABLE,
      ZERO,
    ),
    (
      lambda: references.vae(**VAE),
      lambda: AutoencoderKL(**VAE, rngs=nnx.Rngs(0)),
      autoencoder.TABLE,
      (),
    ),
    (
      lambda: references.encoder(24, **TOWER),
      lambda: ExemplarConditioner(width=32, layers=1, context_dim=24, rngs=nnx.Rngs(0)),
      conditioner.TABLE,
      (),
    ),
  ],
  ids=['unet', 'autoencoder', 'conditioner'],
)
def test_every_parameter_has_pytorchs_distribution(make, build, table, zero):
  theirs = make()
  torch.manual_seed(0)
  for module in theirs.modules():
    if hasattr(module, 'reset_parameters'):
      module.reset_parameters()
  weights = {name: v for name, v in references.weights(theirs).items() if name[:6] != 'model.'}
  expected, found = references.flat(references.ours(build, table, weights)), fresh(build)
  for name, own in references.flat(found).items():
    own, other = np.ravel(own), np.ravel(expected[name])
    if name == 'null':
      continue  # N(0, 1), which diffusers draws uniform
    if any(part in name for part in zero):
      assert not own.any(), name
    elif other.min() == other.max():  # norms
      np.testing.assert_array_equal(own, other, err_msg=name)
    else:
      both = np.sort(np.concatenate([own, other]))
      ranks = [np.searchsorted(np.sort(x), both, 'right') / x.size for x in (own, other)]
      apart = np.abs(ranks[0] - ranks[1]).max()  # Kolmogorov and Smirnov's distance
      assert apart < 2.2 * (2 / own.size) ** 0.5, (name, apart, own.std(), other.std())
