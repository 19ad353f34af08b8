"""The paper's benchmark (COCOEE, arXiv 2211.13227 section 4.1), or one's own in its layout.

  python -m exedit.evaluate --config=configs/coco_ee.py --weights=Paint-by-Example --output=eval \
      --config.data.root=test_bench --config.reference.root=test2017 --config.gmm=gmm.npz \
      --config.features.clip_b32=openai/clip-vit-base-patch32

3,500 edits of 512x512. Published for Paint by Example: FID 3.18 (over CLIP ViT-B/32 features:
`fid_clip_b32` here), QS 77.80, CLIP score 84.97. `--images=DIR` instead of `--weights` scores the
pictures of any other system, {id:012d}.png. Killed, it goes on; run again, it computes nothing.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  path = lambda: config_dict.placeholder(str)
  return ml_collections.ConfigDict(
    dict(
      bench='coco_ee',  # which benchmark this config is for
      data=dict(root='test_bench'),  # GT_n, Ref_n, Mask_bbox_n, id_list.npy; or packed as TFRecord
      # The edits. Settings that are None are the weights' own, else 50 steps, scale 5, PLMS.
      seed=42,
      batch_size=config_dict.placeholder(int),  # over this process's devices; 8 a device
      steps=config_dict.placeholder(int),
      scale=config_dict.placeholder(float),
      sampler=config_dict.placeholder(str),
      precision=path(),
      paste=True,  # False: the raw decode, as the paper's pictures were
      # The feature networks: files, folders or hub ids. Those of a name are the published ones;
      # `clip` and `dino` take any of that kind, and the metrics are named after what was found.
      features=dict(
        clip_b32=path(),
        clip=path(),
        inception=path(),
        lpips=path(),
        dino_s16=path(),
        dino=path(),
      ),
      # The Frechet distances' real images; the paper's: COCO test2017, 40,670 of them.
      reference=dict(root=path()),
      gmm=path(),  # the quality score's mixture: `python -m exedit.gmm` makes it
      cache=path(),  # folder of the features; None: in the user's cache folder
    )
  )
