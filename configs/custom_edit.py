"""Custom-Edit (arXiv 2305.15779): Stable Diffusion 1.x learns a concept from 4 to 15 pictures.

  python -m exedit.train --config=configs/custom_edit.py --workdir=/tmp/teapot \
      --config.init_from=CompVis/stable-diffusion-v1-4 --config.data.root=/data/teapot \
      --config.concept.name='<new1>' --config.concept.class='patterned teapot'

`full` is Custom Diffusion (arXiv 2212.04488), which the paper takes. The other methods of the
paper's comparison differ in what trains, prompts, rates and steps:

  --config=configs/custom_edit.py:textual_inversion    the row of the new word alone
  --config=configs/custom_edit.py:dreambooth           the whole UNet
  --config=configs/custom_edit.py:tiny                 Custom Diffusion of configs/sd.py:tiny

An example is a picture of the concept and one of the prior, so a batch of 4 is the 8 pictures of
the published codes. Two concepts at once are --config.concept.name='<new1>,<new2>', two classes,
--config.model.text.new=2 and 500 steps. Pictures of the class are --config.model.prior=pictures
--config.data.prior_root=DIR; `python -m input_pipeline.prior` has the model make them itself.
"""

import ml_collections
from ml_collections import config_dict

from exedit.configs import sd

KEYS_AND_VALUES = 'unet[.].*attn2[.]to_[kv]'
OBJECTS = (  # the templates of Textual Inversion
  'a photo of a {}', 'a rendering of a {}', 'a cropped photo of the {}', 'the photo of a {}',
  'a photo of a clean {}', 'a photo of a dirty {}', 'a dark photo of the {}', 'a photo of my {}',
  'a photo of the cool {}', 'a close-up photo of a {}', 'a bright photo of the {}',
  'a cropped photo of a {}', 'a photo of the {}', 'a good photo of the {}', 'a photo of one {}',
  'a close-up photo of the {}', 'a rendition of the {}', 'a photo of the clean {}',
  'a rendition of a {}', 'a photo of a nice {}', 'a good photo of a {}', 'a photo of the nice {}',
  'a photo of the small {}', 'a photo of the weird {}', 'a photo of the large {}',
  'a photo of a cool {}', 'a photo of a small {}',
)  # fmt: skip


def get_config(variant: str = 'full') -> ml_collections.ConfigDict:
  """`full` (also `custom_diffusion`), `textual_inversion`, `dreambooth` or `tiny`."""
  variants = dict(
    full=full,
    custom_diffusion=full,
    textual_inversion=textual_inversion,
    dreambooth=dreambooth,
    tiny=tiny,
  )
  if variant not in variants:
    raise ValueError(
      f"configs/custom_edit.py has no variant '{variant}'; use one of {', '.join(variants)}"
    )
  return variants[variant]()


def full() -> ml_collections.ConfigDict:
  """Custom Diffusion with the settings of its authors' code, on two GPUs."""
  return ml_collections.ConfigDict(
    dict(
      system='custom_edit',
      seed=23,
      steps=250,
      batch_size=4,  # and as many of the prior; released: 2 GPUs x 4, half of them of the prior
      accumulate=1,
      log_every=10,
      save_every=50,
      edit_every=50,
      fixed_every=25,
      fixed_examples=16,
      max_bad_steps=10,
      trainable=f'{KEYS_AND_VALUES}|text[.]new_tokens',
      # Stable Diffusion 1.x in any layout, such as CompVis/stable-diffusion-v1-4.
      init_from=config_dict.placeholder(str),
      init_clip=config_dict.placeholder(str),  # not used: the text tower is that of init_from
      init_parts='',
      compile_cache=True,
      concept=dict(
        name='<new1>', class_='', init='', keep='best'
      ),  # class_: --config.concept.class
      data=dict(
        root='',
        split='train',
        tokenizer='',
        size=512,
        templates=('photo of a {}',),
        phrase='{name} {class}',
        prompts=('photo of a {}', 'a {} on a beach', 'a {} in the snow', 'a painting of a {}'),
        augment=True,
        flip=0.5,
        small=('a far away ', 'very small '),
        large=('zoomed in ', 'close up '),
        held_out=0.2,
        prior_root='',
      ),
      synthetic={},
      model=dict(
        unet=dict(remat='conv1'),
        autoencoder=dict(kind='kl'),
        text=dict(new=1),
        schedule=dict(prediction='eps'),
        prior='prediction',
        prior_weight=1.0,
        normalisation='paper',
        before=KEYS_AND_VALUES,
        hold_first=True,
        dtype='bfloat16',
      ),
      optimizer=dict(
        lr=8e-5,  # 1e-5 x 2 GPUs x 4
        lr_multipliers={},  # by path, as {'text': 0.3}
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=1e-2,
        decay_exclude='',
        decay_vectors=True,
        warmup=0,
        schedule='constant',
        lr_end=0.0,
        clip=config_dict.placeholder(float),
      ),
      ema=dict(decay=0.0, warmup=True),
      mesh=dict(
        sharding='data',
        data=config_dict.placeholder(int),
        fsdp=config_dict.placeholder(int),
      ),
      checkpoint=dict(keep=2, keep_every=config_dict.placeholder(int)),
      edit=dict(count=4, steps=50, scale=6.0, sampler='ddim'),
    )
  )


def textual_inversion() -> ml_collections.ConfigDict:
  """Textual Inversion (arXiv 2208.01618) with the settings of diffusers' example."""
  config = full()
  config.update(
    dict(
      steps=3_000,
      batch_size=4,  # 1 in 4 parts
      accumulate=4,
      save_every=500,
      edit_every=500,
      fixed_every=100,
      trainable='text[.]new_tokens',
      concept=dict(init='{class}'),
      data=dict(templates=OBJECTS, phrase='{name}', augment=False),
      model=dict(prior='none', hold_first=False),
      optimizer=dict(lr=2e-3),  # 5e-4 x 4
    )
  )
  return config


def dreambooth() -> ml_collections.ConfigDict:
  """DreamBooth (arXiv 2208.12242) with the settings of diffusers' example.

  Its authors take pictures of the class that the model made. As everywhere here the prior needs
  none unless told, for which a second UNet is kept.
  """
  config = full()
  config.update(
    dict(
      steps=800,
      batch_size=1,
      save_every=200,
      edit_every=200,
      fixed_every=50,
      trainable='unet',
      concept=dict(init='sks'),
      data=dict(templates=('a photo of {}',), augment=False, flip=0.0),
      model=dict(before='unet', hold_first=False),
      optimizer=dict(lr=5e-6, clip=1.0),
    )
  )
  return config


def tiny() -> ml_collections.ConfigDict:
  """Custom Diffusion of the small Stable Diffusion, whose vocabulary is that of drawn scenes."""
  config, small = full(), sd.tiny().to_dict()
  config.update(
    dict(
      seed=0,
      steps=100,
      save_every=50,
      edit_every=100,
      fixed_every=10,
      data=dict(
        size=64, templates=('a {}',), prompts=('a {}', 'a {} on sand', 'a {} in the sky'),
        augment=False, small=(), large=(),
      ),
      optimizer=dict(lr=3e-4),
      edit=dict(count=3, steps=20, scale=4.0),
    )
  )  # fmt: skip
  model = {name: value for name, value in small['model'].items() if name != 'p_drop'}
  names = 'prior', 'prior_weight', 'normalisation', 'before', 'hold_first'
  own = {name: config.to_dict()['model'][name] for name in names}
  config.model = ml_collections.ConfigDict({**model, **own, 'text': {**model['text'], 'new': 1}})
  return config
