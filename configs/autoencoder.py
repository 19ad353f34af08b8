"""The KL autoencoder of latent diffusion: pictures to latents and back.

  python -m exedit.train --config=configs/autoencoder.py --workdir=/mnt/bucket/autoencoder \
      --config.data.root=/data/open_images

Any shards whose records have an `image` will do; boxes and captions are not read.

KL-f8 (arXiv 2112.10752): the published sizes, and 4.5e-6 of learning rate per example, with neither
discriminator nor perceptual distance, so that fine texture is smoother than the published one's.
Not run here, because neither the images nor the pods were available.

  python -m exedit.train --config=configs/autoencoder.py:tiny --workdir=/tmp/autoencoder

The same code small enough for two CPU cores, on synthetic scenes that it draws first. Another
training takes it as --config.init_from=/tmp/autoencoder --config.init_parts=autoencoder.
"""

from typing import Any

import ml_collections

from exedit.configs import pbe, sd


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  """`full` or `tiny`."""
  variants = {'full': full, 'tiny': tiny}
  if variant not in variants:
    raise ValueError(f"configs/autoencoder.py has no variant '{variant}'; use full or tiny")
  return variants[variant]()


def full() -> ml_collections.ConfigDict:
  """The published sizes and settings (LDM autoencoder_kl_32x32x4.yaml).

  The loss has one part that LDM's has not: `spread` (see `autoencoder_kl.build`).
  """
  return _from(
    pbe.full(),
    dict(
      batch_size=96,  # over all devices; the yaml has 8 GPUs x 12
      data=dict(size=256),
      model=dict(
        autoencoder=dict(
          kind='kl', channels=128, mult=(1, 2, 4, 4), layers=2, z_channels=4, groups=32
        ),
        dtype='float32',
      ),
      optimizer=dict(lr=96 * 4.5e-6, b1=0.5, b2=0.9, weight_decay=0.0, warmup=0),
      ema=dict(decay=0.0),
    ),
  )


def tiny() -> ml_collections.ConfigDict:
  """The same keys with small numbers."""
  return _from(
    pbe.lineage(),
    dict(
      steps=3_000,
      batch_size=32,
      data=dict(size=64),
      model=dict(
        autoencoder=sd.LATENTS,
        dtype='float32',
      ),
      optimizer=dict(lr=2e-3, lr_end=2e-5, weight_decay=0.0),
      ema=dict(decay=0.999),
    ),
  )


def _from(base: Any, own: dict[str, Any]) -> ml_collections.ConfigDict:
  """A config of Paint by Example as one of this system."""
  base.model, base.edit = own.pop('model'), dict(count=8)
  kept = ('root', 'split', 'augment', 'workers', 'on_corrupt')
  base.data = {name: base.data[name] for name in kept} | own.pop('data')
  base.optimizer.lr_multipliers = {}
  base.update(system='autoencoder', trainable='autoencoder', **own)
  return base
