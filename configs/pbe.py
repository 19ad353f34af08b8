"""Paint by Example (arXiv 2211.13227): the published recipe, and the same recipe at a tiny size.

  python -m exedit.train --config=configs/pbe.py --workdir=/mnt/bucket/run \
      --config.data.root=/data/open_images

Open Images boxes at 512x512, 40 epochs at a global batch of 256 (64 V100s x 4 images, about 7 days
in the paper), AdamW at a constant 1e-5 after 10,000 warm-up steps, EMA off, 20 % of the exemplars
dropped. Expected on COCOEE: FID 3.18 (over CLIP ViT-B/32 features), QS 77.80, CLIP score 84.97.
Not run here, because neither the images nor the pods were available.

  python -m exedit.train --config=configs/pbe.py:tiny --workdir=/tmp/tiny

The same code small enough for two CPU cores, on synthetic scenes that it draws first.

  python -m exedit.train --config=configs/pbe.py:published --workdir=/mnt/bucket/published

The recipe with the released code's choices where exedit's own are others (docs/agreement.md): one
coin per batch drops the exemplars, mask outlines lose repeated points, and all is float32.

  python -m exedit.train --config=configs/pbe.py:lineage --workdir=/tmp/pbe \
      --config.init_from=/tmp/sd --config.init_clip=/tmp/clip

The tiny size again, but as the paper does: from a small Stable Diffusion and a small CLIP, with the
image tower frozen. `launch/tiny_world.sh` trains all of them.

The rows of the paper's ablation (table 1), at full size and tiny. Each adds one thing to the row
before it. `launch/ablation.sh` trains and scores the tiny ones; docs/ablation.md has the results.

  baseline      all of CLIP's tokens (257; tiny: 17) as context; the UNet from random weights
  prior         + the UNet of Stable Diffusion; tiny: of `generator:tiny`, which is trained first
  augmentation  + exemplars flipped, turned, blurred and bent, masks of arbitrary shape
  bottleneck    + the class token alone
  guidance      + 20 % of the exemplars dropped, and a scale above 1: the recipe itself

  python -m exedit.train --config=configs/pbe.py:bottleneck --workdir=/mnt/bucket/bottleneck
  python -m exedit.train --config=configs/pbe.py:bottleneck:tiny --workdir=/tmp/bottleneck \
      --config.init_from=/tmp/generator
"""

import ml_collections
from ml_collections import config_dict

from exedit.configs import clip, sd

ROWS = ('baseline', 'prior', 'augmentation', 'bottleneck', 'guidance')


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  """`full`, `tiny`, `lineage`, `published`, a row of the ablation, `ROW:tiny`, `generator:tiny`."""
  variants = {'full': full, 'tiny': tiny, 'lineage': lineage, 'published': published}
  variants |= {'generator:tiny': generator}
  variants |= {name: lambda name=name: row(name, full()) for name in ROWS}
  variants |= {f'{name}:tiny': lambda name=name: row(name, tiny()) for name in ROWS}
  if variant not in variants:
    *names, last = variants
    raise ValueError(f"configs/pbe.py has no variant '{variant}'; use {', '.join(names)} or {last}")
  return variants[variant]()


def full() -> ml_collections.ConfigDict:
  """The published sizes and settings (docs/facts.md)."""
  return ml_collections.ConfigDict(
    dict(
      system='paint_by_example',
      seed=23,
      steps=300_000,
      batch_size=256,  # over all devices; the released yaml has 8 GPUs x 4
      accumulate=1,
      log_every=100,
      save_every=2_000,
      edit_every=5_000,
      max_bad_steps=10,
      trainable='unet|conditioner',
      # Paint by Example in any layout; or Stable Diffusion 1.x, and the image tower that it lacks.
      # The paper's: CompVis/stable-diffusion-v1-4 and openai/clip-vit-large-patch14.
      init_from=config_dict.placeholder(str),
      init_clip=config_dict.placeholder(str),
      init_parts='',  # the paths of the parameters to take from them; '': all
      compile_cache=True,
      data=dict(
        root='data/open_images',
        split='train',
        size=512,
        exemplar_size=224,
        augment=True,
        arbitrary_mask=0.5,
        workers=8,
        on_corrupt='skip',
      ),
      synthetic={},  # of input_pipeline.synthetic, to draw scenes first; empty or None: nothing
      model=dict(
        unet=dict(remat='conv1'),
        autoencoder=dict(kind='kl'),
        clip=dict(),
        conditioner=dict(),
        schedule=dict(prediction='eps'),
        p_drop=0.2,
        drop='example',
        bottleneck=True,
        dtype='bfloat16',
      ),
      optimizer=dict(
        lr=1e-5,
        lr_multipliers={},  # by path, as {'clip|conditioner': 0.3}
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=1e-2,
        # Weight decay acts on all parameters, as in the released run. With one token of context
        # r'attn2[.]to_[qk]|attention.*norm2[.]|mapper.*to_[qk]' have no effect and could be
        # excluded; decay_vectors=False excludes norms and biases.
        decay_exclude='',
        decay_vectors=True,
        warmup=10_000,
        schedule='constant',
        lr_end=0.0,
        clip=config_dict.placeholder(float),
      ),
      ema=dict(decay=0.0, warmup=True),  # off, as released
      # sharding is data, zero1 or fsdp (arXiv 1910.02054); the sizes are needed only to mix copies
      # and parts (training/sharding.py).
      mesh=dict(
        sharding='data',
        data=config_dict.placeholder(int),
        fsdp=config_dict.placeholder(int),
      ),
      checkpoint=dict(keep=3, keep_every=config_dict.placeholder(int)),
      edit=dict(count=8, steps=50, scale=5.0, sampler='plms'),
    )
  )


