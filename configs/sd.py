"""Stable Diffusion 1.x (arXiv 2112.10752): the published recipe, and the same code at a tiny size.

  python -m exedit.train --config=configs/sd.py --workdir=/mnt/bucket/run \
      --config.data.root=/data/captioned --config.data.tokenizer=/data/tokenizer

Pictures with captions at 512x512, a global batch of 2,048, AdamW at a constant 1e-4 after 10,000
warm-up steps, an average of the weights, and 10 % of the captions dropped, as the model card of
CompVis/stable-diffusion-v1-4 says; its last stage took 225,000 such steps. Not run here, because
neither the pictures nor the pods were available. CLIP's text tower and the autoencoder are
pretrained and frozen: take them, or all of the weights for fine-tuning, with init_from.

The same code small enough for two CPU cores, on drawn scenes with exact captions. Its autoencoder
and its text tower are trained first: `launch/tiny_world.sh` does it all.

  python -m exedit.train --config=configs/sd.py:tiny --workdir=/tmp/sd \
      --config.init_from=/tmp/autoencoder --config.init_clip=/tmp/clip \
      --config.init_parts='autoencoder|text'
"""

import ml_collections
from ml_collections import config_dict

# The autoencoder of the small systems: 8x8 latents of a picture of 64x64, on which a UNet takes a
# third of the time that it takes on 16x16. All layers work at a quarter of the resolution or less.
# With the sizes below, tiny-sd and Paint by Example take 11.6 and 11.8 MB in half precision.
LATENTS = dict(
  kind='kl', fold=4, channels=40, mult=(1, 2), layers=1, z_channels=16, groups=8, scale=1.0
)


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  """`full` or `tiny`."""
  variants = dict(full=full, tiny=tiny)
  if variant not in variants:
    raise ValueError(f"configs/sd.py has no variant '{variant}'; use {' or '.join(variants)}")
  return variants[variant]()


def full() -> ml_collections.ConfigDict:
  """The published sizes and settings (docs/facts.md)."""
  return ml_collections.ConfigDict(
    dict(
      system='stable_diffusion',
      seed=23,
      steps=225_000,
      batch_size=2048,  # over all devices; released: 32 machines x 8 GPUs x 2 parts x 4
      accumulate=1,
      log_every=100,
      save_every=2_000,
      edit_every=5_000,
      max_bad_steps=10,
      trainable='unet',
      # Stable Diffusion 1.x in any layout, such as CompVis/stable-diffusion-v1-4.
      init_from=config_dict.placeholder(str),
      init_clip=config_dict.placeholder(str),  # a CLIP, whose text tower to take
      init_parts='',  # the paths of the parameters to take from them, '': all; 'text|autoencoder'
      compile_cache=True,
      data=dict(
        root='data/captioned',
        split='train',
        tokenizer='',
        size=512,
        augment=True,
        flip=0.0,
        boxes=0.0,
        missing_captions='drop',
        workers=8,
        on_corrupt='skip',
      ),
      synthetic={},  # of input_pipeline.synthetic, to draw scenes first; empty or None: nothing
      model=dict(
        unet=dict(remat='conv1'),
        autoencoder=dict(kind='kl'),
        text=dict(),
        schedule=dict(prediction='eps'),
        p_drop=0.1,
        dtype='bfloat16',
      ),
      optimizer=dict(
        lr=1e-4,
        lr_multipliers={},  # by path, as {'text': 0.3}
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=1e-2,
        decay_exclude='',
        decay_vectors=True,
        warmup=10_000,
        schedule='constant',
        lr_end=0.0,
        clip=config_dict.placeholder(float),
      ),
      ema=dict(decay=0.9999, warmup=True),
      mesh=dict(
        sharding='data',
        data=config_dict.placeholder(int),
        fsdp=config_dict.placeholder(int),
      ),
      checkpoint=dict(keep=3, keep_every=config_dict.placeholder(int)),
      edit=dict(count=8, steps=50, scale=7.5, sampler='plms'),
    )
  )


def tiny() -> ml_collections.ConfigDict:
  """The same keys with small numbers; comments give the reasons for other differences."""
  config = full()
  config.update(
    dict(
      seed=0,
      steps=20_000,
      batch_size=64,
      log_every=25,
      save_every=500,
      edit_every=1_000,
      data=dict(root='data/synthetic2', size=64, workers=0),
      synthetic=dict(version=2, scenes=50_000, val_scenes=512, seed=0, size=64, shards=8),
      model=dict(
        autoencoder=LATENTS,
        unet=dict(
          channels=64,
          mult=(1, 2),
          layers=1,
          attention_levels=(0, 1),
          heads=4,
          groups=8,
          remat='none',
        ),
        text=dict(vocabulary=273, length=32, width=128, layers=2, heads=4, mlp=512),
        context_dim=128,
        schedule=dict(prediction='v'),  # a small network cannot predict noise exactly
        dtype='float32',
      ),
      optimizer=dict(lr=1e-3, warmup=200, schedule='cosine', lr_end=5e-5),
      ema=dict(decay=0.999),
      edit=dict(count=8, steps=20, scale=4.0, sampler='ddim'),
    )
  )
  return config
