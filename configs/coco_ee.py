"""The paper's benchmark (COCOEE, arXiv 2211.13227 section 4.1), or another one in its layout.

  python -m exedit.evaluate --config=configs/coco_ee.py --weights=Paint-by-Example --output=eval \
      --config.data.root=test_bench --config.reference.root=test2017 --config.gmm=gmm.npz \
      --config.features.clip_b32=openai/clip-vit-base-patch32

COCOEE has 3,500 edits of 512x512. Published for Paint by Example: FID 3.18 (over CLIP ViT-B/32
features: `fid_clip_b32` here), QS 77.80, CLIP score 84.97. `--images=DIR` instead of `--weights`
scores the pictures {id:012d}.png of any other system. A repeated run continues a stopped one, and
computes nothing again.

`configs/coco_ee.py:published` makes the edits as the released code does, to be compared with the
published numbers. docs/agreement.md lists what still differs.
"""

import ml_collections
from ml_collections import config_dict


def get_config(variant: str = 'own') -> ml_collections.ConfigDict:
  """`own`: with the weights' own settings; `published`: with the released code's."""
  variants = dict(own=own, published=published)
  if variant not in variants:
    names = ' or '.join(variants)
    raise ValueError(f"configs/coco_ee.py has no variant '{variant}'; use {names}")
  return variants[variant]()


def own() -> ml_collections.ConfigDict:
  path = lambda: config_dict.placeholder(str)
  return ml_collections.ConfigDict(
    dict(
      bench='coco_ee',  # which benchmark this config is for
      data=dict(root='test_bench'),  # GT_n, Ref_n, Mask_bbox_n, id_list.npy; or packed as TFRecord
      # How to make the edits. None means the weights' own setting, else 50 steps of PLMS
      # and scale 5 (7.5 for Stable Diffusion).
      seed=42,
      batch_size=config_dict.placeholder(int),  # for all devices of a process; None: 8 per device
      steps=config_dict.placeholder(int),
      scale=config_dict.placeholder(float),
      sampler=config_dict.placeholder(str),
      spacing=config_dict.placeholder(str),
      mask_resize=config_dict.placeholder(str),
      guidance_interval=config_dict.placeholder(str),  # such as '0.2,0.8'
      strength=config_dict.placeholder(float),  # of Blended Diffusion, from 0 to 1
      clip_scale=config_dict.placeholder(float),  # of Blended Diffusion by the exemplar
      views=config_dict.placeholder(int),  # that CLIP sees of the hole there
      # For systems with texts: a list with id, and prompt or category; the prompt of a category.
      prompts=path(),
      prompt='{category}',  # or 'a photo of {category}'
      precision=path(),
      paste=True,  # False: the raw decode
      truncate=False,  # True: pixels are rounded down to bytes
      # The feature networks: files, folders or hub ids. clip_b32, inception and dino_s16 must be
      # the published ones. clip and dino may be any of their kind, and the metrics tell which.
      features=dict(
        clip_b32=path(),
        clip=path(),
        inception=path(),
        lpips=path(),
        dino_s16=path(),
        dino=path(),
      ),
      # The real images of the Frechet distances; the paper used COCO test2017 (40,670 images).
      reference=dict(root=path()),
      gmm=path(),  # the quality score's mixture, made by `python -m exedit.gmm`
      cache=path(),  # folder of the features; None: one in the user's cache folder
    )
  )


def published() -> ml_collections.ConfigDict:
  """The settings of PbE scripts/inference_test_bench.py, with the scale of its README.

  The masks of a benchmark are files, so `mask_dedupe` has no place here: configs/pbe.py:published
  trains with it.
  """
  config = own()
  config.update(
    steps=50,
    scale=5.0,
    sampler='plms',
    spacing='ldm',
    mask_resize='bilinear',
    precision='float32',  # the released code: float16 by PyTorch's autocast
    paste=False,
    truncate=True,
  )
  return config