def tiny() -> ml_collections.ConfigDict:
  """The same keys with small numbers; comments give the reasons for other differences."""
  config = full()
  config.update(
    dict(
      seed=0,
      steps=1_800,
      batch_size=64,
      log_every=25,
      save_every=250,
      edit_every=500,
      trainable='unet|conditioner|clip',  # the tower too, because nothing here is pretrained
      data=dict(
        root='data/synthetic',
        size=32,
        exemplar_size=32,
        exemplar_pad=2,  # pixels of a scene of 64 pixels; the published number is for photographs
        mask_jitter=1,
        blur_kernels=(3,),
        workers=0,
      ),
      synthetic=dict(scenes=20_000, val_scenes=512, seed=0, size=64, shards=4),
      model=dict(
        # This recipe starts from nothing, so that it needs no other training (`lineage` starts from
        # trained networks). A fixed, exactly invertible transform replaces the autoencoder behind
        # the same encode and decode. Scale and mean give latents of unit variance.
        autoencoder=dict(kind='space_to_depth', patch=4, scale=3.6, mean=-0.27),
        unet=dict(
          channels=56,
          mult=(1, 2),
          layers=1,
          attention_levels=(0, 1),
          heads=4,
          groups=8,
          remat='none',
        ),
        clip=dict(width=128, layers=2, heads=4, mlp=256, patch=8, image_size=32),
        conditioner=dict(layers=1),
        context_dim=128,
        # A network of 56 channels can predict the picture, but not the noise of 48 latent channels
        # exactly; with the prediction 'v' the results were grainy.
        schedule=dict(prediction='x0'),
        dtype='float32',
      ),
      optimizer=dict(
        lr=2e-3,
        lr_multipliers={'clip|conditioner': 0.3},  # then a tower from scratch learns colours sooner
        warmup=100,
        schedule='cosine',
        lr_end=1e-4,
      ),
      ema=dict(decay=0.999),
      edit=dict(count=8, steps=20, scale=3.0, sampler='ddim'),
    )
  )
  return config


def lineage() -> ml_collections.ConfigDict:
  """`tiny` with the networks of `configs/sd.py:tiny` and `configs/clip.py:tiny` to start from."""
  config, prior, towers = tiny(), sd.tiny().to_dict(), clip.tiny().to_dict()
  networks = ('autoencoder', 'unet', 'context_dim', 'schedule')
  model = {name: prior['model'][name] for name in networks} | dict(clip=towers['model']['clip'])
  for group, values in (('model', model), ('optimizer', dict(lr_multipliers={}))):
    for name, value in values.items():  # `update` would merge them with those of `tiny`
      setattr(config[group], name, value)
  config.synthetic = prior['synthetic']
  config.update(
    trainable='unet|conditioner',
    data={name: prior['data'][name] for name in ('root', 'size')},
    optimizer=dict(lr=5e-4),
  )
  return config


def published() -> ml_collections.ConfigDict:
  """The full recipe with the released code's choices where ours are others."""
  config = full()
  config.update(
    data=dict(mask_dedupe=True),
    model=dict(drop='batch', dtype='float32'),
    edit=dict(spacing='ldm'),
  )
  return config


def row(name: str, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A row of the ablation: the full recipe without the things that later rows add."""
  has = lambda thing: ROWS.index(thing) <= ROWS.index(name)
  if config.synthetic:
    # The tiny rows start from nothing, except for the prior: the user must set init_from.
    config.update(init_parts='unet' if has('prior') else '')
  else:
    config.update(
      init_from='CompVis/stable-diffusion-v1-4',
      init_clip='openai/clip-vit-large-patch14',
      init_parts='' if has('prior') else 'autoencoder|clip',
    )
  if not has('augmentation'):
    config.update(data=dict(augment=False, arbitrary_mask=0.0))
  config.update(model=dict(bottleneck=has('bottleneck')))
  if not has('guidance'):
    config.update(model=dict(p_drop=0.0), edit=dict(scale=1.0))
  return config


def generator() -> ml_collections.ConfigDict:
  """The tiny prior: the same UNet, trained to fill holes without an exemplar.

  It takes the place of Stable Diffusion, so that the tiny rows need neither captions nor a text
  tower. Unlike Stable Diffusion it learns to fill holes. CLIP and conditioner keep their random
  weights, and the rows do not take them.
  """
  config = tiny()
  config.update(trainable='unet|conditioner[.]null', model=dict(p_drop=1.0), edit=dict(scale=1.0))
  return config
