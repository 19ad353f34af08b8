"""CLIP (arXiv 2103.00020): an image tower and a text tower, trained on pictures with captions.

  python -m exedit.train --config=configs/clip.py --workdir=/mnt/bucket/clip \
      --config.data.root=/data/captioned --config.data.tokenizer=/data/tokenizer

ViT-L/14 with the paper's settings (its tables 18 to 20): 32 epochs of 400 million pairs at a global
batch of 32,768, Adam with decoupled decay 0.2 on kernels and tables, a cosine from 4e-4 after 2,000
warm-up steps. Every picture is compared with all texts of the batch, over all devices. Not run
here, because neither the pictures nor the pods were available.

  python -m exedit.train --config=configs/clip.py:tiny --workdir=/tmp/clip

The same code small enough for two CPU cores, on drawn scenes with exact captions. Paint by Example
takes the image tower and Stable Diffusion the text tower as --config.init_clip=/tmp/clip.
"""

from typing import Any

import ml_collections

from exedit.configs import sd


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  """`full` or `tiny`."""
  variants = dict(full=full, tiny=tiny)
  if variant not in variants:
    raise ValueError(f"configs/clip.py has no variant '{variant}'; use {' or '.join(variants)}")
  return variants[variant]()


def full() -> ml_collections.ConfigDict:
  """The published sizes and settings."""
  return _from(
    sd.full(),
    dict(
      steps=390_625,
      batch_size=32_768,  # over all devices; `accumulate` would compare with fewer texts
      data=dict(size=224),
      model=dict(clip=dict(remat=True), text=dict(remat=True), dim=768, dtype='bfloat16'),
      optimizer=dict(
        lr=4e-4,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        decay_vectors=False,
        warmup=2_000,
        schedule='cosine',
      ),
      ema=dict(decay=0.0),
    ),
  )


def tiny() -> ml_collections.ConfigDict:
  """The same keys with small numbers; comments give the reasons for other differences."""
  config = sd.tiny()
  return _from(
    config,
    dict(
      steps=4_000,
      batch_size=128,
      # Most examples are one subject, as Paint by Example's exemplars are.
      data=dict(size=32, boxes=0.6, exemplar_pad=2),
      model=dict(
        clip=dict(width=96, layers=3, heads=4, mlp=384, patch=4, image_size=32),
        text=config.to_dict()['model']['text'],
        dim=128,
        dtype='float32',
      ),
      optimizer=dict(
        lr=1e-3, b2=0.98, weight_decay=0.1, decay_vectors=False, warmup=200, lr_end=0.0
      ),
      ema=dict(decay=0.999),
    ),
  )


def _from(base: ml_collections.ConfigDict, own: dict[str, Any]) -> ml_collections.ConfigDict:
  """A config of Stable Diffusion as one of this system; the data are the same pictures."""
  base['model'], base['edit'] = own.pop('model'), dict(count=8)
  base.update(system='clip', trainable='.*', **own)
  return base
